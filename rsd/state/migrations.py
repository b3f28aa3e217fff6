"""Formats of the state: each number has a function that brings the one before to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from rsd.protocol.vocabulary import Stats
from rsd.state.transaction import Transaction

#: Format of what is stored; raised with every change, each with a function in MIGRATIONS.
SCHEMA: Final = 1


def _first_format(txn: Transaction) -> None:
    txn.put("stats", b"all", Stats())


#: Format number -> function that brings the one before to it.
MIGRATIONS: Final[dict[int, Callable[[Transaction], None]]] = {1: _first_format}
