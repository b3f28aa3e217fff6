"""From the backlog to a verified picture: paging, preparing, duplicates, bad files. Pure.

Holds the images that are admitted but not yet active. What became of a picture is handed on by
`start` (verified, new) or ends here as a fact.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container

from rsd.hub.brain.dispatch import Dispatcher
from rsd.hub.brain.events import Ask, Policy
from rsd.hub.brain.queue import Work, WorkKind
from rsd.hub.brain.turn import Turn
from rsd.protocol.facts import DecodeCrashed, ImageChecked, ImageSetAside
from rsd.protocol.tasks import Prepare
from rsd.protocol.vocabulary import (
    FIRST_QUEUE,
    FOLDER_AWAY,
    VANISHED,
    CallError,
    ImageId,
    ImageInfo,
    Role,
    image_id,
)
from rsd.protocol.writer_talk import (
    BacklogPage,
    ContentFound,
    FindContent,
    QueuedImage,
    ReadBacklog,
)

#: Queued images held in memory; the rest is paged from disk.
WINDOW = 256
#: Most images between admission and decision; far more than any servers' slots need.
ACTIVE_MAX = 4_096
#: Images in work however few slots there are, so that a slow one does not hold the line; also
#: those made ready while a generator's server is asked for the first time.
ACTIVE_MIN = 4
#: Requests planned ahead, as a multiple of what the generators may have in flight.
PLANNED_AHEAD = 2
#: Deaths of a worker while decoding one picture, after which the picture is set aside.
CRASHES_TO_CONVICT = 3
#: Truncated files that are waited for at once, and how often one is looked at while it is young.
DEFERRED_MAX, LOOKS_WHILE_YOUNG = 1_000, 4


class Intake:
    """Everything between `ImageEnrolled` and `ImageStarted`."""

    def __init__(self, policy: Policy, turn: Turn, dispatch: Dispatcher) -> None:
        self.policy = policy
        self.turn = turn
        self.dispatch = dispatch
        self.window: deque[QueuedImage] = deque()
        self.preparing: dict[ImageId, Work] = {}  #: admitted, not verified yet
        self.refused = ""  #: why prepared pictures cannot be written, as a worker says
        self.deferred = 0  #: truncated files that may still grow
        self.cursor = 0
        self.backlog_high = 0
        self.folder_away = False  #: files that are not found are not gone
        self.only: frozenset[bytes] | None = None
        self.priority_high = 0  #: of the lane that goes before the backlog
        self._priority_cursor = self._priority_from = 0
        # (query, highest number when asked, whether of the lane that goes first)
        self._asking: tuple[int, int, bool] | None = None
        self._claims: dict[str, list[tuple[QueuedImage, ImageInfo]]] = {}
        self._crashes: dict[ImageId, int] = {}

    @property
    def idle(self) -> bool:
        """Whether nothing is queued, asked for or being prepared."""
        return not (
            self.window
            or self._asking
            or self.preparing
            or self._claims
            or self.cursor < self.backlog_high
            or self._priority_cursor < self.priority_high
        )

    def opened(self, backlog_high: int, priority_high: int) -> None:
        """The store is open; the first page begins with what lies in the lane that goes first."""
        self.backlog_high = backlog_high
        self.priority_high = self._priority_cursor = self._priority_from = priority_high

    def grown(self, backlog_high: int, priority_high: int) -> None:
        """Images were queued."""
        self.backlog_high = max(self.backlog_high, backlog_high)
        self.priority_high = max(self.priority_high, priority_high)

    @property
    def busy(self) -> int:
        """Images admitted and not yet started; files that are only waited for do not count."""
        return len(self.preparing) - self.deferred + sum(len(c) for c in self._claims.values())

    def admit(self, active: int, planned: int, requests_per_image: int) -> None:
        """Take images out of the backlog until enough requests are planned ahead.

        `active`: images started and not ended; `planned`: requests that they will still make.
        """
        if self.dispatch.paused or self.folder_away:
            return
        endpoints = self.dispatch.endpoints
        if endpoints.usable(Role.GENERATE):
            most = ACTIVE_MAX
        else:
            most = ACTIVE_MIN if endpoints.unknown(Role.GENERATE) else 0
        if self.policy.images_in_flight is not None:
            most = min(most, self.policy.images_in_flight)
        wanted = PLANNED_AHEAD * max(1, self.dispatch.ceiling(Role.GENERATE))
        planned += self.busy * requests_per_image
        while self.window and active + self.busy < most:
            if planned >= wanted and active + self.busy >= ACTIVE_MIN:
                break
            queued = self.window.popleft()
            if self.only is not None and queued.path not in self.only:
                continue
            work = Work(kind=WorkKind.PREPARE, image=queued.image, queued=queued)
            self.preparing[queued.image] = work
            self._crashes[queued.image] = queued.crashes
            self.dispatch.queue.add(work)
            planned += requests_per_image
        if most:
            self._ask_for_more()

    def _ask_for_more(self) -> None:
        if self._asking is not None:
            return
        named = bool(self.window) and self.window[0].queue_seq < FIRST_QUEUE
        first = self._priority_cursor < self.priority_high and not named
        if not first and (self.window or self.cursor >= self.backlog_high):
            return
        high = self.priority_high if first else self.backlog_high
        after = self._priority_cursor if first else self.cursor
        self._asking = (self.turn.query(), high, first)
        query = ReadBacklog(query=self._asking[0], after=after, count=WINDOW)
        self.turn.out.append(Ask(query=query))

    def page(self, page: BacklogPage) -> None:
        """The next queued images came from disk."""
        if self._asking is None or self._asking[0] != page.query:
            return
        _, high, first = self._asking
        self._asking = None
        if first:
            named = [q for q in page.images if q.queue_seq < FIRST_QUEUE]
            self._priority_cursor = named[-1].queue_seq if named else high
            self.window.extendleft(q for q in reversed(named) if q.image not in self.preparing)
            return
        # What came into the lane that goes first since the start has a cursor of its own.
        lane = range(self._priority_from + 1, self.priority_high + 1)
        self.window.extend(
            q for q in page.images if q.image not in self.preparing and q.queue_seq not in lane
        )
        # A short page is no end: only an empty one says that nothing is left below `high`.
        self.cursor = page.images[-1].queue_seq if page.images else max(self.cursor, high)

    def task(self, work: Work) -> Prepare | None:
        """What a worker is lent; None when the image was withdrawn meanwhile."""
        if work.queued is None or work.image not in self.preparing:
            return None
        return Prepare(image=work.image, path=work.queued.path)

    def gone(self, paths: set[bytes]) -> None:
        """Files left the folder before their turn came."""
        self.window = deque(q for q in self.window if q.path not in paths)
        for work in list(self.preparing.values()):
            if work.queued is not None and work.queued.path in paths:
                self._done(work)
        for sha256, claim in self._claims.items():
            self._claims[sha256] = [(q, info) for q, info in claim if q.path not in paths]

    # ----------------------------------------------------------------------------------- pictures

    def prepared(
        self, work: Work, info: ImageInfo, active: dict[str, ImageId], departed: Container[ImageId]
    ) -> None:
        """A picture is verified; `active` maps the contents in work to their images. For those in
        `departed` answers are still to come, which their history must hold.
        """
        self.refused = ""
        queued = work.queued
        if queued is None or work.image not in self.preparing:
            return
        if work.image in departed:
            self.dispatch.queue.later(work, self.turn.now + 1.0)
            return
        self._done(work)
        if queued.status != "queued" and queued.sha256 == info.sha256:
            self.turn.persist(ImageChecked(image=queued.image, queue_seq=queued.queue_seq))
        elif info.sha256 in self._claims:
            self._claims[info.sha256].append((queued, info))
        elif info.sha256 in active:
            self._duplicate(queued, info, active[info.sha256])
        else:
            self._claims[info.sha256] = [(queued, info)]
            self._find(queued, info)

    def _find(self, queued: QueuedImage, info: ImageInfo) -> None:
        mine, _ = identity(queued, info.sha256)
        query = FindContent(query=self.turn.query(), sha256=info.sha256, image=mine)
        self.turn.out.append(Ask(query=query))

    def content_found(
        self,
        found: ContentFound,
        start: Callable[[QueuedImage, ImageInfo, ContentFound], None],
    ) -> None:
        """The writer says who had these bytes first: the others are duplicates of it."""
        claim = self._claims.pop(found.sha256, [])
        owner = found.owner
        for queued, info in claim:
            mine, _ = identity(queued, info.sha256)
            if owner not in (None, mine):
                self._duplicate(queued, info, owner or "")
                continue
            if queued.started and mine == queued.image and mine != found.image:
                # It has a history of its own, but another copy had asked.
                self._claims[found.sha256] = claim[claim.index((queued, info)) :]
                self._find(queued, info)
                return
            owner = mine
            start(queued, info, found)

    def waits_for(self, work: Work) -> bool:
        """Whether this picture is still wanted."""
        return work.queued is not None and work.image in self.preparing

    def failed(self, work: Work, error: CallError) -> None:
        """A picture cannot be prepared; it is looked at again only while it may still grow."""
        queued = work.queued
        if queued is None or work.image not in self.preparing:
            return
        if error.reason in ("truncated", "empty") and self._still_young(work):
            at = self.turn.now + self.policy.patience / LOOKS_WHILE_YOUNG
            self.dispatch.queue.later(work, at)
            return
        self._done(work)
        known = queued.status != "queued"
        unseen = (VANISHED, FOLDER_AWAY, "unreadable")
        if known and (error.reason in unseen or error.sha256 == queued.sha256):
            lost = status_without(error) == "withdrawn"
            checked = ImageChecked(image=queued.image, queue_seq=queued.queue_seq, lost=lost)
            self.turn.persist(checked)
            return
        reason = error.reason or error.error.value
        status, sha256 = status_without(error), error.sha256 or ""
        self._set_aside(queued, status, reason, message=error.message, sha256=sha256)

    def crashed(self, image: ImageId) -> bool:
        """A worker died decoding this picture; True when that convicts it. Its work, if any, is
        handed back by the lease table and must be dropped then.
        """
        work = self.preparing.get(image)
        if work is None or work.queued is None:
            return False
        self.turn.persist(DecodeCrashed(image=image))
        self._crashes[image] = self._crashes.get(image, 0) + 1
        if self._crashes[image] < CRASHES_TO_CONVICT:
            return False
        queued, count = work.queued, self._crashes[image]
        self._done(work)
        message = f"{count} worker processes died while decoding it"
        self._set_aside(queued, "failed", "crashes_worker", message=message)
        return True

    def _done(self, work: Work) -> None:
        self.preparing.pop(work.image, None)
        self._crashes.pop(work.image, None)
        if work.deferred_since is not None:
            self.deferred -= 1
            work.deferred_since = None

    def _still_young(self, work: Work) -> bool:
        if work.deferred_since is None:
            if self.policy.patience <= 0 or self.deferred >= DEFERRED_MAX:
                return False
            work.deferred_since = self.turn.now
            self.deferred += 1
        return self.turn.now - work.deferred_since < self.policy.patience

    def _duplicate(self, queued: QueuedImage, info: ImageInfo, of: ImageId) -> None:
        self._set_aside(queued, "duplicate", "same_content", info=info, of=of)

    def _set_aside(
        self,
        queued: QueuedImage,
        status: str,
        reason: str,
        *,
        message: str = "",
        info: ImageInfo | None = None,
        of: ImageId = "",
        sha256: str = "",
    ) -> None:
        sha256 = info.sha256 if info else sha256
        mine, version = identity(queued, sha256)
        self.turn.persist(
            ImageSetAside(
                image=mine,
                status=status,
                reason=reason,
                message=message,
                of=of,
                info=info,
                sha256=sha256,
                queue_seq=queued.queue_seq,
                queued_as=queued.image,
                path=queued.path,
                version=version,
                time=self.turn.wall,
            )
        )
        self.turn.ended(mine, queued.path, status, reason)


def status_without(error: CallError) -> str:
    """What an image ends as whose picture cannot be prepared. One that is not there may return."""
    return "withdrawn" if error.reason in (VANISHED, FOLDER_AWAY) else "failed"


def identity(queued: QueuedImage, sha256: str) -> tuple[ImageId, int]:
    """Id and version: new bytes at a known path are a new version."""
    if queued.sha256 and sha256 and queued.sha256 != sha256:
        return image_id(queued.path, queued.version + 1), queued.version + 1
    return queued.image, queued.version
