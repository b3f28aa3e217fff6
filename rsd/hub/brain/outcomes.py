"""What becomes of a piece of work after an error, or after its worker's end. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from rsd.errors import OUT_OF_MEMORY, ErrorClass
from rsd.hub.brain.dispatch import Dispatcher
from rsd.hub.brain.events import Policy
from rsd.hub.brain.image import ActiveImage
from rsd.hub.brain.intake import CRASHES_TO_CONVICT, Intake, status_without
from rsd.hub.brain.limits import EndpointLimit
from rsd.hub.brain.queue import Work, WorkKind
from rsd.hub.brain.rounds import Rounds
from rsd.hub.brain.turn import Turn
from rsd.protocol.dialects import adapt
from rsd.protocol.facts import DecodeCrashed
from rsd.protocol.tasks import LeaseId
from rsd.protocol.vocabulary import FOLDER_AWAY, SPOOL_REFUSED, VANISHED, CallError, ImageId

#: Seconds between two looks at a picture that was not found while the whole folder is away.
AWAY_SECONDS = 10.0
#: Classes by which a server shows that it works, whatever it thinks of the probe.
ALIVE = {
    ErrorClass.UNSUPPORTED,
    ErrorClass.TOO_BIG,
    ErrorClass.REFUSED,
    ErrorClass.TRUNCATED,
    ErrorClass.BAD_REPLY,
}


@dataclass(frozen=True, slots=True)
class Retry:
    """Again, not before this time."""

    at: float


@dataclass(frozen=True, slots=True)
class Split:
    """Again in smaller requests."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """This work ends without an answer."""


Verdict = Retry | Split | GiveUp


class Outcomes:
    """Work whose lease ended without an answer that is of use."""

    def __init__(
        self, policy: Policy, turn: Turn, dispatch: Dispatcher, intake: Intake, rounds: Rounds
    ) -> None:
        self.policy = policy
        self.turn = turn
        self.dispatch = dispatch
        self.intake = intake
        self.rounds = rounds

    # ------------------------------------------------------------------------------------- errors

    def failed(self, work: Work, error: CallError) -> None:
        """A task ended with an error."""
        endpoint = self.dispatch.endpoints.find(work)
        match work.kind:
            case WorkKind.PREPARE if work.respool:
                self._respool_failed(work, error)
            case WorkKind.PREPARE:
                self._prepare_failed(work, error)
            case WorkKind.LOAD_POLL:
                if endpoint is not None:
                    endpoint.load_unknown(error, self.turn.now)
            case WorkKind.PROBE:
                if endpoint is not None:
                    self._probe_failed(work, error, endpoint)
            case _:
                image = self.rounds.images.get(work.image)
                if image is not None:
                    self._call_failed(work, error, image, endpoint)

    def _probe_failed(self, work: Work, error: CallError, endpoint: EndpointLimit) -> None:
        if error.error in ALIVE:
            endpoint.probed(self.turn.now, model=endpoint.model, max_model_len=None)
        else:
            self.dispatch.endpoints.failed(endpoint, error, work, self.turn)

    def _call_failed(
        self, work: Work, error: CallError, image: ActiveImage, endpoint: EndpointLimit | None
    ) -> None:
        if error.reason == "spool_missing":
            self._park(work, image)
            return
        others = True
        if error.reason != OUT_OF_MEMORY:  # that says nothing of the endpoint
            others = endpoint is not None and endpoint.answered > work.answered_before
            if endpoint is not None:
                self.dispatch.endpoints.failed(endpoint, error, work, self.turn)
                work.answered_before = endpoint.answered
        if error.error is ErrorClass.UNSUPPORTED:
            if self._adapted(work, error, endpoint):
                self.dispatch.queue.add_first(work)
                return
            verdict: Verdict = GiveUp()
        else:
            verdict = self._verdict(work, error, others)
        image.last_error = f"{error.error.value}: {error.message or error.reason}"
        match verdict:
            case Retry(at=at):
                self.dispatch.queue.later(work, at)
            case Split():
                self.rounds.split(work)
            case GiveUp():
                self.rounds.give_up(image, work, error)

    def _verdict(self, work: Work, error: CallError, others_answered: bool) -> Verdict:
        if error.reason == OUT_OF_MEMORY:
            self.turn.log("warning", "a worker is short of memory; the work is done a little later")
        return after_failure(work, error, others_answered, self.turn.now, self.policy)

    def _adapted(self, work: Work, error: CallError, endpoint: EndpointLimit | None) -> bool:
        """Whether the same item is worth asking for in another way."""
        if endpoint is None or work.dialect != endpoint.dialect:
            return True  # the next try is made in another way already
        adapted = adapt(endpoint.dialect, error)
        if adapted is None:
            return False
        self.dispatch.endpoints.learn(endpoint, adapted, self.turn)
        return True

    # ----------------------------------------------------------------------------------- pictures

    def _park(self, work: Work, image: ActiveImage) -> None:
        """The picture must be prepared again first, in the variant that the call sends."""
        parked = image.parked[work.reduced]
        if not parked:
            respool = Work(kind=WorkKind.PREPARE, image=image.image, respool=True)
            respool.reduced = work.reduced
            self.dispatch.queue.add_first(respool)
        parked.append(work)

    def _prepare_failed(self, work: Work, error: CallError) -> None:
        if not self.intake.waits_for(work) or self._waits(work, error):
            return
        if error.error is not ErrorClass.BAD_IMAGE:
            verdict = self._verdict(work, error, True)
            if isinstance(verdict, Retry):
                self.dispatch.queue.later(work, verdict.at)
                return
        self.intake.failed(work, error)

    def _respool_failed(self, work: Work, error: CallError) -> None:
        image = self.rounds.images.get(work.image)
        if image is None or self._waits(work, error):
            return
        if error.error is not ErrorClass.BAD_IMAGE:  # the picture is not to blame
            verdict = self._verdict(work, error, True)
            if isinstance(verdict, Retry) or error.reason != OUT_OF_MEMORY:
                self.dispatch.queue.later(work, self.turn.now + pause(work, self.policy))
                return
        reason = error.reason or error.error.value
        self.rounds.end_without_result(image, status_without(error), reason, error.message)

    def _waits(self, work: Work, error: CallError) -> bool:
        """Whether the folder gives no picture, or the spool takes none; that is held against none,
        and tried again. A pass has nobody who looks whether the folder is there again.
        """
        away = error.reason == FOLDER_AWAY
        away |= self.intake.folder_away and error.reason in (VANISHED, "unreadable")
        if away and not self.policy.once:
            self.dispatch.queue.later(work, self.turn.now + AWAY_SECONDS)
            return True
        if error.reason != SPOOL_REFUSED:
            return False
        if not self.intake.refused:
            self.turn.log("error", f"cannot write: {error.message}; nothing is lost, work waits")
        self.intake.refused = error.message
        self.dispatch.queue.later(work, self.turn.now + pause(work, self.policy))
        return True

    # ---------------------------------------------------------------------- leases without a reply

    def worker_gone(self, worker: str, crashed: bool) -> None:
        """`crashed`: of its own doing. A kill by somebody else says nothing of the picture that was
        being decoded; it comes back a little later, because the host may lack memory.
        """
        works, decoding = self.dispatch.leave(worker)
        convicted = decoding is not None and crashed and self._decode_crashed(decoding)
        for work in reversed(works):  # the first of them comes first again
            prepare = work.kind is WorkKind.PREPARE
            if not prepare and not (work.kind.pays and work.image in self.rounds.images):
                continue
            if convicted and work.image == decoding:
                continue
            if prepare and work.image == decoding and not crashed:
                work.killed += 1
                self.dispatch.queue.later(work, self.turn.now + pause(work, self.policy))
            else:
                self.dispatch.queue.add_first(work)

    def _decode_crashed(self, image_id: ImageId) -> bool:
        """A worker died decoding this picture; True when that convicts it."""
        image = self.rounds.images.get(image_id)
        if image is None:
            return self.intake.crashed(image_id)
        self.turn.persist(DecodeCrashed(image=image_id))
        image.crashes += 1
        if image.crashes < CRASHES_TO_CONVICT:
            return False
        message = f"{image.crashes} worker processes died while decoding it"
        self.rounds.end_without_result(image, "failed", "crashes_worker", message)
        return True

    def given_back(self, worker: str, leases: tuple[LeaseId, ...]) -> None:
        """A worker gives back calls that it has not begun."""
        works = [self.dispatch.give_back(worker, lease) for lease in leases]
        wanted = [w for w in works if w is not None and w.image in self.rounds.images]
        self.dispatch.queue.add_first(*wanted)

    def expire(self) -> None:
        """Leases whose time is over count as failed; workers that answer nothing are killed."""
        overdue = self.dispatch.expire(self.turn.now)
        self.turn.out += overdue.kills
        self.dispatch.queue.add_first(*overdue.waiting)
        for work in overdue.hung:  # the picture's fault, as if it had crashed its decoder
            if not self._decode_crashed(work.image):
                work.killed += 1
                self.dispatch.queue.later(work, self.turn.now + pause(work, self.policy))
        for work in overdue.failed:
            error = CallError(
                error=ErrorClass.TRANSIENT,
                message="no answer within the time of its lease",
                reason="lease_expired",
                answered=False,
            )
            self.failed(work, error)


def after_failure(
    work: Work, error: CallError, others_answered: bool, now: float, policy: Policy
) -> Verdict:
    """What an error of a class means for its item. `others_answered`: the endpoint answered
    something else since this item's last try, so a time-out or a 500 is the item's own.
    """
    kind = error.error
    if kind is ErrorClass.RATE_LIMITED:
        work.busy += 1
        if len(work.indices) > 1 and work.kind is WorkKind.GENERATE and work.busy % 2 == 0:
            return Split()
        return Retry(now)
    if kind in (ErrorClass.QUOTA, ErrorClass.MISCONFIGURED):
        return Retry(now)
    if kind is ErrorClass.REFUSED:
        return GiveUp()
    if kind is ErrorClass.TOO_BIG:
        return _smaller(work, error, now)
    if kind is ErrorClass.TRUNCATED:
        if work.token_factor > 1.0:
            return GiveUp()
        work.token_factor = 2.0
        return Retry(now)
    if kind is ErrorClass.TRANSIENT and not others_answered:
        return Retry(now + pause(work, policy))
    work.attempts += 1
    if work.first_counted is None:
        work.first_counted = now
    if work.attempts >= policy.max_attempts or now - work.first_counted >= policy.max_age:
        return GiveUp()
    return Retry(now + pause(work, policy))


def _smaller(work: Work, error: CallError, now: float) -> Verdict:
    if work.kind is WorkKind.GRADE and len(work.indices) > 1:
        return Split()
    about_tokens = (error.param or "").endswith("tokens") and "input" not in (error.param or "")
    if about_tokens and work.token_factor == 1.0:
        work.token_factor = 0.5
        return Retry(now)
    if not work.reduced:
        work.reduced = True
        return Retry(now)
    return GiveUp()


def pause(work: Work, policy: Policy) -> float:
    """Seconds until the next try: doubling, with a jitter of half to full that depends on the
    work, so that tries of one burst do not return as one burst.
    """
    tries = work.attempts + work.killed
    longest = min(policy.backoff_max, policy.backoff * 2.0 ** min(64, max(0, tries - 1)))
    salt = f"{work.image}:{work.kind}:{work.indices}:{work.number}:{tries}"
    share = int.from_bytes(blake2b(salt.encode(), digest_size=2).digest(), "big") / 65535
    return longest * (0.5 + 0.5 * share)
