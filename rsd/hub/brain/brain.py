"""The life of an image, from its start to its decision. Pure: events in, actions out.

Knows no clock (times come with the events), no file, no socket, no process. What happens before an
image is active is in `intake.py`; which candidates are drawn in `sampling.py`; who works on what in
`dispatch.py`; what an error means for its item in `work.py`, for its endpoint in `limits.py`.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from rsd.errors import OUT_OF_MEMORY, ErrorClass
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
from rsd.hub.brain.image import ActiveImage, requests_per_image
from rsd.hub.brain.intake import Intake, identity
from rsd.hub.brain.limits import EndpointLimit
from rsd.hub.brain.outcomes import GiveUp, Retry, Split, after_failure, pause
from rsd.hub.brain.queue import Work, WorkKind
from rsd.hub.brain.replies import candidates_of, grades_of
from rsd.hub.brain.rounds import Rounds
from rsd.hub.brain.turn import Turn
from rsd.hub.brain.view import BrainView, view_of
from rsd.protocol.dialects import adapt
from rsd.protocol.facts import (
    CandidateGraded,
    CandidateMade,
    ConfigStored,
    Fact,
    ImageGone,
    ImageStarted,
)
from rsd.protocol.tasks import (
    HALF,
    WHOLE,
    Crashed,
    Decoding,
    Failed,
    Generate,
    Generated,
    GivenBack,
    GradeCandidates,
    Graded,
    LeaseId,
    LoadRead,
    Prepare,
    Prepared,
    Probed,
    Task,
)
from rsd.protocol.vocabulary import CallError, ImageInfo, Role
from rsd.protocol.writer_talk import BacklogPage, Committed, ContentFound, QueuedImage, Recovered

#: Classes by which a server shows that it works, whatever it thinks of the probe.
ALIVE = {
    ErrorClass.UNSUPPORTED,
    ErrorClass.TOO_BIG,
    ErrorClass.REFUSED,
    ErrorClass.TRUNCATED,
    ErrorClass.BAD_REPLY,
}


class Brain:
    """`handle(event, now, wall)` is the only door; it returns what is to be done."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.turn = Turn()
        self.dispatch = Dispatcher(policy)
        self.intake = Intake(policy, self.turn, self.dispatch)
        self.rounds = Rounds(policy, self.turn, self.dispatch)
        self.draining = False
        self._stored: set[str] = set()  # recipes that the writer has
        self.started = False  #: the writer is open
        self._finished = False
        self._scan_done = not policy.once
        self._requests = requests_per_image(policy.recipe, policy.max_n)

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
            case WorkerUp(worker=worker, role=role, slots=slots):
                self.dispatch.leases.join(worker, role, slots)
            case WorkerGone(worker=worker, crashed=crashed):
                self._worker_gone(worker, crashed)
            case WorkerLeaving(worker=worker):
                self.dispatch.leases.leaving(worker)
            case Replied(worker=worker, reply=Decoding(lease=lease, image=image)):
                self.dispatch.leases.decoding(worker, lease, image)
            case Replied(worker=worker, reply=GivenBack(leases=leases)):
                self._given_back(worker, leases)
            case Replied(worker=worker, reply=reply) if not isinstance(reply, Decoding | GivenBack):
                self._replied(worker, reply)
            case FilesSeen(facts=facts) | RetryAsked(facts=facts):
                for fact in facts:
                    self.turn.persist(fact)
            case PathsGone(facts=facts):
                self._gone(facts)
            case Recovered(history=history, recipe=recipe):
                self._stored.add(recipe.fingerprint)
                if history.image not in self.rounds.images:  # a writer died while telling
                    self.rounds.activate(ActiveImage.from_history(history, recipe))
            case Started(backlog_high=high, dialects=dialects):
                self.started, self.intake.backlog_high = True, high
                self.dispatch.restore(dialects)
            case Committed(seq=seq, stats=stats):
                self.turn.acknowledge(seq)
                self.intake.backlog_high = max(self.intake.backlog_high, stats.backlog_high)
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
                self.policy = self.intake.policy = self.rounds.policy = policy
                self.dispatch.configure(policy)
                self._requests = requests_per_image(policy.recipe, policy.max_n)
            case DrainRequested():
                self.draining = True
            case Tick(blocked=blocked):
                self.dispatch.blocked = blocked
                self._expire()

    # --------------------------------------------------------------------------------- the cycle

    def _move_on(self) -> None:
        self.turn.out += self.dispatch.recall(self.turn.now, draining=self.draining)
        if self.draining or not self.started:
            return
        now = self.turn.now
        self.dispatch.due(now)
        self.rounds.forget_departed()
        self.rounds.start_steps()
        if self._scan_done:
            planned = self.dispatch.planned(Role.GENERATE)
            planned += self.rounds.starting * self._requests
            self.intake.admit(len(self.rounds.images), planned, self._requests)
        if not self.turn.full:
            self.turn.out += self.dispatch.assign_probes(now)
            self.turn.out += self.dispatch.assign_looks(now)
            self.turn.out += self.dispatch.assign(now, self._task)
            self.turn.out += self.dispatch.assign_prepares(now, self._prepare_task)
        idle = self.intake.idle and not self.rounds.images and not self.turn.unacknowledged
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
        if image is None:
            return None
        if work.kind is WorkKind.GRADE:
            first = work.indices[0]
            return GradeCandidates(
                image=image.image,
                sha256=image.sha256,
                round=image.draws[first].round,
                template=image.recipe.grading_template,
                answers=image.answers(work.indices, work.number),
                endpoint=endpoint.url,
                model=endpoint.model,
                dialect=endpoint.dialect,
                max_tokens=int(self.policy.grade_tokens * work.token_factor),
                reasoning_effort=image.recipe.reasoning_effort,
                reduced=work.reduced,
                sent_bytes=image.info.sent_bytes,
                shuffle_seed=f"{image.sha256}:{image.draws[first].round}:{first}:{work.number}",
            )
        if len(work.indices) > 1 and not endpoint.dialect.multiple:
            self.rounds.split(work)
            return None
        draw = image.draws[work.indices[0]].planned
        return Generate(
            image=image.image,
            sha256=image.sha256,
            samples=work.indices,
            round=image.draws[work.indices[0]].round,
            prompt_key=draw.arm.prompt_key,
            prompt=image.recipe.prompts[draw.arm.prompt_key],
            params=draw.arm.params,
            seed=draw.seed,
            max_tokens=max(1, int(image.recipe.max_tokens * work.token_factor)),
            endpoint=endpoint.url,
            model=endpoint.model,
            dialect=endpoint.dialect,
            reduced=work.reduced,
            sent_bytes=image.info.sent_bytes,
        )

    # ------------------------------------------------------------------------- start of an image

    def _start(self, queued: QueuedImage, info: ImageInfo, found: ContentFound) -> None:
        recipe = found.recipe or self.policy.recipe
        mine, version = identity(queued, info.sha256)
        if found.history is not None and found.image == mine:
            image = ActiveImage.from_history(found.history, recipe, info)
        else:
            image = ActiveImage(mine, queued.path, version, info, recipe, recipe.fingerprint)
        if image.config not in self._stored:
            self._stored.add(image.config)
            self.turn.persist(ConfigStored(recipe=recipe), size=16_384)
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

    # ------------------------------------------------------------------------------------ replies

    def _replied(
        self,
        worker: str,
        reply: Prepared | Generated | Graded | Probed | LoadRead | Failed | Crashed,
    ) -> None:
        usage = reply.usage if isinstance(reply, Generated | Graded | Failed) else None
        work = None
        if reply.lease is not None:
            work = self.dispatch.settle(worker, reply.lease, usage)
        if isinstance(reply, Crashed):
            self.turn.log("error", f"a bug in worker {worker}:\n{reply.traceback}")
        if work is None:
            return
        endpoint = self.dispatch.endpoint(work)
        if endpoint is not None and isinstance(reply, Generated | Graded):
            endpoint.succeeded(self.turn.now)
            if reply.rate_windows:
                self.dispatch.on_rate_headers(endpoint, reply.rate_windows, self.turn.now)
        match reply:
            case Prepared(info=info) if work.respool:
                self._respooled(work, info)
            case Prepared(info=info):
                self.intake.prepared(work, info, self.rounds.contents, self.rounds.departed)
            case Generated():
                self._generated(work, reply)
            case Graded():
                self._graded(work, reply)
            case Probed():
                self._probed(work, reply)
            case LoadRead(running=running, waiting=waiting) if endpoint is not None:
                endpoint.loaded(running, waiting, self.turn.now)
            case Failed(error=error):
                self._failed(work, error)
            case Crashed(traceback=text):
                message = text.strip().rpartition("\n")[2][:300]
                self._failed(
                    work, CallError(error=ErrorClass.BAD_REPLY, message=message, reason="bug")
                )

    def _generated(self, work: Work, reply: Generated) -> None:
        image = self.rounds.known(work)
        if image is None:
            return
        made, failed = candidates_of(work, reply, image)
        for candidate in made:
            image.draws[candidate.index].candidate = candidate
            size = 512 + len(candidate.content)
            self.turn.persist(CandidateMade(image=image.image, candidate=candidate), size)
        for index, error in failed:
            self.rounds.sample_failed(image, index, error)
        missing = work.indices[len(reply.completions) :]
        if missing:
            endpoint = self.dispatch.endpoint(work)
            if endpoint is not None and endpoint.dialect.multiple:
                single = msgspec.structs.replace(endpoint.dialect, multiple=False)
                self.dispatch.learn(endpoint, single, self.turn)
            for index in missing:
                self.rounds.queue(image, WorkKind.GENERATE, (index,))
        for indices, number in image.to_grade(work.indices):
            self.rounds.queue(image, WorkKind.GRADE, indices, number)
        self.rounds.check_barrier(image)

    def _graded(self, work: Work, reply: Graded) -> None:
        image = self.rounds.known(work)
        if image is None:
            return
        for grade in grades_of(work, reply, image.recipe.rubric):
            draw = image.draws.get(grade.index)
            if draw is not None and grade.number not in draw.grades:
                draw.grades[grade.number] = grade.score
                size = 512 + len(grade.explanation)
                self.turn.persist(CandidateGraded(image=image.image, grade=grade), size)
        if any(work.number in image.draws[i].missing() for i in work.indices):
            error = CallError(
                error=ErrorClass.BAD_REPLY,
                message="the grader left out a candidate of the list",
                reason="unparsable",
            )
            self._failed(work, error)
        else:
            self.rounds.check_barrier(image)

    def _probed(self, work: Work, reply: Probed) -> None:
        endpoint = self.dispatch.endpoint(work)
        if endpoint is None:
            return
        endpoint.probed(self.turn.now, model=reply.model, max_model_len=reply.max_model_len)
        self.dispatch.sampling_probed(endpoint.url)
        self.turn.log("info", f"{endpoint.url} answers, model {reply.model}")
        if reply.warning:
            self.turn.log("warning", f"{endpoint.url}: {reply.warning}")

    def _respooled(self, work: Work, info: ImageInfo) -> None:
        self.intake.refused = ""
        image = self.rounds.images.get(work.image)
        if image is None:
            return
        if info.sha256 != image.sha256:
            self.rounds.end_without_result(image, "withdrawn", "file_changed")
            return
        if not work.reduced:
            image.info = info  # other settings may give other bytes, and readers check their size
        for parked in image.parked:
            self.dispatch.add(parked, front=True)
        image.parked.clear()

    # ------------------------------------------------------------------------------------- errors

    def _failed(self, work: Work, error: CallError) -> None:
        now, endpoint = self.turn.now, self.dispatch.endpoint(work)
        if work.kind is WorkKind.PREPARE:
            self._prepare_failed(work, error)
            return
        if work.kind is WorkKind.LOAD_POLL:
            if endpoint is not None:
                endpoint.load_unknown(error, now)
            return
        if work.kind is WorkKind.PROBE:
            if endpoint is not None and error.error in ALIVE:
                endpoint.probed(now, model=endpoint.model, max_model_len=None)
            elif endpoint is not None:
                self.dispatch.endpoint_failed(endpoint, error, work, self.turn)
            return
        image = self.rounds.images.get(work.image)
        if image is None:
            return
        if error.reason == "spool_missing":
            if not image.parked:
                respool = Work(
                    kind=WorkKind.PREPARE, image=image.image, respool=True, reduced=work.reduced
                )
                self.dispatch.add(respool, front=True)
            image.parked.append(work)
            return
        if error.reason == OUT_OF_MEMORY:
            self._short_of_memory(work)
            return
        others = endpoint is not None and endpoint.answered > work.answered_before
        if endpoint is not None:
            self.dispatch.endpoint_failed(endpoint, error, work, self.turn)
            work.answered_before = endpoint.answered
        if error.error is ErrorClass.UNSUPPORTED:
            adapted = adapt(endpoint.dialect, error) if endpoint is not None else None
            if endpoint is None or adapted is not None or work.dialect != endpoint.dialect:
                if endpoint is not None and work.dialect == endpoint.dialect and adapted:
                    self.dispatch.learn(endpoint, adapted, self.turn)
                self.dispatch.add(work, front=True)
                return
            verdict: Retry | Split | GiveUp = GiveUp()
        else:
            verdict = after_failure(work, error, others, now, self.policy)
        image.last_error = f"{error.error.value}: {error.message or error.reason}"
        match verdict:
            case Retry(at=at):
                self.dispatch.later(work, at)
            case Split():
                self.rounds.split(work)
            case GiveUp():
                self.rounds.give_up(image, work, error)

    def _short_of_memory(self, work: Work) -> None:
        """Nobody's fault: again, when the others have given theirs back."""
        work.killed += 1
        self.turn.log("warning", "a worker is short of memory; the work is done a little later")
        self.dispatch.later(work, self.turn.now + pause(work, self.policy))

    def _prepare_failed(self, work: Work, error: CallError) -> None:
        if error.reason == OUT_OF_MEMORY:
            self._short_of_memory(work)
            return
        if not work.respool:
            self.intake.failed(work, error)
            return
        image = self.rounds.images.get(work.image)
        if image is None or self.intake.waits_for_disk(work, error):
            return
        if error.error is not ErrorClass.BAD_IMAGE:  # the picture is not to blame
            self.dispatch.later(work, self.turn.now + self.policy.backoff)
        else:
            status = "withdrawn" if error.reason == "vanished" else "failed"
            self.rounds.end_without_result(image, status, error.reason, error.message)

    def _worker_gone(self, worker: str, crashed: bool) -> None:
        """`crashed`: of its own doing. A kill by somebody else says nothing of the picture that was
        being decoded; it comes back a little later, because the host may lack memory.
        """
        works, decoding = self.dispatch.leave(worker)
        convicted = decoding is not None and crashed and self.intake.crashed(decoding)
        for work in works:
            prepare = work.kind is WorkKind.PREPARE
            if not prepare and not (work.kind.pays and work.image in self.rounds.images):
                continue
            if convicted and work.image == decoding:
                continue
            if work.kind is WorkKind.PREPARE and work.image == decoding and not crashed:
                work.killed += 1
                self.dispatch.later(work, self.turn.now + pause(work, self.policy))
            else:
                self.dispatch.add(work, front=True)

    def _given_back(self, worker: str, leases: tuple[LeaseId, ...]) -> None:
        for lease in reversed(leases):  # the first of them comes first again
            work = self.dispatch.give_back(worker, lease)
            if work is not None and work.image in self.rounds.images:
                self.dispatch.add(work, front=True)

    def _expire(self) -> None:
        works, kills = self.dispatch.expire(self.turn.now)
        self.turn.out += kills
        for work in works:
            error = CallError(
                error=ErrorClass.TRANSIENT,
                message="no answer within the time of its lease",
                reason="lease_expired",
                answered=False,
            )
            self._failed(work, error)
