"""What people ask for, from files in the state's `requests/` to durable facts.

A request is removed when its facts are committed, so that no death on the way loses it. Taken
again, it changes nothing: how far a class has come is noted beside it, because images of its first
pages may have ended once more before its last. One that cannot be understood is kept in `refused/`,
with the reason beside it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from rsd.hub.brain.events import RetryAsked
from rsd.protocol.facts import Fact, ImageRetried, LearnedImported
from rsd.protocol.user_requests import (
    PATHS_MAX,
    REQUEST_BYTES,
    PriorBrought,
    Retry,
    UserRequest,
    facts_of,
    request_decoder,
)
from rsd.protocol.vocabulary import ImageId
from rsd.protocol.writer_talk import FindImages, ImagesFound, Query
from rsd.strategy.prior import problem
from rsd.system.failpoints import failpoint
from rsd.system.files import write_atomically

log = logging.getLogger("rsd")

#: Requests in work at the same time; each has one question or PATHS_MAX facts on their way.
OPEN_MAX = 2
#: Requests that are kept when they are refused; of more, the oldest go.
REFUSED_MAX = 100
#: Names that can neither be read nor moved away, and are passed over in this life.
STUCK_MAX = 1_000
#: Length of an image's id.
IMAGE_BYTES = 16
#: Query numbers of this room; the brain counts from 1, the folder from 2**40.
FIRST_QUERY = 1 << 41


@dataclass(slots=True)
class _Open:
    """A request in work."""

    name: str
    request: UserRequest
    found: int = 0
    more_after: ImageId = ""  #: the next page begins behind this image; "": there is none
    #: Images, or the key of a record, whose facts have no number yet.
    waiting: set[str] = field(default_factory=set)
    seq: int = 0  #: the last of its facts


class Inbox:
    """Turns request files into questions to the writer, and its answers into facts."""

    def __init__(self, folder: Path, ask: Callable[[Query], None]) -> None:
        self._folder = folder
        self._ask = ask
        self._query = FIRST_QUERY
        self._open: dict[str, _Open] = {}
        self._asked: dict[int, _Open] = {}
        self._ready: list[RetryAsked] = []  # of OPEN_MAX requests at most
        self._stuck: deque[str] = deque(maxlen=STUCK_MAX)

    def poll(self) -> list[RetryAsked]:
        """Take up requests that lie there, the oldest name first, as many as may be open. Returns
        the facts of those that need no answer of the writer, each once.
        """
        self._take_up()
        found, self._ready = self._ready, []
        return found

    def _take_up(self) -> None:
        room = OPEN_MAX - len(self._open)
        if room <= 0:
            return
        try:
            names = sorted(p.name for p in self._folder.iterdir() if p.suffix == ".json")
        except OSError:
            return
        for name in names:
            if name in self._open or name in self._stuck:
                continue
            request = self._read(name)
            if request is None:
                continue
            if isinstance(request, PriorBrought):
                self._bring(name, request)
            else:
                one = self._open[name] = _Open(name, request)
                if request.status is not None:
                    one.more_after = self._noted(name)
                self._find(one, request)
            room -= 1
            if not room:
                return

    def _bring(self, name: str, request: PriorBrought) -> None:
        key = request.learned.key
        self._open[name] = _Open(name, request, waiting={key})
        self._ready.append(RetryAsked(facts=(LearnedImported(learned=request.learned),)))

    def _read(self, name: str) -> UserRequest | None:
        try:
            data = _contents(self._folder / name)
        except FileNotFoundError:
            return None
        except OSError as e:
            if e.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):  # those will pass
                self._refuse(name, e.strerror or str(e))
            return None
        try:
            if len(data) > REQUEST_BYTES:
                raise ValueError(f"larger than {REQUEST_BYTES} bytes")
            request: UserRequest = request_decoder.decode(data)
            if why := _unfit(request):
                raise ValueError(why)
        except (msgspec.DecodeError, ValueError) as e:
            self._refuse(name, f"it is not understood: {e}")
            return None
        return request

    def _page(self, name: str) -> Path:
        return self._folder / f"{name}.page"

    def _noted(self, name: str) -> ImageId:
        """The last image of the pages of a request that are durable; "" when none is known."""
        with contextlib.suppress(OSError, ValueError):
            noted = bytes.fromhex(self._page(name).read_text("ascii"))
            return noted.hex() if len(noted) == IMAGE_BYTES else ""
        return ""

    def _note(self, one: _Open) -> None:
        # A note that is lost costs no more than a class taken again from its beginning.
        with contextlib.suppress(OSError):
            write_atomically(self._page(one.name), one.more_after.encode(), durable=False)

    def _find(self, one: _Open, request: Retry) -> None:
        self._query += 1
        self._asked[self._query] = one
        self._ask(
            FindImages(
                query=self._query,
                paths=request.paths,
                status=request.status,
                after=one.more_after,
                count=PATHS_MAX,
            )
        )

    def on_found(self, message: ImagesFound, wall: float) -> list[RetryAsked]:
        """The writer named images of a request; `wall` is Unix time."""
        one = self._asked.pop(message.query, None)
        if one is None or not isinstance(one.request, Retry):
            return []
        failpoint("hub.request")
        images = message.images
        one.found += len(images)
        pages = one.request.status is not None and len(images) >= PATHS_MAX
        one.more_after = images[-1] if pages else ""
        if not images:
            self._finish(one)
            return []
        one.waiting = set(images)
        return [RetryAsked(facts=facts_of(one.request, images, wall))]

    def on_numbered(self, seq: int, fact: Fact) -> None:
        """A fact is on its way to the writer under this number."""
        if self._open and isinstance(fact, ImageRetried | LearnedImported):
            what = fact.image if isinstance(fact, ImageRetried) else fact.learned.key
            for one in self._open.values():
                if what in one.waiting:
                    one.waiting.discard(what)
                    one.seq = seq

    def on_committed(self, seq: int) -> None:
        """All facts up to this number are durable: requests that are done go away."""
        for one in list(self._open.values()):
            if one.seq and not one.waiting and one.seq <= seq:
                one.seq = 0
                if one.more_after and isinstance(one.request, Retry):
                    self._note(one)
                    self._find(one, one.request)
                else:
                    self._finish(one)

    def _finish(self, one: _Open) -> None:
        del self._open[one.name]
        paths = one.request.paths if isinstance(one.request, Retry) else ()
        unknown = len(paths) - one.found
        if isinstance(one.request, PriorBrought):
            self._remove(one.name)
        elif paths and not one.found:
            self._refuse(one.name, "none of its images is known")
        else:
            log.info("retry of %d images asked for", one.found)
            if paths and unknown > 0:
                log.warning("request %s: %d of its images are not known", one.name, unknown)
            self._remove(one.name)
        self._take_up()

    def _remove(self, name: str) -> None:
        try:
            (self._folder / name).unlink(missing_ok=True)
            self._page(name).unlink(missing_ok=True)
        except OSError as e:
            log.error("request %s is done, but cannot be removed: %s", name, e.strerror)
            self._stuck.append(name)

    def _refuse(self, name: str, why: str) -> None:
        """Out of the way, but kept; others go on even when it cannot be moved."""
        log.error("request %r is refused: %s", name, why)
        refused = self._folder / "refused"
        try:
            refused.mkdir(exist_ok=True)
            (self._folder / name).replace(refused / name)
            (refused / f"{name}.reason").write_text(why + "\n", "utf-8", "backslashreplace")
        except OSError:
            self._stuck.append(name)
            return
        with contextlib.suppress(OSError):
            kept = sorted(refused.glob("*.json"), key=lambda p: p.lstat().st_mtime)
            for old in kept[:-REFUSED_MAX]:
                old.unlink()
                Path(f"{old}.reason").unlink(missing_ok=True)


def _unfit(request: UserRequest) -> str:
    """Why a request means nothing; "" when it does."""
    if isinstance(request, PriorBrought):
        return problem(request.learned)
    if not request.paths and request.status is None:
        return "it names no images"
    return f"more than {PATHS_MAX} paths" if len(request.paths) > PATHS_MAX else ""


def _contents(path: Path) -> bytes:
    """The bytes of a plain file, one more than allowed at most. Raises OSError."""
    # Never wait for a pipe, nor follow a link that somebody put there.
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "is no plain file")
        parts = []
        left = REQUEST_BYTES + 1
        while left and (part := os.read(fd, left)):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)
    finally:
        os.close(fd)
