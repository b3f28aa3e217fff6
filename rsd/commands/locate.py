"""From what a user types to the image that is meant."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import msgspec

from rsd.errors import StateError
from rsd.protocol.status import Status, decode
from rsd.state import view
from rsd.state.records import ImageRecord
from rsd.state.transaction import Transaction
from rsd.system import runtime_dir
from rsd.system.processes import hub_lives


def last_word(state: Path) -> Status | None:
    """What the hub wrote last, wherever it found room for it; None when that is not there or not
    whole (it is not fsynced). Raises StateError when it cannot be read.
    """
    texts = runtime_dir.read_status(str(state))
    try:
        texts.append((state / "live.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as e:
        raise StateError(f"{state}/live.json: {e.strerror}") from None
    found = [status for text in texts if (status := decode(text)) is not None]
    # Of a living hub before all others, then the latest.
    return max(found, key=lambda s: (lives(s, state), s.written_monotonic), default=None)


def lives(status: Status, state: Path) -> bool:
    """Whether the hub that wrote this about a state is still running."""
    return status.pid is not None and hub_lives(status.pid, status.created, state)


def image_dir_of(state: Path, given: str) -> Path | None:
    """The image folder of an instance: from its settings, or as its hub last wrote it."""
    if given:
        return Path(given).resolve()
    try:
        last = last_word(state)
    except StateError:
        return None
    return Path(last.image_dir) if last is not None and last.image_dir else None


def find(txn: Transaction, name: str, image_dir: Path | None) -> ImageRecord | None:
    """An image by id, by a result file, or by its path (absolute, below the working directory or
    below the image folder).
    """
    if re.fullmatch(r"[0-9a-f]{32}", name):
        found = view.image_record(txn, name)
        if found is not None:
            return found
    if name.endswith(".json"):
        try:
            data: Any = msgspec.json.decode(Path(name).read_bytes())
            found = view.image_record(txn, str(data["id"]))
            if found is not None:
                return found
        except (OSError, msgspec.DecodeError, KeyError, TypeError, ValueError):
            pass
    for path in relative_paths(name, image_dir):
        found = view.image_at(txn, path)
        if found is not None:
            return found
    return None


def relative_paths(name: str, image_dir: Path | None) -> list[bytes]:
    """What a name may mean as a path below the image folder."""
    found = [os.fsencode(name)]
    if image_dir is not None:
        for base in (Path.cwd() / name, image_dir / name):
            absolute = Path(os.path.normpath(base))
            for root in (image_dir, image_dir.resolve()):
                if absolute.is_relative_to(root):
                    found.append(os.fsencode(absolute.relative_to(root)))
    return list(dict.fromkeys(found))
