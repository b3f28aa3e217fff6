"""The line, end to end: pictures in, results out, everything a real process."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from rsd.simulator.answers import grade
from rsd.simulator.truth import Pictures, pixels_of
from tests.support import HOME, Daemon, Simulator, draw, essence, wait_for

Make = Callable[..., Simulator]
MakeDaemon = Callable[..., Daemon]


def fill(folder: Path, count: int, first: int = 0) -> None:
    for seed in range(first, first + count):
        draw(folder / f"p{seed:04d}.png", seed)


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns)
        for p in folder.rglob("*")
        if p.is_file()
    }


REFERENCE = [
    "--prompts",
    "prompts/generation_prompts.json",
    "--grading-prompt",
    "prompts/grading_prompt.json",
    "--prompt-keys",
    "prompt1",
    "prompt3",
    "prompt5",
    "prompt6",
    "--vllm-model",
    "Qwen2.5-VL-32B-Custom",
    "--grading-key",
    "KEY",
    "--grading-model",
    "o4-mini",
    "--temperature-range",
    "0.3,0.5,0.7,0.9,1.2",
    "--top-p-range",
    "0.5,0.7,0.9",
    "--top-k-range",
    "20,40,60,80",
    "--score-threshold",
    "80",
    "--gen-workers",
    "16",
    "--grade-workers",
    "10",
    "--samples",
    "-1",
    "--checkpoint-interval",
    "5",
    "--log-level",
    "INFO",
]


def test_the_reference_command_line_on_the_samples(simulator: Make, daemon: MakeDaemon) -> None:
    sim = simulator("--model", "Qwen2.5-VL-32B-Custom")
    d = daemon(sim, *REFERENCE)
    for path in (HOME / "samples").iterdir():
        if path.suffix in (".png", ".jpg"):
            shutil.copy2(path, d.images)
    before = snapshot(d.images)
    done = d.once()
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert snapshot(d.images) == before
    results = d.results()
    assert len(results) == len(before)
    pictures = Pictures([HOME / "samples"])
    for name, document in results.items():
        pixels = pixels_of(before[name][0])
        graph = pictures.graph(pixels)
        candidates = document["all_candidates"]
        assert [c["index"] for c in candidates] == [0, 1, 2, 3]
        assert sorted(c["prompt_key"] for c in candidates) == [
            "prompt1",
            "prompt3",
            "prompt5",
            "prompt6",
        ]
        for candidate in candidates:
            expected = grade(candidate["content"], graph, pixels, position=0, call=0, noise=8.0)
            assert candidate["score"] == expected, "the score is the grader's"
            assert set(candidate["params"]) == {
                "temperature",
                "top_p",
                "top_k",
                "min_p",
                "repetition_penalty",
                "seed",
            }
        best = max(c["score"] for c in candidates)
        assert document["best_result"]["score"] == best
        assert [c for c in candidates if c["is_best"]] == [document["best_result"]]
        assert (document["folder"] == "high_quality") == (best >= 80)
        assert document["image_info"]["path"] == str(d.images / name)
    summary = json.loads((d.output / "summary.json").read_text())
    assert summary["stats"]["processed_samples"] == len(before)
    assert summary["stats"]["total_samples"] == len(before)
    assert summary["stats"]["high_quality_count"] + summary["stats"]["low_quality_count"] == len(
        before
    )
    assert sum(row["wins"] for row in summary["per_prompt"].values()) == len(before)
    assert sum(row["generated"] for row in summary["per_temperature"].values()) == 4 * len(before)
    assert sum(summary["score_distribution"]["candidates"].values()) == 4 * len(before)
    seen = sim.stats()
    assert seen["generator"]["byte_strings_per_image_max"] == 1
    assert seen["generator"]["calls"] == {"distinct": 4 * len(before), "repeated": 0}
    again = d.once()
    assert again.returncode == 0
    after = sim.stats()
    for role in ("generator", "grader"):
        paid = after[role]["children"] - after[role]["probes"]
        assert paid == seen[role]["children"] - seen[role]["probes"], "a second run pays nothing"
    assert essence(d.results()) == essence(results)
    assert "KEY" not in (d.output / "logs/rsd.log").read_text().replace("prompt", "")


def test_samples_limits_to_the_first_paths(simulator: Make, daemon: MakeDaemon) -> None:
    d = daemon(simulator())
    fill(d.images, 8)
    for _ in range(2):
        assert d.once("--samples", "3").returncode == 0
        assert sorted(d.results()) == ["p0000.png", "p0001.png", "p0002.png"]
    assert d.once().returncode == 0
    assert len(d.results()) == 8


@pytest.mark.parametrize("template", ["grading_prompt", "grading_prompt_listwise"])
def test_many_draws_of_one_arm_share_requests_and_both_templates_work(
    simulator: Make, daemon: MakeDaemon, template: str
) -> None:
    sim = simulator()
    d = daemon(
        sim,
        *("--prompt-keys", "prompt1", "--candidates", "10", "--temperature-range", "0.8"),
        *("--top-p-range", "0.9", "--top-k-range", "40"),
        *("--grading-prompt", f"prompts/{template}.json"),
    )
    fill(d.images, 3)
    assert d.once().returncode == 0
    for document in d.results().values():
        seeds = [c["params"]["seed"] for c in document["all_candidates"]]
        assert seeds == list(range(seeds[0], seeds[0] + 10))
        assert seeds[0] % 1024 == 0
    generator = sim.stats()["generator"]
    assert generator["calls"]["distinct"] == 30
    assert generator["answered"] - generator["probes"] == 3, "n carries ten draws"
    calls = sim.stats()["grader"]
    assert calls["answered"] - calls["probes"] == (30 if template == "grading_prompt" else 6)


def test_bad_files_fail_with_a_reason_and_the_others_go_on(
    simulator: Make, daemon: MakeDaemon
) -> None:
    d = daemon(simulator())
    fill(d.images, 2)
    whole = (d.images / "p0000.png").read_bytes()
    (d.images / "cut.png").write_bytes(whole[: len(whole) // 2])
    (d.images / "empty.png").write_bytes(b"")
    (d.images / "page.jpg").write_bytes(b"<html>no picture</html>")
    (d.images / "script.png").write_bytes(b"%!PS-Adobe")
    (d.images / "copy.png").write_bytes(whole)
    (d.images / ".hidden.png").write_bytes(whole)
    (d.images / "x.png.part").write_bytes(whole)
    (d.images / "notes.txt").write_text("no image")
    (d.images / "link.png").symlink_to("/etc/passwd")
    odd = os.fsencode(d.images) + b"/caf\xe9 \n.png"
    draw(d.images / "odd.png", 77).rename(os.fsdecode(odd))
    done = d.once()
    assert done.returncode == 1, done.stderr
    assert d.failures() == {
        "cut.png": "truncated",
        "empty.png": "empty",
        "page.jpg": "not_an_image",
        "script.png": "format_not_allowed",
    }
    images = d.status()["images"]
    assert images["duplicate"] == 1
    assert images["seen"] == 8
    assert len(d.results()) == 3
    assert any("caf\\xe9" in name for name in d.results())


def test_the_daemon_takes_what_comes_and_ends_cleanly(
    simulator: Make, daemon: MakeDaemon, tmp_path: Path
) -> None:
    sim = simulator()
    d = daemon(sim)
    d.start()
    fill(tmp_path, 3)
    shutil.move(tmp_path / "p0000.png", d.images)
    part = d.images / "p0001.png.part"
    shutil.copy(tmp_path / "p0001.png", part)
    part.rename(d.images / "p0001.png")
    data = (tmp_path / "p0002.png").read_bytes()
    with (d.images / "p0002.png").open("wb") as slow:
        for k in range(0, len(data), 16):
            slow.write(data[k : k + 16])
            slow.flush()
    nested = d.images / "a" / "b"
    nested.mkdir(parents=True)
    draw(nested / "deep.png", 500)
    wait_for(lambda: d.settled(4), "four results")
    assert sorted(d.results()) == ["deep.png", "p0000.png", "p0001.png", "p0002.png"]
    status = d.run("status")
    assert status.returncode == 0, status.stdout
    assert "4 seen" in status.stdout
    document = d.status()
    images = document["images"]
    assert images["seen"] == sum(v for k, v in images.items() if k != "seen")
    assert document["health"] == "ok"
    shown = d.run("show", str(d.images / "p0001.png"))
    assert shown.returncode == 0 and "<- best" in shown.stdout
    second = d.once()
    assert second.returncode == 2 and "another rsd" in second.stderr
    assert d.stop() == 0
    assert d.run("status").returncode == 3
    assert not list(d.output.rglob("*.rsd-tmp"))


def test_changes_deletions_and_retries(simulator: Make, daemon: MakeDaemon) -> None:
    sim = simulator()
    d = daemon(sim, "--score-threshold", "100")
    fill(d.images, 3)
    d.start()
    wait_for(lambda: d.settled(3), "three results")
    first = d.results()
    paid = sim.stats()["generator"]["children"]
    os.utime(d.images / "p0000.png")
    (d.images / "p0001.png").unlink()
    draw(d.images / "p0002.png", 900)
    changed = wait_for(
        lambda: (
            (r := d.results())["p0002.png"]["image_info"]["sha256"]
            != first["p0002.png"]["image_info"]["sha256"]
            and r
        ),
        "the new version",
    )
    assert changed["p0000.png"]["id"] == first["p0000.png"]["id"]
    assert "p0001.png" in changed, "the result of a decided image stays"
    candidates = len(first["p0000.png"]["all_candidates"])
    assert sim.stats()["generator"]["children"] == paid + candidates
    low = [n for n, r in changed.items() if r["folder"] == "low_quality" and n != "p0001.png"]
    assert low, "with a threshold of 100 something is low"
    done = d.run("retry", str(d.images / low[0]))
    assert done.returncode == 0, done.stderr
    more = wait_for(
        lambda: (
            low[0] in (r := d.results())
            and len(r[low[0]]["all_candidates"]) == 2 * candidates
            and r
        ),
        "a fresh round",
    )
    old = changed[low[0]]["all_candidates"]
    assert [c["content"] for c in more[low[0]]["all_candidates"][:candidates]] == [
        c["content"] for c in old
    ]
    assert more[low[0]]["decision"] == 2
    d.stop()


def test_an_outage_and_an_empty_account_consume_nothing(
    simulator: Make, daemon: MakeDaemon
) -> None:
    sim = simulator("--service-seconds", "0.05")
    d = daemon(sim, "--gen-workers", "4", "--grade-workers", "4")
    fill(d.images, 20)
    d.start()
    wait_for(lambda: len(d.results()) > 2, "some results")
    sim.fault("generator", "down")
    sim.fault("grader", "quota")
    wait_for(lambda: "out of credit" in " ".join(d.status()["reasons"]), "the empty account")
    wait_for(lambda: " down: " in " ".join(d.status()["reasons"]), "the outage")
    assert d.run("status").returncode == 1
    sim.clear()
    document = wait_for(lambda: d.settled(20), "the rest")
    assert document["images"]["failed"] == 0
    assert document["candidates"]["failed"] == 0
    assert len(d.results()) == 20
    d.stop()


def test_a_dead_endpoint_and_a_wrong_key_at_start_degrade_and_heal(
    simulator: Make, daemon: MakeDaemon
) -> None:
    sim = simulator()
    d = daemon(sim)
    fill(d.images, 3)
    sim.fault("grader", "unauthorized")
    sim.stop()
    d.start()
    wait_for(lambda: (s := d.status()) and s["images"]["seen"] == 3 and s["reasons"], "reasons")
    document = d.status()
    assert document["images"]["queued"] + document["images"]["active"] == 3
    assert document["health"] == "degraded"
    assert not document["candidates"]["generated"]
    sim.start()
    sim.fault("grader", "unauthorized")
    wait_for(lambda: any("misconfigured" in r for r in d.status()["reasons"]), "the wrong key")
    sim.clear()
    wait_for(lambda: d.settled(3), "healing")
    assert wait_for(lambda: not d.status()["reasons"], "health") is True
    d.stop()


def test_a_wrong_model_with_once_is_one_line_and_exit_2(
    simulator: Make, daemon: MakeDaemon
) -> None:
    d = daemon(simulator(), "--vllm-model", "no-such-model")
    fill(d.images, 1)
    done = d.once()
    assert done.returncode == 2
    assert "no-such-model" in done.stderr and "simulated-vlm" in done.stderr
    assert "Traceback" not in done.stderr


def test_faults_of_every_kind_lose_nothing(simulator: Make, daemon: MakeDaemon) -> None:
    sim = simulator()
    d = daemon(sim, RSD_GENERATION_TIMEOUT="3", RSD_GRADING_TIMEOUT="3")
    fill(d.images, 12)
    for kind in ("rate_limit", "error", "bad_json", "cut", "empty", "no_choices", "null_content"):
        sim.fault("generator", kind, count=3)
        sim.fault("grader", kind, count=3)
    sim.fault("grader", "no_score", count=2)
    sim.fault("grader", "wrong_score", count=2)
    sim.fault("generator", "busy", count=2, retry_after=0.2)
    sim.fault("generator", "hang", count=2)
    done = d.once()
    assert done.returncode == 0, done.stderr
    results = d.results()
    assert len(results) == 12
    for document in results.values():
        assert len(document["all_candidates"]) == 6
        assert all(0 <= c["score"] <= 100 for c in document["all_candidates"])


def test_refused_draws_leave_the_image_its_other_candidates(
    simulator: Make, daemon: MakeDaemon
) -> None:
    sim = simulator()
    d = daemon(sim)
    fill(d.images, 2)
    prompts = json.loads((HOME / "prompts/generation_prompts.json").read_text())
    sim.fault("generator", "refusal", match=prompts["prompt2"][:40])
    assert d.once().returncode == 0
    for document in d.results().values():
        keys = {c["prompt_key"] for c in document["all_candidates"]}
        assert keys == {"prompt1", "prompt3", "prompt4", "prompt5", "prompt6"}
        assert document["failed_candidates"] == 1


def test_second_signal_ends_at_once_and_nothing_is_lost(
    simulator: Make, daemon: MakeDaemon
) -> None:
    sim = simulator()
    d = daemon(sim)
    fill(d.images, 4)
    sim.fault("generator", "hang", match="Write")
    d.start()
    wait_for(lambda: (s := d.status()) and s["in_flight"]["generate"] > 0, "open calls")
    assert d.process is not None
    d.process.send_signal(signal.SIGTERM)
    wait_for(lambda: "stopping" in d.log(), "the drain")
    assert d.stop() == 0
    sim.clear()
    assert d.once().returncode == 0
    assert len(d.results()) == 4


def test_reload_keeps_the_old_settings_when_the_new_are_bad(
    simulator: Make, daemon: MakeDaemon, tmp_path: Path
) -> None:
    config = tmp_path / "rsd.toml"
    config.write_text("[sampling]\ncandidates = 2\n")
    d = daemon(simulator(), "--config", str(config))
    fill(d.images, 1)
    process = d.start()
    wait_for(lambda: d.settled(1), "the first")
    config.write_text("[sampling]\ncandidates = 0\n")
    process.send_signal(signal.SIGHUP)
    wait_for(lambda: "reload refused" in d.log(), "the refusal")
    draw(d.images / "second.png", 50)
    wait_for(lambda: d.settled(2), "the second")
    config.write_text("[sampling]\ncandidates = 4\n")
    process.send_signal(signal.SIGHUP)
    wait_for(lambda: "reloaded" in d.log(), "the reload")
    draw(d.images / "third.png", 51)
    wait_for(lambda: d.settled(3), "the third")
    counts = {n: len(r["all_candidates"]) for n, r in d.results().items()}
    assert counts == {"p0000.png": 2, "second.png": 2, "third.png": 4}
    assert "candidates" in d.log() and d.stop() == 0


def test_result_documents_are_what_the_schema_says(simulator: Make, daemon: MakeDaemon) -> None:
    d = daemon(simulator(), "--candidates", "1")
    fill(d.images, 1)
    assert d.once().returncode == 0
    path = next(p for f in ("high_quality", "low_quality") for p in (d.output / f).glob("*"))
    assert path.name.startswith("p0000_") and len(path.stem.rpartition("_")[2]) == 12
    document = msgspec.json.decode(path.read_bytes())
    assert set(document["image_info"]) == {
        "path",
        "filename",
        "sha256",
        "width",
        "height",
        "format",
        "bytes",
    }
    assert set(document["all_candidates"][0]) == {
        "index",
        "prompt_key",
        "prompt_text",
        "params",
        "content",
        "finish_reason",
        "score",
        "score_explanation",
        "is_best",
        "same_as",
        "generation_time",
        "grading_time",
        "usage",
        "model",
        "endpoint",
        "grades",
        "timestamp",
        "formatted_time",
    }
