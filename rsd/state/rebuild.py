"""What is learned, summed up again from the lessons that are stored, and compared bit by bit."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from msgspec import Struct

from rsd.protocol.learned import Learned, nothing_learned
from rsd.state import lessons, view
from rsd.state.records import LessonRecord, lesson_key, prior_key
from rsd.state.store import Store
from rsd.state.transaction import Transaction


class Rebuilt(Struct, frozen=True, kw_only=True):
    """A record as it is stored, and as its prior and its lessons make it."""

    key: str
    lessons: int
    unlearned: int  #: lessons that cannot be learned: they change nothing
    stored: Learned | None
    summed: Learned | None  #: None: nothing makes it

    @property
    def equal(self) -> bool:
        """Whether both are the same to the last bit."""
        return msgspec.json.encode(self.stored) == msgspec.json.encode(self.summed)

    @property
    def differences(self) -> tuple[str, ...]:
        """The fields that differ."""
        if self.stored is None or self.summed is None:
            return () if self.equal else ("all of it",)
        return tuple(
            name
            for name in Learned.__struct_fields__
            if msgspec.json.encode(getattr(self.stored, name))
            != msgspec.json.encode(getattr(self.summed, name))
        )


class _Start(Struct, frozen=True, kw_only=True):
    key: str
    stored: Learned | None
    first: Learned | None
    lessons: int


def rebuild(store: Store, on_progress: Callable[[], None] = lambda: None) -> list[Rebuilt]:
    """All records, in the order of their keys. What is committed meanwhile is left out.

    Raises StateError when the state is damaged.
    """
    with store.reading() as txn:
        starts = [_start(txn, name) for name in _keys(txn)]
    return [_again(store, start, on_progress) for start in starts]


def _keys(txn: Transaction) -> list[str]:
    """Whatever has a record, a prior or a lesson."""
    found = {row[: lessons.KEY_DIGITS] for row, _ in txn.scan("learned")}
    after = b""
    while rows := txn.scan("lessons", start=after, limit=1):
        prefix = rows[0][0][: lessons.KEY_DIGITS]
        found.add(prefix)
        after = prefix + b"\xff" * 9  # behind its last lesson
    return [name.decode() for name in sorted(found)]


def _start(txn: Transaction, name: str) -> _Start:
    first = txn.load("learned", prior_key(name), Learned)
    row = txn.load("lessons", lesson_key(name, 1), LessonRecord)
    recipe = view.recipe_of(txn, row.config) if row is not None else None
    # All recipes of a key begin with the same: one that is lost need not take the others along.
    recipe = recipe or lessons.last_recipe(txn, name)
    if first is None and recipe is not None:
        first = nothing_learned(recipe)
    return _Start(
        key=name,
        stored=txn.load("learned", name.encode(), Learned),
        first=first,
        lessons=lessons.last_number(txn, name),
    )


def _again(store: Store, start: _Start, on_progress: Callable[[], None]) -> Rebuilt:
    summed, after, unlearned = start.first, 0, 0
    while after < start.lessons:
        on_progress()
        with store.reading() as txn:
            rows = lessons.page(txn, start.key, after, start.lessons)
            taught = [lessons.lesson_of(txn, row) for row in rows]
        if not rows:
            break
        after += len(rows)
        for lesson in taught:
            if summed is not None:
                summed, failed = lessons.taught(summed, lesson)
                unlearned += failed is not None
    return Rebuilt(
        key=start.key, lessons=after, unlearned=unlearned, stored=start.stored, summed=summed
    )


def replace_records(store: Store, found: list[Rebuilt]) -> None:
    """Store what was summed up. Nobody else may have the store open for writing."""

    def work(txn: Transaction) -> None:
        for one in found:
            if one.summed is None:
                txn.delete("learned", one.key.encode())
            else:
                txn.put("learned", one.key.encode(), one.summed)

    store.write(work)
