"""`strategy`: what was learned, from the real program on real states."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_commands import command, finished, one_line
from tests.support import HOME, Daemon, Simulator, draw, wait_for

Make = Callable[..., Simulator]
MakeDaemon = Callable[..., Daemon]

ADAPTIVE = {"RSD_SAMPLING_STRATEGY": "adaptive"}
IMAGES = 6


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Daemon:
    """A daemon that is down and has learned from a few images, one of them an audit."""
    from tests.support import simulator

    with simulator() as sim:
        d = Daemon(
            tmp_path_factory.mktemp("learned"),
            sim,
            RSD_SAMPLING_AUDIT_SHARE="0.3",
            RSD_SAMPLING_TEMPERATURE_RANGE="0.7,1.0",
            **ADAPTIVE,
        )
        for k in range(IMAGES):
            draw(d.images / f"p{k}.png", k)
        done = d.once()
        assert done.returncode == 0, done.stderr
    return d


def words(done: subprocess.CompletedProcess[str]) -> str:
    """What a command that is well has printed."""
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_it_is_told_in_words_at_any_width(learned: Daemon) -> None:
    for columns in ("80", "120"):
        learned._env["COLUMNS"] = columns
        text = words(learned.run("strategy"))
        for part in ("6 images", "graded by o4-mini", "temperature  0.7", "prompt       prompt1"):
            assert part in text, text
        for name in ("effect", "evenly", "saved", "agreement", "without a grader"):
            assert name in text, text
        assert "\x1b" not in text, "no colours without a terminal"
        tables = [line for line in text.splitlines() if not line.startswith(("vLLM", "OpenAI"))]
        assert max(map(len, tables)) <= int(columns)
    del learned._env["COLUMNS"]


def test_json_holds_the_sums_and_the_figures(learned: Daemon) -> None:
    document = json.loads(words(learned.run("strategy", "--json")))
    assert document["schema"] == "rsd.strategy/1"
    (record,) = document["records"]
    insight, sums = record["insight"], record["learned"]
    assert sums["images"] == insight["images"] == IMAGES
    shown = [c for r in learned.results().values() for c in r["all_candidates"]]
    graded = sum(
        len(c["grades"]) for c in shown if c["same_as"] is None
    )  # a copy's are not its own
    assert sums["counted"]["grades"] == graded
    assert insight["spending"]["saved"] == sums["counted"]["gradable"] - graded
    assert insight["setting"]["request"]["temperature"] in (0.7, 1.0)
    assert insight["setting"]["prompt"] in {f"prompt{k}" for k in range(1, 7)}
    assert insight["signal"]["images"] == sums["audit"]["images"]
    levels = {(level["factor"], level["name"]) for level in insight["levels"]}
    assert {("temperature", "0.7"), ("temperature", "1.0"), ("top_k", "40")} <= levels


def test_a_file_for_the_next_run_is_the_same_document(learned: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "learned.json"
    said = words(learned.run("strategy", "--export", str(file)))
    assert said == f"what 6 images have taught is in {file}; " + (
        f"`strategy --from {file}` takes it along\n"
    )
    document = json.loads(words(learned.run("strategy", "--json")))
    assert json.loads(file.read_text()) == document
    assert json.loads((learned.output / "strategy.json").read_text()) == document
    nowhere = learned.run("strategy", "--export", str(tmp_path / "no" / "file.json"))
    assert one_line(nowhere).endswith("no/file.json: No such file or directory")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert "is no regular file" in one_line(learned.run("strategy", "--export", str(pipe)))
    assert pipe.is_fifo()


def test_a_running_daemon_is_asked_and_not_disturbed(simulator: Make, daemon: MakeDaemon) -> None:
    sim = simulator()
    d = daemon(sim, **ADAPTIVE)
    d.start()
    wait_for(lambda: d.status().get("running"), "the daemon")
    assert "nothing was learned yet" in words(d.run("strategy"))
    assert json.loads(words(d.run("strategy", "--json"))) == {
        "schema": "rsd.strategy/1",
        "records": [],
    }
    assert "nothing was learned yet" in one_line(d.run("strategy", "--export", "x.json"))
    draw(d.images / "a.png", 1)
    wait_for(lambda: finished(d, 1), "a result")
    text = words(d.run("strategy"))
    assert "1 image" in text
    assert "too little to say" in text
    assert d.stop() == 0


def test_the_next_run_begins_with_it(
    learned: Daemon, simulator: Make, daemon: MakeDaemon, tmp_path: Path
) -> None:
    file = str(tmp_path / "learned.json")
    words(learned.run("strategy", "--export", file))
    d = daemon(simulator(), **ADAPTIVE)
    grading = {"RSD_GRADING_API": "http://127.0.0.1:9/v1"}
    d._env |= grading  # of the settings as a whole, which tell the models of a state without images
    said = words(d.run("strategy", "--from", file))
    what = "what 6 images have taught counts as 6 for simulated-vlm and o4-mini"
    assert said == f"{what} at the next run\n"
    text = words(d.run("strategy"))
    assert "another run's, which weigh as 6" in text
    assert "no image has been decided yet" in text
    draw(d.images / "a.png", 1)
    assert d.once().returncode == 0
    (record,) = json.loads(words(d.run("strategy", "--json")))["records"]
    assert (record["learned"]["images"], record["learned"]["prior_images"]) == (1, 6)
    d.start()
    wait_for(lambda: d.status().get("running"), "the daemon")
    said = words(d.run("strategy", "--from", file))
    assert said.endswith("from now on; a daemon runs and was given it\n")
    wait_for(lambda: not list((d.output / "state/requests").glob("*.json")), "the request")
    assert d.stop() == 0


def test_what_was_learned_of_another_rubric_is_refused_but_for_its_levels(
    learned: Daemon, simulator: Make, daemon: MakeDaemon, tmp_path: Path
) -> None:
    file = str(tmp_path / "learned.json")
    words(learned.run("strategy", "--export", file))
    template = HOME / "prompts/grading_prompt_listwise.json"
    d = daemon(simulator(), "--grading-prompt", str(template), **ADAPTIVE)
    draw(d.images / "a.png", 1)
    assert d.once().returncode == 0
    line = one_line(d.run("strategy", "--from", file))
    assert f"--from {file}: it was learned of the rubric '" in line
    assert line.endswith("(--levels)")
    assert "counts as 6 for" in words(d.run("strategy", "--from", file, "--levels"))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "No such file or directory"),
        ("", "is not what `strategy --export` writes"),
        ("[" * 100_000, "is not what `strategy --export` writes"),
        ("{}", "is not what `strategy --export` writes"),
        ('{"schema":"rsd.strategy/9","records":[]}', "is of 'rsd.strategy/9'; this rsd reads"),
        ('{"schema":"rsd.strategy/1","records":[]}', "holds nothing that was learned"),
        ('{"schema":"rsd.strategy/1","records":[{"learned":{}}]}', "is not what `strategy"),
    ],
)
def test_a_bad_file_is_one_line(
    tmp_path: Path, learned: Daemon, content: str | None, complaint: str
) -> None:
    file = tmp_path / "bad.json"
    if content is not None:
        file.write_text(content)
    line = one_line(learned.run("strategy", "--from", str(file)))
    assert line.startswith(f"rsd: --from {file}: ") and complaint in line


def test_sums_that_fit_no_model_are_one_line(tmp_path: Path, learned: Daemon) -> None:
    whole = json.loads(words(learned.run("strategy", "--json")))

    def spoilt(change: Callable[[Any], None]) -> str:
        document = json.loads(json.dumps(whole))
        change(document["records"][0]["learned"])
        file = tmp_path / "spoilt.json"
        file.write_text(json.dumps(document))
        return one_line(learned.run("strategy", "--from", str(file)))

    def set_at(*path: Any, value: Any) -> Callable[[Any], None]:
        def change(record: Any) -> None:
            for name in path[:-1]:
                record = record[name]
            record[path[-1]] = value

        return change

    assert "damaged" in spoilt(set_at("consensus", "information", 0, value=-1e9))
    assert "damaged" in spoilt(set_at("consensus", "arms", "information", 0, value=-1e9))
    assert "damaged" in spoilt(set_at("consensus", "spread_count", value=0))
    assert "damaged" in spoilt(set_at("levels", 0, "factor", value="colour"))
    assert "damaged" in spoilt(set_at("levels", -1, "name", value="many"))
    assert "damaged" in spoilt(
        set_at("levels", 0, value=whole["records"][0]["learned"]["levels"][1])
    )


def test_flags_that_do_not_go_together(tmp_path: Path) -> None:
    for flags, complaint in (
        (("--json", "--export", "x"), "give one of --json, --export and --from"),
        (("--from", "x", "--export", "y"), "give one of"),
        (("--levels",), "--levels: only with --from"),
    ):
        assert complaint in one_line(command(tmp_path, "strategy", *flags))
    file = tmp_path / "x.json"
    file.write_text("{}")
    assert "is not what" in one_line(command(tmp_path, "strategy", "--from", str(file)))


def test_check_tells_what_every_preset_costs(simulator: Make, daemon: MakeDaemon) -> None:
    sim = simulator()
    d = daemon(sim, RSD_SAMPLING_EFFORT="economy", **ADAPTIVE)
    draw(d.images / "a.png", 1)
    done = subprocess.run(
        d.command("check"), cwd=HOME, env=d._env, capture_output=True, text=True, check=False
    )
    text = words(done)
    for effort in ("economy", "balanced", "thorough", "maximal"):
        assert re.search(rf"^ +{effort} +\d+\.\d ", text, re.MULTILINE), text
    assert re.search(r"^ +economy .*k\* ", text, re.MULTILINE), "it is in force, pointwise"
    assert "no prices are set: a token of the generator counts 0.1" in text
    assert re.search(r"\* is in force: 1 images? takes? about \d+\.\dk", text)
    assert sim.stats()["grader"]["calls"]["distinct"] == 1


def test_another_strategy_teaches_nothing(simulator: Make, daemon: MakeDaemon) -> None:
    sim = simulator()
    d = daemon(sim, "--candidates", "1")
    draw(d.images / "a.png", 1)
    assert d.once().returncode == 0
    assert "nothing was learned yet" in words(d.run("strategy"))


def test_without_a_state_it_is_one_line(tmp_path: Path) -> None:
    assert "no daemon found" in one_line(command(tmp_path, "strategy"))
    empty = command(tmp_path, "strategy", "--output-dir", str(tmp_path))
    assert re.search(r"holds no state of rsd", one_line(empty, 1))
    damaged = tmp_path / "state" / "lmdb"
    damaged.mkdir(parents=True)
    (damaged / "data.mdb").write_bytes(b"no map")
    one_line(command(tmp_path, "strategy", "--output-dir", str(tmp_path)), 1)
