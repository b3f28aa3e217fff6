"""What a reload (SIGHUP) changes, and in which order."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from rsd.errors import UserError
from rsd.hub.brain.events import Event, PolicyChanged, WorkerLeaving
from rsd.hub.children.protocol import WorkerPool
from rsd.hub.children.writer_client import WriterClient
from rsd.hub.policy import (
    configure_of,
    keys_of,
    policy_of,
    processes_of,
    reconfigure_of,
    refuse_fixed,
    slots,
    waiting_for_restart,
)
from rsd.hub.status.reporter import Reporter
from rsd.protocol.vocabulary import Recipe
from rsd.settings.fields import Settings
from rsd.system import logs

log = logging.getLogger("rsd")

Loader = Callable[[], tuple[Settings, Recipe]]


def want_workers(pool: WorkerPool, settings: Settings) -> list[str]:
    """As many workers as the settings say, configured as they say; returns who is to leave."""
    leaving: list[str] = []
    for role, threads in slots(settings).items():
        leaving += pool.want(role, processes_of(settings, role), threads)
        pool.greet(role, configure_of(settings, role))
    return leaving


def log_to(settings: Settings, secrets: tuple[str, ...], *, stderr: bool = True) -> None:
    """Lines go to stderr and below `output_dir`, without these secrets."""
    folder = Path(settings.output_dir) / "logs"
    logs.to_stderr_and_file(folder, settings.log_level, secrets, stderr=stderr)


class Reload:
    """The settings in force, and how others take their place. Without a `loader` they stay."""

    def __init__(
        self,
        settings: Settings,
        loader: Loader | None,
        pool: WorkerPool,
        writer_client: WriterClient,
        reporter: Reporter,
        think: Callable[[Event], None],
    ) -> None:
        self.settings = settings
        self._loader, self._pool, self._think = loader, pool, think
        self._writer_client, self._reporter = writer_client, reporter

    def run(self, *, stopping: bool) -> None:
        """Read again, and apply what was read; refuse it as a whole when any of it is wrong."""
        if self._loader is None or stopping:
            log.info("SIGHUP: nothing is read again by a pass, nor while rsd stops")
            return
        self._reporter.notifier.reloading()
        before, refused = self.settings, ""
        try:
            settings, recipe = self._loader()
            refuse_fixed(before, settings)
        except (UserError, OSError) as e:
            refused = f"reload refused, the old settings stay in force: {e}"
            log.error("%s", refused)
        else:
            self._apply(settings, recipe)
            for name in waiting_for_restart(before, settings):
                log.warning("%s takes effect when rsd is started again", name)
            log.info("reloaded")
        self._reporter.refused = refused
        self._pool.revive(time.monotonic())
        self._reporter.notifier.ready(refused or "reloaded")

    def _apply(self, settings: Settings, recipe: Recipe) -> None:
        before, self.settings = self.settings, settings
        # Workers first: a lease for a new endpoint must not arrive before its address.
        for name in want_workers(self._pool, settings):
            self._think(WorkerLeaving(worker=name))
        self._think(PolicyChanged(policy=policy_of(settings, recipe, once=False)))
        self._writer_client.reconfigure(reconfigure_of(settings, recipe))
        self._reporter.follow(settings)
        # Calls with the old keys are still open.
        log_to(settings, keys_of(before) + keys_of(settings))
