"""A bound on the computing time of one decoding."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

#: Linux's SIGEV_SIGNAL, and the size of its struct sigevent.
_SIGEV_SIGNAL, _SIGEVENT_BYTES = 0, 64


class _SigEvent(ctypes.Structure):
    _fields_ = (
        ("value", ctypes.c_void_p),
        ("number", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("rest", ctypes.c_char * (_SIGEVENT_BYTES - 8 - ctypes.sizeof(ctypes.c_void_p))),
    )


class _TimerSpec(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_long)
        for name in ("interval_seconds", "interval_ns", "value_seconds", "value_ns")
    )


@contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """Within this block the calling thread may compute for so long; after that the kernel ends the
    process with SIGXCPU.

    The kernel keeps the time, so it does not matter whether C code gives Python's lock back, how
    busy the host is, or what other threads compute. Where it cannot, that is a warning.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    timer = ctypes.c_void_p()
    event = _SigEvent(number=signal.SIGXCPU, notify=_SIGEV_SIGNAL)
    spec = _TimerSpec(value_seconds=int(seconds), value_ns=int(seconds % 1 * 1e9))
    try:
        made = libc.timer_create(
            time.CLOCK_THREAD_CPUTIME_ID, ctypes.byref(event), ctypes.byref(timer)
        )
        if made or libc.timer_settime(timer, 0, ctypes.byref(spec), None):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    except (AttributeError, OSError) as e:  # a C library without them, a kernel that refuses
        log.warning("the time for decoding cannot be limited: %s", e)
        yield
        return
    try:
        yield
    finally:
        libc.timer_delete(timer)
