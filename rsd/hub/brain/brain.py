"""The life of an image, from its start to its decision. Pure: events in, actions out.

Knows no clock (times come with the events), no file, no socket, no process. What happens before an
image is active is in `intake.py`; which candidates are made in `rsd/strategy`; who works on what in
`dispatch.py`; what an answer means in `replies.py`, what an error in `outcomes.py`.
"""

from __future__ import annotations

from collections.abc import Iterable

from rsd.hub.brain.dispatch import Dispatcher
from rsd.hub.brain.events import (
    Action,
    DrainRequested,
    Event,
    FilesSeen,
    Finished,
    HostPressure,
    PathsGone,
    Policy,
    PolicyChanged,
    Replied,
    RetryAsked,
    ScanDone,
    Started,
    Tick,
    WorkerGone,
    WorkerLeaving,
    WorkerUp,
)
from rsd.hub.brain.image import ActiveImage, with_grader
from rsd.hub.brain.intake import Intake, identity
from rsd.hub.brain.limits import EndpointLimit
from rsd.hub.brain.outcomes import Outcomes
from rsd.hub.brain.queue import Work, WorkKind
from rsd.hub.brain.replies import Replies
from rsd.hub.brain.rounds import Rounds
from rsd.hub.brain.turn import Turn
from rsd.hub.brain.view import BrainView, view_of
from rsd.protocol.facts import (
    Fact,
    ImageGone,
    ImageStarted,
)
from rsd.protocol.learned import Learned
from rsd.protocol.tasks import (
    HALF,
    WHOLE,
    Decoding,
    Generate,
    GivenBack,
    GradeCandidates,
    Prepare,
    Task,
)
from rsd.protocol.vocabulary import ImageInfo, Role
from rsd.protocol.writer_talk import BacklogPage, Committed, ContentFound, QueuedImage, Recovered

#: What a worker says of leases without ending one by an answer.
BESIDE = (Decoding, GivenBack)


class Brain:
    """`handle(event, now, wall)` is the only door; it returns what is to be done."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.turn = Turn()
        self.dispatch = Dispatcher(policy)
        self.intake = Intake(policy, self.turn, self.dispatch)
        self.rounds = Rounds(policy, self.turn, self.dispatch)
        self.outcomes = Outcomes(policy, self.turn, self.dispatch, self.intake, self.rounds)
        self.replies = Replies(self.turn, self.dispatch, self.intake, self.rounds, self.outcomes)
        self.draining = False
        self.started = False  #: the writer is open
        self._finished = False
        self._scan_done = not policy.once
        self._requests = self.rounds.requests_per_image()

    def handle(self, event: Event, now: float, wall: float) -> list[Action]:
        """`now`: monotonic seconds; `wall`: Unix time, stored in facts and never compared."""
        return self.handle_all((event,), now, wall)

    def handle_all(self, events: Iterable[Event], now: float, wall: float) -> list[Action]:
        """Several events that came together: what they allow is looked at once, at their end."""
        self.turn.begin(now, wall)
        for event in events:
            self._take(event)
        self._move_on()
        return self.turn.out

    def view(self, now: float) -> BrainView:
        """All that others may see of it at `now`, in monotonic seconds; once per tick, no more."""
        parts = self.dispatch, self.intake, self.turn
        return view_of(*parts, now, started=self.started, draining=self.draining)

    def _take(self, event: Event) -> None:
        match event:
            case Replied(worker=worker, reply=reply) if not isinstance(reply, BESIDE):
                self.replies.heard(worker, reply)
            case Replied(worker=worker, reply=Decoding(lease=lease)):
                self.dispatch.leases.decoding(worker, lease, self.turn.now)
            case Replied(worker=worker, reply=GivenBack(leases=leases)):
                self.outcomes.given_back(worker, leases)
            case WorkerUp(worker=worker, role=role, slots=slots):
                self.dispatch.leases.join(worker, role, slots)
            case WorkerGone(worker=worker, crashed=crashed):
                self.outcomes.worker_gone(worker, crashed)
            case WorkerLeaving(worker=worker):
                self.dispatch.leases.leaving(worker)
            case FilesSeen(facts=facts) | RetryAsked(facts=facts):
                for fact in facts:
                    self.turn.persist(fact)
            case PathsGone(facts=facts):
                self._gone(facts)
            case Recovered(history=history, recipe=recipe):
                self.rounds.stored.add(recipe.fingerprint)
                if history.image not in self.rounds.images:  # a writer died meanwhile
                    self.rounds.activate(ActiveImage.from_history(history, recipe))
            case Started(stats=stats, dialects=dialects, learned=learned):
                self.started = True
                self._learned(learned)
                self.intake.opened(stats.backlog_high, stats.priority_high)
                self.dispatch.endpoints.restore(dialects)
            case Committed(seq=seq, stats=stats, learned=learned):
                if learned:
                    self._learned(learned)
                self.turn.acknowledge(seq)
                self.intake.grown(stats.backlog_high, stats.priority_high)
                self.rounds.durable(seq)
            case BacklogPage():
                self.intake.page(event)
            case ContentFound():
                self.intake.content_found(event, self._start)
            case ScanDone(only=only):
                self._scan_done, self.intake.only = True, only
            case HostPressure(level=level, factor=factor):
                self.dispatch.set_level(level, factor)
            case PolicyChanged(policy=policy):
                self.policy = self.intake.policy = self.outcomes.policy = policy
                self.dispatch.configure(policy)
                self.rounds.reconfigure(policy)
                self._requests = self.rounds.requests_per_image()
            case DrainRequested():
                self.draining = True
            case Tick(blocked=blocked, folder_away=away):
                self.dispatch.blocked, self.intake.folder_away = blocked, away
                self.outcomes.expire()

    def _learned(self, records: Iterable[Learned]) -> None:
        """Also changes which arms the images to come will take, and so how many requests."""
        if self.rounds.learn(records):
            self._requests = self.rounds.requests_per_image()

    # --------------------------------------------------------------------------------- the cycle

    def _move_on(self) -> None:
        self.turn.out += self.dispatch.recall(self.turn.now, draining=self.draining)
        if self.draining or not self.started:
            return
        now = self.turn.now
        self.dispatch.queue.due(now)
        self.rounds.forget_departed()
        self.rounds.start_steps()
        if self._scan_done:
            planned = self.dispatch.planned(Role.GENERATE)
            planned += self.rounds.starting * self._requests
            self.intake.admit(len(self.rounds.images), planned, self._requests)
        if not self.turn.full:
            self.turn.out += self.dispatch.assign_probes(now)
            self.turn.out += self.dispatch.assign_sides(now)
            self.turn.out += self.dispatch.assign(now, self._task)
            self.turn.out += self.dispatch.assign_prepares(now, self._prepare_task)
        open_images = self.rounds.images or self.rounds.departed
        idle = self.intake.idle and not open_images and not self.turn.unacknowledged
        if self.policy.once and self._scan_done and idle and not self._finished:
            self._finished = True
            self.turn.out.append(Finished())

    def _prepare_task(self, work: Work) -> Task | None:
        if not work.respool:
            return self.intake.task(work)
        image = self.rounds.images.get(work.image)
        if image is None:
            return None
        variant = HALF if work.reduced else WHOLE
        return Prepare(image=image.image, path=image.path, variant=variant)

    def _task(self, work: Work, endpoint: EndpointLimit) -> Task | None:
        image = self.rounds.images.get(work.image)
        if image is None or self.rounds.stale(work):
            return None
        if work.kind is WorkKind.GRADE:
            first = work.indices[0]
            return GradeCandidates(
                image=image.image,
                sha256=image.sha256,
                round=image.candidates[first].round,
                template=image.recipe.grading_template,
                candidates=image.answers(work.indices, work.number),
                endpoint=endpoint.url,
                model=endpoint.model,
                dialect=endpoint.dialect,
                max_tokens=int(self.policy.grade_tokens * work.token_factor),
                reasoning_effort=image.recipe.reasoning_effort,
                reduced=work.reduced,
                sent_bytes=image.info.sent_bytes,
                shuffle_seed=f"{image.sha256}:{image.candidates[first].round}:{first}:{work.number}",
            )
        if len(work.indices) > 1 and not endpoint.dialect.multiple:
            self.rounds.split(work)
            return None
        begin = image.candidates[work.indices[0]]
        arm = begin.planned.arm
        return Generate(
            image=image.image,
            sha256=image.sha256,
            samples=work.indices,
            round=begin.round,
            prompt_key=arm.prompt_key,
            prompt=image.recipe.prompts[arm.prompt_key],
            params=arm.params,
            seed=begin.planned.seed,
            max_tokens=max(1, int(image.recipe.max_tokens * work.token_factor)),
            endpoint=endpoint.url,
            model=endpoint.model,
            dialect=endpoint.dialect,
            reduced=work.reduced,
            sent_bytes=image.info.sent_bytes,
        )

    # ------------------------------------------------------------------------- start of an image

    def _start(self, queued: QueuedImage, info: ImageInfo, found: ContentFound) -> None:
        recipe = with_grader(found.recipe or self.policy.recipe, self.policy.recipe)
        mine, version = identity(queued, info.sha256)
        if found.history is not None and found.image == mine:
            image = ActiveImage.from_history(found.history, recipe, info)
        else:
            image = ActiveImage(mine, queued.path, version, info, recipe, recipe.fingerprint)
        self.rounds.store_recipe(recipe)
        self.turn.persist(
            ImageStarted(
                image=mine,
                queued_as=queued.image,
                queue_seq=queued.queue_seq,
                path=queued.path,
                version=version,
                info=info,
                config=image.config,
                time=self.turn.wall,
            )
        )
        self.rounds.activate(image)

    def _gone(self, facts: tuple[Fact, ...]) -> None:
        paths = {f.path for f in facts if isinstance(f, ImageGone)}
        for fact in facts:
            self.turn.persist(fact)
        self.intake.gone(paths)
        for image in [i for i in self.rounds.images.values() if i.path in paths]:
            self.rounds.cancel(image)
            self.turn.ended(image.image, image.path, "withdrawn", "file_removed")
