"""Settings in words: what each one takes, and the example file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from rsd.settings.fields import Settings

#: Longest value that a complaint repeats, in characters.
SHOWN_MAX = 200


def sections() -> dict[str, type[msgspec.Struct]]:
    """The tables of the configuration file: name to struct, in file order."""
    hints = get_type_hints(Settings)
    return {k: t for k, t in hints.items() if isinstance(t, type) and issubclass(t, msgspec.Struct)}


def setting_keys() -> list[str]:
    """All dotted keys, in file order."""
    tables = sections()
    top = [f.name for f in msgspec.structs.fields(Settings) if f.name not in tables]
    return top + [f"{s}.{f.name}" for s, t in tables.items() for f in msgspec.structs.fields(t)]


def _hint(key: str) -> Any:
    section, _, name = key.rpartition(".")
    return get_type_hints(_struct(section))[name]


def is_tuple(key: str) -> bool:
    """Whether a setting takes several values."""
    return getattr(_hint(key), "__origin__", None) is tuple


def is_optional(key: str) -> bool:
    """Whether a setting may be absent."""
    return type(None) in get_args(_hint(key))


def complaint(message: str, merged: Mapping[str, Any]) -> str:
    """msgspec's `message` about `merged` as a line of ours: setting, its value, what is allowed."""
    path = message.partition(" - at `$.")[2].rstrip("`")
    key = re.sub(r"\[.*", "", path)
    value: Any = merged
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else value
    if re.search(r"(^|\.)key$", key):
        value = "(hidden)"
    return f"{key} = {shown(value)}: {allowed(key)}"


def shown(value: Any) -> str:
    """A value in one printable line of at most SHOWN_MAX characters."""
    text = ",".join(str(v) for v in value) if isinstance(value, list | tuple) else str(value)
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[: SHOWN_MAX + 1])
    return text if len(text) <= SHOWN_MAX else text[: SHOWN_MAX - 3] + "..."


def allowed(key: str) -> str:
    """The values that a setting takes, in words; `key` is dotted."""
    section, _, name = key.rpartition(".")
    return _words(get_type_hints(_struct(section), include_extras=True)[name])


def _struct(section: str) -> type[msgspec.Struct]:
    return sections()[section] if section else Settings


def _words(hint: Any) -> str:
    if get_origin(hint) is Annotated:
        inner, meta = get_args(hint)[:2]
        if get_origin(inner) is tuple or type(None) in get_args(inner):
            return _words(inner)
        return _range(inner, meta) or _words(inner)
    if get_origin(hint) is tuple:
        return f"one or more, each {_words(get_args(hint)[0])}"
    if type(None) in get_args(hint):
        return next(_words(a) for a in get_args(hint) if a is not type(None))
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(c or "(empty)" for c in get_args(hint))
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    return kinds.get(hint, "something else")


def _range(inner: Any, meta: msgspec.Meta) -> str:
    if inner not in (int, float):
        return ""
    kind = "a whole number" if inner is int else "a number"
    if meta.ge is not None and meta.le is not None:
        return f"{kind} from {meta.ge} to {meta.le}"
    parts = [f"above {meta.gt}"] if meta.gt is not None else []
    parts += [f"of at least {meta.ge}"] if meta.ge is not None else []
    parts += [f"up to {meta.le}"] if meta.le is not None else []
    return " ".join([kind, " and ".join(parts)]).strip()


def example() -> str:
    """The text of rsd.example.toml: every setting with its default and explanation."""
    tables = sections()
    lines = [
        "# Every setting of rsd with its default. Copy to rsd.toml and keep what you change.",
        "",
    ]

    def entry(struct: type[msgspec.Struct], name: str) -> None:
        hint = get_type_hints(struct, include_extras=True)[name]
        meta = hint.__metadata__[0]
        field = next(f for f in msgspec.structs.fields(struct) if f.name == name)
        lines.append(f"# {meta.description}")
        if field.default is None:
            lines.append(f"# {name} =")
        else:
            lines.append(f"# {name} = {_toml(field.default)}")

    for field in msgspec.structs.fields(Settings):
        if field.name not in tables:
            entry(Settings, field.name)
    for section, struct in tables.items():
        doc = (struct.__doc__ or "").partition("] ")[2]
        lines += ["", f"[{section}]", f"# {doc}"]
        for inner in msgspec.structs.fields(struct):
            entry(struct, inner.name)
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)
