"""Work on a state in a process of its own, so that a damaged state cannot end the command.

The store is a memory map: pages missing from a file that was cut short, or that a full disk cannot
give, are SIGBUS to whoever touches them.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rsd.errors import StateError, UserError

#: First byte of an answer: what was found, or whose mistake the rest tells about.
_FOUND, _USER, _STATE = b"+", b"u", b"s"


def isolated(work: Callable[..., bytes], state: Path, *arguments: Any) -> bytes:
    """What `work(state, *arguments)` returns. `work` is a function of a module.

    Raises its UserError or StateError, and StateError for every other end that it finds.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_tell, args=(theirs, work, state, arguments), daemon=True)
    child.start()
    theirs.close()
    try:
        answer = ours.recv_bytes()
    except (EOFError, OSError):
        answer = b""
    ours.close()
    child.join()
    kind, text = answer[:1], answer[1:]
    if kind == _FOUND:
        return text
    if kind == _USER:
        raise UserError(text.decode())
    raise StateError(text.decode() or f"{state}/lmdb: is damaged, or its disk is full")


def _tell(pipe: Connection, work: Callable[..., bytes], state: Path, arguments: Any) -> None:
    try:
        answer = _FOUND + work(state, *arguments)
    except UserError as e:
        answer = _USER + str(e).encode("utf-8", "backslashreplace")
    except StateError as e:
        answer = _STATE + str(e).encode("utf-8", "backslashreplace")
    except Exception as e:  # LMDB's and the decoder's own errors: all mean the same here
        text = f"{state}: {type(e).__name__}: {e}"
        answer = _STATE + text.encode("utf-8", "backslashreplace")
    pipe.send_bytes(answer)
