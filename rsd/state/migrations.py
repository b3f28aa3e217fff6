"""Formats of the state: each number has a function that brings the one before to it, in pieces.

A piece is one transaction, and `meta` says in that transaction how far it has come: a kill leaves
either the piece before or this one, whole, and the next start goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from rsd.protocol.facts import PlannedGrading, StepChosen
from rsd.protocol.vocabulary import FIRST_QUEUE, Candidate, Grade, Recipe, Stats
from rsd.state.records import HIGH, LOW, ImageRecord, key, key64
from rsd.state.tallies import Tallies, score_of
from rsd.state.transaction import Transaction, decode

#: Format of what is stored; raised with every change, each with a function in MIGRATIONS.
SCHEMA: Final = 3
#: Images of one piece.
PIECE: Final = 128

#: Does the piece behind a key of `images` (b"": the first one). Returns the last key that it did,
#: or None when nothing is left.
Migration = Callable[[Transaction, bytes], bytes | None]


def _first_format(txn: Transaction, after: bytes) -> None:
    txn.put("stats", b"all", Stats())


def _explicit_gradings(txn: Transaction, after: bytes) -> bytes | None:
    """Steps name the grades that they buy, grades their rubric, and the backlog has a lane before
    it: its numbers move up. What a grader's effort was, format 1 did not store: it is "".
    """
    work = _ToFormat2(txn)
    if not after:
        work.stats.backlog_high += FIRST_QUEUE
    rows = txn.scan("images", start=after + b"\0" if after else b"", limit=PIECE)
    for _, value in rows:
        work.image(decode(ImageRecord, value))
    work.finish()
    return rows[-1][0] if len(rows) == PIECE else None


class _ToFormat2:
    """One piece of the way from format 1 to 2."""

    def __init__(self, txn: Transaction) -> None:
        self.txn = txn
        self.stats = txn.stats()
        self.tallies = Tallies(txn)
        self._recipes: dict[str, Recipe | None] = {}

    def finish(self) -> None:
        self.tallies.finish()
        self.txn.put("stats", b"all", self.stats)

    def image(self, record: ImageRecord) -> None:
        prefix = key(record.image)
        made = {
            c.index: c for c in (decode(Candidate, v) for _, v in self._rows("candidates", prefix))
        }
        self._queue(record)
        if record.decision:
            winner = made.get(record.winner) if record.winner is not None else None
            ended = record.status in (HIGH, LOW) or winner is None
            record.decided_config = record.config if ended or winner is None else winner.config
        self.txn.put("images", prefix, record)
        graded: dict[int, list[Grade]] = {}
        for row, value in self._rows("grades", prefix):
            grade = decode(Grade, value)
            candidate = made.get(grade.index)
            rubric = self._rubric(candidate.config if candidate else record.config)
            grade = msgspec.structs.replace(grade, rubric=rubric)
            self.txn.put("grades", row, grade)
            graded.setdefault(grade.index, []).append(grade)
        self._steps(record, prefix, made)
        self._scores(record, made, graded)

    def _queue(self, record: ImageRecord) -> None:
        if record.queue_seq:
            self.txn.delete("backlog", key64(record.queue_seq))
            record.queue_seq += FIRST_QUEUE
            self.txn.put("backlog", key64(record.queue_seq), key(record.image))

    def _steps(self, record: ImageRecord, prefix: bytes, made: dict[int, Candidate]) -> None:
        wanted: dict[int, int] = {}  # candidate -> grades that were asked for so far
        for row, value in self._rows("steps", prefix):
            step = decode(StepChosen, value)
            configs = [made[p.index].config for p in step.samples if p.index in made]
            config = configs[0] if configs else record.config
            recipe = self._recipe(config)
            repeats = recipe.repeats if recipe is not None else 1
            gradings = [
                PlannedGrading(index=planned.index, number=number)
                for planned in step.samples
                for number in range(repeats)
            ]
            wanted.update({planned.index: repeats for planned in step.samples})
            for index in step.regrade:
                number = wanted.get(index, 0)
                gradings.append(PlannedGrading(index=index, number=number))
                wanted[index] = number + 1
            explicit = msgspec.structs.replace(
                step, gradings=tuple(gradings), rubric=self._rubric(config), regrade=()
            )
            self.txn.put("steps", row, explicit)

    def _scores(
        self, record: ImageRecord, made: dict[int, Candidate], graded: dict[int, list[Grade]]
    ) -> None:
        """In format 1 all grades counted; only those of the image's recipe still do."""
        mine = self._rubric(record.config)
        for index, grades in graded.items():
            rubric = grades[0].rubric  # all have that of their candidate
            if index in made and rubric != mine:
                self.tallies.scored(made[index], score_of(grades, rubric), None)
                self.stats.graded -= 1

    def _rows(self, database: str, prefix: bytes) -> list[tuple[bytes, bytes]]:
        return self.txn.scan(database, prefix=prefix)

    def _recipe(self, config: str) -> Recipe | None:
        if config not in self._recipes:
            found = self.txn.load("configs", config.encode(), Recipe) if config else None
            self._recipes[config] = found
        return self._recipes[config]

    def _rubric(self, config: str) -> str:
        recipe = self._recipe(config)
        return recipe.rubric if recipe is not None else ""


def _lessons(txn: Transaction, after: bytes) -> None:
    """Images say whether they were learned from. There is nothing to change, but an older rsd would
    lose these marks with the first record that it writes, and so it must refuse.
    """


#: Format number -> function that brings the one before to it.
MIGRATIONS: Final[dict[int, Migration]] = {
    1: _first_format,
    2: _explicit_gradings,
    3: _lessons,
}
