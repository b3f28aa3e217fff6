"""What is ready and what waits. Pure: times are given."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rsd.hub.brain.queue import Work, WorkKind, WorkQueue
from rsd.protocol.vocabulary import Role


def call(name: str, kind: WorkKind = WorkKind.GENERATE) -> Work:
    role = Role.GRADE if kind is WorkKind.GRADE else Role.GENERATE
    return Work(kind=kind, image=name, role=role)


def names(queue: WorkQueue, role: Role = Role.GENERATE) -> list[str]:
    return [work.image for work in queue.calls[role]]


def test_what_is_due_together_keeps_its_order_and_comes_first() -> None:
    queue = WorkQueue(Role)
    queue.add(call("new"))
    for name, at in (("b", 2.0), ("c", 2.0), ("a", 1.0), ("later", 9.0)):
        queue.later(call(name), at)
    queue.later(call("grade", WorkKind.GRADE), 2.0)
    assert queue.delayed == 5 and queue.waiting(Role.GENERATE) == 5
    queue.due(2.0)
    assert names(queue) == ["a", "b", "c", "new"]
    assert names(queue, Role.GRADE) == ["grade"]
    assert queue.delayed == 1 and queue.waiting(Role.GENERATE) == 5


def test_what_comes_back_together_keeps_its_order() -> None:
    queue = WorkQueue(Role)
    queue.add(call("new"))
    queue.add_first(call("a"), call("b"), call("picture", WorkKind.PREPARE))
    assert names(queue) == ["a", "b", "new"]
    assert [work.image for work in queue.pictures] == ["picture"]


def test_what_nobody_wants_is_dropped_wherever_it_waits() -> None:
    queue = WorkQueue(Role)
    queue.add(call("x"))
    queue.add(call("x", WorkKind.GRADE))
    queue.add(call("x", WorkKind.PREPARE))
    queue.later(call("x"), 1.0)
    queue.later(call("y"), 2.0)
    queue.drop(lambda work: work.image != "x")
    assert [work.image for work in queue] == ["y"]


@given(st.lists(st.tuples(st.sampled_from(WorkKind), st.integers(0, 9)), max_size=40))
def test_waiting_calls_are_counted_without_a_look_at_each(work: list[tuple[WorkKind, int]]) -> None:
    queue = WorkQueue(Role)

    def right() -> bool:
        there = [w.role for w in queue if w.kind.pays]
        return all(queue.waiting(role) == there.count(role) for role in Role)

    for kind, at in work:
        queue.later(call(str(at), kind), float(at))
        assert right()
    queue.due(4.0)
    assert right()
    queue.drop(lambda w: w.image != "7")
    assert right()
