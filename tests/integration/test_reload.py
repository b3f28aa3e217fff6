"""SIGHUP on the real daemon: what is refused, what applies when, what a pool that died does."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.evidence import record
from tests.support import HOME, Daemon, Simulator, draw, wait_for

Make = Callable[..., Simulator]
MakeDaemon = Callable[..., Daemon]


class Config:
    """An `rsd.toml` that is written again and again."""

    def __init__(self, path: Path, *lines: str) -> None:
        self.path = path
        self.flag = ("--config", str(path))
        self.write(*lines)

    def write(self, *lines: str) -> None:
        self.path.write_text("\n".join(lines) + "\n")


def hang_up(d: Daemon, word: str) -> str:
    """SIGHUP; what the log says from then on, once it says the word."""
    assert d.process is not None
    seen = len(d.log())
    d.process.send_signal(signal.SIGHUP)
    wait_for(lambda: word in d.log()[seen:], word)
    return d.log()[seen:]


def status_until(d: Daemon, wanted: Callable[[dict[str, Any]], Any], what: str) -> dict[str, Any]:
    """The first status of the living daemon that is as wanted."""
    found: dict[str, Any] = wait_for(lambda: (s := d.live()) and wanted(s) and s, what)
    return found


def test_a_bad_reload_changes_nothing_and_is_seen(
    simulator: Make, daemon: MakeDaemon, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps({"a": "first connection prompt", "b": "another"}))
    good = (f'prompts = "{prompts}"', "[sampling]", "candidates = 2")
    config = Config(tmp_path / "rsd.toml", *good)
    d = daemon(simulator(), *config.flag)
    d.start()
    wait_for(lambda: d.live().get("health") == "ok", "health")
    elsewhere = tmp_path / "elsewhere"
    cases = {
        "sampling.candidates": ("[sampling]", "candidates = 0"),
        "unknown setting samplin": ("[samplin]", "candidates = 2"),
        str(config.path): ("[sampling", "candidates = 2"),
        "prompts": (f'prompts = "{tmp_path}/none.json"',),
        "prompt_keys": (f'prompts = "{prompts}"', 'prompt_keys = ["c"]'),
        "grading.key_file": ("[grading]", f'key_file = "{tmp_path}/no-key"'),
        "state_dir": (f'state_dir = "{elsewhere}"', f'prompts = "{prompts}"'),
    }
    for name, lines in cases.items():
        config.write(*lines)
        said = hang_up(d, "reload refused")
        line = next(row for row in said.splitlines() if "reload refused" in row)
        assert name.lower() in line.lower(), line
        assert "reloaded" not in said.replace("reload refused", "")
    shown = status_until(d, lambda s: "state_dir" in str(s["reasons"]), "the last of them")
    assert shown["health"] == "degraded" and d.run("status").returncode == 1
    draw(d.images / "one.png", 1)
    wait_for(lambda: d.settled(1), "an image under the old settings")
    assert len(d.results()["one.png"]["all_candidates"]) == 2
    prompts.write_text("{")  # the prompt files count as configuration
    config.write(*good)
    assert "prompts" in hang_up(d, "reload refused")
    prompts.write_text(json.dumps({"a": "a newer connection prompt"}))
    config.write(*good[:2], "candidates = 3")
    hang_up(d, "reloaded")
    status_until(d, lambda s: s["health"] == "ok" and not s["reasons"], "health again")
    draw(d.images / "two.png", 2)
    wait_for(lambda: d.settled(2), "an image under the new settings")
    found = d.results()["two.png"]["all_candidates"]
    assert {c["prompt_text"] for c in found} == {"a newer connection prompt"} and len(found) == 3
    assert len(d.results()["one.png"]["all_candidates"]) == 2
    assert d.stop() == 0 and "Traceback" not in d.log() and not elsewhere.exists()
    record(
        "shutdown",
        "SIGHUP with settings or prompts that are wrong",
        times=len(cases) + 1,
        lost=2 - len(d.results()),
        recovery="the next good reload",
        seen="each time one line names the setting, `status` is degraded and shows it, images are "
        "made with the old settings",
    )


@pytest.mark.slow
def test_a_burst_of_reloads_while_workers_are_replaced(
    simulator: Make, daemon: MakeDaemon, tmp_path: Path
) -> None:
    sim = simulator("--generator-seconds", "0.2")
    config = Config(tmp_path / "rsd.toml", "[sampling]", "candidates = 2")
    d = daemon(sim, *config.flag)
    images, burst = 6, 12
    for seed in range(images):
        draw(d.images / f"p{seed}.png", seed)
    process = d.start()
    wait_for(lambda: sim.stats("generator")["running"], "work")
    for k in range(burst):
        config.write(
            *("[processes]", f"generators = {1 + k % 3}", f"graders = {1 + k % 2}"),
            *("[generation]", f"workers = {3 + k % 4}", "[sampling]", "candidates = 2"),
            *("[watch]", "rescan_seconds = 7"),
        )
        process.send_signal(signal.SIGHUP)
    config.write("[processes]", "generators = 3", "graders = 1", "[sampling]", "candidates = 2")
    hang_up(d, "reloaded")
    wait_for(lambda: d.settled(images), "all images")
    shown = status_until(
        d,
        lambda s: (
            sorted(p["role"] for p in s["processes"] if p["state"] == "up")
            == ["generate"] * 3 + ["grade", "writer"]
        ),
        "the wanted processes, and no others",
    )
    pids = {p["pid"] for p in shown["processes"]}
    wait_for(lambda: set(map(int, d.children().values())) == pids, "the same in the system")
    assert d.stop() == 0
    seen = sim.stats("generator")
    assert seen["calls"] == {"distinct": 2 * images, "repeated": 0}
    record(
        "shutdown",
        "SIGHUPs in a burst, each with other numbers of processes and requests",
        times=burst + 1,
        lost=images - len(d.results()),
        repeated=seen["calls"]["repeated"],
        recovery="the last settings hold",
        seen="3 generators and 1 grader in the system at the end, as the last file said",
    )


@pytest.mark.slow
def test_what_applies_when(simulator: Make, daemon: MakeDaemon, tmp_path: Path) -> None:
    sim, other = simulator("--api-key", "first-key"), simulator("--api-key", "second-key")

    def lines(server: Simulator, key: str, candidates: int, settle: float = 0.2) -> list[str]:
        one = [f'api = ["{server.generator}"]', f'key = "{key}"']
        two = [f'api = ["{server.grader}"]', f'key = "{key}"']
        rest = ["[sampling]", f"candidates = {candidates}", "[watch]", f"poll_seconds = {settle}"]
        return ["[generation]", *one, "max_n = 1", "[grading]", *two, *rest]

    config = Config(tmp_path / "rsd.toml", *lines(sim, "first-key", 2))
    d = daemon(None, *config.flag)
    sim.fault("grader", "hang", match="connection")
    draw(d.images / "old.png", 1)
    process = d.start()
    wait_for(lambda: sim.struck().get("grader:hang"), "an image that is begun")
    config.write(*lines(other, "wrong-key", 4, settle=9.0))
    assert "watch.poll_seconds takes effect when rsd is started again" in hang_up(d, "reloaded")
    status_until(d, lambda s: "misconfigured" in str(s["reasons"]), "the wrong key")
    config.write(*lines(other, "second-key", 4))
    hang_up(d, "reloaded")
    status_until(d, lambda s: s["health"] == "ok", "the right key, at once")
    draw(d.images / "new.png", 2)
    sim.clear()
    wait_for(lambda: d.settled(2), "both")
    counts = {n: len(r["all_candidates"]) for n, r in d.results().items()}
    assert counts == {"old.png": 2, "new.png": 4}
    assert {c["endpoint"] for c in d.results()["new.png"]["all_candidates"]} == {other.generator}
    sim.fault("generator", "hang")
    other.fault("generator", "hang", match="connection")
    draw(d.images / "late.png", 3)
    wait_for(lambda: other.stats("generator")["in_flight"], "open calls")
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: "stopping" in d.log(), "the drain")
    config.write(*lines(sim, "first-key", 1))
    assert "nothing is read again" in hang_up(d, "SIGHUP")
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert "first-key" not in d.log() and "second-key" not in d.log()
    assert "Traceback" not in d.log()
    record(
        "shutdown",
        "SIGHUP with other servers, a wrong key, the right key; SIGHUP while it drains",
        times=4,
        recovery="the right key is tried at once",
        seen="an image begun before keeps its 2 candidates, the next has 4; keys in no log",
    )


#: A child that is really broken: its Python ends when it comes to one module of rsd, by importing
#: it (spawned) or by calling it (forked).
BROKEN = """
import os, sys

def broken():
    flag = os.environ["RSD_TEST_BROKEN"]
    return open(flag).read().split() if os.path.exists(flag) else []

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name in broken():
            os._exit(41)

def forked():
    for name in set(broken()) & set(sys.modules):
        sys.modules[name].main = lambda *arguments: os._exit(41)

if "children.entry" in " ".join(sys.orig_argv):
    sys.meta_path.insert(0, Finder())
os.register_at_fork(after_in_child=forked)
"""


def breakable(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A file that names what cannot be imported by children, and the environment that heeds it."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(BROKEN)
    flag = tmp_path / "broken"
    return flag, {"PYTHONPATH": f"{folder}:{HOME}", "RSD_TEST_BROKEN": str(flag)}


@pytest.mark.slow
def test_a_pool_that_dies_at_its_start_is_given_up_and_comes_back(
    simulator: Make, daemon: MakeDaemon, tmp_path: Path
) -> None:
    flag, env = breakable(tmp_path)
    config = Config(tmp_path / "rsd.toml", "[sampling]", "candidates = 2")
    sim = simulator()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(60)
        d = daemon(sim, *config.flag, NOTIFY_SOCKET=str(tmp_path / "notify"), **env)
        for seed in range(4):
            draw(d.images / f"p{seed}.png", seed)
        flag.write_text("rsd.workers.grader")
        d.start()
        shown = status_until(
            d,
            lambda s: [p["state"] for p in s["processes"] if p["role"] == "grade"] == ["fatal"] * 2,
            "two graders that are given up",
        )
        assert shown["health"] == "degraded" and "grader-" in str(shown["reasons"])
        assert any("FATAL" in r for r in shown["reasons"])
        assert d.run("status").returncode == 1
        lines: list[str] = []
        while not any("STATUS=degraded" in line and "FATAL" in line for line in lines):
            lines.append(systemd.recv(4096).decode())
        wait_for(lambda: d.status_live("generated") == 8, "candidates, which need no grader")
        deaths = d.log().count("exit code 41")
        assert d.live()["images"]["failed"] == 0
        flag.unlink()
        hang_up(d, "reloaded")
        wait_for(lambda: d.settled(4), "all images")
        status_until(d, lambda s: s["health"] == "ok" and not s["reasons"], "health")
        assert d.stop() == 0
    assert len(d.results()) == 4
    calls = sim.stats("generator")["calls"]
    assert calls == {"distinct": 8, "repeated": 0}
    record(
        "shutdown",
        "Both graders die in their imports",
        times=deaths,
        lost=4 - len(d.results()),
        repeated=calls["repeated"],
        recovery="SIGHUP tries the pool again at once (by itself: every minute)",
        seen="`status` exit code 1, state fatal, systemd STATUS line names it; no image failed",
    )


@pytest.mark.slow
@pytest.mark.parametrize("role", ["generator", "writer"])
def test_a_pass_with_a_broken_pool_ends(
    role: str, simulator: Make, daemon: MakeDaemon, tmp_path: Path
) -> None:
    flag, env = breakable(tmp_path)
    sim = simulator()
    d = daemon(sim, "--candidates", "2", **env)
    draw(d.images / "one.png", 1)
    flag.write_text("rsd.workers.generator" if role == "generator" else "rsd.writer.writer")
    done = d.once()
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert role in last and "Traceback" not in done.stderr, done.stderr
    assert not d.failures()
    flag.unlink()
    assert d.once().returncode == 0 and len(d.results()) == 1
    assert sim.stats("generator")["calls"]["repeated"] == 0
    record(
        "shutdown",
        f"`run --once` whose {role} dies at every start",
        times=1,
        lost=1 - len(d.results()),
        repeated=sim.stats("generator")["calls"]["repeated"],
        recovery="the next run",
        seen="exit code 1 and one line that says so; no image failed",
    )


@pytest.mark.slow
def test_a_leaving_worker_that_is_killed_is_not_started_again(
    simulator: Make, daemon: MakeDaemon, tmp_path: Path
) -> None:
    sim = simulator()
    config = Config(tmp_path / "rsd.toml", "[sampling]", "candidates = 2")
    d = daemon(sim, *config.flag)
    sim.fault("generator", "hang", match="connection")
    draw(d.images / "one.png", 1)
    d.start()
    wait_for(lambda: sim.stats("generator")["in_flight"], "open calls")
    wait_for(lambda: d.live().get("in_flight", {}).get("generate"), "them in the status")
    config.write("[processes]", "generators = 1", "graders = 1", "[sampling]", "candidates = 2")
    hang_up(d, "reloaded")
    old = [
        p for p in d.live()["processes"] if p["name"] in ("generator-1", "generator-2") and p["pid"]
    ]
    for process in old:
        os.kill(process["pid"], signal.SIGKILL)
    sim.clear()
    wait_for(lambda: d.settled(1), "the image")
    status_until(
        d,
        lambda s: sorted(p["role"] for p in s["processes"]) == ["generate", "grade", "writer"],
        "only the new ones",
    )
    assert d.stop() == 0 and len(d.results()) == 1
