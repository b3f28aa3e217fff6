"""One endpoint: growth, cuts, circuit, probes. Time is an argument."""

from __future__ import annotations

import pytest

from rsd.errors import ErrorClass
from rsd.hub.brain.limits import (
    DOWN,
    FAILURES_TO_OPEN,
    FIRST_LIMIT,
    MISCONFIGURED,
    QUOTA,
    REFUSALS_TO_PAUSE,
    START_SECONDS,
    UP,
    EndpointLimit,
    pick_endpoint,
)
from rsd.protocol.vocabulary import CallError, RateWindow, Role

#: Room of an endpoint that was just reached.
FIRST = int(FIRST_LIMIT)


def endpoint(url: str = "http://a/v1", cap: int = 64) -> EndpointLimit:
    made = EndpointLimit(role=Role.GENERATE, url=url, cap=cap, probe_pause=2.0, quota_pause=300.0)
    made.probed(0.0, model="m", max_model_len=None)
    return made


def start(e: EndpointLimit) -> None:
    """A call is lent, as the lease table counts it."""
    e.calls.count += 1
    e.started()


def end(e: EndpointLimit) -> None:
    """Its lease ends."""
    e.calls.count -= 1


def error(kind: ErrorClass, **fields: object) -> CallError:
    return CallError(error=kind, message="why", **fields)  # type: ignore[arg-type]


def test_slow_start_doubles_every_round_trip_up_to_the_cap() -> None:
    e = endpoint(cap=80)
    e.limit = FIRST_LIMIT
    sizes = []
    for trip in range(4):
        count = e.room(trip)
        sizes.append(count)
        for _ in range(count):
            start(e)
        for _ in range(count):
            e.succeeded(float(trip))
            end(e)
    assert sizes == [FIRST, 2 * FIRST, 80, 80]


def test_it_begins_with_half_of_a_large_cap_and_all_of_a_small_one() -> None:
    assert [int(endpoint(cap=cap).limit) for cap in (16, 64, 300)] == [16, FIRST, 150]


def test_a_server_that_says_that_nothing_waits_is_filled_before_it_answers() -> None:
    e = endpoint(cap=256)
    e.limit, now, rises = FIRST_LIMIT, 0.0, []
    while e.room(now):
        for _ in range(e.room(now)):
            start(e)
        assert e.load_due(now)
        e.loaded(e.in_flight, 0, now)
        rises.append(int(e.limit))
        now += START_SECONDS
    assert rises == [64, 128, 256, 256]
    assert not e.load_due(now), "at the cap a poll a second is enough"


def test_slow_start_ends_where_answers_wait() -> None:
    e = endpoint(cap=256)
    for _ in range(e.room(0.0)):
        start(e)
    e.loaded(40, e.in_flight - 40, 0.0)
    assert e.limit < 128 and not e.slow_start and e.room(1.0) == 0


def test_an_idle_limit_does_not_grow() -> None:
    e = endpoint()
    for _ in range(100):
        start(e)
        e.succeeded(1.0)
        end(e)
    assert int(e.limit) == FIRST


def test_one_cut_per_episode_and_retry_after_is_honoured() -> None:
    e = endpoint()
    e.limit = 40.0
    for _ in range(10):
        e.failed(error(ErrorClass.RATE_LIMITED, retry_after=7.0), 100.0)
    assert e.limit == pytest.approx(32.0)
    assert e.room(106.9) == 0
    assert e.room(107.0) == 32
    assert e.state == UP
    e.calls.count = 31
    e.failed(error(ErrorClass.RATE_LIMITED), 116.0)
    assert e.limit == pytest.approx(25.6)
    assert e.room(116.0) == 0, "more than that is in flight"
    e.calls.count = 20
    assert e.room(116.0) == 5, "a server that takes others is not left alone"


def burst_of_refusals(e: EndpointLimit, capacity: int, now: float) -> None:
    """As many calls as there is room for; the server takes `capacity`."""
    count = e.room(now)
    for _ in range(count):
        start(e)
    for _ in range(max(0, e.in_flight - capacity)):
        end(e)
        e.failed(error(ErrorClass.RATE_LIMITED), now + 0.01, now)


def test_what_a_server_takes_is_found_in_few_bursts_and_kept_for_a_while() -> None:
    e = endpoint(cap=64)
    for turn in range(3):
        burst_of_refusals(e, 8, 100.0 + turn)
    assert 6 <= e.limit <= 8 and e.in_flight == 8
    refused, seen = e.rate_limited, []
    now = 103.0
    while now < 163.0:  # a service time of half a second: each ends and another takes its place
        for _ in range(e.in_flight):
            end(e)
            e.succeeded(now)
        burst_of_refusals(e, 8, now)
        seen.append(e.in_flight)
        now += 0.5
    assert sum(seen) / len(seen) > 7
    assert e.rate_limited - refused < 0.02 * sum(seen)


def test_a_server_that_grows_is_filled_within_a_minute() -> None:
    e = endpoint(cap=64)
    burst_of_refusals(e, 8, 100.0)
    now, seen = 101.0, []
    while now < 161.0:
        for _ in range(e.in_flight):
            end(e)
            e.succeeded(now)
        burst_of_refusals(e, 32, now)
        seen.append(e.in_flight)
        now += 0.5
    assert sum(seen[-20:]) / 20 > 28


def test_a_refused_call_alone_says_little() -> None:
    e = endpoint()
    e.limit = 40.0
    e.failed(error(ErrorClass.RATE_LIMITED), 100.0)
    assert e.limit == pytest.approx(20.0) and e.room(100.9) == 0 and e.room(101.0) == 20


def test_what_a_server_took_is_remembered_from_a_burst_of_refusals() -> None:
    e = endpoint(cap=64)
    e.limit, e.slow_start = 64.0, False
    for _ in range(64):
        start(e)
    for left in (63, 62, 61, 60):  # it has 60 places
        end(e)
        e.failed(error(ErrorClass.RATE_LIMITED), 100.0, 99.0)
        assert (e.limit, e.taken) == (pytest.approx(51.2), left)


def test_what_was_prefetched_does_not_count_as_taken() -> None:
    e = endpoint(cap=64)
    e.limit, e.slow_start, e.prefetch = 64.0, False, 8
    for _ in range(e.room(99.0)):
        start(e)
    assert e.in_flight == 72
    e.failed(error(ErrorClass.RATE_LIMITED), 100.0, 99.0)
    assert e.taken == 64.0


def test_additive_growth_after_a_cut() -> None:
    e = endpoint()
    e.limit, e.slow_start = 10.0, False
    for _ in range(10):
        start(e)
    for _ in range(10):
        e.succeeded(50.0)
    assert 10.9 < e.limit < 11.1


def test_failures_in_a_row_open_the_circuit_and_pauses_grow() -> None:
    e = endpoint()
    for k in range(FAILURES_TO_OPEN):
        assert e.state == UP, k
        e.failed(error(ErrorClass.TRANSIENT), 10.0)
    assert e.state == DOWN and e.room(11.0) == 0 and e.reason == "why"
    assert not e.probe_due(11.9) and e.probe_due(12.0)
    e.failed(error(ErrorClass.TRANSIENT), 12.0)
    assert not e.probe_due(15.9) and e.probe_due(16.0)
    e.probed(20.0, model="m", max_model_len=4096)
    assert e.state == UP and e.room(20.0) == FIRST


def test_an_answer_in_between_keeps_the_circuit_closed() -> None:
    e = endpoint()
    for _ in range(20):
        e.failed(error(ErrorClass.TRANSIENT), 1.0)
        e.succeeded(1.0)
    assert e.state == UP


@pytest.mark.parametrize(
    ("kind", "state", "pause"),
    [(ErrorClass.QUOTA, QUOTA, 300.0), (ErrorClass.MISCONFIGURED, MISCONFIGURED, 2.0)],
)
def test_quota_and_misconfiguration_pause_at_once(
    kind: ErrorClass, state: str, pause: float
) -> None:
    e = endpoint()
    e.failed(error(kind), 50.0)
    assert e.state == state
    assert not e.probe_due(50.0 + pause - 0.1) and e.probe_due(50.0 + pause)


def test_many_refusals_alike_are_the_endpoints_fault() -> None:
    e = endpoint()
    for _ in range(REFUSALS_TO_PAUSE - 1):
        e.failed(error(ErrorClass.REFUSED, reason="bad_request"), 1.0)
    assert e.state == UP
    e.failed(error(ErrorClass.REFUSED, reason="bad_request"), 1.0)
    assert e.state == MISCONFIGURED
    moderated = endpoint()
    for _ in range(100):
        moderated.failed(error(ErrorClass.REFUSED, reason="content_filter"), 1.0)
    assert moderated.state == UP


def test_the_endpoint_that_knows_the_image_is_preferred_while_it_has_room() -> None:
    a, b = endpoint("a"), endpoint("b")
    a.calls.count = FIRST - 1
    assert pick_endpoint([a, b], "a", 0.0) is a
    a.calls.count = FIRST
    assert pick_endpoint([a, b], "a", 0.0) is b
    b.failed(error(ErrorClass.QUOTA), 0.0)
    assert pick_endpoint([a, b], "a", 0.0) is None


def queueing_server(e: EndpointLimit, slots: int, seconds: int, *, others: int = 0) -> list[int]:
    """A server that never refuses: calls of a second each, `slots` at a time; ours in flight at
    the end of each second. `others`: calls of other clients that are always there.
    """
    seen = []
    for second in range(seconds):
        now = 100.0 + second
        for _ in range(e.room(now)):
            start(e)
        there = e.in_flight + others
        if e.load_due(now):
            e.loaded(min(slots, there), max(0, there - slots), now)
        done = min(e.in_flight, slots * e.in_flight // there if there else 0)
        for _ in range(done):
            e.succeeded(now + 0.9)
            end(e)
        seen.append(done + e.in_flight)
    return seen


def test_a_server_that_only_queues_is_kept_full_and_not_much_more() -> None:
    e = endpoint(cap=256)
    seen = queueing_server(e, 32, 120)
    assert all(32 <= flying <= 32 + 32 // 5 for flying in seen[-60:])


def test_what_other_clients_use_is_left_to_them() -> None:
    e = endpoint(cap=256)
    seen = queueing_server(e, 32, 200, others=16)
    assert all(8 <= flying <= 24 for flying in seen[-60:])


def test_a_server_without_metrics_is_not_asked_again_until_it_was_away() -> None:
    e = endpoint()
    start(e)
    assert e.load_due(5.0)
    e.load_unknown(error(ErrorClass.MISCONFIGURED), 5.0)
    assert not e.load_due(1000.0)
    e.probed(1001.0, model="m", max_model_len=None)
    assert e.load_due(1002.0)
    e.load_unknown(error(ErrorClass.TRANSIENT), 1002.0)
    assert not e.load_due(1002.5)
    assert e.load_due(1003.0)


def test_what_the_server_will_still_take_is_not_exceeded_until_it_begins_anew() -> None:
    e = endpoint()
    e.limit = 40.0
    e.on_rate_headers((RateWindow(remaining=5, seconds=10.0),), 1.0, 100.0)
    assert e.room(100.0) == 5
    for _ in range(3):
        start(e)
    assert e.room(101.0) == 2
    e.on_rate_headers((RateWindow(remaining=9_000, seconds=2.0, tokens=True),), 1_000.0, 101.0)
    assert e.room(101.0) == 2, "the smaller of two limits counts"
    assert e.room(110.0) == 37


def test_a_generous_server_holds_nobody_back() -> None:
    e = endpoint()
    e.on_rate_headers((RateWindow(remaining=4_999, seconds=0.012),), 1.0, 100.0)
    assert e.room(100.0) == FIRST


def test_a_burst_of_failures_is_one_reason_to_pause() -> None:
    for kind, state in ((ErrorClass.MISCONFIGURED, MISCONFIGURED), (ErrorClass.TRANSIENT, DOWN)):
        e = endpoint()
        for k in range(8):  # all of them were in flight when it began
            e.failed(error(kind), 10.0 + k / 100)
        assert e.state == state
        assert not e.probe_due(11.0)
        assert e.probe_due(12.1)
        e.failed(error(kind), 12.1)  # the probe
        assert not e.probe_due(16.0)
        assert e.probe_due(16.2)


def test_a_rate_limit_says_why_until_an_answer_comes() -> None:
    e = endpoint()
    e.failed(error(ErrorClass.RATE_LIMITED), 1.0)
    assert (e.state, e.reason) == (UP, "why")
    e.succeeded(3.0)
    assert e.reason == ""
    e.failed(error(ErrorClass.QUOTA), 4.0)
    e.succeeded(5.0)  # a call that was in flight
    assert (e.state, e.reason) == (QUOTA, "why")


def test_a_call_sent_after_a_cut_and_refused_cuts_again() -> None:
    e = endpoint()
    e.limit, e.calls.count = 40.0, 40
    for _ in range(20):
        e.failed(error(ErrorClass.RATE_LIMITED), 100.0, 99.0)
    assert e.limit == pytest.approx(32.0)
    for _ in range(12):
        e.failed(error(ErrorClass.RATE_LIMITED), 101.5, 101.0)
    assert e.limit == pytest.approx(25.6)
    e.failed(error(ErrorClass.RATE_LIMITED), 102.0, 101.0)
    assert e.limit == pytest.approx(25.6), "it was on its way before the last cut"
