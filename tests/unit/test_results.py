"""What result files and the summary hold: pure functions of records."""

from __future__ import annotations

import io
import json
import time

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from rsd.commands.show import print_image
from rsd.protocol.facts import Agreement
from rsd.protocol.learned import nothing_learned
from rsd.protocol.vocabulary import (
    Candidate,
    Grade,
    Recipe,
    Role,
    Stats,
    SummaryConfig,
    TokenPrices,
)
from rsd.state.records import HIGH, LOW, FailureRecord, ImageRecord, Tally
from rsd.state.results import (
    failed_document,
    formatted,
    result_document,
    shown_path,
    summary_document,
)
from rsd.state.tallies import KEY_BYTES, bucket, levels, row_key
from rsd.state.view import ImageView
from rsd.strategy import insight
from tests.histories import ADAPTIVE, ERROR, RECIPE, candidate, grade, info_of

CONFIG = SummaryConfig(
    image_dir="/pictures",
    prompt_keys=("p1", "p2"),
    score_threshold=80.0,
    temperature_range=(0.3, 1.0),
    top_p_range=(0.9,),
    top_k_range=(40,),
)


def view_of(
    candidates: list[Candidate],
    grades: dict[int, list[Grade]],
    *,
    winner: int | None = 0,
    filed: str = HIGH,
    path: bytes = b"deep/cat.png",
    recipe: Recipe = RECIPE,
) -> ImageView:
    info = info_of("cat")
    record = ImageRecord(
        image="0" * 32,
        path=path,
        version=0,
        status=filed,
        filed=filed,
        sha256=info.sha256,
        info=info,
        config=recipe.fingerprint,
        decision=1,
        winner=winner,
        score=91.0,
        expected_score=90.5,
        stop_reason="all_drawn",
        starts=1,
        ended_at=1700000000.0,
    )
    return ImageView(
        record, candidates=candidates, grades=grades, recipes={recipe.fingerprint: recipe}
    )


def test_a_result_has_the_fields_of_the_reference_system_and_ours() -> None:
    grades = {0: [grade(0, 90.0), grade(0, 93.0, number=1)], 1: [grade(1, 20.0)]}
    document = result_document(view_of([candidate(0), candidate(1)], grades), "/pictures")
    assert document == msgspec.json.decode(msgspec.json.encode(document)), "plain JSON"
    info = info_of("cat")
    assert document["image_info"] == {
        "path": "/pictures/deep/cat.png",
        "filename": "cat.png",
        "sha256": info.sha256,
        "width": 96,
        "height": 64,
        "format": "PNG",
        "bytes": info.bytes,
    }
    best, other = document["all_candidates"]
    assert document["best_result"] == best
    assert (best["is_best"], other["is_best"]) == (True, False)
    assert best["score"] == 91.5
    assert best["score_explanation"] == "because 90"
    assert [g["score"] for g in best["grades"]] == [90.0, 93.0]
    assert best["grading_time"] == 0.5
    assert best["prompt_text"] == "What is this?"
    assert best["params"] == {
        "temperature": 0.3,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "seed": 0,
    }
    assert best["usage"] == {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "grading_prompt_tokens": 40,
        "grading_completion_tokens": 4,
    }
    assert set(best) == {
        *("index", "prompt_key", "prompt_text", "params", "content", "finish_reason", "score"),
        *("score_explanation", "is_best", "generation_time", "grading_time", "usage", "model"),
        *("endpoint", "grades", "timestamp", "formatted_time", "same_as"),
    }
    assert document["schema"] == "rsd.result/1"
    assert document["quality"] == "high"
    assert document["score_threshold"] == 80.0
    assert document["expected_score"] == 90.5
    assert document["decision"] == 1
    assert document["config"] == RECIPE.fingerprint
    assert document["timestamp"] == 1700000000.0


def test_what_has_no_grade_is_no_candidate_of_a_result() -> None:
    seen = view_of([candidate(0), candidate(1), candidate(2)], {2: [grade(2, 0.0)]}, winner=2)
    seen.record.filed = LOW
    seen.sample_failures[3] = FailureRecord(error=ERROR, time=1.0)
    document = result_document(seen, "/pictures")
    assert [c["index"] for c in document["all_candidates"]] == [2]
    assert document["best_result"]["score"] == 0.0, "a judge's 0 is a score"
    assert (document["ungraded_candidates"], document["failed_candidates"]) == (2, 1)
    assert document["quality"] == "low"


def test_a_failure_says_why() -> None:
    seen = view_of([candidate(0)], {}, winner=None, filed="failed")
    seen.record.reason, seen.record.message = "ungraded", "the judge said nothing"
    seen.sample_failures[1] = FailureRecord(error=ERROR, time=1.0)
    seen.grade_failures[0, 1] = FailureRecord(error=ERROR, time=1.0)
    document = failed_document(seen, "/pictures")
    assert document["schema"] == "rsd.failed/1"
    assert (document["reason"], document["message"]) == ("ungraded", "the judge said nothing")
    assert (document["candidates"], document["starts"], document["crashes"]) == (1, 1, 0)
    error = {"class": "refused", "reason": "content_filter", "message": "no"}
    assert document["errors"] == [{"index": 1, **error}, {"index": 0, "grade": 1, **error}]


def test_a_failure_of_a_file_that_could_not_be_read_has_what_is_known() -> None:
    record = ImageRecord(image="0" * 32, path=b"x.png", version=0, status="failed", reason="empty")
    document = failed_document(ImageView(record), "/pictures")
    assert document["image_info"] == {
        "path": "/pictures/x.png",
        "filename": "x.png",
        "sha256": "",
        "width": None,
        "height": None,
        "format": None,
        "bytes": None,
    }


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=40).filter(lambda b: b"\0" not in b))
def test_any_path_can_be_shown_and_stored(path: bytes) -> None:
    shown = shown_path("/pictures", path)
    assert msgspec.json.decode(msgspec.json.encode(shown)) == shown
    try:
        assert shown == "/pictures/" + path.decode()
    except UnicodeDecodeError:
        assert shown.isprintable()


def test_times_are_local_and_in_the_old_form() -> None:
    moment = 1700000000.0
    assert time.mktime(time.strptime(formatted(moment), "%Y-%m-%d %H:%M:%S")) == moment


def test_a_summary_before_the_first_image() -> None:
    document = summary_document(Stats(), {}, CONFIG, now=50.0, started=0.0)
    json.dumps(document, allow_nan=False)
    assert set(document["stats"].values()) <= {0}
    assert document["config"] == {
        "prompt_keys": ["p1", "p2"],
        "score_threshold": 80.0,
        "temperature_range": [0.3, 1.0],
        "top_p_range": [0.9],
        "top_k_range": [40],
    }
    assert document["tokens_per_accepted"] is None
    assert document["cost"] is None


def test_a_summary_reckons_rightly() -> None:
    stats = Stats(
        seen=9,
        queued=1,
        active=1,
        high_quality=3,
        low_quality=1,
        failed=2,
        duplicate=1,
        generated=10,
        graded=8,
        grades=16,
        generation_time=20.0,
        grading_time=8.0,
        sample_failures=4,
        generator_input_tokens=1_000_000,
        generator_output_tokens=500_000,
        grader_input_tokens=2_000_000,
        grader_output_tokens=100_000,
    )
    tallies = {
        "prompt:p1": Tally(generated=6, graded=4, score_sum=300.0, wins=3, accepted=2),
        "prompt:p2": Tally(generated=4),
        "temperature:0.3": Tally(generated=10),
        "top_p:0.9": Tally(generated=10),
        "top_k:-1": Tally(generated=10),
        "score:5": Tally(count=1),
        "score:80": Tally(count=2),
        "score:95": Tally(count=1),
        "best:80": Tally(count=2),
        "failed:not_an_image": Tally(count=2),
        "sample_failure:timeout": Tally(count=4),
    }
    config = msgspec.structs.replace(
        CONFIG,
        prices={
            Role.GENERATE: TokenPrices(output=0.5),
            Role.GRADE: TokenPrices(input=1.0, output=4.0),
        },
    )
    document = summary_document(stats, tallies, config, now=150.0, started=50.0)
    numbers = document["stats"]
    assert numbers["total_samples"] == 9
    assert numbers["processed_samples"] == 4
    assert (numbers["high_quality_count"], numbers["low_quality_count"]) == (3, 1)
    assert (numbers["total_generation_time"], numbers["total_grading_time"]) == (20.0, 8.0)
    assert (numbers["average_generation_time"], numbers["average_grading_time"]) == (2.0, 0.5)
    assert (numbers["total_time"], numbers["samples_per_second"]) == (100.0, 0.04)
    assert numbers["high_quality_percentage"] == 75.0
    assert document["throughput"] == {"images_per_hour": 144.0, "candidates_per_hour": 360.0}
    assert document["candidates"]["ungraded"] == 2
    assert document["per_prompt"]["p1"] == {
        "generated": 6,
        "graded": 4,
        "compared": 4,
        "mean_score": 75.0,
        "wins": 3,
        "accepted": 2,
    }
    assert document["per_prompt"]["p2"]["mean_score"] is None
    assert list(document["per_top_k"]) == ["-1"]
    assert list(document["score_distribution"]["candidates"]) == ["5", "80", "95"]
    assert document["failures"] == {
        "images": {"not_an_image": 2},
        "candidates": {"timeout": 4},
        "grades": {},
    }
    assert document["cost"] == pytest.approx(2.0 + 0.4 + 0.25)
    assert document["cost_per_accepted"] == pytest.approx(2.65 / 3, abs=1e-6)
    assert document["tokens_per_accepted"] == 1_200_000.0


@settings(deadline=None)
@given(st.floats(0, 100))
def test_every_score_has_its_bucket(score: float) -> None:
    low = int(bucket("score", score).removeprefix("score:"))
    assert low % 5 == 0
    assert low <= score
    assert score < low + 5 or (low, score) == (95, 100.0)


@settings(deadline=None)
@given(st.text(max_size=800).filter(lambda t: t.isprintable()))
def test_row_keys_fit_into_lmdb_and_short_ones_are_whole(name: str) -> None:
    row = row_key("prompt:" + name)
    assert len(row) <= KEY_BYTES
    assert ("prompt:" + name).startswith(row.decode())
    if len(name.encode()) < KEY_BYTES - 10:
        assert row.decode() == "prompt:" + name


def test_a_candidate_counts_in_its_prompt_and_each_of_its_parameters() -> None:
    assert levels(candidate(3)) == ("prompt:p2", "temperature:1", "top_p:0.9", "top_k:40")


def test_show_marks_grades_by_another_rubric() -> None:
    old = grade(0, 95.0, rubric="0" * 16)
    seen = view_of([candidate(0)], {0: [old, grade(0, 70.0, number=1)]})
    seen.rubric = RECIPE.rubric
    text = io.StringIO()
    print_image(Console(file=text, width=200), seen, [], "")
    assert "grade by another rubric 95: because 95" in text.getvalue()
    assert "   grade 70: because 70" in text.getvalue()
    assert ": 70.0  <- best" in text.getvalue()
    document = result_document(seen, "/pictures")
    assert document["best_result"]["score"] == 70.0
    assert [g["rubric"] for g in document["best_result"]["grades"]] == ["0" * 16, RECIPE.rubric]


def twins() -> ImageView:
    """Three candidates with two texts, of which one is graded, and a truncated copy of it."""
    made = [candidate(i) for i in range(4)]
    made[2] = msgspec.structs.replace(made[2], content=made[0].content + "\n")
    made[3] = msgspec.structs.replace(
        made[3], content=made[0].content, rejected_because="truncated"
    )
    seen = view_of(made, {0: [grade(0, 70.0)]}, recipe=ADAPTIVE)
    seen.record.agreement = Agreement(level=0.625, distinct=2, winner=0.75)
    seen.record.stop_reason, seen.record.learned = "no_gain", 3
    seen.rubric = ADAPTIVE.rubric
    return seen


def test_candidates_with_one_text_share_its_grades_and_pay_once() -> None:
    document = result_document(twins(), "/pictures")
    first, copy = document["all_candidates"]
    assert (first["index"], first["same_as"], first["is_best"]) == (0, None, True)
    assert (copy["index"], copy["same_as"], copy["is_best"]) == (2, 0, False)
    assert copy["score"] == first["score"] == 70.0
    assert copy["grades"] == first["grades"]
    assert (copy["grading_time"], copy["usage"]["grading_prompt_tokens"]) == (0, 0)
    assert document["ungraded"] == 1, "the other text; a truncated one could not be graded"
    assert document["ungraded_candidates"] == 2
    assert document["agreement"] == {"level": 0.625, "distinct": 2, "winner": 0.75}
    assert document["stop_reason"] == "no_gain"
    assert "worth its price" in document["stop_reason_text"]


def test_other_strategies_grade_every_candidate_by_itself() -> None:
    seen = twins()
    seen.recipes = {seen.record.config: RECIPE}
    document = result_document(seen, "/pictures")
    assert [c["index"] for c in document["all_candidates"]] == [0]
    assert document["ungraded"] == 2


def test_show_says_what_candidates_agree_on() -> None:
    text = io.StringIO()
    print_image(Console(file=text, width=200), twins(), [], "")
    shown = text.getvalue()
    assert "0.62 over 2 texts; 0.75 of the best one" in shown
    assert "was worth its price" in shown
    assert "as number 3 of" in shown
    assert "70.0, the same text as #0" in shown
    assert "ungraded" in shown and "truncated" in shown


def test_means_of_arms_are_without_what_was_graded_for_what_it_says() -> None:
    rows = {
        "prompt:p1": Tally(graded=4, score_sum=340.0, selected=3, selected_sum=270.0),
        "prompt:p2": Tally(graded=2, score_sum=180.0, selected=2, selected_sum=180.0),
    }
    found = summary_document(Stats(), rows, CONFIG, 2.0, 1.0)["per_prompt"]
    assert (found["p1"]["compared"], found["p1"]["mean_score"]) == (1, 70.0)
    assert (found["p2"]["compared"], found["p2"]["mean_score"]) == (0, None)


def test_the_summary_has_what_was_learned_in_figures() -> None:
    learned = msgspec.structs.replace(nothing_learned(ADAPTIVE), images=2)
    document = insight.document([(learned, ADAPTIVE)])
    (found,) = summary_document(Stats(), {}, CONFIG, 2.0, 1.0, document)["strategy"]
    assert (found["key"], found["images"], found["rubric"]) == (learned.key, 2, ADAPTIVE.rubric)
    assert "learned" not in found, "sums are in strategy.json"
    assert summary_document(Stats(), {}, CONFIG, 2.0, 1.0)["strategy"] == []
