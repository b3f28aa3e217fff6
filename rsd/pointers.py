"""Where running daemons can be found: each leaves a small file in a runtime directory."""

from __future__ import annotations

import contextlib
import os
from hashlib import blake2b
from pathlib import Path

import msgspec
from msgspec import Struct

from rsd.files import write_atomically

#: Largest pointer file that is read, in bytes.
POINTER_BYTES = 64 * 1024


class Pointer(Struct, frozen=True, kw_only=True):
    """One running daemon."""

    pid: int
    created: float | None  #: start time of the process, Unix seconds
    state_dir: str
    image_dir: str
    output_dir: str


def _folders() -> list[Path]:
    """Runtime directories, the own one first; RSD_RUNTIME_DIR stands for all of them."""
    if only := os.environ.get("RSD_RUNTIME_DIR"):
        return [Path(only)]
    # systemd lists several directories with colons when a unit has several
    places = [*os.environ.get("RUNTIME_DIRECTORY", "").split(":"), "/run/rsd"]
    xdg = os.environ.get("XDG_RUNTIME_DIR")
    if xdg:
        places.append(f"{xdg}/rsd")
    places.append(str(Path("~/.local/state/rsd").expanduser()))
    return [Path(p) for p in dict.fromkeys(places) if p]


def write_pointer(pointer: Pointer) -> Path | None:
    """Leave a pointer in the first directory that takes it; None when none does."""
    name = blake2b(pointer.state_dir.encode("utf-8", "replace"), digest_size=6).hexdigest()
    for folder in _folders():
        try:
            if folder == Path("/run/rsd") and not folder.exists() and os.geteuid() != 0:
                continue
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{name}.json"
            write_atomically(path, msgspec.json.encode(pointer), durable=False)
        except OSError:
            continue
        return path
    return None


def remove_pointer(path: Path | None) -> None:
    """The daemon ends."""
    if path is not None:
        with contextlib.suppress(OSError):
            path.unlink()


def find_pointers() -> list[Pointer]:
    """All pointers that can be read, by state directory; their daemons may be dead."""
    found: dict[str, Pointer] = {}
    for folder in _folders():
        with contextlib.suppress(OSError):
            for path in sorted(folder.glob("*.json")):
                with contextlib.suppress(OSError, msgspec.DecodeError):
                    if path.stat().st_size <= POINTER_BYTES:
                        pointer = msgspec.json.decode(path.read_bytes(), type=Pointer)
                        found.setdefault(pointer.state_dir, pointer)
    return [found[state] for state in sorted(found)]
