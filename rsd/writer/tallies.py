"""Sums for the statistics: per prompt and parameter, per score, per reason of failure."""

from __future__ import annotations

from rsd.vocabulary import Candidate
from rsd.writer.records import Tally
from rsd.writer.store import Transaction

#: Width of a score bucket, in points.
BUCKET = 5


class Tallies:
    """The tallies that one transaction touches; each row is read and written once."""

    def __init__(self, txn: Transaction) -> None:
        self._txn = txn
        self._rows: dict[str, Tally] = {}

    def _row(self, name: str) -> Tally:
        row = self._rows.get(name)
        if row is None:
            row = self._txn.load("tallies", name.encode(), Tally) or Tally()
            self._rows[name] = row
        return row

    def generated(self, made: Candidate) -> None:
        """A candidate was stored."""
        for name in levels(made):
            self._row(name).generated += 1

    def graded(self, made: Candidate, score: float) -> None:
        """A candidate got its first grade."""
        for name in levels(made):
            row = self._row(name)
            row.graded += 1
            row.score_sum += score
        self._row(bucket("score", score)).count += 1

    def won(self, made: Candidate, score: float, *, accepted: bool) -> None:
        """A candidate was kept as the best of its image."""
        for name in levels(made):
            row = self._row(name)
            row.wins += 1
            row.accepted += accepted
        self._row(bucket("best", score)).count += 1

    def count(self, kind: str, reason: str) -> None:
        """One more failure for this reason."""
        self._row(f"{kind}:{reason[:200]}").count += 1

    def finish(self) -> None:
        """Write what was touched."""
        for name, row in self._rows.items():
            self._txn.put("tallies", name.encode(), row)


def levels(made: Candidate) -> tuple[str, ...]:
    """The rows that a candidate counts in."""
    params = made.params
    return (
        f"prompt:{made.prompt_key[:200]}",
        f"temperature:{params.temperature:g}",
        f"top_p:{params.top_p:g}",
        f"top_k:{params.top_k}",
    )


def bucket(kind: str, score: float) -> str:
    """`score:85` holds 85 to 89.99; 100 is in `score:95`."""
    return f"{kind}:{min(100 - BUCKET, int(score // BUCKET) * BUCKET)}"
