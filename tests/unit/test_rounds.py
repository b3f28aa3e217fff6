"""Images between their start and their end, without the rest of the brain."""

from __future__ import annotations

import random

import msgspec
import pytest

from rsd.hub.brain.brain import Brain
from rsd.hub.brain.events import Persist
from rsd.hub.brain.image import ActiveImage
from rsd.hub.brain.queue import Work, WorkKind
from rsd.hub.brain.rounds import LEARNED_MAX
from rsd.protocol.facts import StepChosen
from rsd.protocol.learned import nothing_learned
from rsd.protocol.vocabulary import Role, image_id
from tests.unit.world import World, info_of, policy, recipe


def test_an_image_that_was_held_back_and_comes_back_is_asked_for_once() -> None:
    brain = Brain(policy())
    brain.turn.begin(1.0, 1_000.0)
    rounds, queue = brain.rounds, brain.dispatch.queue

    def start() -> ActiveImage:
        recipe = brain.policy.recipe
        info, image = info_of(b"a.png"), image_id(b"a.png", 0)
        started = ActiveImage(image, b"a.png", 0, info, recipe, recipe.fingerprint)
        rounds.activate(started)
        return started

    for number in range(100):
        queue.add(Work(kind=WorkKind.GRADE, image="other", role=Role.GRADE, number=number))
    first = start()
    rounds.start_steps()
    assert rounds.starting == 1, "graders are behind: it waits"
    rounds.cancel(first)
    second = start()
    rounds.start_steps()
    queue.drop(lambda work: False)
    rounds.start_steps()
    steps = [a for a in brain.turn.out if isinstance(a, Persist) and isinstance(a.fact, StepChosen)]
    assert len(steps) == 1
    rounds.durable(brain.turn.seq)
    planned = [index for work in queue for index in work.indices]
    assert sorted(planned) == sorted(second.candidates), "each candidate is asked for once"


def test_the_newest_record_of_each_key_is_kept_and_not_more_than_so_many() -> None:
    brain = Brain(policy())
    first = nothing_learned(recipe())
    older, newer = (msgspec.structs.replace(first, images=n) for n in (3, 5))
    brain.rounds.learn([newer])
    brain.rounds.learn([older])
    assert brain.rounds.learned == {first.key: newer}, "messages of two writers may overtake"
    brain.rounds.learn(msgspec.structs.replace(first, key=str(k)) for k in range(LEARNED_MAX))
    assert len(brain.rounds.learned) == LEARNED_MAX and first.key not in brain.rounds.learned


@pytest.mark.parametrize("most", [1, 3])
def test_no_more_images_are_in_work_than_allowed(most: int) -> None:
    world = World(random.Random(2), policy(images_in_flight=most))
    world.open([b"%d.png" % k for k in range(12)])
    seen = set()
    while not world.finished:
        world.step()
        seen.add(len(world.brain.rounds.images) + world.brain.intake.busy)
    assert max(seen) == most and len(world.store.decided) == 12
