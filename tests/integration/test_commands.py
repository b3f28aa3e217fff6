"""show, retry, check, demo, status, run --fresh: the real programs on real states."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import HOME, Daemon, Simulator, draw, wait_for

Make = Callable[..., Simulator]
MakeDaemon = Callable[..., Daemon]

SECRET = "sk-test-4242-secret"


def command(folder: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Any command, in a working directory of its own."""
    around = {k: v for k, v in os.environ.items() if not k.startswith("RSD_")}
    return subprocess.run(
        [sys.executable, str(HOME / "daemon.py"), *words],
        cwd=folder,
        env=around | {"RSD_RUNTIME_DIR": str(folder / "run"), "COLUMNS": "160"} | env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def finished(d: Daemon, count: int) -> bool:
    """Whether the daemon says that so many images have their results."""
    images = d.status().get("images", {})
    return images.get("high_quality", 0) + images.get("low_quality", 0) == count


def one_line(ended: subprocess.CompletedProcess[str], code: int = 2) -> str:
    """What a mistake says."""
    assert ended.returncode == code, ended.stderr + ended.stdout
    lines = ended.stderr.splitlines()
    assert len(lines) == 1, ended.stderr
    return lines[0]


# ---------------------------------------------------------------------------------------- show


def test_show_finds_an_image_by_all_its_names(simulator: Make, daemon: MakeDaemon) -> None:
    sim = simulator()
    d = daemon(sim, "--candidates", "3")
    (d.images / "sub").mkdir()
    for name in ("a.png", "sub/b.png"):
        draw(d.images / name, len(name))
    shutil.copy2(d.images / "a.png", d.images / "copy.png")
    (d.images / "bad.png").write_bytes(b"no picture")
    assert d.once().returncode == 1, "one has failed"
    documents = {p: json.loads(p.read_text()) for p in d.output.glob("*_quality/b_*.json")}
    ((path, result),) = documents.items()
    names = [
        "sub/b.png",
        str(d.images / "sub/b.png"),
        os.path.relpath(d.images / "sub/b.png", HOME),
        str(path),
        result["id"],
    ]
    for name in names:
        done = d.run("show", name, "--json")
        assert done.returncode == 0, done.stderr
        shown = json.loads(done.stdout)
        assert shown["image"]["path"] == "sub/b.png"
        assert [c["index"] for c in shown["candidates"]] == [0, 1, 2]
        for mine, theirs in zip(shown["candidates"], result["all_candidates"], strict=True):
            assert mine["content"] == theirs["content"]
            assert [g["score"] for g in mine["grades"]] == [g["score"] for g in theirs["grades"]]
            assert mine["params"]["temperature"] == theirs["params"]["temperature"]
    text = d.run("show", "sub/b.png").stdout
    best = result["best_result"]
    for words in (best["prompt_key"], best["score_explanation"], "<- best", result["id"]):
        assert words in text
    said = d.run("show", "copy.png").stdout
    assert re.search(r"status +duplicate", said)
    assert re.search(r"original +a\.png", said)
    failed = d.run("show", "bad.png").stdout
    assert re.search(r"status +failed: \w+", failed)
    for unknown in ("nothing.png", "0" * 32, str(d.output / "summary.json")):
        assert "no such image is known" in one_line(d.run("show", unknown))
    draw(d.images / "a.png", 77)  # new bytes: a new version
    d.once()
    again = json.loads(d.run("show", "a.png", "--json").stdout)
    assert again["image"]["version"] == 1
    (earlier,) = again["earlier_versions"]
    assert earlier["version"] == 0
    before = json.loads(d.run("show", earlier["image"], "--json").stdout)
    assert before["image"]["version"] == 0
    assert len(before["candidates"]) == 3


# --------------------------------------------------------------------------------------- retry


def test_retry_without_a_daemon_keeps_what_was_paid(simulator: Make, daemon: MakeDaemon) -> None:
    sim = simulator()
    d = daemon(sim, "--candidates", "2", "--score-threshold", "0")
    draw(d.images / "good.png", 1)
    (d.images / "bad.png").write_bytes(b"no picture")
    assert d.once().returncode == 1
    assert "nothing to retry" in d.run("retry", "--low").stdout
    asked = sim.stats()["generator"]["calls"]
    assert "1 image is taken up again" in d.run("retry", "--failed").stdout
    images = d.status()["images"]
    assert (images["queued"], images["failed"]) == (1, 0)
    assert "nothing to retry" in d.run("retry", "--failed").stdout
    assert "only ended images" in one_line(d.run("retry", "bad.png"))
    assert "no such image is known" in one_line(d.run("retry", "other.png"))
    assert d.once().returncode == 1, "it is still no picture"
    assert sim.stats()["generator"]["calls"] == asked
    (before,) = d.results().values()
    assert "1 image is taken up again" in d.run("retry", "good.png").stdout
    d.once()
    (after,) = d.results().values()
    assert [c["index"] for c in after["all_candidates"]] == [0, 1, 2, 3], "a fresh round"
    assert after["all_candidates"][0]["content"] == before["all_candidates"][0]["content"]
    assert sim.stats()["generator"]["calls"]["repeated"] == 0


def test_retry_with_a_daemon_leaves_the_work_to_it(simulator: Make, daemon: MakeDaemon) -> None:
    sim = simulator()
    d = daemon(sim, "--candidates", "1", "--score-threshold", "100")
    for k in range(3):
        draw(d.images / f"p{k}.png", k)
    d.start()
    wait_for(lambda: len(d.results()) == 3, "three results")
    low = len(list((d.output / "low_quality").iterdir()))
    assert low
    said = d.run("retry", "--low").stdout
    assert re.search(rf"{low} images? (is|are) taken up again", said)
    wait_for(
        lambda: sum(len(r["all_candidates"]) for r in d.results().values()) == 3 + low,
        "another round of each",
    )
    assert not list((d.output / "state/requests").iterdir())
    assert d.stop() == 0


# --------------------------------------------------------------------------------------- check


def test_check_measures_and_prices_with_two_calls(
    simulator: Make, daemon: MakeDaemon, tmp_path: Path
) -> None:
    sim = simulator("--api-key", SECRET)
    prices = {f"RSD_PRICES_{k}": "10" for k in ("GENERATOR_OUTPUT", "GRADER_OUTPUT")}
    d = daemon(sim, RSD_GRADING_KEY=SECRET, RSD_GENERATION_KEY=SECRET, **prices)
    (d.images / "a_broken.png").write_bytes(b"no picture")
    for k in range(4):
        draw(d.images / f"p{k}.png", k)

    def check(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            d.command("check", *words),
            cwd=HOME,
            env=d._env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    done = check()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    for words in ("5 in ", "p0.png", "score ", "an image takes 6 candidates and 6 grading calls"):
        assert words in done.stdout, words
    assert re.search(r"costs about \d+\.\d+; 5 images \d+\.\d\d", done.stdout)
    assert SECRET not in done.stdout + done.stderr
    seen = sim.stats()
    assert seen["generator"]["calls"]["distinct"] == 1, "one candidate, besides the probes"
    assert seen["grader"]["calls"]["distinct"] == 1
    assert not list(d.output.glob("*_quality")), "nothing was begun"
    wrong = check("--vllm-model", "no-such-model")
    assert wrong.returncode == 2
    assert "wrong" in wrong.stdout
    assert "no-such-model" in wrong.stdout
    assert "no estimate" in wrong.stdout
    sim.stop()
    down = check()
    assert down.returncode == 2
    assert down.stdout.count("wrong") == 2
    assert "Traceback" not in down.stderr


# ---------------------------------------------------------------------------------------- demo


def test_demo_runs_from_anywhere_and_its_counts_agree(tmp_path: Path) -> None:
    done = command(tmp_path, "demo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "simulated" in done.stdout
    assert "Files, status and summary agree." in done.stdout
    assert "-->" in done.stdout, "a netlist"
    (output,) = (tmp_path / "demo-output").iterdir()
    pictures = [p for p in (HOME / "samples").iterdir() if p.suffix in (".png", ".jpg")]
    results = list(output.glob("*_quality/*.json"))
    assert len(results) == len(pictures)
    documents = [json.loads(r.read_text()) for r in results]
    keys = {c["prompt_key"] for d in documents for c in d["all_candidates"]}
    assert keys <= {f"prompt{k}" for k in range(1, 7)} and len(keys) > 1
    assert all(d["all_candidates"] for d in documents)
    status = command(tmp_path, "status", "--json", "--output-dir", str(output))
    assert status.returncode == 3
    images = json.loads(status.stdout)["images"]
    for folder in ("high_quality", "low_quality"):
        assert images[folder] == len(list((output / folder).iterdir()))
    again = command(tmp_path, "demo", "--output-dir", str(output))
    assert "is not empty" in one_line(again)


# ----------------------------------------------------------------------- run, fresh and status


def test_fresh_moves_everything_away_and_deletes_nothing(
    simulator: Make, daemon: MakeDaemon
) -> None:
    sim = simulator()
    d = daemon(sim, "--candidates", "1", "--resume")
    draw(d.images / "a.png", 1)
    first = d.once()
    assert first.returncode == 0
    assert "rsd always resumes" in first.stderr
    (old,) = d.results().values()
    assert "it needs --yes" in d.once("--fresh").stderr
    assert len(d.results()) == 1
    again = d.once("--fresh", "--yes")
    assert again.returncode == 0, again.stderr
    (moved,) = d.output.glob("previous-*")
    assert {p.name for p in moved.iterdir()} >= {"state", "summary.json", "logs"}
    (kept,) = moved.glob("*_quality/a_*.json")
    assert json.loads(kept.read_text())["timestamp"] == old["timestamp"]
    (new,) = d.results().values()
    assert new["timestamp"] > old["timestamp"]
    assert new["best_result"]["content"] == old["best_result"]["content"], "same seeds"
    d.start()
    wait_for(lambda: d.status().get("running"), "the daemon")
    refused = d.once("--fresh", "--yes")
    assert refused.returncode == 2
    assert "a daemon works in" in refused.stderr
    second = d.once()
    assert second.returncode == 2
    assert "another rsd works there" in second.stderr
    assert d.stop() == 0


def test_status_of_a_running_a_frozen_and_a_killed_daemon(
    simulator: Make, daemon: MakeDaemon, tmp_path: Path
) -> None:
    sim = simulator()
    d = daemon(sim, "--candidates", "1", "--grading-key", SECRET)
    draw(d.images / "a.png", 1)
    process = d.start()
    wait_for(lambda: finished(d, 1), "a result")
    here = {"RSD_RUNTIME_DIR": str(tmp_path / "run")}
    found = command(tmp_path, "status", "--json", **here)
    assert found.returncode == 0, found.stdout
    document = json.loads(found.stdout)
    assert document["pid"] == process.pid
    assert document["images"]["seen"] == 1
    assert {e["role"] for e in document["endpoints"]} == {"generator", "grader"}
    human = command(tmp_path, "status", **here).stdout
    assert f"ok, running as pid {process.pid}" in human
    assert sim.grader in human
    sim.stop()
    draw(d.images / "b.png", 2)
    wait_for(lambda: command(tmp_path, "status", **here).returncode == 1, "degraded")
    process.send_signal(signal.SIGKILL)
    process.wait()
    dead = command(tmp_path, "status", "--json", **here)
    assert dead.returncode == 3, "the pointer of a killed daemon still leads to its state"
    assert json.loads(dead.stdout)["images"]["seen"] == 2
    shown = command(tmp_path, "show", str(d.images / "a.png"), **here)
    assert shown.returncode == 0
    said = found.stdout + human + dead.stdout + shown.stdout
    written = b"".join(p.read_bytes() for p in d.output.rglob("*") if p.is_file())
    assert SECRET not in said
    assert SECRET.encode() not in written


def test_a_broken_pipe_and_a_full_path_are_no_tracebacks(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    (tmp_path / "images").mkdir()
    done = command(
        tmp_path,
        *("run", "--once", "--image-dir", "images", "--output-dir", "out"),
        *("--grading-api", "http://127.0.0.1:1/v1"),
        *("--prompts", str(HOME / "prompts/generation_prompts.json")),
        *("--grading-prompt", str(HOME / "prompts/grading_prompt.json")),
    )
    assert one_line(done).startswith("rsd: output_dir = out: ")
    piped = subprocess.run(
        f"{sys.executable} {HOME}/daemon.py run --help | head -1; echo ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        check=False,
    )
    assert piped.stderr == ""


def test_simulate_says_that_its_port_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = command(HOME, "simulate", "--port", port)
    assert "cannot listen" in one_line(done)


@pytest.mark.parametrize(
    "name", ["run", "status", "show", "retry", "check", "strategy", "demo", "simulate"]
)
def test_every_command_explains_itself(name: str, tmp_path: Path) -> None:
    done = command(tmp_path, name, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: daemon.py {name}")
    assert done.stderr == ""
