"""`status`: what it finds, what it says, its exit codes. Real stores and files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rsd import cli
from rsd.commands import status
from rsd.commands.status_table import span
from rsd.errors import StateError
from rsd.protocol.facts import ImageEnrolled, ImageSetAside, Numbered
from rsd.protocol.status import ImageCounts, Status
from rsd.protocol.vocabulary import Stats, image_id
from rsd.settings import load
from rsd.state.store import Store
from rsd.state.transaction import Transaction
from rsd.system import runtime_dir
from rsd.system.processes import process_identity
from rsd.system.runtime_dir import Pointer, find_pointers, remove_pointer, write_pointer
from rsd.writer.apply import Application

#: Unix seconds at which everything here happens.
NOW = 1_700_000_000.0
#: Every key of `rsd.status/1` that docs/contract.md promises, with what is inside.
PROMISED: dict[str, tuple[str, ...]] = {
    "running": (),
    "pid": (),
    "version": (),
    "uptime_seconds": (),
    "health": (),
    "reasons": (),
    "images": (
        *("seen", "queued", "active", "high_quality", "low_quality"),
        *("failed", "duplicate", "withdrawn"),
    ),
    "candidates": ("generated", "graded", "ungraded", "failed"),
    "in_flight": ("generate", "grade"),
    "retries": (),
    "tokens": (),
    "cost": (),
    "rates": (),
    "eta_seconds": (),
    "bottleneck": (),
    "throttle": (
        *("level", "factor", "reason", "cpu_percent", "own_cpu_percent"),
        *("memory_percent", "disk_free_bytes"),
    ),
    "endpoints": (),
    "watch": ("path", "mode", "last_scan_age_seconds", "settling"),
}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither daemons nor settings of this machine take part."""
    for name in list(os.environ):
        if name.startswith("RSD_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(load, "CONFIG_FILES", (Path("rsd.toml"),))
    monkeypatch.setenv("RSD_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.chdir(tmp_path)


def make_store(state: Path, images: int, failed: int) -> None:
    """A store with so many queued and failed images."""
    store = Store(state / "lmdb")

    def work(txn: Transaction) -> None:
        application = Application(txn, "test")
        seq = 0
        for k in range(images + failed):
            seq += 1
            path = b"p%d.png" % k
            seen = ImageEnrolled(path=path, size=1, mtime_ns=1, time=NOW)
            application.apply(Numbered(seq=seq, fact=seen))
            if k >= images:
                seq += 1
                aside = ImageSetAside(
                    image=image_id(path, 0),
                    status="failed",
                    reason="empty",
                    queue_seq=k + 1,
                    path=path,
                    time=NOW,
                )
                application.apply(Numbered(seq=seq, fact=aside))
        application.finish()

    store.write(work)
    store.close()


def live(**fields: Any) -> dict[str, Any]:
    """A document as the hub of this very process would write it."""
    document = status.stopped(Stats(seen=3, high_quality=3), None, None)
    return as_json(document) | {
        "running": True,
        "pid": os.getpid(),
        "created": process_identity(os.getpid()),
        "written_monotonic": NOW,
        "health": "ok",
        "reasons": [],
        "image_dir": "/images",
        "output_dir": "/results",
        **fields,
    }


def as_json(document: Status) -> dict[str, Any]:
    """What others see of it."""
    found: dict[str, Any] = json.loads(msgspec.json.encode(document))
    return found


def write_live(state: Path, **fields: Any) -> None:
    state.mkdir(parents=True, exist_ok=True)
    (state / "live.json").write_text(json.dumps(live(**fields)))


def assert_promised(document: dict[str, Any]) -> None:
    assert document["schema"] == "rsd.status/1"
    for key, inner in PROMISED.items():
        assert key in document, key
        for name in inner:
            assert name in document[key], f"{key}.{name}"
    images = dict(document["images"])
    assert images.pop("seen") == sum(images.values())


# -------------------------------------------------------------------------------- the document


def test_a_living_daemon_speaks_for_itself(tmp_path: Path) -> None:
    write_live(tmp_path)
    document = status.status_of(tmp_path, NOW + 1)
    assert (document.running, document.health) == (True, "ok")
    assert status.code_of(document) == 0
    assert status.code_of(msgspec.structs.replace(document, health="degraded")) == 1


def test_a_living_daemon_that_writes_nothing_is_degraded(tmp_path: Path) -> None:
    write_live(tmp_path, reasons=["grader down"])
    document = status.status_of(tmp_path, NOW + 100)
    assert document.health == "degraded"
    assert document.reasons == ("the hub has not responded for 100 s", "grader down")
    assert status.code_of(document) == 1


@pytest.mark.parametrize("who", [{"pid": 2**22 + 1}, {"created": "boot/1"}, {"created": None}])
def test_a_dead_or_recycled_pid_is_not_the_daemon(tmp_path: Path, who: dict[str, Any]) -> None:
    make_store(tmp_path, images=4, failed=2)
    write_live(tmp_path, cost=1.5, **who)
    document = status.status_of(tmp_path, NOW)
    assert_promised(as_json(document))
    assert (document.running, document.health, document.pid) == (False, "stopped", None)
    assert document.images == ImageCounts(seen=6, queued=4, failed=2)
    assert (document.image_dir, document.cost) == ("/images", 1.5)
    assert status.code_of(document) == 3


def test_without_a_document_the_store_is_counted(tmp_path: Path) -> None:
    make_store(tmp_path, images=1, failed=0)
    for broken in (None, b"", b"{", b"[]", b'{"schema": "other"}'):
        if broken is not None:
            (tmp_path / "live.json").write_bytes(broken)
        document = status.status_of(tmp_path, NOW)
        assert_promised(as_json(document))
        assert document.images.queued == 1


def test_where_nothing_ran_nothing_is_counted(tmp_path: Path) -> None:
    document = status.status_of(tmp_path / "state", NOW)
    assert_promised(as_json(document))
    assert document.images.seen == 0
    assert "nothing has run here yet" in document.reasons[0]
    assert not (tmp_path / "state").exists()


def test_a_damaged_store_is_unreadable(tmp_path: Path) -> None:
    make_store(tmp_path, images=3, failed=0)
    data = tmp_path / "lmdb" / "data.mdb"
    os.truncate(data, 12_000)  # its pages are gone: SIGBUS to whoever reads them
    with pytest.raises(StateError):
        status.status_of(tmp_path, NOW)
    data.write_bytes(b"no database at all" * 1000)
    with pytest.raises(StateError, match="cannot be opened as LMDB"):
        status.status_of(tmp_path, NOW)


# --------------------------------------------------------------------------- command, exit codes


def test_exit_codes_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status"]) == 3
    assert "no daemon found" in capsys.readouterr().out
    assert cli.main(["status", "--json"]) == 3
    assert_promised(json.loads(capsys.readouterr().out))
    state = tmp_path / "out" / "state"
    make_store(state, images=1, failed=1)
    assert cli.main(["status", "--output-dir", "out"]) == 3
    text = capsys.readouterr().out
    assert "not running" in text
    assert "2 seen" in text
    assert cli.main(["status", "--json", "--state-dir", str(state)]) == 3
    document = json.loads(capsys.readouterr().out)
    assert_promised(document)
    assert document["state_dir"] == str(state)
    (state / "lmdb" / "data.mdb").write_bytes(b"x" * 10_000)
    assert cli.main(["status", "--output-dir", "out"]) == 4
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1


def test_the_state_is_found_by_file_and_variable_and_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for k, name in enumerate(("flag", "file", "local")):
        make_store(tmp_path / name / "state", images=k + 1, failed=0)
    (tmp_path / "any.toml").write_text(f'output_dir = "{tmp_path}/file"\n[grading]\nkey_file="/n"')
    (tmp_path / "rsd.toml").write_text('output_dir = "local"\nnonsense = 1\n')

    def seen(*words: str) -> int:
        assert cli.main(["status", "--json", *words]) == 3
        return int(json.loads(capsys.readouterr().out)["images"]["seen"])

    assert seen() == 3
    assert seen("--config", "any.toml") == 2
    monkeypatch.setenv("RSD_CONFIG", str(tmp_path / "any.toml"))
    assert seen() == 2
    assert seen("--output-dir", "flag") == 1
    assert seen("--state-dir", str(tmp_path / "local" / "state")) == 3


def test_a_state_of_its_own_wins_over_a_files_state_dir(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_store(tmp_path / "elsewhere", images=5, failed=0)
    make_store(tmp_path / "demo" / "state", images=2, failed=0)
    (tmp_path / "rsd.toml").write_text(f'state_dir = "{tmp_path}/elsewhere"\n')
    for folder, count in (("demo", 2), ("other", 5)):
        assert cli.main(["status", "--json", "--output-dir", folder]) == 3
        assert json.loads(capsys.readouterr().out)["images"]["seen"] == count


def test_running_daemons_are_found_by_their_pointers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = []
    for name, created in (("a", process_identity(os.getpid())), ("b", "boot/1")):
        make_store(tmp_path / name, images=1, failed=0)
        pointer = Pointer(
            pid=os.getpid(),
            created=created,
            state_dir=str(tmp_path / name),
            image_dir="/i",
            output_dir="/o",
        )
        made.append(write_pointer(pointer))
    gone = Pointer(pid=1, created="boot/1", state_dir="/gone/away", image_dir="", output_dir="")
    write_pointer(gone)
    (tmp_path / "run" / "junk.json").write_text("{")
    assert len(find_pointers()) == 3
    write_live(tmp_path / "a", written_monotonic=NOW * 2)
    assert cli.main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state_dir"] is None, "the one that lives"
    remove_pointer(made[0])
    assert cli.main(["status", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["state_dir"] == str(tmp_path / "b")
    remove_pointer(made[1])
    assert cli.main(["status"]) == 3


def test_several_running_daemons_are_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, health in (("a", "ok"), ("b", "degraded")):
        write_live(
            tmp_path / name, written_monotonic=NOW * 2, health=health, image_dir=f"/from-{name}"
        )
        write_pointer(
            Pointer(
                pid=os.getpid(),
                created=process_identity(os.getpid()),
                state_dir=str(tmp_path / name),
                image_dir="/i",
                output_dir="/o",
            )
        )
    assert cli.main(["status", "--json"]) == 1
    assert [d["health"] for d in json.loads(capsys.readouterr().out)] == ["ok", "degraded"]
    assert cli.main(["status"]) == 1
    text = capsys.readouterr().out
    assert "/from-a" in text
    assert "/from-b" in text


def test_a_pointer_goes_where_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RSD_RUNTIME_DIR")
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{tmp_path}/first:{tmp_path}/second")
    pointer = Pointer(pid=7, created="boot/2", state_dir="/s", image_dir="/i", output_dir="/o")
    (tmp_path / "first").write_text("a file, no folder")
    path = write_pointer(pointer)
    assert path is not None
    assert path.parent == tmp_path / "second"
    assert path.stat().st_mode & 0o444 == 0o444, "readable by others"
    assert pointer in runtime_dir.find_pointers()


# --------------------------------------------------------------------------------------- looks


def test_the_screen_says_what_is_wrong(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    endpoint = {
        "role": "grader",
        "url": "http://[markup]/v1",
        "model": "o4-mini",
        "state": "quota",
        "reason": "out of credit",
        "in_flight": 2,
        "limit": 8,
        "rate_limited": 3,
        "waits_seconds": 250.5,
    }
    throttle = {
        "level": "reduced",
        "factor": 0.25,
        "reason": "CPU at 97 %",
        "cpu_percent": 97.0,
        "own_cpu_percent": 60.0,
        "memory_percent": 40.0,
        "disk_free_bytes": 5 * 2**30,
    }
    write_live(
        tmp_path,
        written_monotonic=NOW * 2,
        health="degraded",
        reasons=["grader out of credit"],
        endpoints=[endpoint],
        throttle=throttle,
        eta_seconds=7300.0,
        bottleneck="quota",
    )
    assert cli.main(["status", "--state-dir", str(tmp_path)]) == 1
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        *(
            "degraded, running as pid",
            "! grader out of credit",
            "http://[markup]/v1 o4-mini: quota",
        ),
        "3 times too fast, asked again in 4 min",
        "reduced to 25 % of the normal number of requests (CPU at 97 %)",
        *(
            "2/8 in flight",
            "reduced to 25 % of the normal number of requests (CPU at 97 %)",
            "5.0 GiB free",
            "2 h left",
            "held by: quota",
        ),
    ):
        assert words in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (2e5, "2 d")]
)
def test_durations(seconds: float, text: str) -> None:
    assert span(seconds) == text
