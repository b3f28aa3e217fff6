"""What no type shows: values that fit to nothing, not together, or not to this machine."""

from __future__ import annotations

import ipaddress
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from rsd.errors import UserError
from rsd.settings.fields import Settings, state_dir
from rsd.settings.words import allowed, shown


def refuse_odd_texts(merged: Mapping[str, Any], prefix: str = "") -> None:
    """No path holds NUL, and what is no UTF-8 (an argument or a variable can be that) fits into no
    JSON. Raises UserError.
    """
    for name, value in merged.items():
        if isinstance(value, Mapping):
            refuse_odd_texts(value, f"{prefix}{name}.")
        for one in value if isinstance(value, list | tuple) else (value,):
            if isinstance(one, str) and any(c == "\0" or "\ud800" <= c <= "\udfff" for c in one):
                raise UserError(f"{prefix}{name}: a text in UTF-8, without NUL characters")


def refuse_odd_numbers(settings: msgspec.Struct, prefix: str = "") -> None:
    """`nan` and `inf` are floats to every parser, and no setting means them. Raises UserError."""
    for name in settings.__struct_fields__:
        value = getattr(settings, name)
        if isinstance(value, msgspec.Struct):
            refuse_odd_numbers(value, f"{name}.")
        key = f"{prefix}{name}"
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, float) and not math.isfinite(one):
                raise UserError(f"{key} = {shown(value)}: {allowed(key)}")


def refuse_misfits(s: Settings) -> None:
    """Values that do not fit together, and addresses that are none. Raises UserError."""
    for section, urls in (("generation", s.generation.api), ("grading", s.grading.api)):
        for url in urls:
            _refuse_url(section, url)  # first: what follows repeats addresses
    _refuse_top_k(s)
    _refuse_repetitions(s)
    _refuse_fixed_numbers(s)
    throttle = s.throttle
    for pause, reduce in (
        ("memory_pause_percent", "memory_reduce_percent"),
        ("disk_pause_mebibytes", "disk_reduce_mebibytes"),
    ):
        value = getattr(throttle, pause)
        if value > getattr(throttle, reduce):
            raise UserError(f"throttle.{pause} = {value}: must not exceed throttle.{reduce}")


def _refuse_top_k(s: Settings) -> None:
    values = s.sampling.top_k_range
    if any(k != -1 and k < 1 for k in values):
        raise UserError(f"sampling.top_k_range = {shown(values)}: each -1 (off) or at least 1")


def _refuse_repetitions(s: Settings) -> None:
    sampling = s.sampling
    several: dict[str, tuple[Any, ...]] = {
        "sampling.temperature_range": sampling.temperature_range,
        "sampling.top_p_range": sampling.top_p_range,
        "sampling.top_k_range": sampling.top_k_range,
        "prompt_keys": s.prompt_keys,
        "generation.api": s.generation.api,
        "grading.api": s.grading.api,
    }
    for key, values in several.items():
        if len(set(values)) != len(values):
            raise UserError(f"{key} = {shown(values)}: a value is given twice")


def _refuse_fixed_numbers(s: Settings) -> None:
    """`adaptive` finds out itself what these fix for the other strategies."""
    if s.sampling.strategy != "adaptive":
        return
    fixed = (
        ("sampling.candidates", s.sampling.candidates, None, "or limit it by candidates_max"),
        ("sampling.stop_score", s.sampling.stop_score, None, "or choose an effort"),
        ("grading.repeats", s.grading.repeats, 1, "or leave it at 1"),
    )
    for key, value, free, other in fixed:
        if value != free:
            raise UserError(
                f"{key} = {shown(value)}: not with sampling.strategy = adaptive, which finds that "
                f"out for each image; set sampling.strategy = random, {other}"
            )


def _refuse_url(section: str, url: str) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = None
    if not usable:
        visible = shown(re.sub(r"//[^/]*@", "//***@", url))
        raise UserError(f"{section}.api = {visible}: an address like http://host:8000/v1")
    if parts.username or parts.password:
        raise UserError(f"{section}.api: no user or password in the address; use {section}.key")
    if parts.query or parts.fragment:
        raise UserError(f"{section}.api = {shown(url)}: no ? or # in the address")


def check_for_run(s: Settings) -> None:
    """What `run` needs beyond valid values: folders, a grader, its key. Raises UserError."""
    for name, value in (("image_dir", s.image_dir), ("output_dir", s.output_dir)):
        if not value:
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{name} is not set: give {flag} DIR (or {name} in rsd.toml)")
    if not s.grading.api:
        raise UserError("grading.api is not set: give --grading-api URL (or it in rsd.toml)")
    images, output = Path(s.image_dir).resolve(), Path(s.output_dir).resolve()
    if not images.is_dir():
        raise UserError(f"image_dir = {shown(s.image_dir)}: no such folder")
    if not os.access(images, os.R_OK | os.X_OK):
        raise UserError(f"image_dir = {shown(s.image_dir)}: not readable")
    for name, path in (("output_dir", output), ("state_dir", state_dir(s).resolve())):
        if path == images or images in path.parents:
            raise UserError(f"{name} = {path}: must not lie inside image_dir = {images}")
    if not s.grading.key:
        for url in s.grading.api:
            host = urlsplit(url).hostname or ""
            if not _is_private(host):
                raise UserError(
                    f"grading.key is not set, and {host} is not on this machine or network: "
                    "set RSD_GRADING_KEY, grading.key_file or --grading-key"
                )


def _is_private(host: str) -> bool:
    if host == "localhost" or host.endswith((".localhost", ".local", ".internal", ".lan")):
        return True
    if "." not in host and ":" not in host:
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_private or address.is_loopback or address.is_link_local
