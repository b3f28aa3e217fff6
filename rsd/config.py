"""Settings: read from flags, environment and file, validated, compared for a reload.

Order: flag, then `RSD_...`, then `rsd.toml`, then the default. Every mistake ends in one
`UserError` line that names the setting, its value and what is allowed.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import msgspec

from rsd.errors import UserError
from rsd.settings import Settings
from rsd.vocabulary import Recipe

#: Where a configuration file is looked for, after `--config` and `RSD_CONFIG`.
CONFIG_PLACES = (Path("rsd.toml"), Path("/etc/rsd/rsd.toml"))
#: Environment variables that are not settings.
NOT_SETTINGS = {
    *("RSD_CONFIG", "RSD_RUNTIME_DIR"),
    *("RSD_FAILPOINT", "RSD_EVIDENCE", "RSD_VLLM_URL", "RSD_VLLM_TARGET"),
}
#: The settings that say where a daemon works and keeps its state.
PLACES = ("image_dir", "output_dir", "state_dir")
#: Variables that hold a key.
SECRETS = ("RSD_GENERATION_KEY", "RSD_GRADING_KEY")
#: `n` draws of one request, and all draws of one image, must fit into the seeds of an image.
MAX_DRAWS = 1024

POINTWISE, LISTWISE = "{generated_answer}", "{candidate_answers}"


def sections() -> dict[str, type[msgspec.Struct]]:
    """The tables of the configuration file: name to struct, in file order."""
    hints = get_type_hints(Settings)
    return {k: t for k, t in hints.items() if isinstance(t, type) and issubclass(t, msgspec.Struct)}


def find_config(explicit: str | None) -> Path | None:
    """The configuration file: `--config`, `RSD_CONFIG`, ./rsd.toml, /etc/rsd/rsd.toml, or none."""
    named = explicit or os.environ.get("RSD_CONFIG")
    if named:
        path = Path(named)
        if not path.is_file():
            where = "--config" if explicit else "RSD_CONFIG"
            raise UserError(f"{where} {named}: no such file")
        return path
    return next((p for p in CONFIG_PLACES if p.is_file()), None)


def load(
    flags: Mapping[str, Any],
    *,
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Merge and validate; `flags` maps dotted keys (`grading.api`) to values.

    Raises UserError. Folders and prompt files are not touched here: see `check_folders`.
    """
    merged: dict[str, Any] = {}
    if file is not None:
        try:
            merged = tomllib.loads(file.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
            raise UserError(f"{file}: {_why(e)}") from None
        _refuse_unknown(merged, str(file))
    for key, value in _from_environment(os.environ if environ is None else environ).items():
        _put(merged, key, value)
    for key, value in flags.items():
        if value is not None:
            _put(merged, key, value)
    try:
        settings = msgspec.convert(merged, Settings, strict=False)
    except msgspec.ValidationError as e:
        raise UserError(_readable(str(e), merged)) from None
    _refuse_impossible(settings)
    return _checked(_with_keys(settings))


def _why(e: Exception) -> str:
    return e.strerror or str(e) if isinstance(e, OSError) else str(e)


def _keys() -> list[str]:
    tables = sections()
    top = [f.name for f in msgspec.structs.fields(Settings) if f.name not in tables]
    return top + [f"{s}.{f.name}" for s, t in tables.items() for f in msgspec.structs.fields(t)]


def _refuse_unknown(data: Mapping[str, Any], where: str) -> None:
    known = _keys()
    tables = sections()
    given: list[str] = []
    for key, value in data.items():
        if key in tables and isinstance(value, dict):
            given += [f"{key}.{inner}" for inner in value]
        elif key in tables:
            raise UserError(f"{where}: {key} = {value}: must be a table, [{key}]")
        else:
            given.append(key)
    for key in given:
        if key in known:
            continue
        close = difflib.get_close_matches(key, [*known, *tables], n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UserError(f"{where}: unknown setting {key}{hint}")


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    names = {"RSD_" + k.replace(".", "_").upper(): k for k in _keys()}
    found: dict[str, Any] = {}
    for name, text in environ.items():
        if not name.startswith("RSD_") or name in NOT_SETTINGS or name.startswith("RSD_TEST_"):
            continue
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise UserError(f"environment: unknown setting {name}{hint}")
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
            merged = tomllib.loads(file.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
            if named or not isinstance(e, PermissionError):
                raise UserError(f"{file}: {_why(e)}") from None
    env = os.environ if environ is None else environ
    found: dict[str, str] = {}
    for key in PLACES:
        value = flags.get(key) or env.get(f"RSD_{key.upper()}") or merged.get(key) or ""
        if not isinstance(value, str):
            raise UserError(f"{key} = {value}: {allowed(key)}")
        found[key] = value
    settings = Settings(
        image_dir=found["image_dir"],
        output_dir=found["output_dir"],
        state_dir=found["state_dir"],
    )
    _refuse_impossible(settings)
    return settings


def _put(merged: dict[str, Any], key: str, value: Any) -> None:
    section, _, name = key.rpartition(".")
    target = merged.setdefault(section, {}) if section else merged
    if isinstance(value, str) and _is_tuple(key):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if value == "" and _is_optional(key):
        value = None
    target[name] = value


def _hint(key: str) -> Any:
    section, _, name = key.rpartition(".")
    return get_type_hints(_struct(section))[name]


def _is_tuple(key: str) -> bool:
    return getattr(_hint(key), "__origin__", None) is tuple


def _is_optional(key: str) -> bool:
    return type(None) in get_args(_hint(key))


def _readable(message: str, merged: Mapping[str, Any]) -> str:
    """msgspec's complaint as a line of ours: setting, its value, what is allowed."""
    path = message.partition(" - at `$.")[2].rstrip("`")
    key = re.sub(r"\[.*", "", path)
    value: Any = merged
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else value
    if re.search(r"(^|\.)key$", key):
        value = "(hidden)"
    return f"{key} = {_listed(value)}: {allowed(key)}"


def _listed(value: Any) -> str:
    return ",".join(str(v) for v in value) if isinstance(value, list | tuple) else str(value)


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


def _refuse_impossible(settings: msgspec.Struct, prefix: str = "") -> None:
    """`nan` and `inf` are floats to every parser, and no setting means them; no path holds NUL, and
    what is no UTF-8 (a path from the command line can be that) fits into no JSON.
    """
    for name in settings.__struct_fields__:
        value = getattr(settings, name)
        if isinstance(value, msgspec.Struct):
            _refuse_impossible(value, f"{name}.")
        key = f"{prefix}{name}"
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, float) and not math.isfinite(one):
                raise UserError(f"{key} = {_listed(value)}: {allowed(key)}")
            if isinstance(one, str) and any(c == "\0" or "\ud800" <= c <= "\udfff" for c in one):
                raise UserError(f"{key}: a text in UTF-8, without NUL characters")


def _with_keys(settings: Settings) -> Settings:
    generation, grading = settings.generation, settings.grading
    return msgspec.structs.replace(
        settings,
        generation=msgspec.structs.replace(
            generation, key=_secret("generation", generation.key, generation.key_file)
        ),
        grading=msgspec.structs.replace(
            grading, key=_secret("grading", grading.key, grading.key_file)
        ),
    )


def _secret(section: str, key: str, key_file: str) -> str:
    """The key itself, from the setting, its file, or a systemd credential of that name."""
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    if not key and not key_file and credentials:
        candidate = Path(credentials) / f"{section}-key"
        key_file = str(candidate) if candidate.is_file() else ""
    if not key and key_file:
        try:
            key = Path(key_file).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as e:
            reason = e.strerror if isinstance(e, OSError) else "not UTF-8 text"
            raise UserError(f"{section}.key_file = {key_file}: {reason}") from None
    if any(not c.isascii() or c.isspace() or not c.isprintable() for c in key):
        raise UserError(f"{section}.key: must be printable ASCII without spaces")
    return key


def _checked(s: Settings) -> Settings:
    for key in s.sampling.top_k_range:
        if key != -1 and key < 1:
            listed = _listed(s.sampling.top_k_range)
            raise UserError(f"sampling.top_k_range = {listed}: each -1 (off) or at least 1")
    for name, values in (
        ("temperature_range", s.sampling.temperature_range),
        ("top_p_range", s.sampling.top_p_range),
        ("top_k_range", s.sampling.top_k_range),
        ("prompt_keys", s.prompt_keys),
    ):
        if len(set(values)) != len(values):
            where = name if name == "prompt_keys" else f"sampling.{name}"
            raise UserError(f"{where} = {_listed(values)}: a value is given twice")
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


def state_dir(s: Settings) -> Path:
    """Where LMDB, spool, lock and live.json lie."""
    return Path(s.state_dir) if s.state_dir else Path(s.output_dir) / "state"


def load_recipe(s: Settings) -> Recipe:
    """Read both prompt files and put together what an image is started with. Raises UserError."""
    texts = _read_json(s.prompts, "prompts")
    for key, text in texts.items():
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"prompts = {s.prompts}: {key} must be a text")
    if not texts:
        raise UserError(f"prompts = {s.prompts}: holds no prompt")
    keys = s.prompt_keys or tuple(texts)
    for key in keys:
        if key not in texts:
            raise UserError(f"prompt_keys = {key}: not in {s.prompts} ({', '.join(texts)})")
    template = _read_json(s.grading_prompt, "grading_prompt").get("template")
    if not isinstance(template, str):
        raise UserError(f"grading_prompt = {s.grading_prompt}: has no text `template`")
    if (POINTWISE in template) == (LISTWISE in template):
        raise UserError(
            f"grading_prompt = {s.grading_prompt}: the template must hold "
            f"{POINTWISE} (one candidate a call) or {LISTWISE} (several), and not both"
        )
    sampling = s.sampling
    count = sampling.candidates or len(keys)
    if sampling.strategy == "grid":
        count = (
            len(keys)
            * len(sampling.temperature_range)
            * len(sampling.top_p_range)
            * len(sampling.top_k_range)
        )
        if count > MAX_DRAWS:
            raise UserError(
                f"sampling.strategy = grid: {count} candidates an image; at most {MAX_DRAWS}"
            )
    return Recipe(
        prompts={k: texts[k] for k in keys},
        grading_template=template,
        strategy=sampling.strategy,
        candidates=count,
        seed=sampling.seed,
        temperatures=sampling.temperature_range,
        top_ps=sampling.top_p_range,
        top_ks=sampling.top_k_range,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        max_tokens=s.generation.max_tokens,
        score_threshold=sampling.score_threshold,
        stop_score=sampling.stop_score,
        repeats=s.grading.repeats,
        list_size=s.grading.list_size,
        generator_model=s.generation.model,
        grader_model=s.grading.model,
    )


def _read_json(path: str, name: str) -> dict[str, Any]:
    try:
        data = msgspec.json.decode(Path(path).read_bytes())
    except OSError as e:
        raise UserError(f"{name} = {path}: {e.strerror}") from None
    except msgspec.DecodeError as e:
        raise UserError(f"{name} = {path}: no valid JSON ({e})") from None
    if not isinstance(data, dict):
        raise UserError(f"{name} = {path}: must hold one JSON object")
    return data


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
