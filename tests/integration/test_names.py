"""Names of any bytes and any length, and limits of the operating system, through every command."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rsd.names import display_path, result_name
from tests.evidence import record
from tests.support import HOME, Daemon, Simulator, draw

Make = Callable[..., Simulator]
MakeDaemon = Callable[..., Daemon]

LONG = b"x" * 251 + b".png"
DEEP = b"/".join([b"d" * 248] * 12) + b"/deep.png"
NAMES = {
    "255 bytes": LONG,
    "255 bytes of three-byte characters": "図".encode() * 83 + b"ab.png",
    "no UTF-8": b"caf\xe9\xff\xfe.png",
    "no UTF-8, 255 bytes": b"\xff" * 251 + b".png",
    "a line break, a tab, a bell": b"a\nb\tc\x07.png",
    "quotes and a backslash": b"'\"\\`$(id)`.png",
    "format directives": b"%s %d {0} {x!r} %(key)s.png",
    "right to left, overrides": "שלום\u202egnp.\u202c.png".encode(),
    "markup": b"[bold]x[-bold]<b>&amp;.png",
    "spaces around": b"  spaced out  .png",
    "a minus first": b"--output-dir=x.png",
    "dots": b"a..b...png",
    "almost a way out": b"x\\..\\..\\up.png",
    "the end of a result": b"p.json.png",
    "capitals of the extension": b"SHOUT.PNG",
    "a lone continuation byte": b"\x80.png",
    "a cut character at the limit": b"a" * 179 + "é".encode() + b".png",
    "more than 3,000 bytes of folders": DEEP,
}


def place(root: bytes, name: bytes, source: Path) -> None:
    """A picture under a name that no call could take in one piece."""
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    *parents, last = name.split(b"/")
    for parent in parents:
        with contextlib.suppress(FileExistsError):
            os.mkdir(parent, dir_fd=folder)
        deeper = os.open(parent, os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder)
        os.close(folder)
        folder = deeper
    fd = os.open(last, os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=folder)
    os.write(fd, source.read_bytes())
    os.close(fd)
    os.close(folder)


def command(d: Daemon, *words: bytes | str) -> subprocess.CompletedProcess[bytes]:
    """A command of rsd whose words may be any bytes, asked below the image folder."""
    line = [sys.executable, str(HOME / "daemon.py"), *words, "--output-dir", str(d.output)]
    return subprocess.run(line, cwd=d.images, capture_output=True, timeout=60, check=False)


def prepared(d: Daemon, tmp_path: Path) -> None:
    """A picture under each name, and a result for each."""
    for seed, name in enumerate(NAMES.values()):
        place(os.fsencode(d.images), name, draw(tmp_path / "one.png", seed))
    done = d.once()
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert d.status()["images"]["high_quality"] == len(NAMES)


def test_names_of_all_kinds_become_results_and_are_tried_again(
    simulator: Make, daemon: MakeDaemon, tmp_path: Path
) -> None:
    sim = simulator()
    d = daemon(sim, "--candidates", "1", "--score-threshold", "0")
    prepared(d, tmp_path)
    folder = d.output / "high_quality"
    files = {os.fsencode(p.name) for p in folder.iterdir()}
    assert files == {os.fsencode(result_name(name)) for name in NAMES.values()}
    assert all(len(name) <= 255 for name in files)
    assert {p.name for p in tmp_path.iterdir()} <= {"images", "output", "one.png", "run"}
    again = command(d, "retry", *(b"./" + name for name in NAMES.values()))
    assert again.stdout == b"%d images are taken up again at the next run\n" % len(NAMES)
    assert d.once().returncode == 0
    assert d.status()["images"]["high_quality"] == len(NAMES)
    decisions = {json.loads(p.read_text())["decision"] for p in folder.iterdir()}
    assert decisions == {2}, "each was meant, and decided once more"
    assert sim.stats("generator")["calls"] == {"distinct": 2 * len(NAMES), "repeated": 0}
    log = (d.output / "logs/rsd.log").read_bytes()
    assert all(line[:2] == b"20" for line in log.splitlines() if line), "one record, one line"
    record(
        "disks",
        injected="names: " + ", ".join(NAMES),
        times=len(NAMES),
        lost=0,
        repeated=0,
        recovery="none needed",
        seen=f"a result and a `retry` for each; result names of {max(map(len, files))} bytes at "
        "most, all in their folder",
    )


@pytest.mark.slow
def test_names_of_all_kinds_are_found_and_shown(
    simulator: Make, daemon: MakeDaemon, tmp_path: Path
) -> None:
    d = daemon(simulator(), "--candidates", "1", "--score-threshold", "0")
    prepared(d, tmp_path)
    for kind, name in NAMES.items():
        shown = command(d, "show", "--json", b"./" + name)
        assert shown.returncode == 0, (kind, shown.stderr)
        image = json.loads(shown.stdout)["image"]
        assert image["path"] == display_path(name), kind
        result = d.output / "high_quality" / result_name(name)
        assert json.loads(result.read_text())["id"] == image["image"], kind
        told = command(d, "show", os.fsencode(result))
        assert told.returncode == 0, (kind, told.stderr)
        assert b"\x07" not in told.stdout and "\u202e".encode() not in told.stdout, kind


@pytest.mark.slow
def test_folders_deeper_than_a_path_may_be_are_left_out_and_said(
    simulator: Make, daemon: MakeDaemon, tmp_path: Path
) -> None:
    d = daemon(simulator(), "--candidates", "1")
    place(
        os.fsencode(d.images),
        b"/".join([b"d" * 248] * 20) + b"/a.png",
        draw(tmp_path / "one.png", 1),
    )
    draw(d.images / "b.png", 2)
    done = d.once()
    assert done.returncode == 0, done.stderr
    assert set(d.results()) == {"b.png"}
    assert "cannot list" in done.stderr and "too long" in done.stderr


# ------------------------------------------------------------------------------------------ limits


def limited(d: Daemon, soft: int, hard: int) -> subprocess.CompletedProcess[str]:
    """`run --once` with so many open files."""
    return subprocess.run(
        d.command("run", "--once"),
        cwd=HOME,
        env=d._env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard)),
    )


@pytest.mark.parametrize("hard", [64, 96, 4096])
def test_few_open_files(simulator: Make, daemon: MakeDaemon, hard: int) -> None:
    d = daemon(simulator(), "--candidates", "2")
    for seed in range(4):
        draw(d.images / f"p{seed}.png", seed)
    done = limited(d, min(hard, 64), hard)
    if hard < 128:
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"rsd: open files: the limit is {min(hard, 64)}")
        assert "LimitNOFILE" in line
        seen = line
    else:
        assert done.returncode == 0, done.stderr
        assert len(d.results()) == 4
        seen = "works: the soft limit is raised as far as it is needed"
    record(
        "disks",
        injected=f"RLIMIT_NOFILE {min(hard, 64)} (hard limit {hard})",
        times=1,
        recovery="none needed" if hard > 96 else "exit 2",
        seen=seen,
    )


@pytest.mark.slow
def test_few_calls_need_few_files(simulator: Make, daemon: MakeDaemon) -> None:
    few = ("--gen-workers", "4", "--grade-workers", "4")
    d = daemon(simulator(), "--candidates", "2", *few)
    for seed in range(4):
        draw(d.images / f"p{seed}.png", seed)
    done = limited(d, 128, 128)
    assert done.returncode == 0, done.stderr
    assert len(d.results()) == 4


@pytest.mark.parametrize("where", ["missing", pytest.param("a file", marks=pytest.mark.slow)])
def test_no_temporary_folder_is_needed(
    simulator: Make, daemon: MakeDaemon, tmp_path: Path, where: str
) -> None:
    folder = tmp_path / "nowhere"
    if where == "a file":
        folder.write_text("")
    d = daemon(simulator(), "--candidates", "1")
    draw(d.images / "a.png", 1)
    done = d.once(TMPDIR=str(folder), TEMP=str(folder), TMP=str(folder))
    assert done.returncode == 0, done.stderr
    assert set(d.results()) == {"a.png"}
