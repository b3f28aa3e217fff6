"""Who gets what, and what a lease's end does to endpoints and budgets. Pure: times are given."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rsd.errors import ErrorClass
from rsd.hub.brain.dispatch import LOAD_POLL_SECONDS, Dispatcher
from rsd.hub.brain.events import Assign, Policy
from rsd.hub.brain.limits import DOWN, QUOTA, UP, EndpointLimit
from rsd.hub.brain.queue import Work, WorkKind
from rsd.protocol.tasks import Prepare, Probe, ProbeSampling, ReadLoad, Task
from rsd.protocol.vocabulary import CallError, Rates, Role, Usage
from tests.unit.world import policy

URLS = "http://g/v1", "http://h/v1"


def with_model(before: Policy, model: str) -> Policy:
    """The same settings, but for the generators' model."""
    changed = replace(before.roles[Role.GENERATE], model=model)
    return replace(before, roles=before.roles | {Role.GENERATE: changed})


def two_servers() -> Policy:
    """Two generator endpoints."""
    base = policy()
    servers = replace(base.roles[Role.GENERATE], endpoints=URLS)
    return replace(base, roles=base.roles | {Role.GENERATE: servers})


def opened(chosen: Policy, workers: int = 2) -> Dispatcher:
    """All endpoints are up; so many workers of each role."""
    dispatch = Dispatcher(chosen)
    for endpoint in dispatch.endpoints:
        endpoint.probed(0.0, model=endpoint.model, max_model_len=None)
    for role in Role:
        for k in range(workers):
            dispatch.leases.join(f"{role}-{k}", role, chosen.roles[role].slots)
    return dispatch


def calls(dispatch: Dispatcher, count: int) -> list[Work]:
    """Calls that are ready."""
    found = [Work(kind=WorkKind.GENERATE, image=str(k), sha256=str(k)) for k in range(count)]
    for work in found:
        dispatch.queue.add(work)
    return found


def lend(dispatch: Dispatcher, now: float) -> list[Assign]:
    """All calls that may be lent."""

    def build(work: Work, endpoint: EndpointLimit) -> Task:
        return Prepare(image=work.image, path=b"")

    return dispatch.assign(now, build)


def generators(dispatch: Dispatcher) -> list[EndpointLimit]:
    return dispatch.endpoints.of(Role.GENERATE)


# ------------------------------------------------------------------------------- calls under way


def test_a_reload_that_names_another_model_counts_what_is_under_way() -> None:
    dispatch = opened(policy())
    calls(dispatch, 100)
    first = lend(dispatch, 0.0)
    dispatch.configure(with_model(dispatch.policy, "another"))
    (new,) = generators(dispatch)
    assert (new.model, new.state, new.in_flight) == ("another", "unknown", len(first))
    new.probed(1.0, model="another", max_model_len=None)
    assert len(first) >= 8 and lend(dispatch, 1.0) == [], "the server has all that it may have"
    dispatch.close(first[0].worker, first[0].lease.lease, Usage())
    dispatch.close(first[1].worker, first[1].lease.lease, Usage())
    assert new.in_flight == len(first) - 2
    lend(dispatch, 2.0)
    assert new.in_flight <= len(first)


def test_what_the_model_before_answers_says_nothing_of_the_new_one() -> None:
    dispatch = Dispatcher(policy())
    dispatch.leases.join("g", Role.GENERATE, 4)
    (probe,) = dispatch.assign_probes(0.0)
    dispatch.configure(with_model(dispatch.policy, "another"))
    loan = dispatch.close("g", probe.lease.lease, None)
    assert loan is not None and dispatch.endpoints.find(loan.item) is None
    (again,) = dispatch.assign_probes(0.0)
    assert isinstance(again.lease.task, Probe) and again.lease.task.model == "another"


def test_an_endpoint_that_leaves_and_comes_back_has_its_calls_still() -> None:
    before = two_servers()
    dispatch = opened(before)
    calls(dispatch, 100)
    lent = len(lend(dispatch, 0.0))
    one = replace(before.roles[Role.GENERATE], endpoints=URLS[:1])
    dispatch.configure(replace(before, roles=before.roles | {Role.GENERATE: one}))
    dispatch.configure(before)
    assert sum(e.in_flight for e in generators(dispatch)) == lent


def test_a_late_reply_corrects_the_budget() -> None:
    rates = Rates(output_tokens=600_000)
    dispatch = opened(policy(rates=rates, timeout=10.0))
    calls(dispatch, 1)
    (assign,) = lend(dispatch, 0.0)
    bucket = dispatch.budgets[Role.GENERATE].tokens[1]
    lent = bucket.level
    (work,) = dispatch.expire(1000.0).failed
    assert bucket.level == lent, "what was set aside is spent: nobody knows what it takes"
    dispatch.queue.add(work)
    loan = dispatch.close(assign.worker, assign.lease.lease, Usage(output_tokens=40_000))
    assert loan is not None and loan.late and loan.call is not None
    assert (loan.call.endpoint, loan.call.model) == ("http://g/v1", "vlm")
    assert bucket.level == lent + 1_000 - 40_000
    assert dispatch.close(assign.worker, assign.lease.lease, Usage(output_tokens=1)) is None
    assert bucket.level == lent + 1_000 - 40_000, "it is counted once"


# ---------------------------------------------------------------------------------- side questions


def polls(assigned: list[Assign]) -> list[tuple[str, str]]:
    """(worker, endpoint) of the load polls."""
    return [
        (a.worker, a.lease.task.endpoint) for a in assigned if isinstance(a.lease.task, ReadLoad)
    ]


def test_a_hanging_load_poll_blinds_no_other_server() -> None:
    dispatch = opened(replace(two_servers(), probe_sampling=False))
    calls(dispatch, 100)
    lend(dispatch, 0.0)
    hanging, sound = generators(dispatch)
    assert hanging.in_flight and sound.in_flight
    asked: list[tuple[float, str, str]] = []
    now, hanging.queued = 0.0, 3.0
    while now < 60.0:
        for assign in dispatch.assign_sides(now):
            task = assign.lease.task
            assert isinstance(task, ReadLoad)
            asked.append((now, assign.worker, task.endpoint))
            if task.endpoint == sound.url:
                loan = dispatch.close(assign.worker, assign.lease.lease, None)
                assert loan is not None
                sound.loaded(4.0, 0.0, now)
        for work in dispatch.expire(now).failed:
            assert work.kind is WorkKind.LOAD_POLL and work.limit is hanging
            assert now >= LOAD_POLL_SECONDS
            hanging.load_unknown(CallError(error=ErrorClass.TRANSIENT, message="late"), now)
        now += 0.5
    assert [url for _, _, url in asked].count(hanging.url) == 1, "its thread is held until then"
    assert hanging.observable and hanging.queued == 0.0
    stuck = next(worker for _, worker, url in asked if url == hanging.url)
    others = [worker for at, worker, url in asked if url == sound.url and at > 0]
    assert len(others) >= 50 and stuck not in others
    dispatch.leave(stuck)
    assert not hanging.observing, "its thread died: it is asked again"


def test_load_polls_go_by_turns() -> None:
    dispatch = opened(replace(policy(), probe_sampling=False), workers=3)
    calls(dispatch, 100)
    lend(dispatch, 0.0)
    workers = []
    for now in range(6):
        for assign in dispatch.assign_sides(float(now)):
            workers.append(assign.worker)
            dispatch.close(assign.worker, assign.lease.lease, None)
            generators(dispatch)[0].loaded(1.0, 0.0, float(now))
    assert workers == ["generate-0", "generate-1", "generate-2"] * 2


def test_a_server_that_does_not_tell_its_load_is_asked_less_and_less() -> None:
    (e,) = generators(opened(policy()))
    e.calls.count, asked, now = 1, [], 0.0
    while now < 300.0:
        if e.load_due(now):
            asked.append(now)
            e.load_unknown(CallError(error=ErrorClass.TRANSIENT, message="?"), now)
        now += 1.0
    assert asked == [0, 1, 3, 7, 15, 31, 63, 123, 183, 243]
    e.loaded(1.0, 0.0, now)
    e.load_unknown(CallError(error=ErrorClass.TRANSIENT, message="?"), now)
    assert e.load_due(now + 1.0)


def test_sampling_is_tried_once_beside_the_calls() -> None:
    dispatch = Dispatcher(two_servers())
    dispatch.leases.join("g", Role.GENERATE, 4)
    assert dispatch.assign_sides(0.0) == [], "an endpoint must be up"
    up = generators(dispatch)[0]
    up.probed(0.0, model="vlm", max_model_len=None)
    calls(dispatch, 100)
    while lend(dispatch, 0.0):
        pass  # every thread has a call
    (assign,) = [a for a in dispatch.assign_sides(0.0) if not isinstance(a.lease.task, ReadLoad)]
    assert assign.lease.task == ProbeSampling(endpoint=up.url, model="vlm", dialect=up.dialect)
    assert up.in_flight == dispatch.leases.in_flight(Role.GENERATE), "it counts as no call"
    assert not polls(dispatch.assign_sides(0.0)) and not dispatch.assign_sides(0.0)
    dispatch.leave("g")
    dispatch.leases.join("g2", Role.GENERATE, 4)
    tasks = [type(a.lease.task) for a in dispatch.assign_sides(0.0)]
    assert ProbeSampling in tasks, "its worker died before it could answer"


@pytest.mark.parametrize(("state", "completion"), [("unknown", False), (DOWN, True), (QUOTA, True)])
def test_only_the_first_probe_is_content_with_the_list_of_models(
    state: str, completion: bool
) -> None:
    dispatch = Dispatcher(policy())
    dispatch.leases.join("g", Role.GENERATE, 4)
    (endpoint,) = generators(dispatch)
    endpoint.state = state
    (probe,) = dispatch.assign_probes(0.0)
    assert isinstance(probe.lease.task, Probe) and probe.lease.task.completion is completion
    endpoint.probed(1.0, model="vlm", max_model_len=None)
    assert (endpoint.state, endpoint.answered) == (UP, int(completion)), (
        "a list of models is no sign that other calls were answered"
    )


def test_a_probe_that_is_given_back_is_made_again() -> None:
    dispatch = Dispatcher(policy())
    dispatch.leases.join("g", Role.GENERATE, 4)
    (probe,) = dispatch.assign_probes(0.0)
    assert dispatch.assign_probes(0.0) == []
    dispatch.give_back("g", probe.lease.lease)
    assert [a.lease.task for a in dispatch.assign_probes(0.0)] == [probe.lease.task]


# -------------------------------------------------------------------------------------- the host


def test_the_host_reduces_what_is_normal_and_not_only_what_is_allowed() -> None:
    dispatch = opened(policy(cap=256, endpoint_cap=256, slots=128))
    for endpoint in generators(dispatch):
        endpoint.limit = 36.0
    assert dispatch.ceiling(Role.GENERATE) == 256
    dispatch.set_level("reduced", 0.5)
    assert dispatch.ceiling(Role.GENERATE) == 18
    dispatch.set_level("reduced", 0.25)
    assert dispatch.ceiling(Role.GENERATE) == 9
    dispatch.set_level("paused", 0.0)
    assert dispatch.ceiling(Role.GENERATE) == 0
    dispatch.set_level("reduced", 0.001)
    assert dispatch.ceiling(Role.GENERATE) == 1, "work goes on"
    dispatch.set_level("normal", 1.0)
    assert dispatch.ceiling(Role.GENERATE) == 256
