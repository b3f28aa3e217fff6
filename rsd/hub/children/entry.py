"""What a child process does first, forked or spawned, and how one is spawned.

Not by `multiprocessing`: its spawned children share a helper process with the hub, which ends only
some time after both, and which a service manager then has to kill.
"""

from __future__ import annotations

import contextlib
import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rsd.system import signals

#: The longest name that the kernel keeps of a process, for ps and top.
NAME_MAX = 15

Target = Callable[..., None]


class Spawned:
    """A child in an interpreter of its own; in memory it has nothing of the hub. The names are
    those of `multiprocessing.Process`. `arguments` can be seen by everybody on this host.
    """

    def __init__(
        self, name: str, target: Target, ends: tuple[Connection, Connection], arguments: list[Any]
    ) -> None:
        files = [end.fileno() for end in ends]
        what = json.dumps([name, f"{target.__module__}:{target.__qualname__}", files, arguments])
        code = f"import sys; sys.path[:] = {sys.path!a}; from {__name__} import main; main()"
        self._popen = subprocess.Popen(
            [sys.executable, "-P", "-c", code, what], stdin=subprocess.DEVNULL, pass_fds=files
        )

    @property
    def pid(self) -> int:
        """Process id."""
        return self._popen.pid

    @property
    def exitcode(self) -> int | None:
        """None while it runs; -N when signal N ended it."""
        return self._popen.poll()

    def is_alive(self) -> bool:
        """Whether it has not ended yet."""
        return self._popen.poll() is None

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended, or for so many seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(timeout)

    def kill(self) -> None:
        """SIGKILL; harmless when it has ended."""
        self._popen.kill()

    def close(self) -> None:
        """Nothing is held of a process that was waited for."""


def main() -> None:
    """In a spawned child."""
    name, target, (inbox, outbox), arguments = json.loads(sys.argv[1])
    for fd in (inbox, outbox):
        os.set_inheritable(fd, False)
    ends = Connection(inbox, writable=False), Connection(outbox, readable=False)
    run(name, pkgutil.resolve_name(target), *ends, arguments, ())


def run(
    name: str,
    target: Target,
    inbox: Connection,
    outbox: Connection,
    arguments: list[Any],
    inherited: tuple[int, ...],
) -> None:
    """In the child. `inherited`: what the hub had open for itself when it forked."""
    signals.ignore()
    _let_go(set(inherited) - {inbox.fileno(), outbox.fileno()})
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(short(name))
    target(inbox, outbox, *arguments)


def short(name: str) -> str:
    """A child's name as ps and top show it: `rsd-gen-12`, `rsd-grader-3`, `rsd-writer`."""
    return f"rsd-{name.replace('generator', 'gen')}"[:NAME_MAX]


def _let_go(files: set[int]) -> None:
    """Pipes of siblings would give them no EOF, the lock would outlive the hub. The numbers stay
    taken: objects of the hub, whose memory this was, may still close them.
    """
    if files:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for fd in files:
            os.dup2(nowhere, fd, inheritable=False)
        os.close(nowhere)
