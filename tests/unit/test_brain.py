"""The brain against shuffled events, errors and deaths: every image ends, and always the same."""

from __future__ import annotations

import random
from dataclasses import replace

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rsd.errors import ErrorClass
from rsd.hub.brain import events, rounds
from rsd.hub.brain.events import Policy, Tick
from rsd.protocol.tasks import (
    Failed,
    Generate,
    GivenBack,
    GradeCandidates,
    Prepare,
    Prepared,
    Probe,
    ProbeSampling,
    ReadLoad,
)
from rsd.protocol.vocabulary import SPOOL_REFUSED, CallError, Recipe, Role
from rsd.protocol.writer_talk import ReadBacklog
from rsd.strategy.base import ImageState, Step
from rsd.strategy.choose import next_step
from rsd.strategy.memory import Memory
from tests.unit.world import World, policy, recipe, transient

RECIPES = [
    recipe(),
    recipe(candidates=7, repeats=2),
    recipe(strategy="grid", candidates=36),
    recipe(stop_score=80.0, candidates=9),
    recipe(grading_template="score {candidate_answers}", candidates=8, list_size=3),
    recipe(prompts={"p1": "one"}, temperatures=(1.0,), top_ps=(0.9,), top_ks=(40,), candidates=6),
]
PATHS = [b"%c.png" % c for c in b"abcdefgh"] + [b"a.png+copy.png"]


def results(world: World) -> dict[str, tuple[int, float, str]]:
    """By content: which of two equal files is the original depends on who is prepared first."""
    content = {i: s.info.sha256 for i, s in world.store.started.items()}
    return {content[i]: (d.winner, d.score, d.quality) for i, d in world.store.decided.items()}


def undisturbed(with_recipe: Recipe) -> World:
    world = World(random.Random(1), policy(with_recipe))
    world.run(PATHS)
    return world


@pytest.mark.parametrize("with_recipe", RECIPES)
def test_every_image_ends_once_with_the_best_of_its_scores(with_recipe: Recipe) -> None:
    world = undisturbed(with_recipe)
    assert len(world.store.decided) == 8
    assert [a.status for a in world.store.aside.values()] == ["duplicate"]
    for image, decided in world.store.decided.items():
        scores: dict[int, list[float]] = {}
        for (of, index, _), grade in world.store.grades.items():
            if of == image:
                scores.setdefault(index, []).append(grade.score)
        means = {i: sum(s) / len(s) for i, s in scores.items()}
        assert all(len(s) == with_recipe.repeats for s in scores.values())
        assert decided.score == max(means.values()) == means[decided.winner]
        assert decided.winner == min(i for i, m in means.items() if m == decided.score)
        if with_recipe.stop_score is None:
            assert len(means) == with_recipe.candidates
    assert set(world.calls.values()) == {1}, "a paid answer was asked for twice"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 10**9), which=st.integers(0, len(RECIPES) - 1))
def test_order_errors_and_deaths_change_no_result(seed: int, which: int) -> None:
    rng = random.Random(seed)

    def trouble(task: object, now: float) -> CallError | None:
        if isinstance(task, Probe) or rng.random() > 0.15:
            return None
        if isinstance(task, Prepare):
            return None
        return rng.choice(
            [
                transient(),
                CallError(error=ErrorClass.RATE_LIMITED, message="", retry_after=2.0),
                CallError(error=ErrorClass.QUOTA, message="", reason="quota"),
                CallError(error=ErrorClass.MISCONFIGURED, message="", reason="unauthorized"),
            ]
        )

    world = World(rng, policy(RECIPES[which], max_attempts=50), trouble, kills=0.05)
    world.run(PATHS)
    assert results(world) == results(undisturbed(RECIPES[which]))
    assert world.brain.dispatch.leases.open == 0
    assert not world.brain.rounds.images


def test_an_outage_consumes_nothing() -> None:
    down = {"until": 500.0}

    def trouble(task: object, now: float) -> CallError | None:
        if isinstance(task, Generate | Probe) and now < down["until"]:
            return transient("connect")
        return None

    world = World(random.Random(3), policy(), trouble)
    world.run(PATHS)
    assert len(world.store.decided) == 8
    assert not world.store.failed


def test_quota_of_the_grader_pauses_and_ends_by_itself() -> None:
    def trouble(task: object, now: float) -> CallError | None:
        if isinstance(task, GradeCandidates) and now < 300.0:
            return CallError(error=ErrorClass.QUOTA, message="insufficient_quota", reason="quota")
        if isinstance(task, Probe) and task.endpoint == "http://j/v1" and 1 < now < 300.0:
            return CallError(error=ErrorClass.QUOTA, message="insufficient_quota", reason="quota")
        return None

    world = World(random.Random(4), policy(), trouble)
    world.run(PATHS)
    assert len(world.store.decided) == 8


def test_an_item_that_always_fails_stops_and_the_rest_goes_on() -> None:
    tries: dict[tuple[str, int], int] = {}

    def trouble(task: object, now: float) -> CallError | None:
        if isinstance(task, Generate) and 0 in task.samples:
            tries[task.image, 0] = tries.get((task.image, 0), 0) + 1
            return CallError(error=ErrorClass.BAD_REPLY, message="no choices", reason="no_choices")
        return None

    world = World(random.Random(5), policy(), trouble)
    world.run(PATHS)
    assert len(world.store.decided) == 8
    assert set(tries.values()) == {5}
    assert len(world.store.failed) == 8


def test_time_outs_of_one_item_count_once_the_endpoint_answers_others() -> None:
    tries: dict[str, int] = {}

    def trouble(task: object, now: float) -> CallError | None:
        if isinstance(task, Generate) and task.prompt == "two":
            tries[task.image] = tries.get(task.image, 0) + 1
            return transient()
        return None

    world = World(random.Random(6), policy(), trouble)
    world.run(PATHS)
    assert len(world.store.decided) == 8
    assert max(tries.values()) <= 12, "a deterministic time-out must not go on for ever"


def test_nothing_gradable_fails_with_a_reason() -> None:
    def trouble(task: object, now: float) -> CallError | None:
        if isinstance(task, Generate):
            return CallError(error=ErrorClass.REFUSED, message="no", reason="refusal")
        return None

    world = World(random.Random(7), policy(), trouble)
    world.run(PATHS[:3])
    assert {a.reason for a in world.store.aside.values()} == {"no_candidate"}


def test_ungraded_fails_with_its_own_reason() -> None:
    def trouble(task: object, now: float) -> CallError | None:
        if isinstance(task, GradeCandidates):
            return CallError(error=ErrorClass.BAD_REPLY, message="?", reason="unparsable")
        return None

    world = World(random.Random(8), policy(), trouble)
    world.run(PATHS[:3])
    assert {a.reason for a in world.store.aside.values()} == {"ungraded"}
    assert not world.store.grades


def test_bad_pictures_fail_and_the_others_go_on() -> None:
    def trouble(task: object, now: float) -> CallError | None:
        if isinstance(task, Prepare) and task.path in (b"b.png", b"c.png"):
            reason = "corrupt" if task.path == b"b.png" else "vanished"
            return CallError(error=ErrorClass.BAD_IMAGE, message="bad", reason=reason)
        return None

    world = World(random.Random(9), policy(), trouble)
    world.run(PATHS)
    assert {a.path: a.status for a in world.store.aside.values()} == {
        b"b.png": "failed",
        b"c.png": "withdrawn",
        b"a.png+copy.png": "duplicate",
    } or {a.path: a.status for a in world.store.aside.values()} == {
        b"b.png": "failed",
        b"c.png": "withdrawn",
        b"a.png": "duplicate",
    }


def test_the_slower_grader_sets_the_pace() -> None:
    stuck = {"grading": True}

    def trouble(task: object, now: float) -> CallError | None:
        if isinstance(task, Probe) and task.endpoint == "http://j/v1" and stuck["grading"]:
            return CallError(error=ErrorClass.QUOTA, message="no credit", reason="quota")
        return None

    world = World(random.Random(10), policy(), trouble)
    world.open([b"%d.png" % i for i in range(500)])
    for _ in range(5_000):
        world.step()
    made = len(world.store.candidates)
    assert 0 < made < 100, "generation must stop when nobody grades"
    stuck["grading"] = False
    for _ in range(200_000):
        if world.finished:
            break
        world.step()
    assert len(world.store.decided) == 500


def test_a_disk_that_takes_no_pictures_is_held_against_none() -> None:
    full = CallError(error=ErrorClass.TRANSIENT, message="No space left", reason=SPOOL_REFUSED)
    said: set[str] = set()

    def trouble(task: object, now: float) -> CallError | None:
        said.add(world.brain.intake.refused)
        return full if isinstance(task, Prepare) and now < 300 else None

    world = World(random.Random(5), policy(max_attempts=1), trouble)
    world.run(PATHS)
    assert said >= {"", "No space left"}
    assert world.now > 300
    assert results(world) == results(undisturbed(recipe()))
    assert {a.status for a in world.store.aside.values()} == {"duplicate"}
    assert world.brain.intake.refused == ""


def test_nothing_is_lent_while_the_writer_cannot_write() -> None:
    world = World(random.Random(6), policy())
    world.open(PATHS)
    for _ in range(30):
        world.step()
    world.think(Tick(blocked=True))
    for leases in world.leases.values():
        leases.clear()
    for _ in range(50):
        world.now += 1
        world.think(Tick(blocked=True))
        if world.facts:
            world.commit(len(world.facts))
        if world.questions:
            world.reply()
    lent = [task for leases in world.leases.values() for task in leases.values()]
    assert all(isinstance(task, Probe | ProbeSampling | ReadLoad) for task in lent)
    world.think(Tick(blocked=False))
    lent = [task for leases in world.leases.values() for task in leases.values()]
    assert any(isinstance(task, Prepare | Generate) for task in lent)


def two_servers() -> Policy:
    """A policy with two generators."""
    made = policy(recipe(candidates=8), cap=16, slots=8, max_n=1)
    servers = replace(made.roles[Role.GENERATE], endpoints=("http://g/v1", "http://h/v1"))
    return replace(made, roles=made.roles | {Role.GENERATE: servers})


def alone(affinity: bool) -> int:
    """Of 24 images, those that only one of two servers was asked about."""
    asked: dict[str, set[str]] = {}

    def trouble(task: object, now: float) -> CallError | None:
        if isinstance(task, Generate):
            asked.setdefault(task.image, set()).add(task.endpoint)
        return None

    world = World(random.Random(5), replace(two_servers(), affinity=affinity), trouble)
    world.run([f"p{k}".encode() for k in range(24)])
    assert len(world.store.decided) == 24
    assert {url for urls in asked.values() for url in urls} == {"http://g/v1", "http://h/v1"}
    return sum(len(urls) == 1 for urls in asked.values())


def test_an_image_stays_with_the_server_that_knows_it() -> None:
    """Unless the other server would idle: here few images are ready at a time."""
    assert alone(affinity=True) >= 8 > 4 >= alone(affinity=False)


def test_an_image_whose_server_dies_goes_on_elsewhere() -> None:
    asked: list[str] = []

    def trouble(task: object, now: float) -> CallError | None:
        dead = isinstance(task, Generate | Probe) and task.endpoint == "http://h/v1"
        if dead and len(asked) > 20:
            return transient("connect")
        if isinstance(task, Generate):
            asked.append(task.endpoint)
        return None

    world = World(random.Random(6), two_servers(), trouble)
    world.run([f"p{k}".encode() for k in range(12)])
    assert len(world.store.decided) == 12 and not world.store.failed
    assert len(asked) == 12 * 8 and "http://h/v1" in asked[:21]
    assert set(asked[21:]) == {"http://g/v1"}


class Asked(World):
    """Remembers who was asked to give back."""

    recalled: list[str]

    def act(self, action: events.Action) -> None:
        if isinstance(action, events.Recall):
            self.recalled.append(action.worker)
        super().act(action)

    @classmethod
    def full(cls) -> Asked:
        """Two generators of eight threads hold all that they may: each has one lease ahead."""
        chosen = policy(recipe(candidates=8), max_n=1, cap=16, endpoint_cap=16, slots=8)
        world = cls(random.Random(3), chosen)
        world.recalled = []
        world.open([f"p{k}".encode() for k in range(24)])
        for _ in range(3000):
            if [len(world.held(w)) for w in world.generators()] == [9, 9]:
                assert world.recalled == []
                return world
            world.step()
        raise AssertionError("they never are full")

    def generators(self) -> list[str]:
        return [
            w.name for w in self.brain.dispatch.leases.workers.values() if w.role is Role.GENERATE
        ]

    def held(self, worker: str) -> list[int]:
        return [k for k, t in self.leases[worker].items() if isinstance(t, Generate)]


def test_what_no_thread_has_taken_comes_back_when_the_line_stops() -> None:
    world = Asked.full()
    world.think(events.DrainRequested())
    assert sorted(world.recalled) == sorted(world.generators())
    before = world.brain.dispatch.planned(Role.GENERATE)
    for worker in world.generators():
        last = world.held(worker)[8]
        del world.leases[worker][last]
        world.think(events.Replied(worker=worker, reply=GivenBack(leases=(last,))))
        assert len(world.brain.dispatch.leases.workers[worker].calls) == 8
    assert world.brain.dispatch.planned(Role.GENERATE) == before, "it is to be done another time"
    world.think(events.Tick())
    assert len(world.recalled) == 2, "asked once"


def test_what_no_thread_has_taken_comes_back_when_a_server_wants_a_pause() -> None:
    world = Asked.full()
    first, other = world.generators()
    lease = world.held(first)[0]
    del world.leases[first][lease]
    busy = CallError(error=ErrorClass.RATE_LIMITED, message="busy", retry_after=15.0)
    world.think(events.Replied(worker=first, reply=Failed(lease=lease, error=busy)))
    assert world.recalled == [other], "the first has a thread for all that it holds now"


def test_pictures_are_prepared_while_the_first_probe_runs() -> None:
    world = World(random.Random(1), policy())
    world.open([b"%d.png" % k for k in range(20)])
    probes: list[tuple[str, int, Probe]] = []
    for _ in range(50):
        for worker, leases in world.leases.items():
            for lease, task in list(leases.items()):
                assert isinstance(task, Probe | Prepare), "a call before its server answers"
                del leases[lease]
                if isinstance(task, Probe):
                    probes.append((worker, lease, task))
                else:
                    world.think(events.Replied(worker=worker, reply=world.work(lease, task)))
        while world.questions:
            world.reply()
        if world.facts:
            world.commit(len(world.facts))
    assert len(world.brain.rounds.images) == 4, "a few of them, not all"
    (asked,) = [p for p in probes if p[2].endpoint == "http://g/v1"]
    world.think(events.Replied(worker=asked[0], reply=world.work(*asked[1:])))
    lent = [t for leases in world.leases.values() for t in leases.values()]
    assert sum(isinstance(t, Generate) for t in lent) >= 8, "its calls go out at once"


def test_an_image_is_due_again_when_choosing_its_step_has_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(random.Random(1), policy())
    broken = [True]

    def once_broken(state: ImageState, memory: Memory | None) -> Step:
        if broken and broken.pop():
            raise RuntimeError("a bug in a strategy")
        return next_step(state, memory)

    monkeypatch.setattr(rounds, "next_step", once_broken)
    world.open(PATHS)
    with pytest.raises(RuntimeError):
        for _ in range(1_000):
            world.step()
    for _ in range(200_000):
        if world.finished:
            break
        world.step()
    assert len(world.store.decided) == 8


def test_each_variant_of_a_picture_is_prepared_for_the_calls_that_send_it() -> None:
    big = CallError(error=ErrorClass.TOO_BIG, message="too large", param="image")
    gone = CallError(error=ErrorClass.BAD_IMAGE, message="gone", reason="spool_missing")
    there = {"whole"}
    prepared: list[str] = []

    def trouble(task: object, now: float) -> CallError | None:
        if isinstance(task, Prepare):
            there.add(task.variant)
            prepared.append(task.variant)
        if isinstance(task, Generate):
            assert task.sent_bytes == 99
            if task.prompt == "two" and not task.reduced:
                return big
            variant = "half" if task.reduced else "whole"
            if variant not in there or (len(prepared) < 3 and task.prompt == "three"):
                there.discard(variant)
                return gone
        return None

    class Sized(World):
        def work(self, lease: int, task: object) -> object:
            reply = super().work(lease, task)
            if isinstance(reply, Prepared):
                info = msgspec.structs.replace(reply.info, sent_bytes=99)
                return msgspec.structs.replace(reply, info=info)
            return reply

    world = Sized(random.Random(4), policy(max_n=1), trouble)
    world.run([b"a.png"])
    assert len(world.store.decided) == 1 and len(world.store.candidates) == 3
    assert prepared[0] == "whole" and set(prepared) == {"whole", "half"}


def test_a_short_page_of_the_backlog_is_not_its_end() -> None:
    class ShortPages(World):
        def reply(self) -> None:
            after, query = self.questions[0]
            if isinstance(query, ReadBacklog):
                self.questions[0] = after, msgspec.structs.replace(query, count=3)
            super().reply()

    world = ShortPages(random.Random(1), policy())
    world.run(PATHS)
    assert len(world.store.decided) == 8
