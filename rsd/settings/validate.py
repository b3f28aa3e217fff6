"""What no single setting shows: values that do not fit together, or not this machine."""

from __future__ import annotations

import ipaddress
import math
import os
import re
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from rsd.errors import UserError
from rsd.settings.fields import Settings, state_dir
from rsd.settings.words import (
    allowed,
    listed,
)


def refuse_impossible(settings: msgspec.Struct, prefix: str = "") -> None:
    """`nan` and `inf` are floats to every parser, and no setting means them; no path holds NUL, and
    what is no UTF-8 (a path from the command line can be that) fits into no JSON.
    """
    for name in settings.__struct_fields__:
        value = getattr(settings, name)
        if isinstance(value, msgspec.Struct):
            refuse_impossible(value, f"{name}.")
        key = f"{prefix}{name}"
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, float) and not math.isfinite(one):
                raise UserError(f"{key} = {listed(value)}: {allowed(key)}")
            if isinstance(one, str) and any(c == "\0" or "\ud800" <= c <= "\udfff" for c in one):
                raise UserError(f"{key}: a text in UTF-8, without NUL characters")


def checked(s: Settings) -> Settings:
    for key in s.sampling.top_k_range:
        if key != -1 and key < 1:
            given = listed(s.sampling.top_k_range)
            raise UserError(f"sampling.top_k_range = {given}: each -1 (off) or at least 1")
    for name, values in (
        ("temperature_range", s.sampling.temperature_range),
        ("top_p_range", s.sampling.top_p_range),
        ("top_k_range", s.sampling.top_k_range),
        ("prompt_keys", s.prompt_keys),
    ):
        if len(set(values)) != len(values):
            where = name if name == "prompt_keys" else f"sampling.{name}"
            raise UserError(f"{where} = {listed(values)}: a value is given twice")
    for section, urls in (("generation", s.generation.api), ("grading", s.grading.api)):
        for url in urls:
            _check_url(section, url)
        if len(set(urls)) != len(urls):
            raise UserError(f"{section}.api: an address is given twice")
    if s.throttle.memory_pause_percent > s.throttle.memory_reduce_percent:
        raise UserError(
            f"throttle.memory_pause_percent = {s.throttle.memory_pause_percent}: "
            "must not exceed throttle.memory_reduce_percent"
        )
    if s.throttle.disk_pause_mebibytes > s.throttle.disk_reduce_mebibytes:
        raise UserError(
            f"throttle.disk_pause_mebibytes = {s.throttle.disk_pause_mebibytes}: "
            "must not exceed throttle.disk_reduce_mebibytes"
        )
    strip = tuple(u.rstrip("/") for u in s.generation.api)
    strip_grading = tuple(u.rstrip("/") for u in s.grading.api)
    return msgspec.structs.replace(
        s,
        generation=msgspec.structs.replace(s.generation, api=strip),
        grading=msgspec.structs.replace(s.grading, api=strip_grading),
    )


def _check_url(section: str, url: str) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = None
    if not usable:
        shown = re.sub(r"//[^/]*@", "//***@", url)
        raise UserError(f"{section}.api = {shown}: an address like http://host:8000/v1")
    if parts.username or parts.password:
        raise UserError(f"{section}.api: no user or password in the address; use {section}.key")
    if parts.query or parts.fragment:
        raise UserError(f"{section}.api = {url}: no ? or # in the address")


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
        raise UserError(f"image_dir = {s.image_dir}: no such folder")
    if not os.access(images, os.R_OK | os.X_OK):
        raise UserError(f"image_dir = {s.image_dir}: not readable")
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
