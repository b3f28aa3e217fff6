"""Who is blamed for a worker's death, and for a lack of memory. Pure."""

from __future__ import annotations

import random
import resource
import signal
from collections import Counter

import msgspec
import pytest

from rsd.errors import OUT_OF_MEMORY, ErrorClass, UserError
from rsd.hub.brain import events
from rsd.hub.brain.limits import DOWN, EndpointLimit
from rsd.hub.children import targets
from rsd.hub.children.local import Child, Pool
from rsd.hub.policy import decode_bytes, refuse_fixed, waiting_for_restart
from rsd.protocol.tasks import (
    Decoding,
    Failed,
    Generate,
    GradeCandidates,
    Prepare,
    from_worker_decoder,
)
from rsd.protocol.vocabulary import CallError, Role
from rsd.settings.fields import Images, Settings, Watch
from tests.unit.world import World, policy


def preparing(world: World) -> tuple[str, int]:
    """The worker and the lease of a picture that is being prepared."""
    for _ in range(2_000):
        for worker, leases in world.leases.items():
            for lease, task in leases.items():
                if isinstance(task, Prepare):
                    return worker, lease
        world.step()
    raise AssertionError("no picture is prepared")


def died(world: World, *, crashed: bool) -> None:
    """The worker of a picture dies while it decodes."""
    worker, lease = preparing(world)
    task = world.leases[worker][lease]
    assert isinstance(task, Prepare)
    world.think(events.Replied(worker=worker, reply=Decoding(lease=lease, image=task.image)))
    world.leases.pop(worker)
    world.think(events.WorkerGone(worker=worker, crashed=crashed))
    world.hire(Role.GENERATE)


def test_three_crashes_convict_a_picture_and_kills_by_others_do_not() -> None:
    world = World(random.Random(1), policy())
    world.open([b"a"])
    for _ in range(10):
        died(world, crashed=False)
    assert not world.ended
    for _ in range(3):
        assert not world.ended
        died(world, crashed=True)
    assert [(e.path, e.reason) for e in world.ended] == [(b"a", "crashes_worker")]


def test_a_decoding_that_hangs_is_convicted_and_takes_no_other_picture_along() -> None:
    """One try must do for every other picture: an expired lease would count as one."""
    names = [f"p{k}".encode() for k in range(12)]
    world = Hanging(random.Random(7), policy(max_attempts=1))
    world.run([*names, b"hangs"])
    assert [(e.path, e.reason) for e in world.ended if e.score is None] == [
        (b"hangs", "crashes_worker")
    ]
    assert len(world.store.decided) == 12
    assert world.hung == 3 and world.killed == 3


class Hanging(World):
    """The thread that decodes the picture `hangs` never comes back from it."""

    hung = killed = 0

    def answerable(self, worker: str) -> list[int]:
        leases = self.leases[worker]
        pictures = {k: t for k, t in leases.items() if isinstance(t, Prepare)}
        bad = [k for k, task in pictures.items() if task.path == b"hangs"]
        stuck = [k for k in pictures if bad and k >= bad[0]]
        if stuck and stuck[0] == min(pictures):
            self.decode(worker, stuck[0])
        return [k for k in leases if k not in stuck]

    def decode(self, worker: str, lease: int) -> None:
        about = self.brain.dispatch.leases.workers[worker]
        if about.decoding != lease:
            self.hung += 1
            image = self.leases[worker][lease].image
            self.think(events.Replied(worker=worker, reply=Decoding(lease=lease, image=image)))

    def act(self, action: events.Action) -> None:
        if isinstance(action, events.KillWorker):
            assert "prepares a picture" in action.why
            self.killed += 1
        super().act(action)


def spool_is_missing(world: World) -> None:
    """A call of an active image finds no prepared picture."""
    for _ in range(2_000):
        for worker, leases in world.leases.items():
            for lease, task in leases.items():
                if isinstance(task, Generate):
                    del leases[lease]
                    error = CallError(
                        error=ErrorClass.BAD_IMAGE, message="gone", reason="spool_missing"
                    )
                    reply = Failed(lease=lease, error=error)
                    world.think(events.Replied(worker=worker, reply=reply))
                    return
        world.step()
    raise AssertionError("no call is made")


def test_three_crashes_convict_a_picture_that_is_prepared_again() -> None:
    world = World(random.Random(1), policy())
    world.open([b"a"])
    spool_is_missing(world)
    for _ in range(5):
        died(world, crashed=False)
    for _ in range(3):
        assert not world.ended
        died(world, crashed=True)
    assert [(e.path, e.reason) for e in world.ended] == [(b"a", "crashes_worker")]
    while world.facts:
        world.commit(1)
    (aside,) = world.store.aside.values()
    assert (aside.status, world.store.crashes) == ("failed", [aside.image] * 3)
    assert not world.brain.rounds.images


def test_a_lack_of_memory_fails_nothing() -> None:
    short = CallError(error=ErrorClass.TRANSIENT, message="short", reason=OUT_OF_MEMORY)
    seen: dict[object, int] = {}

    def trouble(task: object, now: float) -> CallError | None:
        key = (type(task), getattr(task, "image", ""))
        seen[key] = seen.get(key, 0) + 1
        return short if seen[key] % 4 else None

    world = World(random.Random(2), policy(max_attempts=30), trouble)
    world.run([b"a", b"b"])
    assert len(world.store.decided) == 2 and not world.store.failed


@pytest.mark.parametrize("kind", [Prepare, Generate, GradeCandidates])
def test_a_lack_of_memory_is_tried_as_often_as_other_errors(kind: type) -> None:
    short = CallError(error=ErrorClass.TRANSIENT, message="short", reason=OUT_OF_MEMORY)
    tries: Counter[object] = Counter()

    def trouble(task: object, now: float) -> CallError | None:
        if not isinstance(task, kind):
            return None
        about = getattr(task, "samples", getattr(task, "candidates", ()))
        tries[task.image, about] += 1  # type: ignore[attr-defined]
        return short

    world = World(random.Random(4), policy(max_attempts=4, max_n=1), trouble)
    world.run([b"a", b"b"])
    reasons = {Prepare: OUT_OF_MEMORY, Generate: "no_candidate", GradeCandidates: "ungraded"}
    assert [a.reason for a in world.store.aside.values()] == [reasons[kind]] * 2
    assert set(tries.values()) == {4}


def test_a_lack_of_memory_is_not_the_endpoints_fault() -> None:
    world = World(random.Random(3), policy(max_attempts=1_000))
    world.open([b"a"])
    short = CallError(error=ErrorClass.TRANSIENT, message="short", reason=OUT_OF_MEMORY)
    for _ in range(50):
        worker, lease = preparing(world)
        world.leases[worker].pop(lease)
        world.think(events.Replied(worker=worker, reply=Failed(lease=lease, error=short)))
        world.now += 60
    assert not world.ended
    assert all(e.state != DOWN for e in world.brain.dispatch.endpoints)


@pytest.mark.parametrize(
    ("code", "own"),
    [
        (-signal.SIGSEGV, True),
        (-signal.SIGABRT, True),
        (1, True),
        (-signal.SIGKILL, False),
        (-signal.SIGTERM, False),
        (0, False),
        (None, False),
    ],
)
def test_whose_fault_a_death_is(code: int | None, own: bool) -> None:
    child = Child("g", "generate", lambda: None, (), from_worker_decoder, isolated=False)
    child.exit_code = code
    assert child.own_fault is own


def test_a_hub_without_a_file_to_open_starts_its_children_later() -> None:
    pool = Pool(lambda note: None, {}, lambda: None)
    pool.add("writer", "writer", targets.writer, (), from_worker_decoder)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        assert pool.tend(1.0) == []
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not pool.alive("writer")


def test_what_a_reload_may_change() -> None:
    before = Settings(image_dir="a", output_dir="b")
    after = msgspec.structs.replace(before, watch=Watch(poll_seconds=3.0, settle_seconds=1.0))
    assert waiting_for_restart(before, after) == ["watch.settle_seconds", "watch.poll_seconds"]
    assert waiting_for_restart(before, before) == []
    refuse_fixed(before, after)
    with pytest.raises(UserError, match=r"^image_dir = c: .*it is a"):
        refuse_fixed(before, msgspec.structs.replace(before, image_dir="c"))


def test_memory_for_decoding_grows_with_the_pictures() -> None:
    small, large = (Settings(images=Images(max_megapixels=m)) for m in (1.0, 50.0))
    assert decode_bytes(large) - decode_bytes(small) == 49_000_000 * 32
    named = Settings(images=Images(decode_mebibytes=100))
    assert decode_bytes(named) == 100 * 2**20


def test_a_reload_probes_at_once_what_is_down() -> None:
    endpoint = EndpointLimit(role=Role.GRADE, url="u", cap=8, probe_pause=2.0, quota_pause=300.0)
    endpoint.failed(CallError(error=ErrorClass.QUOTA, message="empty"), 10.0)
    assert not endpoint.probe_due(11.0)
    endpoint.reloaded(4, 1.0, 60.0)
    assert endpoint.probe_due(11.0)
    assert (endpoint.cap, endpoint.limit, endpoint.quota_pause) == (4, 4.0, 60.0)
