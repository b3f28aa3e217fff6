"""One transaction's records and counters: what every fact does to an image, its queue and its file.

The counters change only together with what they count, so they are exact by construction. `seen` is
always the sum of the seven classes.
"""

from __future__ import annotations

from rsd.protocol.vocabulary import CallError, Candidate, Grade, ImageId, ImageStatus, Recipe, Stats
from rsd.state import view
from rsd.state.lessons import ADAPTIVE
from rsd.state.records import (
    CLASSES,
    FAILED,
    HIGH,
    LOW,
    ImageRecord,
    OutboxRecord,
    key,
    key32,
    key64,
)
from rsd.state.tallies import Tallies, score_of
from rsd.state.transaction import Transaction, class_key, decode


class Ledger:
    """What the facts of one transaction share."""

    def __init__(self, txn: Transaction) -> None:
        self.txn = txn
        self.stats: Stats = txn.stats()
        self.tallies = Tallies(txn)
        self._recipes: dict[str, Recipe | None] = {}  # by fingerprint
        self._rubrics: dict[str, str] = {}  # of these recipes

    def recipe(self, config: str) -> Recipe | None:
        """A stored recipe; None when it is not stored."""
        if config not in self._recipes:
            self._recipes[config] = view.recipe_of(self.txn, config) if config else None
        return self._recipes[config]

    def rubric(self, config: str) -> str:
        """The rubric of a stored recipe; "" when it is not stored."""
        if config not in self._rubrics:
            recipe = self.recipe(config)
            self._rubrics[config] = recipe.rubric if recipe is not None else ""
        return self._rubrics[config]

    def rescore(self, image: ImageId, before: str, after: str) -> None:
        """An image goes on under another rubric: its candidates' scores are taken out of the
        tallies, and what the new rubric has given them already is put in.
        """
        if before == after:
            return
        grades: dict[int, list[Grade]] = {}
        for _, value in self.txn.scan("grades", prefix=key(image)):
            grade = decode(Grade, value)
            grades.setdefault(grade.index, []).append(grade)
        for index, given in grades.items():
            made = self.candidate(image, index)
            if made is not None:
                self.score(made, score_of(given, before), score_of(given, after))

    def score(self, made: Candidate, before: float | None, after: float | None) -> None:
        """A candidate's score changes; None is no score."""
        self.stats.graded += (after is not None) - (before is not None)
        recipe = self.recipe(made.config)
        selected = recipe is not None and recipe.strategy == ADAPTIVE and not made.explore
        self.tallies.scored(made, before, after, selected=selected)

    def image(self, image: ImageId) -> ImageRecord | None:
        """The record of an image id."""
        return self.txn.load("images", key(image), ImageRecord)

    def save(self, record: ImageRecord) -> None:
        """Store a record."""
        self.txn.put("images", key(record.image), record)

    def candidate(self, image: ImageId, index: int) -> Candidate | None:
        """A stored candidate."""
        return self.txn.load("candidates", key32(image, index), Candidate)

    def count(self, status: ImageStatus, by: int) -> None:
        """An image enters or leaves a class."""
        if status in CLASSES:
            setattr(self.stats, status, getattr(self.stats, status) + by)

    def move(self, record: ImageRecord, status: ImageStatus, reason: str = "") -> None:
        """Change an image's class: in the record, the counters and the index."""
        self.count(record.status, -1)
        if record.status == FAILED:
            self.tallies.count("failed", record.reason, -1)
        self.txn.delete("classes", class_key(record.status, record.image))
        record.status, record.reason, record.message = status, reason, ""
        self.count(status, +1)
        if status == FAILED:
            self.tallies.count("failed", reason)
        if status in (FAILED, LOW, HIGH):
            self.txn.put("classes", class_key(status, record.image), b"")

    def queue(self, record: ImageRecord) -> None:
        """Put an image at the end of the backlog, or of the lane before it when a person named it.

        An image has one row at most, and one that has a row keeps its place: the hub may have read
        it already.
        """
        if record.queue_seq:
            return
        if record.first:
            self.stats.priority_high += 1
            record.queue_seq, record.first = self.stats.priority_high, False
        else:
            self.stats.backlog_high += 1
            record.queue_seq = self.stats.backlog_high
        self.txn.put("backlog", key64(record.queue_seq), key(record.image))

    def unqueue(self, record: ImageRecord) -> None:
        """Take an image out of the backlog."""
        if record.queue_seq:
            self.txn.delete("backlog", key64(record.queue_seq))
            record.queue_seq = 0

    def file(self, record: ImageRecord, destination: str) -> None:
        """The image's file belongs there from now on; the outbox makes it so."""
        record.filed = destination
        self.count_win(record, +1)
        last = self.txn.last_key("outbox")
        seq = int.from_bytes(last, "big") + 1 if last else 1
        row = OutboxRecord(image=record.image, destination=destination)
        self.txn.put("outbox", key64(seq), row)
        self.stats.outbox += 1

    def count_win(self, record: ImageRecord, by: int) -> None:
        """Winners are tallied as long as their result is the one on file."""
        if record.filed not in (HIGH, LOW) or record.winner is None or record.score is None:
            return
        made = self.candidate(record.image, record.winner)
        if made is not None:
            self.tallies.won(made, record.score, accepted=record.filed == HIGH, by=by)


def error_word(error: CallError) -> str:
    """What an error is counted under."""
    return error.reason or error.error.value
