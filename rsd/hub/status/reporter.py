"""What the hub tells the outside: live.json, systemd's status line, progress bars, host samples."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec

from rsd.hub.brain.events import Ended
from rsd.hub.brain.view import BrainView
from rsd.hub.children.writer_client import WriterClient
from rsd.hub.status import host, systemd
from rsd.hub.status.document import RECENT_SCORES, Gauge, Surroundings, document
from rsd.names import display_path
from rsd.protocol.status import ProcessStatus, RecentScore, Status, ThrottleStatus, WatchStatus
from rsd.settings.fields import Settings
from rsd.system import logs, processes, runtime_dir
from rsd.system.files import write_atomically

log = logging.getLogger("rsd")

#: Seconds between two writings of live.json.
LIVE_SECONDS = 2.0

Progress = Callable[[Status], None]


class Reporter:
    """Publishes; `host_seen` is called on the throttle thread with each look at the host."""

    def __init__(
        self,
        settings: Settings,
        state: Path,
        writer_client: WriterClient,
        *,
        once: bool,
        watch: Callable[[float], WatchStatus],
        children: Callable[[], tuple[ProcessStatus, ...]],
        on_progress: Progress | None,
        host_seen: host.Seen,
    ) -> None:
        self.settings = settings
        self.state = state
        self.notifier = systemd.Notifier()
        places = (Path(settings.output_dir), state)
        self._load = host.LoadWatch(settings.throttle, places, host_seen)
        self.host = ThrottleStatus()
        self.refused = ""  #: why the last reload was, "" when it was not
        self._writer_client, self._watch, self._children = writer_client, watch, children
        self._once = once
        self._on_progress = on_progress
        self._gauge = Gauge()
        self._recent: deque[RecentScore] = deque(maxlen=RECENT_SCORES)
        self._started_wall, self._started = time.time(), time.monotonic()
        self._next_live = self._next_feed = 0.0
        self._elsewhere: Path | None = None  # where the last document is, if not in the state

    def start(self) -> None:
        """Begin to look at the host."""
        self._load.start()

    def stop(self) -> None:
        """Look no more."""
        self._load.stop()
        self.take_back()

    def follow(self, settings: Settings) -> None:
        """Other settings from now on."""
        self.settings = settings
        self._load.follow(settings.throttle)

    def ended(self, ended: Ended) -> None:
        """An image came to its end."""
        name = display_path(ended.path)
        if ended.score is None:
            log.warning("%s: %s (%s)", name, ended.status, ended.reason)
        else:
            log.info("%s: %s quality, best score %.1f", name, ended.status, ended.score)
            self._recent.append(RecentScore(image=name, score=ended.score, quality=ended.status))

    def tick(self, view: BrainView, now: float) -> None:
        """Publish and feed the systemd watchdog when it is time; `now` is monotonic."""
        if now >= self._next_live:
            self._next_live = now + LIVE_SECONDS
            self.publish(view, now)
        feed = self.notifier.watchdog_seconds
        if feed and now >= self._next_feed and self._writer_client.responsive(now):
            self._next_feed = now + feed / 3
            self.notifier.watchdog()

    def publish(self, view: BrainView, now: float) -> None:
        """Write the status document, and its essence as systemd's status line."""
        stats = self._writer_client.stats
        self._gauge.note(now, stats)
        around = Surroundings(
            identity=self._identity(now),
            host=self.host,
            watch=self._watch(now),
            processes=self._children(),
            recent=tuple(self._recent),
            blocked=self._writer_client.blocked,
            log_refused=logs.refused(),
            reload_refused=self.refused,
        )
        status = document(view, stats, self.settings.prices, self._gauge.rates(), around)
        self._leave(msgspec.json.encode(status))
        images = status.images
        self.notifier.status(
            f"{status.health}: {images.high_quality + images.low_quality} done, "
            f"{images.open} to do, {images.failed} failed"
            + "".join(f"; {reason}" for reason in status.reasons[:1])
        )
        if self._on_progress is not None:
            self._on_progress(status)

    def _identity(self, now: float) -> Status:
        return Status(
            pid=os.getpid(),
            created=processes.process_identity(os.getpid()),
            written=time.time(),
            written_monotonic=now,
            started=self._started_wall,
            uptime_seconds=round(now - self._started, 1),
            image_dir=str(Path(self.settings.image_dir).resolve()),
            output_dir=str(Path(self.settings.output_dir).resolve()),
            state_dir=str(self.state),
            once=self._once,
        )

    def _leave(self, data: bytes) -> None:
        """In the state directory; where the pointer is, as long as that directory is full."""
        try:
            write_atomically(self.state / "live.json", data, durable=False)
        except OSError as e:
            log.debug("live.json: %s", e)
            self._elsewhere = runtime_dir.write_status(str(self.state), data)
        else:
            self.take_back()

    def take_back(self) -> None:
        """Remove the status document that lies elsewhere."""
        runtime_dir.remove_pointer(self._elsewhere)
        self._elsewhere = None
