"""Leases and workers: who is lent what, when it ends, and who is to be killed. Pure."""

from __future__ import annotations

from rsd.hub.brain.leases import (
    PREPARE_SECONDS,
    PREPARES_PER_WORKER,
    SIDES_PER_WORKER,
    CallTo,
    Expired,
    LeaseKind,
    LeaseTable,
)
from rsd.protocol.vocabulary import Role


def items(loans: list) -> list[str]:
    return [loan.item for loan in loans]


def test_leases_come_back_once_whoever_ends_them() -> None:
    table: LeaseTable[str] = LeaseTable()
    table.join("g1", Role.GENERATE, 2)
    table.join("g2", Role.GENERATE, 2)
    first = table.pick(Role.GENERATE, "sha", False)
    assert first is not None
    lease = table.grant(first, "work", deadline=10.0, sha256="sha")
    assert table.pick(Role.GENERATE, "sha", False) is first, "the worker that has the image"
    closed = table.close(first.name, lease)
    assert closed is not None and (closed.item, closed.late) == ("work", False)
    assert table.close(first.name, lease) is None
    late = table.grant(first, "late", deadline=10.0)
    assert table.expire(9.9) == Expired()
    expired = table.expire(10.0)
    assert [loan.item for loan in expired.failed] == ["late"]
    assert list(expired.kill) == [first.name]
    closed = table.close(first.name, late)
    assert closed is not None and closed.late, "a reply after the deadline is not for its work"
    assert table.close(first.name, late) is None
    table.grant(first, "lost", deadline=99.0)
    lost, decoding = table.leave(first.name)
    assert ([loan.item for loan in lost], decoding) == (["lost"], None)
    assert table.leave(first.name) == ([], None)


def test_a_worker_is_never_lent_more_than_its_slots_and_the_prefetch() -> None:
    for slots, more in ((2, 1), (16, 2), (100, 12)):
        table: LeaseTable[int] = LeaseTable()
        table.join("g", Role.GENERATE, slots)
        assert table.prefetch_slots(Role.GENERATE) == more
        for i in range(slots + more):
            assert (table.pick(Role.GENERATE, "", False) is None) == (i >= slots)
            worker = table.pick(Role.GENERATE, "", True)
            assert worker is not None
            table.grant(worker, i, deadline=1.0)
        assert table.pick(Role.GENERATE, "", True) is None
        assert table.in_flight(Role.GENERATE) == slots + more
        assert table.running(Role.GENERATE) == slots


def test_who_leaves_has_threads_only_for_what_it_holds() -> None:
    table: LeaseTable[int] = LeaseTable()
    table.join("old", Role.GENERATE, 16)
    table.join("new", Role.GENERATE, 16)
    for i in range(3):
        table.grant(table.workers["old"], i, deadline=1.0)
    assert (table.threads(Role.GENERATE), table.prefetch_slots(Role.GENERATE)) == (32, 4)
    table.leaving("old")
    assert (table.threads(Role.GENERATE), table.prefetch_slots(Role.GENERATE)) == (16 + 3, 2)


def test_a_death_while_decoding_names_the_image() -> None:
    table: LeaseTable[str] = LeaseTable()
    table.join("g", Role.GENERATE, 1)
    worker = table.pick_for_prepare(Role.GENERATE)
    assert worker is not None
    lease = table.grant(worker, "prepare", deadline=1.0, kind=LeaseKind.PREPARE)
    table.decoding("g", lease, 0.0)
    held, decoding = table.leave("g")
    assert [decoding] == held and held[0].item == "prepare"


def generators(count: int, slots: int = 4) -> LeaseTable[str]:
    """A table with so many of them."""
    table: LeaseTable[str] = LeaseTable()
    for k in range(count):
        table.join(f"g{k}", Role.GENERATE, slots)
    return table


def prepare(table: LeaseTable[str], worker: str, item: str, now: float = 0.0) -> int:
    """Lend a picture as the dispatcher does."""
    about = table.workers[worker]
    deadline = now + (1 + len(about.prepares)) * PREPARE_SECONDS
    return table.grant(about, item, deadline=deadline, kind=LeaseKind.PREPARE)


def test_a_late_reply_of_a_side_lease_frees_no_thread() -> None:
    table = generators(1, slots=1)
    worker = table.workers["g0"]
    side = table.grant(worker, "poll", deadline=1.0, kind=LeaseKind.SIDE)
    table.grant(worker, "call", deadline=2.0)
    table.grant(worker, "prefetched", deadline=9.0)
    assert items(table.expire(1.0).failed) == ["poll"]
    assert items(table.expire(2.0).failed) == ["call"]
    assert table.pick(Role.GENERATE, "", True) is None, "its one thread is at the call still"
    late = table.close("g0", side)
    assert late is not None and late.item == "poll"
    assert table.pick(Role.GENERATE, "", True) is None
    assert table.close("g0", 4711) is None
    assert table.pick(Role.GENERATE, "", True) is None


def test_an_overdue_picture_ends_its_worker_and_not_those_behind_it() -> None:
    table = generators(2)
    bad = prepare(table, "g0", "bad")
    prepare(table, "g0", "good")
    call = table.grant(table.workers["g0"], "call", deadline=1_000.0)
    table.decoding("g0", bad, 5.0)
    assert table.expire(5.0 + PREPARE_SECONDS - 0.1) == Expired()
    expired = table.expire(5.0 + PREPARE_SECONDS)
    assert (items(expired.hung), items(expired.waiting)) == (["bad"], ["good"])
    assert (expired.failed, list(expired.kill)) == ([], ["g0"])
    assert table.pick_for_prepare(Role.GENERATE) is table.workers["g1"]
    assert table.pick(Role.GENERATE, "", False) is table.workers["g1"], "it is about to be killed"
    assert table.expire(500.0) == Expired(), "once is enough"
    held, decoding = table.leave("g0")
    assert ([loan.lease for loan in held], decoding) == ([call], None)


def test_a_picture_behind_another_has_its_own_time() -> None:
    table = generators(1)
    first = prepare(table, "g0", "first")
    second = prepare(table, "g0", "second")
    assert table.pick_for_prepare(Role.GENERATE) is None and PREPARES_PER_WORKER == 2
    table.decoding("g0", first, 0.0)
    table.close("g0", first)
    table.decoding("g0", second, PREPARE_SECONDS - 1.0)
    assert table.expire(2 * PREPARE_SECONDS - 1.5) == Expired()
    assert items(table.expire(2 * PREPARE_SECONDS - 1.0).hung) == ["second"]


def test_a_file_that_cannot_be_read_in_time_is_no_decoding() -> None:
    """Then a file system hangs, and no decoder: that one try counts, as any error does."""
    table = generators(1)
    prepare(table, "g0", "remote")
    prepare(table, "g0", "other")
    expired = table.expire(PREPARE_SECONDS)
    assert (items(expired.failed), items(expired.waiting)) == (["remote"], ["other"])
    assert expired.hung == [] and list(expired.kill) == ["g0"]


def test_side_leases_are_bounded_also_when_nobody_answers() -> None:
    table = generators(2)
    for k in range(2 * SIDES_PER_WORKER):
        worker = table.pick_side(Role.GENERATE)
        assert worker is not None
        table.grant(worker, str(k), deadline=float(k), kind=LeaseKind.SIDE)
        table.expire(float(k))
    assert table.pick_side(Role.GENERATE) is None
    assert table.open == 0, "nobody waits for them when rsd ends"
    assert table.expire(100.0).kill == {}, "and nobody is killed for them"


def test_calls_of_an_endpoint_are_counted_by_the_leases_alone() -> None:
    table = generators(2)
    to = CallTo(Role.GENERATE, "u", "m")
    count = table.calls(Role.GENERATE, "u")
    leases = [table.grant(table.workers["g0"], "x", deadline=k, call=to) for k in (1.0, 9.0, 9.0)]
    table.grant(table.workers["g0"], "probe", deadline=9.0)
    assert count.count == 3
    table.expire(1.0)
    table.close("g0", leases[0])
    assert count.count == 2, "the late one is not counted twice"
    table.keep_calls(set())
    assert table.calls(Role.GENERATE, "u") is count, "it has calls still"
    table.close("g0", leases[1])
    table.leave("g0")
    assert count.count == 0
    table.keep_calls(set())
    assert table.calls(Role.GENERATE, "u") is not count
