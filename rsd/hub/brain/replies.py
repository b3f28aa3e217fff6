"""What the workers answer, turned into facts about candidates, grades and endpoints. Pure."""

from __future__ import annotations

import msgspec

from rsd.errors import ErrorClass
from rsd.hub.brain.dispatch import Dispatcher
from rsd.hub.brain.image import ActiveImage
from rsd.hub.brain.intake import Intake
from rsd.hub.brain.leases import Loan
from rsd.hub.brain.limits import EndpointLimit
from rsd.hub.brain.outcomes import Outcomes
from rsd.hub.brain.prefilter import rejection_of
from rsd.hub.brain.queue import Work, WorkKind
from rsd.hub.brain.rounds import Rounds
from rsd.hub.brain.turn import Turn
from rsd.protocol.facts import CandidateGraded, CandidateMade
from rsd.protocol.tasks import (
    Completion,
    Crashed,
    Failed,
    Generated,
    Graded,
    GradeGiven,
    LoadRead,
    Prepared,
    Probed,
    SamplingProbed,
)
from rsd.protocol.vocabulary import CallError, Candidate, Grade, ImageInfo, Usage

#: What ends a call, and what ends it with an answer.
ENDS, ANSWERS = (Generated, Graded, Failed), (Generated, Graded)
Reply = Prepared | Generated | Graded | Probed | SamplingProbed | LoadRead | Failed | Crashed


class Replies:
    """The end of a lease by an answer."""

    def __init__(
        self,
        turn: Turn,
        dispatch: Dispatcher,
        intake: Intake,
        rounds: Rounds,
        outcomes: Outcomes,
    ) -> None:
        self.turn = turn
        self.dispatch = dispatch
        self.intake = intake
        self.rounds = rounds
        self.outcomes = outcomes

    def heard(self, worker: str, reply: Reply) -> None:
        """A worker answered. What comes for a lease that has ended is paid for and not used."""
        usage = reply.usage if isinstance(reply, ENDS) else None
        loan = None
        if reply.lease is not None:
            loan = self.dispatch.close(worker, reply.lease, usage)
        if isinstance(reply, Crashed):
            self.turn.log("error", f"a bug in worker {worker}:\n{reply.traceback}")
        if loan is None or loan.late:
            self._late(loan, reply)
            return
        work = loan.item
        endpoint = self.dispatch.endpoints.find(work)
        if endpoint is not None and isinstance(reply, ANSWERS):
            endpoint.succeeded(self.turn.now)
            if reply.rate_windows:
                self.dispatch.on_rate_headers(endpoint, reply.rate_windows, self.turn.now)
        match reply:
            case Prepared(info=info) if work.respool:
                self._respooled(work, info)
            case Prepared(info=info):
                self.intake.prepared(work, info, self.rounds.contents, self.rounds.departed)
            case Generated():
                self._generated(work, reply, endpoint)
            case Graded():
                self._graded(work, reply)
            case Probed():
                self._spent(work, reply.model, reply.usage, "probe")
                self._probed(reply, endpoint)
            case SamplingProbed():
                model = endpoint.model if endpoint is not None else ""
                self._spent(work, model, reply.usage, "probe")
                self._sampling_probed(work, reply)
            case LoadRead(running=running, waiting=waiting) if endpoint is not None:
                endpoint.loaded(running, waiting, self.turn.now)
            case Failed(error=error):
                model = endpoint.model if endpoint is not None else ""
                self._spent(work, model, reply.usage, error.reason or error.error.value)
                self.outcomes.failed(work, error)
            case Crashed(traceback=text):
                message = text.strip().rpartition("\n")[2][:300]
                error = CallError(error=ErrorClass.BAD_REPLY, message=message, reason="bug")
                self.outcomes.failed(work, error)

    def _late(self, loan: Loan[Work] | None, reply: Reply) -> None:
        call = loan.call if loan is not None else None  # its work may be lent elsewhere by now
        if call is not None and isinstance(reply, ENDS):
            self.turn.spent(call.role, call.endpoint, call.model, reply.usage, "late")
        elif loan is not None and isinstance(reply, Probed | SamplingProbed | Failed):
            model = loan.item.limit.model if loan.item.limit is not None else ""
            self._spent(loan.item, model, reply.usage, "late")

    def _spent(self, work: Work, model: str, usage: Usage, outcome: str) -> None:
        self.turn.spent(work.role, work.endpoint, model, usage, outcome)

    def _generated(self, work: Work, reply: Generated, endpoint: EndpointLimit | None) -> None:
        image = self.rounds.known(work)
        if image is None:
            self._spent(work, reply.model, reply.usage, "surplus")
            return
        self._keep_candidates(work, reply, image)
        missing = work.indices[len(reply.completions) :]
        if missing:
            if endpoint is not None and endpoint.dialect.multiple:
                single = msgspec.structs.replace(endpoint.dialect, multiple=False)
                self.dispatch.endpoints.learn(endpoint, single, self.turn)
            for index in missing:
                self.rounds.queue(image, WorkKind.GENERATE, (index,))
        for indices, number in image.to_grade(work.indices):
            self.rounds.queue(image, WorkKind.GRADE, indices, number)
        self.rounds.check_barrier(image)

    def _keep_candidates(self, work: Work, reply: Generated, image: ActiveImage) -> None:
        shares = shared(reply.usage, len(reply.completions))
        if not reply.completions:
            self._spent(work, reply.model, reply.usage, "no_choices")
        for position, completion in enumerate(reply.completions):
            index = work.indices[position] if position < len(work.indices) else None
            if index is None or image.candidates[index].answered:
                self._spent(work, reply.model, shares[position], "surplus")
            elif completion.refusal or completion.finish_reason == "content_filter":
                message = completion.refusal or "the content filter stopped the answer"
                error = CallError(error=ErrorClass.REFUSED, message=message[:300], reason="refusal")
                self._spent(work, reply.model, shares[position], "refusal")
                self.rounds.generation_failed(image, index, error)
            else:
                made = candidate_of(work, reply, image, index, completion, shares[position])
                image.candidates[index].candidate = made
                size = 512 + len(made.content)
                self.turn.persist(CandidateMade(image=image.image, candidate=made), size)

    def _graded(self, work: Work, reply: Graded) -> None:
        image = self.rounds.known(work)
        if image is None:
            self._spent(work, reply.model, reply.usage, "surplus")
            return
        shares = dict(zip(work.indices, shared(reply.usage, len(work.indices)), strict=True))
        for given in reply.grades:
            candidate = image.candidates.get(given.index)
            bought = candidate.gradings.get(given.number) if candidate is not None else None
            if bought is None or bought.score is not None or given.index not in shares:
                continue
            bought.score = given.score
            grade = grade_of(work, reply, given, shares.pop(given.index))
            size = 512 + len(grade.explanation)
            self.turn.persist(CandidateGraded(image=image.image, grade=grade), size)
        given_for = {given.index for given in reply.grades}
        for index, share in shares.items():
            outcome = "surplus" if index in given_for else "unparsable"
            self._spent(work, reply.model, share, outcome)
        left_out = any(image.awaits(i, work.number) for i in work.indices)
        if left_out:
            error = CallError(
                error=ErrorClass.BAD_REPLY,
                message="the grader left out a candidate of the list",
                reason="unparsable",
            )
            self.outcomes.failed(work, error)
        else:
            self.rounds.check_barrier(image)

    def _probed(self, reply: Probed, endpoint: EndpointLimit | None) -> None:
        if endpoint is None:
            return
        endpoint.probed(self.turn.now, model=reply.model, max_model_len=reply.max_model_len)
        self.turn.log("info", f"{endpoint.url} answers, model {reply.model}")
        if reply.warning:
            self.turn.log("warning", f"{endpoint.url}: {reply.warning}")

    def _sampling_probed(self, work: Work, reply: SamplingProbed) -> None:
        if reply.warning:
            self.turn.log("warning", f"{work.endpoint}: {reply.warning}")

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
        parked = image.parked[work.reduced]
        self.dispatch.queue.add_first(*parked)
        parked.clear()


def candidate_of(
    work: Work,
    reply: Generated,
    image: ActiveImage,
    index: int,
    completion: Completion,
    usage: Usage,
) -> Candidate:
    """What is stored of one completion of a call. `usage`: its share of the call."""
    planned = image.candidates[index].planned
    return Candidate(
        index=index,
        round=image.candidates[index].round,
        prompt_key=planned.arm.prompt_key,
        params=planned.arm.params,
        seed=planned.seed,
        content=completion.content,
        finish_reason=completion.finish_reason,
        rejected_because=rejection_of(completion),
        generation_time=reply.seconds,
        usage=usage,
        model=reply.model,
        endpoint=work.endpoint,
        config=image.config,
        explore=planned.explore,
        timestamp=reply.timestamp,
    )


def grade_of(work: Work, reply: Graded, given: GradeGiven, usage: Usage) -> Grade:
    """What is stored of one grade of a call. `usage`: its share of the call."""
    return Grade(
        index=given.index,
        number=given.number,
        score=given.score,
        explanation=given.explanation,
        grading_time=reply.seconds,
        usage=usage,
        model=reply.model,
        endpoint=work.endpoint,
        timestamp=reply.timestamp,
        rubric=work.rubric,
    )


def shared(usage: Usage, count: int) -> list[Usage]:
    """A call's tokens in `count` parts that add up exactly; the first has what does not divide."""
    if count <= 1:
        return [usage][:count]
    tokens = msgspec.structs.asdict(usage)
    rest = {name: number // count for name, number in tokens.items()}
    first = {name: number - (count - 1) * rest[name] for name, number in tokens.items()}
    return [Usage(**first), *[Usage(**rest)] * (count - 1)]
