"""What runs in the children of the hub. The hub itself needs none of it, but loads what those run
that it forks, once for all.
"""

from __future__ import annotations

import gc
from multiprocessing.connection import Connection


def load() -> None:
    """Import what forked children run, and leave the memory that holds it alone from now on: what
    no process writes to, all share.
    """
    from rsd.workers import grader  # noqa: F401
    from rsd.writer import writer  # noqa: F401

    gc.freeze()


def generator(inbox: Connection, outbox: Connection, name: str, slots: int) -> None:
    """A generator process."""
    from rsd.workers import generator

    generator.main(inbox, outbox, name, slots)


def grader(inbox: Connection, outbox: Connection, name: str, slots: int) -> None:
    """A grader process."""
    from rsd.workers import grader

    grader.main(inbox, outbox, name, slots)


def writer(inbox: Connection, outbox: Connection) -> None:
    """The writer process."""
    from rsd.writer import writer

    writer.main(inbox, outbox)
