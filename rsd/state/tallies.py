"""Sums for the statistics: per prompt and parameter, per score, per reason of failure."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean

from rsd.protocol.vocabulary import Candidate, Grade
from rsd.state.records import Tally
from rsd.state.transaction import Transaction

#: Width of a score bucket, in points.
BUCKET = 5
#: Longest key of a row, in bytes.
KEY_BYTES = 500


class Tallies:
    """The tallies that one transaction touches; each row is read and written once."""

    def __init__(self, txn: Transaction) -> None:
        self._txn = txn
        self._rows: dict[str, Tally] = {}

    def _row(self, name: str) -> Tally:
        row = self._rows.get(name)
        if row is None:
            row = self._txn.load("tallies", row_key(name), Tally) or Tally()
            self._rows[name] = row
        return row

    def generated(self, made: Candidate) -> None:
        """A candidate was stored."""
        for name in levels(made):
            self._row(name).generated += 1

    def scored(
        self, made: Candidate, before: float | None, after: float | None, *, selected: bool = False
    ) -> None:
        """A candidate's score changes from `before` to `after`; None is no score. `selected`: it
        was graded for what it says.
        """
        count = (after is not None) - (before is not None)
        change = (after or 0.0) - (before or 0.0)
        for name in levels(made):
            row = self._row(name)
            row.graded += count
            row.score_sum += change
            if selected:
                row.selected += count
                row.selected_sum += change
            if not row.graded:
                row.score_sum = 0.0  # what rounding left
            if not row.selected:
                row.selected_sum = 0.0
        if before is not None:
            self._row(bucket("score", before)).count -= 1
        if after is not None:
            self._row(bucket("score", after)).count += 1

    def won(self, made: Candidate, score: float, *, accepted: bool, by: int = 1) -> None:
        """A candidate is filed as the best of its image, or (`by=-1`) is so no longer."""
        for name in levels(made):
            row = self._row(name)
            row.wins += by
            row.accepted += by * accepted
        self._row(bucket("best", score)).count += by

    def count(self, kind: str, reason: str, by: int = 1) -> None:
        """One more failure for this reason, or (`by=-1`) one less."""
        self._row(f"{kind}:{reason}").count += by

    def finish(self) -> None:
        """Write what was touched; rows that count nothing any more go away."""
        for name, row in self._rows.items():
            if row == Tally():
                self._txn.delete("tallies", row_key(name))
            else:
                self._txn.put("tallies", row_key(name), row)


def score_of(grades: Iterable[Grade], rubric: str) -> float | None:
    """A candidate's score: the mean of its grades of one rubric; None when it has none."""
    scores = [g.score for g in grades if g.rubric == rubric]
    return fmean(scores) if scores else None


def row_key(name: str) -> bytes:
    """A row's key: LMDB takes 511 bytes at most."""
    return name.encode()[:KEY_BYTES].decode("utf-8", "ignore").encode()


def levels(made: Candidate) -> tuple[str, ...]:
    """The rows that a candidate counts in."""
    params = made.params
    return (
        f"prompt:{made.prompt_key}",
        f"temperature:{params.temperature:g}",
        f"top_p:{params.top_p:g}",
        f"top_k:{params.top_k}",
    )


def bucket(kind: str, score: float) -> str:
    """`score:85` holds 85 to 89.99; 100 is in `score:95`."""
    return f"{kind}:{min(100 - BUCKET, int(score // BUCKET) * BUCKET)}"
