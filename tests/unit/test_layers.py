"""Imports go down only, one library stays in one file, and the brain is pure: checked by `ast`."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parents[2]

#: Every file or folder of rsd/ and its height; imports go to lower ones, or stay in the folder.
HEIGHT = {
    "__init__": 0,
    "errors": 0,
    "names": 0,
    "redact": 0,
    "signals": 0,
    "files": 1,
    "pointers": 2,
    "settings": 2,
    "vocabulary": 2,
    "config": 3,
    "profiles": 3,
    "facts": 3,
    "environment": 4,
    "messages": 4,
    "logs": 5,
    "queues": 5,
    "simulator": 5,
    "workers": 6,
    "writer": 6,
    "hub": 7,
    "commands": 8,
    "cli": 9,
}
#: Who may import a folder at all, where that is narrower than "everything above".
ONLY_FROM = {
    "simulator": ("rsd/simulator/", "rsd/commands/"),
    "workers": ("rsd/workers/", "rsd/hub/children.py", "rsd/commands/"),
    "writer": ("rsd/writer/", "rsd/hub/children.py", "rsd/commands/"),
}
#: Third-party library -> the places that know it.
LIBRARIES = {
    "requests": ("rsd/workers/endpoint.py",),
    # what requests is made of: it opens the connections, and its errors come through
    "urllib3": ("rsd/workers/endpoint.py", "rsd/workers/wire.py"),
    "httptools": ("rsd/workers/wire.py",),
    "PIL": ("rsd/workers/images.py", "rsd/simulator/"),
    "lmdb": ("rsd/writer/store.py",),
    "watchdog": ("rsd/hub/watcher.py",),
    "psutil": ("rsd/hub/host.py",),
    "rich": ("rsd/commands/",),
    "aiohttp": ("rsd/simulator/",),
    "msgspec": ("rsd/",),
}
#: The brain and its helpers; what they import is held to the same.
PURE = ("brain", "budgets", "leases", "limits", "sampling")
PURE_LIBRARIES = {
    "__future__",
    "collections",
    "dataclasses",
    "enum",
    "hashlib",
    "heapq",
    "itertools",
    "math",
    "msgspec",
    "operator",
    "re",
    "types",
    "typing",
}
PURE_GROUND = {"errors", "facts", "names", "messages", "profiles", "vocabulary"}
#: Builtins that reach out of the process.
IMPURE_CALLS = {"open", "print", "input", "exec", "eval", "__import__"}


def imported(source: str, modules: set[str]) -> list[str]:
    """Dotted names of all imports, wherever they stand; `from a import b` gives `a.b` for a module
    b of rsd, else `a`.
    """
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                found.append(whole if whole in modules else base)
    return sorted(set(found))


def module_of(path: str) -> str:
    """`rsd/hub/brain.py` -> `rsd.hub.brain`; a package is its folder's name."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def room(module: str) -> str:
    """`rsd.hub.brain` -> `hub`; `rsd` itself -> `__init__`."""
    return [*module.split("."), "__init__"][1]


def violations(path: str, source: str, modules: set[str]) -> list[str]:
    """What a file imports against the rules, in words; `path` is relative to the project."""
    found: list[str] = []
    here = room(module_of(path))
    for name in imported(source, modules):
        top = name.split(".")[0]
        if name.startswith("."):
            found.append(f"{path}: relative import {name}")
        elif top != "rsd":
            places = LIBRARIES.get(top)
            if places is None and top not in sys.stdlib_module_names:
                found.append(f"{path}: unknown library {top}")
            elif places is not None and not path.startswith(places):
                found.append(f"{path}: {top} belongs to {', '.join(places)}")
        else:
            found += _inner(path, here, room(name), name)
    return found


def _inner(path: str, here: str, there: str, name: str) -> list[str]:
    if path == "rsd/simulator/__main__.py" and there in ("cli", "commands"):
        return []  # `python -m rsd.simulator` is a command line, and ends there
    if here not in HEIGHT or there not in HEIGHT:
        return [f"{path}: {here if here not in HEIGHT else there} has no height yet"]
    found = []
    if here != there and HEIGHT[there] >= HEIGHT[here]:
        found.append(f"{path}: {name} is not below {here}")
    if here != there and not path.startswith(ONLY_FROM.get(there, ("rsd/",))):
        found.append(f"{path}: {name} is only for {', '.join(ONLY_FROM[there])}")
    return found


def impurities(path: str, source: str, modules: set[str]) -> list[str]:
    """What makes a file of the brain's impure, in words."""
    found: list[str] = []
    for name in imported(source, modules):
        parts = name.split(".")
        if parts[0] != "rsd":
            if parts[0] not in PURE_LIBRARIES:
                found.append(f"{path}: {name}")
        elif room(name) not in PURE_GROUND | {"hub"}:
            found.append(f"{path}: {name}")
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        if node.func.id in IMPURE_CALLS:
            found.append(f"{path}: calls {node.func.id}")
    return found


def sources() -> dict[str, str]:
    """Every file of rsd/ and its text."""
    files = sorted((HOME / "rsd").rglob("*.py"))
    return {p.relative_to(HOME).as_posix(): p.read_text("utf-8") for p in files}


def modules_of(files: dict[str, str]) -> set[str]:
    return {module_of(path) for path in files}


def test_imports_follow_the_rules() -> None:
    files = sources()
    modules = modules_of(files)
    assert "rsd.hub.brain" in modules
    found = [v for path, text in files.items() for v in violations(path, text, modules)]
    assert not found, "\n".join(found)


def test_every_height_is_in_use() -> None:
    used = {room(module) for module in modules_of(sources())}
    assert used == set(HEIGHT)


def test_the_brain_and_all_that_it_imports_are_pure() -> None:
    files = sources()
    modules = modules_of(files)
    by_module = {module_of(path): path for path in files}
    todo, seen, found = [f"rsd.hub.{name}" for name in PURE], set(), []
    while todo:
        module = todo.pop()
        if module in seen or module not in by_module:
            continue
        seen.add(module)
        path = by_module[module]
        found += impurities(path, files[path], modules)
        todo += [n for n in imported(files[path], modules) if n.startswith("rsd.")]
    assert "rsd.hub.leases" in seen and "rsd.vocabulary" in seen
    assert not found, "\n".join(found)


MODULES = {"rsd", "rsd.files", "rsd.hub.host", "rsd.workers", "rsd.workers.endpoint", "rsd.writer"}


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("rsd/workers/images.py", "from rsd.writer.store import Store"),
        ("rsd/workers/images.py", "from rsd.hub import host"),
        ("rsd/writer/store.py", "import rsd.workers.endpoint"),
        ("rsd/writer/store.py", "def f():\n    from rsd.hub.host import sample"),
        ("rsd/hub/pool.py", "from rsd.workers import endpoint"),
        ("rsd/hub/brain.py", "from rsd.commands.run import main"),
        ("rsd/messages.py", "from rsd.queues import WorkQueue"),
        ("rsd/facts.py", "from rsd.messages import Lease"),
        ("rsd/files.py", "from rsd.settings import Settings"),
        ("rsd/hub/brain.py", "from . import leases"),
        ("rsd/hub/brain.py", "import requests"),
        ("rsd/writer/process.py", "import lmdb"),
        ("rsd/commands/show.py", "from PIL import Image"),
        ("rsd/hub/live.py", "from rich.table import Table"),
        ("rsd/hub/live.py", "import numpy"),
        ("rsd/hub/live.py", "from rsd.simulator.server import serve"),
        ("rsd/simulator/server.py", "from rsd.workers.endpoint import Client"),
        ("rsd/unheard_of.py", "from rsd.errors import UserError"),
    ],
)
def test_checker_sees_a_violation(path: str, line: str) -> None:
    assert len(violations(path, line, MODULES)) >= 1
    assert violations(path, "from __future__ import annotations\nimport msgspec", MODULES) == []


@pytest.mark.parametrize(
    "line",
    [
        "import time",
        "import os.path",
        "from random import Random",
        "from threading import Lock",
        "import socket as s",
        "from rsd.files import write_atomically",
        "from rsd import files",
        "def f():\n    import datetime",
        "open('x')",
    ],
)
def test_checker_sees_an_impurity(line: str) -> None:
    assert len(impurities("rsd/hub/brain.py", line, MODULES)) == 1


def test_checker_allows_what_is_meant() -> None:
    good = "from heapq import heappush\nfrom rsd.vocabulary import Arm\nfrom rsd.hub import leases"
    assert impurities("rsd/hub/brain.py", good, MODULES) == []
    assert violations("rsd/hub/brain.py", good, MODULES) == []
    supervisor = "from rsd.workers import generator\nfrom rsd.writer import process"
    assert violations("rsd/hub/children.py", supervisor, MODULES) == []
