"""Keys: where they come from, and that no child and no other user sees them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import msgspec

from rsd.errors import UserError
from rsd.settings.fields import Generation, Grading, Settings
from rsd.settings.words import shown

RoleSettings = TypeVar("RoleSettings", Generation, Grading)

#: Variables that hold a key.
SECRETS = ("RSD_GENERATION_KEY", "RSD_GRADING_KEY")


def with_keys(settings: Settings) -> Settings:
    """The settings with both keys in them, wherever they come from. Raises UserError."""
    return msgspec.structs.replace(
        settings,
        generation=_with_key("generation", settings.generation),
        grading=_with_key("grading", settings.grading),
    )


def _with_key(section: str, role: RoleSettings) -> RoleSettings:
    return msgspec.structs.replace(role, key=key_of(section, role.key, role.key_file))


def key_of(section: str, key: str, key_file: str) -> str:
    """The key of a section: the setting itself, else its file, else a systemd credential of that
    name; "" when there is none. Raises UserError, which never holds the key.
    """
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    if not key and not key_file and credentials:
        candidate = Path(credentials) / f"{section}-key"
        key_file = str(candidate) if candidate.is_file() else ""
    if not key and key_file:
        try:
            key = Path(key_file).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as e:
            reason = e.strerror if isinstance(e, OSError) else "not UTF-8 text"
            raise UserError(f"{section}.key_file = {shown(key_file)}: {reason}") from None
    if any(not c.isascii() or c.isspace() or not c.isprintable() for c in key):
        raise UserError(f"{section}.key: must be printable ASCII without spaces")
    return key


def take_environment() -> dict[str, str]:
    """The environment, out of which its keys are taken: no child needs them, and what a process
    was started with can be read in /proc.
    """
    whole = dict(os.environ)
    for name in SECRETS:
        os.environ.pop(name, None)
    with contextlib.suppress(OSError, ValueError, IndexError):  # a kernel that lets nobody write
        _blacken(SECRETS)
    return whole


def _blacken(names: Iterable[str]) -> None:
    """Overwrite values where /proc/PID/environ shows them, of this process and those it forks:
    env_start and env_end of proc(5). The C library must not use these variables any more.
    """
    wanted = {name.encode() for name in names}
    fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    at, end = int(fields[47]), int(fields[48])
    with Path("/proc/self/mem").open("r+b", buffering=0) as memory:
        memory.seek(at)
        for word in memory.read(end - at).split(b"\0"):
            name, _, value = word.partition(b"=")
            if name in wanted:
                memory.seek(at + len(name) + 1)
                memory.write(b"*" * len(value))
            at += len(word) + 1
