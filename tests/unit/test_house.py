"""What lies around the code keeps its promises: prompts, samples, requirements, pages, unit."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rsd.hub.recipe import load_recipe
from rsd.protocol import facts, tasks, vocabulary, writer_talk
from rsd.protocol.vocabulary import Recipe
from rsd.settings import load, words

HOME = Path(__file__).resolve().parents[2]
#: Lines of the longest file of rsd/ that a reader should have to face.
LONGEST = 450
PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".webp")
#: Folders that git does not know, and those whose files are no text.
NOT_OURS = {".git", ".venv", ".hypothesis", "__pycache__", "demo-output", "node_modules"}
TEXTS = {".py", ".md", ".json", ".toml", ".txt", ".service", ".sh", ".html", ".css", ".js", ""}
#: Paths of one machine, and what looks like a key. Written in pieces: this file is checked too.
FORBIDDEN = (
    "/wo" + "rk/",
    "/ro" + "ot/",
    "/var/" + "tmp/",
    "s" + "k-proj-",
    "BEGIN " + "PRIVATE KEY",
    "TO" + "DO",
    "FIX" + "ME",
)


def ours() -> list[Path]:
    """Every text file of the project."""
    found = []
    for folder, names, files in os.walk(HOME):
        names[:] = [n for n in names if n not in NOT_OURS and not n.endswith("_cache")]
        found += [Path(folder) / f for f in files if Path(f).suffix in TEXTS and f not in NOT_OURS]
    return found


def recipe(**changes: Any) -> Recipe:
    """As `run` reads it, from the project's own folder."""
    flags = {"prompts": str(HOME / "prompts/generation_prompts.json")}
    flags["grading_prompt"] = str(HOME / "prompts" / changes.pop("grading", "grading_prompt.json"))
    return load_recipe(load.load(flags | changes, environ={}))


# ---------------------------------------------------------------------------------------- prompts


def test_six_prompts_that_differ_and_ask_for_one_form() -> None:
    prompts = recipe().prompts
    assert list(prompts) == [f"prompt{n}" for n in range(1, 7)]
    ways, forms = set(), set()
    for text in prompts.values():
        way, found, form = text.rpartition("Write one connection per line")
        assert found and all(
            arrow in form for arrow in ("A --> B", "A <-> B", "A -- B", " : label")
        )
        ways.add(way)
        forms.add(form)
    assert len(ways) == 6 and len(forms) == 1


@pytest.mark.parametrize(
    ("file", "placeholder", "listwise"),
    [
        ("grading_prompt.json", vocabulary.POINTWISE, False),
        ("grading_prompt_listwise.json", vocabulary.LISTWISE, True),
    ],
)
def test_grading_template_ends_with_what_is_judged(
    file: str, placeholder: str, listwise: bool
) -> None:
    loaded = recipe(grading=file)
    template = loaded.grading_template
    assert loaded.listwise is listwise
    assert template.endswith(placeholder) and template.count(placeholder) == 1
    assert "json" not in template.lower()  # the form is what rsd appends by itself
    checks = [int(n) for n in re.findall(r"^\d\. [^(]+\((\d+)\):", template, re.MULTILINE)]
    assert 6 <= len(checks) <= 8 and sum(checks) == 100
    assert re.search(r"look at the drawing first", template, re.IGNORECASE)


def test_both_templates_have_the_same_rubric() -> None:
    rubrics = [
        re.findall(r"^\d\. .*$", recipe(grading=name).grading_template, re.MULTILINE)
        for name in ("grading_prompt.json", "grading_prompt_listwise.json")
    ]
    assert rubrics[0] == rubrics[1]


# ---------------------------------------------------------------------------------------- samples


def pictures() -> list[Path]:
    return sorted(p for p in (HOME / "samples").iterdir() if p.suffix in PICTURES)


@pytest.mark.parametrize(
    "path", sorted((HOME / "samples/truth").glob("*.json")), ids=lambda p: p.stem
)
def test_truth_is_consistent(path: Path) -> None:
    truth = json.loads(path.read_text("utf-8"))
    assert Path(truth["image"]).stem == path.stem
    assert (path.parent.parent / truth["image"]).is_file()
    ids = [node["id"] for node in truth["nodes"]]
    assert len(ids) == len(set(ids))
    pins = {f"{node['id']}.{pin}" for node in truth["nodes"] for pin in node.get("pins", [])}
    assert truth["edges"]
    for edge in truth["edges"]:
        assert {edge["from"], edge["to"]} <= set(ids) | pins
    if truth["kind"] == "circuit":
        joined = {end for edge in truth["edges"] for end in (edge["from"], edge["to"])}
        assert pins <= joined and truth["directed"] is False


def test_origin_lists_every_picture_as_it_is() -> None:
    text = (HOME / "samples/ORIGIN.md").read_text("utf-8")
    rows = {
        r[0]: r for r in re.findall(r"^\| (\S+\.\w+) \| (\d+)x(\d+) \w+ \| (\d+) \|", text, re.M)
    }
    assert set(rows) == {p.name for p in pictures()}
    for path in pictures():
        _, width, height, size = rows[path.name]
        assert path.stat().st_size == int(size)
        with Image.open(path) as image:
            assert image.size == (int(width), int(height))


# ------------------------------------------------------------------------------ files and packages


def test_example_configuration_is_what_the_settings_say() -> None:
    assert (HOME / "rsd.example.toml").read_text("utf-8") == words.example(), "run `make example`"


def test_no_file_is_too_long() -> None:
    for path in (HOME / "rsd").rglob("*.py"):
        assert len(path.read_text("utf-8").splitlines()) <= LONGEST, path


def requirements(name: str) -> dict[str, str]:
    """Library to its range."""
    lines = (HOME / name).read_text("utf-8").splitlines()
    wanted = [li for li in lines if li and not li.startswith(("#", "-r "))]
    pairs = [re.fullmatch(r"([A-Za-z0-9_-]+)(.*)", li) for li in wanted]
    return {p[1]: p[2] for p in pairs if p is not None}


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_requirement_has_a_range_and_a_reason(name: str) -> None:
    page = (HOME / "docs/decisions/0002-dependencies.md").read_text("utf-8")
    wanted = requirements(name)
    assert len(wanted) >= 7
    for library, versions in wanted.items():
        assert re.fullmatch(r">=[\d.]+,<[\d.]+", versions), library
        assert f"| {library} |" in page, f"{library}: why?"


def test_decisions_are_numbered_without_a_gap() -> None:
    names = sorted(p.name for p in (HOME / "docs/decisions").glob("*.md"))
    assert [name[:5] for name in names] == [f"{n:04}-" for n in range(1, len(names) + 1)]
    for name in names:
        text = (HOME / "docs/decisions" / name).read_text("utf-8")
        assert text.startswith(f"# {name[:4]} ") and "**Decided.**" in text


#: Pages that the tests write are not wrapped by hand.
WRITTEN = HOME / "docs/reliability.md"
PAGES = sorted([*HOME.glob("*.md"), *(HOME / "docs").rglob("*.md")])
SOURCES = [path.as_posix() for path in ours() if path.suffix == ".py"]
#: A file of Python, by its name or with folders before it; not the end of an absolute path.
NAMED = re.compile(r"(?<![\w./<{*-])[\w-]+(?:/[\w-]+)*\.py\b")


def missing(text: str) -> set[str]:
    """Files of Python that a text names by the end of their path and that do not exist."""
    names = NAMED.findall(text)
    return {name for name in names if not any(s.endswith(f"/{name}") for s in SOURCES)}


def prose(page: Path) -> list[str]:
    """Lines of a page that are neither code nor of a table."""
    found, fenced = [], False
    for line in page.read_text("utf-8").splitlines():
        fenced ^= line.startswith("```")
        if not fenced and not line.startswith(("|", "    ")):
            found.append(line)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(HOME).as_posix())
def test_pages_name_what_exists_in_lines_of_120(page: Path) -> None:
    text = page.read_text("utf-8")
    assert not missing(text)
    links = re.findall(r"\]\((?!https?://)([^)#]+)", text)
    assert not [link for link in links if not (page.parent / link).exists()]
    if page != WRITTEN:
        assert not [line for line in prose(page) if len(line) > 120]


def test_sources_name_files_that_exist() -> None:
    for path in sorted((HOME / "rsd").rglob("*.py")):
        assert not missing(path.read_text("utf-8")), path
    assert missing("`hub/crew.py` and `daemon.py`, not /opt/x/y.py") == {"hub/crew.py"}


def test_every_fact_and_task_is_on_its_page() -> None:
    page = (HOME / "docs/internals.md").read_text("utf-8")
    for union in (facts.Fact, tasks.ToWorker, tasks.Task, tasks.FromWorker, writer_talk.ToWriter):
        kinds = {kind.__name__ for kind in union.__args__} - {"Numbered"}
        assert not {name for name in kinds if f"`{name}`" not in page}


def test_every_named_bound_exists() -> None:
    page = (HOME / "docs/internals.md").read_text("utf-8")
    table = page.partition("\n## Bounds\n")[2].partition("\n## ")[0]
    bounds = re.findall(r"`(\w+)\.([A-Z_]+)`", table)
    assert len(bounds) > 40
    for stem, name in bounds:
        files = (HOME / "rsd").rglob(f"{stem}.py")
        line = re.compile(rf"^(?:[A-Z_]+, )*{name}\b[^=]*= ", re.MULTILINE)
        assert any(line.search(f.read_text("utf-8")) for f in files), f"{stem}.{name}"


@pytest.mark.parametrize("word", FORBIDDEN)
def test_nothing_of_one_machine_or_unfinished(word: str) -> None:
    files = ours()
    assert HOME / "daemon.py" in files
    found = [p for p in files if word in p.read_text("utf-8", "replace")]
    assert not found


# ------------------------------------------------------------------------------------ the service


def test_unit_and_settings_agree() -> None:
    unit = (HOME / "systemd/rsd.service").read_text("utf-8")
    pairs = re.findall(r"^([A-Za-z]+)=(.*)$", unit, re.MULTILINE)
    one = dict(pairs)
    drain = load.load({}, environ={}).drain_seconds
    assert int(one["TimeoutStopSec"]) == drain + 30
    assert one["Type"] == "notify" and one["KillMode"] == "mixed"
    credentials = [value.partition(":")[0] for key, value in pairs if key == "LoadCredential"]
    defaults = [value.partition(":")[0] for key, value in pairs if key == "SetCredential"]
    assert credentials == defaults == ["grading-key", "generation-key"]
    assert "run --config /etc/rsd/rsd.toml" in one["ExecStart"]


def make(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """`make` in the project."""
    env = {k: v for k, v in os.environ.items() if k not in ("IMAGES", "OUTPUT", "MAKEFLAGS")}
    return subprocess.run(
        ["make", "--no-print-directory", *words],
        cwd=HOME,
        env=env | environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "make install needs two folders"),
        ({"IMAGES": "/usr"}, "make install needs two folders"),
        ({"IMAGES": "/usr", "OUTPUT": "/usr/out"}, "OUTPUT = /usr/out: must not lie inside"),
        ({"IMAGES": '/a"b', "OUTPUT": "/x"}, "a path without quote"),
        ({"IMAGES": "/usr", "OUTPUT": "/x", "USER": "a b"}, "USER = a b: is no user name"),
        ({"IMAGES": "/usr", "OUTPUT": "/x", "PREFIX": "/"}, "PREFIX = /: "),
    ],
)
def test_install_refuses_with_one_line(given: dict[str, str], says: str) -> None:
    done = make("install", *(f"{k}={v}" for k, v in given.items()))
    assert done.returncode == 2
    lines = [li for li in done.stderr.splitlines() if li.startswith("rsd: ")]
    assert len(lines) == 1 and says in lines[0], done.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_old_python_is_refused_with_one_line(tmp_path: Path) -> None:
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = make("venv", f"PYTHON={old}", f"VENV={tmp_path}/venv")
    assert done.returncode == 2
    assert "rsd needs Python 3.11 or newer" in done.stdout + done.stderr
    assert not (tmp_path / "venv").exists()
