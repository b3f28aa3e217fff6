"""Imports point down only, without a circle; a library has one room; pure rooms are pure."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parents[2]

#: The rooms of rsd/, from the top down; those of one line never import each other.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("cli",),
    ("commands",),
    ("hub",),
    ("workers", "writer", "simulator"),
    ("state",),
    ("strategy", "pricing"),
    ("protocol",),
    ("settings", "system"),
    ("errors", "names", "__init__"),
)
#: An arrow that leads up and is meant: `python -m rsd.simulator` is a command line.
UP = {("rsd.simulator.__main__", "rsd.cli")}
#: Who may import a room at all, where that is narrower than "everything above".
ONLY_FROM = {
    "simulator": ("rsd/simulator/", "rsd/commands/"),
    "workers": ("rsd/workers/", "rsd/hub/children/targets.py", "rsd/commands/"),
    "writer": ("rsd/writer/", "rsd/hub/children/targets.py", "rsd/commands/"),
}
#: Who may import a module that is dangerous to have: a decoder, which anybody's picture reaches.
MODULE_ONLY_FROM = {
    "rsd.workers.images": ("rsd/workers/prepare.py",),
    "rsd.workers.prepare": ("rsd/workers/generator.py", "rsd/commands/check.py"),
}
#: Third-party library -> its room.
LIBRARIES = {
    "requests": ("rsd/workers/api/",),
    "urllib3": ("rsd/workers/api/",),
    "httptools": ("rsd/workers/api/",),
    "PIL": ("rsd/workers/images.py", "rsd/simulator/"),
    "lmdb": ("rsd/state/store.py",),
    "watchdog": ("rsd/hub/folder/watcher.py",),
    "psutil": ("rsd/hub/status/host.py",),
    "rich": ("rsd/commands/",),
    "aiohttp": ("rsd/simulator/",),
    "msgspec": ("rsd/",),
}
#: Rooms that know no clock, file, socket or process, and what they may import.
PURE = ("rsd.hub.brain.", "rsd.strategy.")
PURE_GROUND = ("rsd.hub.brain", "rsd.strategy", "rsd.protocol", "rsd.errors", "rsd.names")
PURE_LIBRARIES = {
    *("__future__", "collections", "dataclasses", "enum", "hashlib", "heapq", "itertools"),
    *("math", "msgspec", "operator", "re", "types", "typing"),
}
#: Builtins that reach out of the process.
IMPURE_CALLS = {"open", "print", "input", "exec", "eval", "__import__"}


def floor(module: str) -> int:
    """0 is the top; `rsd` itself is at the bottom."""
    room = [*module.split("."), "__init__"][1]
    return next(k for k, rooms in enumerate(FLOORS) if room in rooms)


def imported(source: str, modules: set[str]) -> set[str]:
    """All imports, wherever they stand; `from a import b` gives `a.b` for a module b of rsd."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            wholes = {f"{base}.{alias.name}" for alias in node.names}
            found |= {whole if whole in modules else base for whole in wholes}
    return found


def violations(path: str, source: str, modules: set[str]) -> list[str]:
    """What a file imports against the rules, in words; `path` is relative to the project."""
    found: list[str] = []
    here = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    for name in sorted(imported(source, modules)):
        top, *rest = name.split(".")
        room = rest[0] if rest else ""
        if top == "rsd":
            same = here.split(".")[1:2] == [room]
            if (here, name) not in UP and not same and floor(name) <= floor(here):
                found.append(f"{path}: {name} is not below")
            if not path.startswith(ONLY_FROM.get(room, ("rsd/",))):
                found.append(f"{path}: {name} is only for {', '.join(ONLY_FROM[room])}")
            if not path.startswith(MODULE_ONLY_FROM.get(name, ("rsd/",))):
                found.append(f"{path}: {name} is only for {', '.join(MODULE_ONLY_FROM[name])}")
            if here.startswith(PURE) and not name.startswith(PURE_GROUND):
                found.append(f"{path}: {name} is not pure")
        elif top in LIBRARIES:
            if not path.startswith(LIBRARIES[top]):
                found.append(f"{path}: {top} belongs to {', '.join(LIBRARIES[top])}")
        elif top not in sys.stdlib_module_names:
            found.append(f"{path}: unknown library {name}")
        if top != "rsd" and here.startswith(PURE) and name.split(".")[0] not in PURE_LIBRARIES:
            found.append(f"{path}: {name} is not pure")
    if here.startswith(PURE):
        found += [
            f"{path}: calls {node.func.id}"
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in IMPURE_CALLS
        ]
    return found


def sources() -> dict[str, str]:
    """Every file of rsd/ and its text."""
    files = sorted((HOME / "rsd").rglob("*.py"))
    return {p.relative_to(HOME).as_posix(): p.read_text("utf-8") for p in files}


def modules_of(files: dict[str, str]) -> dict[str, str]:
    """Module -> its text; a package is its folder's name."""
    return {
        path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): text
        for path, text in files.items()
    }


def test_imports_point_down_and_libraries_stay_in_their_rooms() -> None:
    files = sources()
    modules = modules_of(files)
    assert {"rsd.hub.brain.brain", "rsd.strategy.fixed"} <= set(modules)
    found = [v for path, text in files.items() for v in violations(path, text, set(modules))]
    assert not found, "\n".join(found)


def test_there_is_no_circle() -> None:
    modules = modules_of(sources())
    graph = {
        name: imported(text, set(modules)) & set(modules) - {name} for name, text in modules.items()
    }
    graph["rsd.simulator.__main__"] = set()
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError, which names it
    assert set(order) == set(modules)


def test_every_room_is_on_a_floor_and_every_floor_in_use() -> None:
    rooms = {[*module.split("."), "__init__"][1] for module in modules_of(sources())}
    assert rooms == {room for rooms in FLOORS for room in rooms}


def test_the_loop_is_three_hops_from_the_entry() -> None:
    modules = modules_of(sources())
    assert "rsd.cli" in imported((HOME / "daemon.py").read_text("utf-8"), set(modules))
    assert "rsd.hub.supervisor" in imported(modules["rsd.commands.run"], set(modules))
    assert "while self._exit is None" in modules["rsd.hub.supervisor"]


def test_neither_hub_nor_grader_nor_writer_imports_a_decoder() -> None:
    """Not even through others: the hub forks graders, which have all that it has in memory."""
    line = (
        "import sys, rsd.hub.supervisor, rsd.commands.run; from rsd.hub.children import targets; "
        "targets.load(); sys.exit('PIL' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", line], cwd=HOME, check=False).returncode == 0


MODULES = set(modules_of(sources()))


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (
            "rsd/workers/images.py",
            "from rsd.writer import writer",
        ),
        ("rsd/workers/images.py", "from rsd.hub.status import host"),
        ("rsd/state/store.py", "import rsd.workers.worker"),
        ("rsd/state/store.py", "def f():\n    from rsd.hub.status.host import sample"),
        ("rsd/hub/children/local.py", "from rsd.workers import worker"),
        ("rsd/hub/brain/brain.py", "from rsd.commands.run import main"),
        ("rsd/protocol/facts.py", "from rsd.strategy.fixed import plan"),
        ("rsd/system/files.py", "from rsd.settings.fields import Settings"),
        ("rsd/writer/writer.py", "import lmdb"),
        ("rsd/workers/pictures.py", "from rsd.workers import images"),
        ("rsd/workers/grader.py", "from rsd.workers.prepare import prepare"),
        ("rsd/commands/show.py", "from PIL import Image"),
        ("rsd/hub/status/document.py", "from rich.table import Table"),
        ("rsd/hub/status/document.py", "import numpy"),
        ("rsd/hub/status/document.py", "from rsd.simulator.server import serve"),
        ("rsd/hub/brain/brain.py", "import requests"),
        ("rsd/hub/brain/brain.py", "import time"),
        ("rsd/hub/brain/brain.py", "import os.path"),
        ("rsd/hub/brain/brain.py", "from random import Random"),
        ("rsd/hub/brain/brain.py", "from threading import Lock"),
        ("rsd/hub/brain/brain.py", "from rsd.system.files import write_atomically"),
        ("rsd/hub/brain/brain.py", "from rsd.hub.folder import folder"),
        ("rsd/strategy/fixed.py", "def f():\n    import datetime"),
        ("rsd/strategy/fixed.py", "open('x')"),
    ],
)
def test_checker_sees_a_violation(path: str, line: str) -> None:
    assert violations(path, line, MODULES)
    assert not violations(path, "from __future__ import annotations\nimport msgspec", MODULES)


def test_checker_allows_what_is_meant() -> None:
    good = "from heapq import heappush\nfrom rsd.protocol.vocabulary import Arm\n"
    assert not violations("rsd/hub/brain/brain.py", good + "from rsd.strategy import base", MODULES)
    targets = "from rsd.workers import generator\nfrom rsd.writer import writer"
    assert not violations("rsd/hub/children/targets.py", targets, MODULES)
