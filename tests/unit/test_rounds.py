"""Images between their start and their end, without the rest of the brain."""

from __future__ import annotations

from rsd.hub.brain.brain import Brain
from rsd.hub.brain.events import Persist
from rsd.hub.brain.image import ActiveImage
from rsd.hub.brain.queue import Work, WorkKind
from rsd.protocol.facts import StepChosen
from rsd.protocol.vocabulary import Role, image_id
from tests.unit.world import info_of, policy


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
