"""Disks that are really full or read-only, where the tests may mount one."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def _mount(*words: str) -> bool:
    try:
        return subprocess.run(["mount", *words], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@contextmanager
def small_disk(point: Path, size: str) -> Iterator[Path]:
    """A file system of that size in memory; skips the test when it may not be mounted."""
    point.mkdir(parents=True, exist_ok=True)
    if not _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(point)):
        pytest.skip("needs the right to mount a file system")
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", str(point)], check=True)


def remount(point: Path, how: str) -> None:
    """Make a mounted file system read-only (`ro`) or writable again (`rw`). Nobody may have a file
    open for writing there.
    """
    subprocess.run(["mount", "-o", f"remount,{how}", str(point)], check=True, capture_output=True)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """A folder that takes nothing new for a block; files that are open stay as they are."""
    if not _mount("--bind", str(folder), str(folder)):
        pytest.skip("needs the right to mount a file system")
    try:
        assert _mount("-o", "remount,bind,ro", str(folder))
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill_up(path: Path) -> None:
    """Write to a file until the disk takes no more; again, and what was freed is taken, too."""
    with contextlib.suppress(OSError), path.open("ab", buffering=0) as out:
        while out.write(b"z" * 4096):
            pass
    with contextlib.suppress(OSError), path.open("ab", buffering=0) as out:
        while out.write(b"z"):
            pass


#: Operations of the FUSE protocol that a share without files is asked (include/uapi/linux/fuse.h).
_LOOKUP, _GETATTR, _STATFS, _INIT, _FORGET, _INTERRUPT = 1, 3, 17, 26, 2, 36
_DIRECTORY = 0o40755


def _serve(device: int) -> None:
    """Answer the kernel until the file system is unmounted: one folder, and nothing in it."""
    while True:
        try:
            request = os.read(device, 1 << 17)
        except OSError:
            return
        operation, unique = struct.unpack_from("<IQ", request, 4)
        if operation in (_FORGET, _INTERRUPT):
            continue
        body, error = b"", 0
        if operation == _INIT:
            major, _, readahead = struct.unpack_from("<III", request, 40)
            body = struct.pack("<IIIIHHIIHHII6I", major, 31, readahead, 0, 8, 8, 4096, 1, *[0] * 10)
        elif operation == _GETATTR:
            about = (1, *[0] * 8, _DIRECTORY, 2, *[0] * 3, 512, 0)
            body = struct.pack("<QII6Q10I", 60, 0, 0, *about)
        elif operation == _STATFS:
            body = struct.pack("<QQQQQIIII24x", 0, 0, 0, 0, 0, 512, 255, 512, 0)
        else:
            error = -errno.ENOENT if operation == _LOOKUP else -errno.ENOSYS
        with contextlib.suppress(OSError):
            os.write(device, struct.pack("<IiQ", 16 + len(body), error, unique) + body)


@contextmanager
def share(point: Path, kind: str) -> Iterator[Path]:
    """A file system that the kernel calls `fuse.<kind>`; skips the test when there is no FUSE."""
    point.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        pytest.skip("needs /dev/fuse")
    data = f"fd={device},rootmode=40000,user_id=0,group_id=0"
    words = (w.encode() for w in (kind, str(point), f"fuse.{kind}"))
    if libc.mount(*words, 0, data.encode()) != 0:
        os.close(device)
        pytest.skip("needs the right to mount a file system")
    thread = threading.Thread(target=_serve, args=(device,), daemon=True)
    thread.start()
    try:
        yield point
    finally:
        libc.umount2(os.fsencode(point), 2)
        os.close(device)
        thread.join(timeout=10)
