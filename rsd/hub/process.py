"""The hub process: one instance for a state, its log, its main loop."""

from __future__ import annotations

import os
from pathlib import Path

from rsd import logs
from rsd.config import state_dir
from rsd.errors import UserError
from rsd.files import InstanceLock
from rsd.hub.policy import keys_of
from rsd.hub.reporter import Progress
from rsd.hub.supervisor import Loader, Supervisor
from rsd.settings import Settings
from rsd.vocabulary import Recipe


def run(
    settings: Settings,
    recipe: Recipe,
    loader: Loader | None = None,
    *,
    once: bool = False,
    samples: int | None = None,
    on_progress: Progress | None = None,
    stderr_log: bool = True,
) -> int:
    """Be the hub until a signal, or with `once` until all is done; returns the exit code.

    Raises UserError when another instance runs on the same state, StateError when the state
    cannot be used.
    """
    state = state_dir(settings).resolve()
    state.mkdir(parents=True, exist_ok=True)
    lock = InstanceLock(state / "instance.lock")
    if not lock.acquire():
        raise UserError(f"state_dir = {state}: another rsd works there (see `status`)")
    try:
        lock.note(f"pid {os.getpid()}\n")
        hub = Supervisor(
            settings,
            recipe,
            loader,
            once=once,
            samples=samples,
            state=state,
            on_progress=on_progress,
        )
        folder = Path(settings.output_dir) / "logs"
        secrets = keys_of(settings)
        logs.to_stderr_and_file(folder, settings.log_level, secrets, stderr=stderr_log)
        return hub.run()
    finally:
        lock.release()
