"""docs/contract.md names what exists: commands, flags, keys of every document, error classes."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from rsd import cli
from rsd.commands.flags import FLAGS, REPEATED
from rsd.errors import ErrorClass
from rsd.protocol.status import (
    CandidateCounts,
    EndpointStatus,
    ImageCounts,
    InFlight,
    ProcessStatus,
    Status,
    ThrottleStatus,
    WatchStatus,
)
from rsd.protocol.vocabulary import Stats, SummaryConfig
from rsd.settings.words import setting_keys
from rsd.state.records import ImageRecord
from rsd.state.results import failed_document, image_info, result_document, summary_document
from rsd.state.view import ImageView

PAGE = (Path(__file__).resolve().parents[2] / "docs/contract.md").read_text("utf-8")
#: What stands in code marks, whole and word by word.
NAMED = {
    w for code in re.findall(r"`([^`\n]+)`", PAGE) for w in (code, *re.split(r"[][ ,=]+", code))
}
STATUS_PARTS: tuple[type[msgspec.Struct], ...] = (
    *(Status, ImageCounts, CandidateCounts, InFlight, ThrottleStatus),
    *(EndpointStatus, WatchStatus, ProcessStatus),
)


def test_every_command_and_flag_is_named() -> None:
    assert cli.COMMANDS.keys() <= NAMED
    flags = {*FLAGS, *REPEATED, "--once", "--samples", "--resume", "--fresh", "--yes", "--watch"}
    assert flags <= NAMED, flags - NAMED
    assert {key for key, _ in (*FLAGS.values(), *REPEATED.values())} <= NAMED
    known = set(setting_keys())
    dotted = {w for w in NAMED if re.fullmatch(r"(generation|grading|sampling|errors)\.[a-z_]+", w)}
    assert dotted <= known, dotted - known


def test_every_key_of_the_status_is_named() -> None:
    for part in STATUS_PARTS:
        missing = set(part.__struct_fields__) - NAMED
        assert not missing, (part.__name__, missing)


def test_every_key_of_the_files_is_named() -> None:
    record = ImageRecord(image="0" * 32, path=b"a.png", version=0, status="failed")
    view = ImageView(record=record)
    config = SummaryConfig(
        image_dir="/i",
        prompt_keys=(),
        score_threshold=80.0,
        temperature_range=(),
        top_p_range=(),
        top_k_range=(),
    )
    keys = {*result_document(view, "/i"), *failed_document(view, "/i"), *image_info(record, "/i")}
    keys |= summary_document(Stats(), {}, config, 1.0, 0.0).keys()
    assert keys <= NAMED, keys - NAMED


def test_every_error_class_has_a_row() -> None:
    rows = set(re.findall(r"^\| `([a-z_]+)` \|", PAGE, re.MULTILINE))
    assert {e.value for e in ErrorClass} <= rows


def test_its_lines_are_short() -> None:
    assert not [li for li in PAGE.splitlines() if len(li) > 120 and not li.startswith("|")]
