"""Where running daemons can be found: each leaves a small file in a runtime directory.

Its status document goes there, too, while the state directory takes none.
"""

from __future__ import annotations

import contextlib
import os
from hashlib import blake2b
from pathlib import Path

import msgspec
from msgspec import Struct

from rsd.system.files import write_atomically
from rsd.system.processes import process_identity

#: Largest pointer file that is read, in bytes.
POINTER_BYTES = 64 * 1024
#: Suffix of a status document beside the pointers.
STATUS = ".status"


class Pointer(Struct, frozen=True, kw_only=True):
    """One running daemon."""

    pid: int
    created: str | None  #: which process of that pid (processes.process_identity)
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


def _name(state_dir: str) -> str:
    return blake2b(state_dir.encode("utf-8", "replace"), digest_size=6).hexdigest()


def point_here(state: Path, image_dir: Path, output_dir: Path) -> Path | None:
    """Leave a pointer to this process; `state` is resolved."""
    return write_pointer(
        Pointer(
            pid=os.getpid(),
            created=process_identity(os.getpid()),
            state_dir=str(state),
            image_dir=str(image_dir.resolve()),
            output_dir=str(output_dir.resolve()),
        )
    )


def write_pointer(pointer: Pointer) -> Path | None:
    """Leave a pointer in the first directory that takes it; None when none does."""
    return _leave(f"{_name(pointer.state_dir)}.json", msgspec.json.encode(pointer))


def write_status(state_dir: str, document: bytes) -> Path | None:
    """Leave a status document that the state directory does not take, as `write_pointer` does."""
    return _leave(f"{_name(state_dir)}{STATUS}", document)


def read_status(state_dir: str) -> list[bytes]:
    """What `write_status` left in any runtime directory."""
    found: list[bytes] = []
    for folder in _folders():
        with contextlib.suppress(OSError):
            found.append((folder / f"{_name(state_dir)}{STATUS}").read_bytes())
    return found


def _leave(name: str, data: bytes) -> Path | None:
    for folder in _folders():
        try:
            if folder == Path("/run/rsd") and not folder.exists() and os.geteuid() != 0:
                continue
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / name, data, durable=False)
        except OSError:
            continue
        return folder / name
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
