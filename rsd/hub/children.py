"""What runs in the children of the hub. Their imports happen there: the hub needs none, and starts
them sooner.
"""

from __future__ import annotations

from multiprocessing.connection import Connection


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
    from rsd.writer import process

    process.main(inbox, outbox)
