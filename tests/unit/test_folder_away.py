"""Pictures that are not found while the whole image folder is away. Pure."""

from __future__ import annotations

import random

import pytest

from rsd.errors import ErrorClass
from rsd.hub.brain import events
from rsd.hub.brain.events import Policy
from rsd.protocol.tasks import Failed, Generate
from rsd.protocol.vocabulary import FOLDER_AWAY, VANISHED, CallError
from tests.unit.test_blame import preparing, spool_is_missing
from tests.unit.world import World, policy


def not_there(world: World, reason: str) -> None:
    """The worker of a picture does not find it."""
    worker, lease = preparing(world)
    del world.leases[worker][lease]
    error = CallError(error=ErrorClass.BAD_IMAGE, message="not there", reason=reason)
    world.think(events.Replied(worker=worker, reply=Failed(lease=lease, error=error)))


def service() -> Policy:
    return policy(once=False)


@pytest.mark.parametrize("active", [False, True], ids=["queued", "active"])
@pytest.mark.parametrize(
    ("reason", "hub_knows"), [(FOLDER_AWAY, False), (VANISHED, True), ("unreadable", True)]
)
def test_a_picture_waits_for_its_folder(active: bool, reason: str, hub_knows: bool) -> None:
    world = World(random.Random(1), service())
    world.open([b"a"])
    if active:
        spool_is_missing(world)
    for _ in range(20):
        preparing(world)
        world.think(events.Tick(folder_away=hub_knows))
        not_there(world, reason)
        assert not world.ended
        world.now += 20.0
        world.think(events.Tick())
    while not world.ended:
        world.step()
    assert [(e.path, e.score is not None) for e in world.ended] == [(b"a", True)]


@pytest.mark.parametrize("active", [False, True], ids=["queued", "active"])
@pytest.mark.parametrize("reason", [FOLDER_AWAY, VANISHED])
def test_a_pass_does_not_wait_for_what_is_not_there(active: bool, reason: str) -> None:
    world = World(random.Random(1), policy())
    world.open([b"a"])
    if active:
        spool_is_missing(world)
    not_there(world, reason)
    assert [(e.status, e.reason) for e in world.ended] == [("withdrawn", reason)]
    while not world.finished:
        world.step()
    assert not any(
        isinstance(task, Generate) for leases in world.leases.values() for task in leases.values()
    ), "what is under way is paid for, and kept for a retry"
