"""A bound on the memory of a process that decodes pictures it cannot trust."""

from __future__ import annotations

import logging
import os
import resource
from pathlib import Path

log = logging.getLogger(__name__)

#: What calls and the picture cache may take beyond the process's memory at its start, in bytes: per
#: thread, and once.
PER_CALL, ONCE = 16 * 1024 * 1024, 256 * 1024 * 1024


class MemoryLimit:
    """RLIMIT_DATA of this process: what it has at its start, a reserve for its calls, and on top of
    them what one decoding may take. RLIMIT_AS would count reservations that nobody ever uses.
    """

    def __init__(self, calls: int) -> None:
        self._base = data_bytes() + ONCE + calls * PER_CALL
        self._allowance = 0

    def allow(self, decoding: int) -> None:
        """From now on a decoding may take so many bytes; a picture that wants more is a
        MemoryError.
        """
        self._allowance = decoding
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        soft = self._base + decoding
        if hard != resource.RLIM_INFINITY:
            soft = min(soft, hard)
        try:
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
        except (OSError, ValueError) as e:
            self._allowance = 0
            log.warning("the memory for decoding cannot be limited: %s", e)

    @property
    def roomy(self) -> bool:
        """Whether a decoding that begins now finds its whole allowance: the calls keep to their
        reserve.
        """
        return not self._allowance or data_bytes() <= self._base


def data_bytes() -> int:
    """Private writable memory of this process in bytes, as RLIMIT_DATA counts it."""
    pages = Path("/proc/self/statm").read_text().split()[5]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
