"""Facts applied to the store: each touches all it concerns in one transaction; twice is once."""

from __future__ import annotations

from rsd.protocol import facts as f
from rsd.protocol.learned import Learned
from rsd.protocol.vocabulary import Stats
from rsd.state.records import Applied
from rsd.state.transaction import Transaction
from rsd.writer.apply_candidates import CandidateRules
from rsd.writer.apply_images import ImageRules
from rsd.writer.learn import LearnRules
from rsd.writer.ledger import Ledger


class Application:
    """One transaction's worth of facts; `finish` writes the counters."""

    def __init__(self, txn: Transaction, life: str) -> None:
        self.txn = txn
        self._ledger = Ledger(txn)
        # Only the latest hub's facts can come again: an older one is dead.
        last = txn.load("meta", b"applied", Applied)
        known = last is not None and last.life == life
        self._applied = last if last is not None and known else Applied(life=life, seq=0)
        self.learned: tuple[Learned, ...] = ()  #: records that were changed, once it is finished
        self._learn = LearnRules(self._ledger)
        images, candidates = ImageRules(self._ledger, self._learn), CandidateRules(self._ledger)
        self._rules = images.rules | candidates.rules | self._learn.rules

    def apply(self, numbered: f.Numbered) -> None:
        """Apply a fact unless this life's facts up to its number are applied already."""
        if numbered.seq <= self._applied.seq:
            return
        self._applied.seq = numbered.seq
        self._rules[type(numbered.fact)](numbered.fact)

    def filed(self, rows: list[bytes]) -> None:
        """These rows of the outbox have become files."""
        for row in rows:
            if self.txn.delete("outbox", row):
                self._ledger.stats.outbox -= 1

    def finish(self) -> Stats:
        """Write counters and the number of the last fact."""
        self._ledger.tallies.finish()
        self.learned = self._learn.finish()
        self.txn.put("stats", b"all", self._ledger.stats)
        self.txn.put("meta", b"applied", self._applied)
        return self._ledger.stats
