"""What the tests saw, as rows of docs/reliability.md.

A test that injects something calls `record` with what it counted. Nothing is written unless
`RSD_EVIDENCE` names a folder; `make reliability` sets it, runs the tests and renders the folder:

    python -m tests.evidence FOLDER > docs/reliability.md

A row is one JSON file, so that a test that runs again replaces its row and a part of the tests
refreshes its part of the document.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INTRODUCTION = """\
# Reliability: what was injected and what came of it

This file is written by the tests (`make reliability`); do not edit it. Each row is one test that
starts the real program, does the damage for real and counts afterwards. Calls are counted by the
simulated servers, files by the file system; rsd's own counters are only compared with them.
"Lost" counts images without exactly one result, answers that were committed and are gone, and
results that differ from an undisturbed run. "Repeated" counts calls that were paid twice.
"""


@dataclass(frozen=True)
class Section:
    """A table: its title, what stands above it, and its columns (key, heading)."""

    title: str
    text: str
    columns: tuple[tuple[str, str], ...]


_FAULT = (
    ("injected", "Injected"),
    ("times", "Times"),
    ("lost", "Lost"),
    ("repeated", "Repeated calls"),
    ("recovery", "Recovery"),
    ("seen", "Seen"),
)
SECTIONS = {
    "soak": Section(
        "Kills at random moments",
        "`make crash` kills generators, graders, the writer and the hub with SIGKILL at random "
        "moments of one long run, and starts a killed hub again.",
        _FAULT,
    ),
    "points": Section(
        "Kills at named points",
        "Every row of the crash table in docs/internals.md: the process kills itself at that "
        "very point (`tests/crash/test_failpoints.py`).",
        _FAULT,
    ),
    "errors": Section(
        "Servers that misbehave",
        "A real HTTP server does each of these to a running daemon "
        "(`tests/integration/test_error_matrix.py`).",
        (
            ("injected", "What the server does"),
            ("classed", "Class"),
            ("requests", "Requests it saw"),
            ("status", "What `status` says"),
            ("lost", "Lost"),
            ("recovery", "Afterwards"),
        ),
    ),
    "answers": Section(
        "Judges that answer in their own way, candidates that plead",
        "Corpora of replies and of injected candidates.",
        (
            ("injected", "Corpus"),
            ("times", "Cases"),
            ("wrong", "Wrong"),
            ("seen", "Seen"),
        ),
    ),
    "files": Section(
        "Hostile files",
        "Files that are broken, lie about themselves, or change while they are read.",
        _FAULT,
    ),
    "disks": Section(
        "Disks, clocks, names, limits",
        "A full or read-only file system, a clock that jumps, names of any bytes, limits of the "
        "operating system.",
        _FAULT,
    ),
    "security": Section(
        "Secrets and boundaries",
        "A key is looked for, byte by byte, in everything that rsd wrote or showed.",
        (
            ("injected", "Tried"),
            ("times", "Places looked at"),
            ("wrong", "Found"),
            ("seen", "Seen"),
        ),
    ),
    "shutdown": Section(
        "Stopping, reloading, overload",
        "Signals and pressure.",
        _FAULT,
    ),
}


def record(section: str, injected: str, **values: Any) -> None:
    """A row of a section: what was injected, and a value for each other column (a missing one is
    shown as a dash). Raises KeyError for a section or column that does not exist."""
    columns = [key for key, _ in SECTIONS[section].columns]
    for key in values:
        if key not in columns:
            raise KeyError(f"{section} has no column {key}")
    folder = os.environ.get("RSD_EVIDENCE")
    if not folder:
        return
    name = re.sub(r"[^a-z0-9]+", "-", injected.lower()).strip("-")[:120]
    path = Path(folder) / section / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"injected": injected, **values}, ensure_ascii=False))


def _cell(value: Any) -> str:
    if value is None or value == "":
        return "–"
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def render(folder: Path) -> str:
    """The document, from a folder of rows."""
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.system()}"
    out = [INTRODUCTION, f"Written on {datetime.date.today()}; {machine}.\n"]
    for key, section in SECTIONS.items():
        rows = [json.loads(p.read_text()) for p in sorted((folder / key).glob("*.json"))]
        if not rows:
            continue
        out += [f"## {section.title}\n", section.text + "\n"]
        out.append("| " + " | ".join(heading for _, heading in section.columns) + " |")
        out.append("|" + " --- |" * len(section.columns))
        for row in rows:
            out.append("| " + " | ".join(_cell(row.get(k)) for k, _ in section.columns) + " |")
        out.append("")
    return "\n".join(out)


if __name__ == "__main__":
    print(render(Path(sys.argv[1])), end="")
