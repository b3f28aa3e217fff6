"""The status document: one form for the running and the stopped daemon, and readers of old ones."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.cells import cell_len

from rsd.commands.demo import TAIL, shortened
from rsd.commands.progress_lines import Lines, starting
from rsd.commands.status import status_of, stopped
from rsd.commands.status_table import load_words, process_words
from rsd.hub.brain.brain import Brain
from rsd.hub.brain.events import Tick
from rsd.hub.status.document import Surroundings, document
from rsd.protocol.status import (
    EndpointStatus,
    ImageCounts,
    ProcessStatus,
    Speeds,
    Status,
    ThrottleStatus,
    WatchStatus,
    decode,
)
from rsd.protocol.vocabulary import Role, Stats
from rsd.settings.fields import Prices
from rsd.system.processes import process_identity
from tests.unit.test_status import make_store
from tests.unit.world import policy

#: Monotonic seconds at which everything here happens.
NOW = 100.0
UNREACHED = "grader http://g/v1 not reached yet"


def running(brain: Brain, **around: Any) -> Status:
    """The document of a hub with this brain."""
    surroundings = {
        "identity": Status(pid=os.getpid(), created=process_identity(os.getpid())),
        "host": ThrottleStatus(),
        "watch": WatchStatus(path="/i", mode="polling"),
        "processes": (ProcessStatus(name="writer", role="writer", pid=7, state="up"),),
        "recent": (),
        "blocked": "",
        "log_refused": "",
        "reload_refused": "",
    } | around
    stats = Stats(seen=2, queued=2)
    return document(brain.view(NOW), stats, Prices(), Speeds(), Surroundings(**surroundings))


def keys_of(value: object) -> set[str]:
    """Dotted names of all that a document holds."""
    if not isinstance(value, dict):
        return set()
    return {str(k) for k in value} | {f"{k}.{i}" for k, v in value.items() for i in keys_of(v)}


def test_a_running_and_a_stopped_document_have_one_form() -> None:
    one = msgspec.json.encode(running(Brain(policy())))
    other = msgspec.json.encode(stopped(Stats(), None, None))
    for text in (one, other):
        again = msgspec.json.decode(text, type=Status, strict=True)
        assert msgspec.json.encode(again) == text, "no key is lost"
    assert keys_of(json.loads(one)) == keys_of(json.loads(other))


def test_the_view_is_what_the_document_says() -> None:
    brain = Brain(policy())
    view, status = brain.view(NOW), running(brain)
    assert status.throttle.factor == view.factor == 1.0
    assert [e.url for e in status.endpoints] == [e.url for e in view.endpoints]
    assert view.roles.keys() == {Role.GENERATE, Role.GRADE}
    with pytest.raises(AttributeError):
        view.delayed = 3  # type: ignore[misc]


def test_a_child_that_does_not_answer_is_a_reason() -> None:
    children = (
        ProcessStatus(name="grader-3", role="grade", pid=8, state="silent"),
        ProcessStatus(name="writer", role="writer", pid=7, state="up"),
    )
    assert "grader-3 does not answer" in running(Brain(policy()), processes=children).reasons
    assert process_words(children) == "1 of 2 up, grader-3 silent"


def test_level_factor_and_reason_of_the_throttle_are_in_words() -> None:
    reduced = ThrottleStatus(level="reduced", factor=0.25, reason="CPU at 97 %", cpu_percent=97.0)
    words = "reduced to 25 % of the normal number of requests (CPU at 97 %): CPU 97.0 %"
    assert load_words(reduced) == words
    assert load_words(ThrottleStatus()) == "normal: not measured yet"


def test_a_writer_that_cannot_write_is_the_reason_of_the_pause() -> None:
    brain = Brain(policy())
    brain.handle(Tick(blocked=True), NOW, 0.0)
    throttle = running(brain, blocked="No space left on device").throttle
    assert (throttle.level, throttle.factor) == ("paused", 0.0)
    assert throttle.reason == "No space left on device"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b'{"schema": "rsd.status/2", "pid": 1}',
        b'{"schema": "rsd.status/1", "pid": "x"}',
        b'{"schema": "rsd.status/1", "pid": null}',
    ],
)
def test_what_is_no_document_is_none(text: bytes) -> None:
    assert decode(text) is None


def test_a_living_daemon_of_another_version_is_counted_by_its_store(tmp_path: Path) -> None:
    make_store(tmp_path, images=3, failed=1)
    me = {"pid": os.getpid(), "created": process_identity(os.getpid()), "version": "9.9"}
    foreign = {"schema": "rsd.status/1", "images": ["another", "form"], "written_monotonic": 5.0}
    (tmp_path / "live.json").write_text(json.dumps(foreign | me))
    status = status_of(tmp_path, now=6.0)
    assert (status.running, status.health) == (True, "degraded")
    assert "another form (version 9.9)" in status.reasons[0]
    assert status.images == ImageCounts(seen=4, queued=3, failed=1)


def test_an_older_document_lacks_fields_and_a_newer_one_has_more() -> None:
    old = b'{"schema": "rsd.status/1", "running": true, "pid": 4, "images": {"seen": 2}}'
    new = b'{"schema": "rsd.status/1", "running": true, "pid": 4, "mood": {"of": "the day"}}'
    for text in (old, new):
        status = decode(text)
        assert status is not None
        assert (status.running, status.pid) == (True, 4)


# ------------------------------------------------------------------------------------- progress


def unreached(**fields: Any) -> Status:
    endpoint = EndpointStatus(role="grader", url="http://g/v1", state="unknown")
    return Status(running=True, endpoints=(endpoint,), reasons=(UNREACHED,), **fields)


def test_the_first_line_of_a_pass_is_no_warning(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines()
    for status in (unreached(), unreached(images=ImageCounts(seen=3, queued=3))):
        assert starting(status)
        lines.show(status)
    assert capsys.readouterr().err == ""
    lines.show(Status(running=True, images=ImageCounts(seen=3, active=2, high_quality=1)))
    assert capsys.readouterr().err == "1/3 images 1 high, 0 low\n"


def test_what_is_wrong_at_the_start_is_reported_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    full = unreached(images=ImageCounts(seen=3, queued=3))
    full = msgspec.structs.replace(full, reasons=("disk: full", UNREACHED))
    Lines().show(full)
    assert "disk: full" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "width", "shown"),
    [
        ("short_0123456789ab.json", 36, "short_0123456789ab.json"),
        ("a" * 18 + "_0123456789ab.json", 36, "a" * 18 + "_0123456789ab.json"),
        ("a" * 19 + "_0123456789ab.json", 36, "a" * 17 + "…_0123456789ab.json"),
        ("电路图" * 9 + "_0123456789ab.json", 36, "电路图电路图电路…_0123456789ab.json"),
        ("a" * 50 + "_0123456789ab.json", 5, "aaa…_0123456789ab.json"),
    ],
)
def test_a_long_name_stays_one_line_with_its_id(name: str, width: int, shown: str) -> None:
    assert shortened(name, width) == shown
    assert cell_len(shown) <= max(width, 4 + TAIL)
