"""`adaptive` in simulated time: servers have no idle slots, and few images are in work."""

from __future__ import annotations

import heapq
import random
from dataclasses import replace

import pytest

from rsd.hub.brain import events
from rsd.hub.brain.events import Action, Ask, Assign, Persist, Policy
from rsd.protocol.tasks import Generate, GradeCandidates, LoadRead, ReadLoad
from rsd.protocol.vocabulary import Role
from tests.unit.adaptive_world import AdaptiveWorld, adaptive
from tests.unit.world import policy

SLOTS, IMAGES = 16, 120
#: Seconds of a call, and of the writer's commit.
GENERATING, GRADING, OTHER, COMMIT = 4.0, 6.0, 0.05, 0.02


class Timed(AdaptiveWorld):
    """What happens next is what is due first."""

    def __init__(self, policy_: Policy) -> None:
        self.due: list[tuple[float, int, str, int]] = []  # (time, tie, worker or what, lease)
        self.ties = 0
        self.busy = {Role.GENERATE: 0, Role.GRADE: 0}
        self.seconds: list[tuple[int, int, int]] = []  # each second: busy slots, images in work
        super().__init__(random.Random(3), policy_)

    def later(self, seconds: float, what: str, lease: int = 0) -> None:
        self.ties += 1
        heapq.heappush(self.due, (self.now + seconds, self.ties, what, lease))

    def act(self, action: Action) -> None:
        super().act(action)
        if isinstance(action, Persist | Ask):
            self.later(COMMIT, "writer")
        elif isinstance(action, Assign):
            lasts, task = OTHER, action.lease.task
            if isinstance(task, Generate | GradeCandidates):
                made = isinstance(task, Generate)
                self.busy[Role.GENERATE if made else Role.GRADE] += 1
                lasts = (GENERATING if made else GRADING) * self.rng.uniform(0.7, 1.3)
            self.later(lasts, action.worker, action.lease.lease)

    def work(self, lease: int, task: object):
        if isinstance(task, ReadLoad):
            return LoadRead(lease=lease, running=float(self.busy[Role.GENERATE]), waiting=0.0)
        return super().work(lease, task)

    def go(self) -> Timed:
        """Until all images are decided."""
        self.open([b"%d.png" % k for k in range(IMAGES)])
        self.later(1.0, "clock")
        while not self.finished:
            self.now, _, what, lease = heapq.heappop(self.due)
            if what == "clock":
                self.think(events.Tick())
                self.seconds.append((*self.busy.values(), len(self.brain.rounds.images)))
                self.later(1.0, "clock")
            elif what == "writer":
                if self.facts:
                    self.commit(len(self.facts))
                while self.questions:
                    self.reply()
            else:
                task = self.leases[what].pop(lease)
                if isinstance(task, Generate | GradeCandidates):
                    self.busy[Role.GENERATE if isinstance(task, Generate) else Role.GRADE] -= 1
                self.think(events.Replied(worker=what, reply=self.work(lease, task)))
        return self

    def means(self) -> list[float]:
        """Busy slots of generators and graders, and images in work, without start and end."""
        middle = self.seconds[len(self.seconds) // 10 : -len(self.seconds) // 5]
        return [sum(column) / len(middle) for column in zip(*middle, strict=True)]


@pytest.mark.parametrize("most", [None, 3])
def test_slots_are_full_with_few_images_in_work(most: int | None) -> None:
    settings = policy(adaptive(), images_in_flight=most, slots=SLOTS)
    roles = {
        role: replace(of, cap=SLOTS, endpoint_cap=SLOTS) for role, of in settings.roles.items()
    }
    world = Timed(replace(settings, roles=roles, max_n=SLOTS)).go()
    assert len(world.store.decided) == IMAGES
    generating, _, images = world.means()
    if most is None:
        assert generating >= 0.95 * SLOTS and images <= SLOTS
    else:
        assert max(column for *_, column in world.seconds) <= most and generating < 0.95 * SLOTS
