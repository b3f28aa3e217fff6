"""Every token that a server counted is in exactly one fact, whatever became of its call."""

from __future__ import annotations

import random
from collections import Counter

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rsd.errors import ErrorClass
from rsd.hub.brain import events
from rsd.hub.brain.replies import shared
from rsd.protocol.facts import CallSpent, CandidateGraded, CandidateMade
from rsd.protocol.tasks import (
    Failed,
    Generate,
    Generated,
    GradeCandidates,
    Graded,
    Probed,
    ProbeSampling,
    SamplingProbed,
)
from rsd.protocol.vocabulary import CallError, Role, Usage
from tests.unit.world import World, policy, recipe

COUNTS = st.integers(0, 10_000)
USAGES = st.builds(
    Usage,
    input_tokens=COUNTS,
    output_tokens=COUNTS,
    reasoning_tokens=COUNTS,
    cached_tokens=COUNTS,
)


def tokens(usage: Usage) -> Counter[str]:
    return Counter(msgspec.structs.asdict(usage))


@given(USAGES, st.integers(1, 20))
def test_the_shares_of_a_call_add_up(usage: Usage, count: int) -> None:
    shares = shared(usage, count)
    assert sum((tokens(s) for s in shares), Counter()) == +tokens(usage)
    assert len(shares) == count and len(set(map(repr, shares[1:]))) <= 1


class Paid(World):
    """Servers that count tokens, and answer more, less or nothing at times."""

    def __init__(self, seed: int, **changes: object) -> None:
        self.paid: Counter[str] = Counter()
        self.told: Counter[str] = Counter()
        self.outcomes: Counter[tuple[Role, str]] = Counter()
        chosen = policy(recipe(**changes), max_attempts=50)  # type: ignore[arg-type]
        super().__init__(random.Random(seed), chosen)

    def act(self, action: events.Action) -> None:
        if isinstance(action, events.Persist):
            match action.fact:
                case CandidateMade(candidate=candidate):
                    self.told += tokens(candidate.usage)
                case CandidateGraded(grade=grade):
                    self.told += tokens(grade.usage)
                case CallSpent(role=role, usage=usage, outcome=outcome, endpoint=endpoint):
                    self.told += tokens(usage)
                    self.outcomes[role, outcome] += 1
                    assert outcome == "late" or endpoint in ("http://g/v1", "http://j/v1")
        super().act(action)

    def work(self, lease: int, task: object) -> object:
        reply = self.reply_to(lease, task)
        if isinstance(reply, Generated | Graded | Failed | Probed):
            usage = Usage(
                input_tokens=self.rng.randrange(100),
                output_tokens=self.rng.randrange(100),
                reasoning_tokens=self.rng.randrange(9),
                cached_tokens=self.rng.randrange(9),
            )
            self.paid += tokens(usage)
            reply = msgspec.structs.replace(reply, usage=usage)
        return reply

    def reply_to(self, lease: int, task: object) -> object:
        chance = self.rng.random()
        if isinstance(task, Generate | GradeCandidates) and chance < 0.1:
            error = CallError(error=ErrorClass.BAD_REPLY, message="?", reason="unparsable")
            return Failed(lease=lease, error=error)
        reply = super().work(lease, task)
        if isinstance(reply, Generated) and chance < 0.4:
            choices = list(reply.completions)
            if chance < 0.2:
                choices.append(choices[0])
            elif chance < 0.3:
                choices.pop()
            else:
                choices[0] = msgspec.structs.replace(choices[0], finish_reason="content_filter")
            reply = msgspec.structs.replace(reply, completions=tuple(choices))
        if isinstance(reply, Graded) and chance < 0.3 and len(reply.grades) > 1:
            reply = msgspec.structs.replace(reply, grades=reply.grades[1:])
        return reply


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 10**9), st.booleans())
def test_no_token_is_lost_or_counted_twice(seed: int, lists: bool) -> None:
    shape = {"grading_template": "score {candidate_answers}", "list_size": 3} if lists else {}
    one_arm = {"prompts": {"p": "x"}, "temperatures": (1.0,), "top_ps": (0.9,), "top_ks": (40,)}
    world = Paid(seed, candidates=6, repeats=2, **shape, **one_arm)
    world.run([b"a.png", b"b.png"])
    assert world.told == world.paid
    assert (Role.GENERATE, "probe") in world.outcomes


def test_an_answer_after_the_end_of_its_lease_is_paid_for() -> None:
    world = Paid(1, candidates=12)
    world.open([b"%d.png" % k for k in range(8)])

    def held() -> list[tuple[str, int, object]]:
        return [
            (worker, lease, task)
            for worker, leases in world.leases.items()
            for lease, task in leases.items()
            if isinstance(task, Generate)
        ]

    while not held():
        world.step()
    worker, lease, task = held()[0]
    world.now += 150  # the others end, and the worker gets new ones meanwhile
    for other, number, about in held()[1:]:
        del world.leases[other][number]
        world.think(events.Replied(worker=other, reply=world.work(number, about)))
    world.now += 150
    world.think(events.Tick())
    assert world.told == world.paid
    del world.leases[worker][lease]
    world.think(events.Replied(worker=worker, reply=world.work(lease, task)))
    assert world.outcomes[Role.GENERATE, "late"] == 1
    assert world.told == world.paid


def test_a_probe_after_the_end_of_its_lease_is_paid_for() -> None:
    world = Paid(1)
    world.open([b"a.png"])

    def held() -> list[tuple[str, int]]:
        return [
            (worker, lease)
            for worker, leases in world.leases.items()
            for lease, task in leases.items()
            if isinstance(task, ProbeSampling)
        ]

    while not held():
        world.step()
    worker, lease = held()[0]
    del world.leases[worker][lease]
    world.now += 161
    world.think(events.Tick())
    told, usage = +world.told, Usage(input_tokens=7, output_tokens=3)
    world.think(events.Replied(worker=worker, reply=SamplingProbed(lease=lease, usage=usage)))
    assert world.told - told == +tokens(usage)
    assert world.outcomes[Role.GENERATE, "late"] == 1
