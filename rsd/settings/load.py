"""Settings out of flags, environment and file.

Order: flag, then `RSD_...`, then `rsd.toml`, then the default. Every mistake ends in one
`UserError` line that names the setting, its value and what is allowed.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from rsd.errors import UserError
from rsd.settings.fields import Settings
from rsd.settings.secrets import with_keys
from rsd.settings.validate import refuse_misfits, refuse_odd_numbers, refuse_odd_texts
from rsd.settings.words import (
    allowed,
    complaint,
    is_optional,
    is_tuple,
    sections,
    setting_keys,
    shown,
)

#: Where a configuration file is looked for, after `--config` and `RSD_CONFIG`.
CONFIG_FILES = (Path("rsd.toml"), Path("/etc/rsd/rsd.toml"))
#: Environment variables that are not settings.
NOT_SETTINGS = {
    *("RSD_CONFIG", "RSD_RUNTIME_DIR"),
    *("RSD_FAILPOINT", "RSD_EVIDENCE", "RSD_VLLM_URL", "RSD_VLLM_TARGET"),
}
#: The settings that say where a daemon works and keeps its state.
FOLDERS = ("image_dir", "output_dir", "state_dir")


def find_config(explicit: str | None) -> Path | None:
    """The configuration file: `--config`, `RSD_CONFIG`, ./rsd.toml, /etc/rsd/rsd.toml, or none."""
    named = explicit or os.environ.get("RSD_CONFIG")
    if named:
        path = Path(named)
        if not path.is_file():
            where = "--config" if explicit else "RSD_CONFIG"
            raise UserError(f"{where} {named}: no such file")
        return path
    return next((p for p in CONFIG_FILES if p.is_file()), None)


def load(
    flags: Mapping[str, Any],
    *,
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Merge and validate; `flags` maps dotted keys (`grading.api`) to values.

    Raises UserError. Folders and prompt files are not touched here: see `check_for_run`.
    """
    merged: dict[str, Any] = {}
    if file is not None:
        merged = _read(file)
        _refuse_unknown(merged, str(file))
    for key, value in _from_environment(os.environ if environ is None else environ).items():
        _put(merged, key, value)
    for key, value in flags.items():
        if value is not None:
            _put(merged, key, value)
    refuse_odd_texts(merged)
    try:
        settings = msgspec.convert(merged, Settings, strict=False)
    except msgspec.ValidationError as e:
        raise UserError(complaint(str(e), merged)) from None
    refuse_odd_numbers(settings)
    settings = _with_plain_addresses(settings)
    refuse_misfits(settings)
    return with_keys(settings)


def _with_plain_addresses(settings: Settings) -> Settings:
    """Without the slash that some write at their end."""
    generation, grading = settings.generation, settings.grading
    plain = [tuple(url.rstrip("/") for url in role.api) for role in (generation, grading)]
    return msgspec.structs.replace(
        settings,
        generation=msgspec.structs.replace(generation, api=plain[0]),
        grading=msgspec.structs.replace(grading, api=plain[1]),
    )


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except PermissionError as e:
        raise Unreadable(f"{file}: {e.strerror}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise UserError(f"{file}: {e.strerror or e if isinstance(e, OSError) else e}") from None


class Unreadable(UserError):
    """A configuration file that this user may not read."""


def _refuse_unknown(data: Mapping[str, Any], where: str) -> None:
    known = setting_keys()
    tables = sections()
    given: list[str] = []
    for key, value in data.items():
        if key in tables and isinstance(value, dict):
            given += [f"{key}.{inner}" for inner in value]
        elif key in tables:
            raise UserError(f"{where}: {key} = {shown(value)}: must be a table, [{key}]")
        else:
            given.append(key)
    for key in given:
        if key in known:
            continue
        close = difflib.get_close_matches(key, [*known, *tables], n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UserError(f"{where}: unknown setting {shown(key)}{hint}")


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    names = {"RSD_" + k.replace(".", "_").upper(): k for k in setting_keys()}
    found: dict[str, Any] = {}
    for name, text in environ.items():
        if not name.startswith("RSD_") or name in NOT_SETTINGS or name.startswith("RSD_TEST_"):
            continue
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise UserError(f"environment: unknown setting {shown(name)}{hint}")
        found[names[name]] = text
    return found


def locate(
    flags: Mapping[str, Any],
    *,
    file: Path | None = None,
    named: bool = False,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Only the settings that say where things lie; all others keep their defaults.

    For commands that ask about a daemon: they need neither its keys nor a file that they may not
    read. `named`: the user named the file, so that one that cannot be read is a UserError.
    """
    merged: dict[str, Any] = {}
    if file is not None:
        try:
            merged = _read(file)
        except Unreadable:
            if named:
                raise
    env = os.environ if environ is None else environ
    found: dict[str, str] = {}
    for key in FOLDERS:
        value = flags.get(key) or env.get(f"RSD_{key.upper()}") or merged.get(key) or ""
        if not isinstance(value, str):
            raise UserError(f"{key} = {shown(value)}: {allowed(key)}")
        found[key] = value
    refuse_odd_texts(found)
    return msgspec.structs.replace(Settings(), **found)


def _put(merged: dict[str, Any], key: str, value: Any) -> None:
    section, _, name = key.rpartition(".")
    target = merged.setdefault(section, {}) if section else merged
    if isinstance(value, str) and is_tuple(key):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if value == "" and is_optional(key):
        value = None
    target[name] = value
