"""The bound on the computing time of one decoding, in processes that meet it."""

from __future__ import annotations

import hashlib
import multiprocessing
import re
import signal
import threading
import time
from collections.abc import Callable

import pytest

from rsd.hub.children.local import OWN_FAULTS
from rsd.workers.cpu import bounded

#: Seconds within which such a process has ended, however busy the host.
PATIENCE = 60.0


def holding_the_lock() -> None:
    """C code that never gives Python's lock back."""
    re.match(r"(a+)+$", "a" * 64 + "b")


def giving_it_back() -> None:
    """C code that lets other threads run."""
    data = bytes(1 << 20)
    while True:
        hashlib.sha256(data).digest()


def in_time() -> None:
    """The block ends before its time; what comes after it is not bounded by it."""
    until = time.thread_time() + 0.4
    while time.thread_time() < until:
        pass


def _in_a_thread(work: Callable[[], None], seconds: float) -> None:
    def bound() -> None:
        with bounded(seconds):
            work()
        in_time()

    thread = threading.Thread(target=bound)
    thread.start()
    while thread.is_alive():  # another thread that computes: its time is its own
        pass


def exit_code(work: Callable[[], None], seconds: float) -> int | None:
    process = multiprocessing.get_context("spawn").Process(
        target=_in_a_thread, args=(work, seconds), daemon=True
    )
    process.start()
    try:
        process.join(PATIENCE)
        return process.exitcode
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize("work", [holding_the_lock, giving_it_back])
def test_a_thread_that_computes_too_long_ends_its_process(work: Callable[[], None]) -> None:
    assert exit_code(work, 0.3) == -signal.SIGXCPU


def test_such_an_end_is_held_against_what_it_decoded() -> None:
    assert signal.SIGXCPU in OWN_FAULTS


def test_one_that_ends_in_time_lives_on() -> None:
    assert exit_code(in_time, 0.7) == 0
