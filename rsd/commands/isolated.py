"""Work on what may be damaged in a process of its own, so that it cannot end the command.

The store is a memory map: pages missing from a file that was cut short, or that a full disk cannot
give, are SIGBUS to whoever touches them. A picture may kill its decoder, or try to read the memory
around it: a spawned process holds no key.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rsd.errors import StateError, UserError

#: First byte of a reply: what was found, or whose mistake the rest describes.
_FOUND, _USER, _STATE = b"+", b"u", b"s"


def isolated(
    work: Callable[..., bytes], place: Path, *arguments: Any, died: str | None = None
) -> bytes:
    """What `work(place, *arguments)` returns. `work` is a function of a module.

    Raises its UserError or StateError, and StateError for every other end that it finds; `died` is
    its text when the process ends without a word.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(theirs, work, place, arguments), daemon=True)
    words, sys.argv = sys.argv, sys.argv[:1]  # it gets a copy, and flags may hold keys
    try:
        child.start()
    finally:
        sys.argv = words
    theirs.close()
    try:
        reply = ours.recv_bytes()
    except (EOFError, OSError):
        reply = b""
    ours.close()
    child.join()
    kind, text = reply[:1], reply[1:]
    if kind == _FOUND:
        return text
    if kind == _USER:
        raise UserError(text.decode())
    raise StateError(
        text.decode() or died or f"{place}/lmdb: is damaged, or its disk is full",
    )


def _answer(pipe: Connection, work: Callable[..., bytes], place: Path, arguments: Any) -> None:
    try:
        reply = _FOUND + work(place, *arguments)
    except UserError as e:
        reply = _USER + str(e).encode("utf-8", "backslashreplace")
    except StateError as e:
        reply = _STATE + str(e).encode("utf-8", "backslashreplace")
    except Exception as e:  # LMDB's and the decoder's own errors: all mean the same here
        text = f"{place}: {type(e).__name__}: {e}"
        reply = _STATE + text.encode("utf-8", "backslashreplace")
    pipe.send_bytes(reply)
