"""What result files and summary.json hold. Pure: records in, documents out."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from rsd.names import display_path
from rsd.pricing import money, spent
from rsd.protocol.vocabulary import Candidate, Stats, SummaryConfig, Usage
from rsd.state.lessons import ADAPTIVE
from rsd.state.records import HIGH, ImageRecord, Tally
from rsd.state.tallies import score_of
from rsd.state.view import ImageView
from rsd.strategy.insight import StrategyDocument

#: Why an image was decided when it was.
STOP_WORDS: Final = {
    "all_drawn": "all planned candidates were made and graded",
    "stop_score": "a candidate reached the stop score",
    "agreed": "all candidates gave one answer, and it was graded",
    "no_gain": "neither a candidate nor a grade more was worth its price",
    "cap": "a limit on the candidates or grades of an image was reached",
    "audit": "an audit image: drawn evenly and graded whole",
}


def formatted(timestamp: float) -> str:
    """Unix seconds as local time, in the reference system's form."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(timestamp))


def shown_path(image_dir: str, path: bytes) -> str:
    """The absolute path of an image as text; odd bytes are escaped."""
    whole = os.fsencode(Path(image_dir)) + b"/" + path
    try:
        return whole.decode()
    except UnicodeDecodeError:
        return display_path(whole)


def image_info(record: ImageRecord, image_dir: str) -> dict[str, Any]:
    """`image_info` of a result: as far as the picture could be read."""
    info = record.info
    path = shown_path(image_dir, record.path)
    return {
        "path": path,
        "filename": path.rpartition("/")[2],
        "sha256": record.sha256,
        "width": info.width if info else None,
        "height": info.height if info else None,
        "format": info.format if info else None,
        "bytes": info.bytes if info else None,
    }


def result_document(view: ImageView, image_dir: str) -> dict[str, Any]:
    """A decided image. `all_candidates` holds candidates with a grade of the recipe's rubric only:
    an error is never a score, and neither is what another rubric gave.
    """
    record = view.record
    config = record.decided_config or record.config
    recipe = view.recipes.get(config)
    rubric = recipe.rubric if recipe else ""
    scores = {i: score_of(grades, rubric) for i, grades in view.grades.items()}
    twins = view.twins(rubric) if recipe is not None and recipe.strategy == ADAPTIVE else {}
    entries = [
        _candidate(view, made, score, rubric, record.winner, twins.get(made.index))
        for made in view.candidates
        if (score := scores.get(twins.get(made.index, made.index))) is not None
    ]
    best = next((e for e in entries if e["is_best"]), None)
    return {
        "schema": "rsd.result/1",
        "id": record.image,
        "image_info": image_info(record, image_dir),
        "best_result": best,
        "all_candidates": entries,
        "quality": "high" if record.filed == HIGH else "low",
        "score_threshold": recipe.score_threshold if recipe else None,
        "expected_score": record.expected_score,
        "stop_reason": record.stop_reason,
        "stop_reason_text": STOP_WORDS.get(record.stop_reason, record.stop_reason),
        "agreement": msgspec.to_builtins(record.agreement),
        "decision": record.decision,
        "config": config,
        "rubric": rubric,
        "ungraded_candidates": len(view.candidates) - len(entries),
        "ungraded": sum(
            not c.rejected_because and scores.get(twins.get(c.index, c.index)) is None
            for c in view.candidates
        ),
        "failed_candidates": len(view.sample_failures),
        "timestamp": record.ended_at,
        "formatted_time": formatted(record.ended_at),
    }


def _candidate(
    view: ImageView,
    made: Candidate,
    score: float,
    rubric: str,
    winner: int | None,
    twin: int | None,
) -> dict[str, Any]:
    """`twin`: the candidate with the same text whose grades this one has."""
    recipe = view.recipes.get(made.config)
    params = msgspec.structs.asdict(made.params)
    grades = view.grades[made.index if twin is None else twin]
    paid = [] if twin is not None else grades  # once
    return {
        "index": made.index,
        "prompt_key": made.prompt_key,
        "prompt_text": recipe.prompts.get(made.prompt_key, "") if recipe else "",
        "params": {**params, "seed": made.seed},
        "content": made.content,
        "finish_reason": made.finish_reason,
        "score": score,
        "score_explanation": next(g.explanation for g in grades if g.rubric == rubric),
        "is_best": made.index == winner,
        "same_as": twin,
        "generation_time": made.generation_time,
        "grading_time": sum(g.grading_time for g in paid),
        "usage": _usage(made.usage, [g.usage for g in paid]),
        "model": made.model,
        "endpoint": made.endpoint,
        "grades": [
            {
                "number": g.number,
                "score": g.score,
                "explanation": g.explanation,
                "rubric": g.rubric,
                "grading_time": g.grading_time,
                "model": g.model,
                "endpoint": g.endpoint,
                "timestamp": g.timestamp,
            }
            for g in grades
        ],
        "timestamp": made.timestamp,
        "formatted_time": formatted(made.timestamp),
    }


def _usage(generation: Usage, grading: list[Usage]) -> dict[str, int]:
    return {
        "prompt_tokens": generation.input_tokens,
        "completion_tokens": generation.output_tokens,
        "grading_prompt_tokens": sum(u.input_tokens for u in grading),
        "grading_completion_tokens": sum(u.output_tokens for u in grading),
    }


def failed_document(view: ImageView, image_dir: str) -> dict[str, Any]:
    """Why an image has no result."""
    record = view.record
    return {
        "schema": "rsd.failed/1",
        "id": record.image,
        "image_info": image_info(record, image_dir),
        "reason": record.reason,
        "message": record.message,
        "starts": record.starts,
        "crashes": record.crashes,
        "candidates": len(view.candidates),
        "errors": [
            {"index": index, **_error(failure.error)}
            for index, failure in view.sample_failures.items()
        ]
        + [
            {"index": index, "grade": number, **_error(failure.error)}
            for (index, number), failure in view.grade_failures.items()
        ],
        "timestamp": record.ended_at,
        "formatted_time": formatted(record.ended_at),
    }


def _error(error: Any) -> dict[str, Any]:
    return {"class": error.error.value, "reason": error.reason, "message": error.message}


def summary_document(
    stats: Stats,
    tallies: dict[str, Tally],
    config: SummaryConfig,
    now: float,
    started: float,
    strategy: StrategyDocument | None = None,
) -> dict[str, Any]:
    """`summary.json`. `now`: Unix seconds; `started`: Unix seconds of the first image seen;
    `strategy`: what was learned.
    """
    processed = stats.high_quality + stats.low_quality
    elapsed = max(0.0, now - started) if started else 0.0
    tokens = {
        "generator_input": stats.generator_input_tokens,
        "generator_output": stats.generator_output_tokens,
        "grader_input": stats.grader_input_tokens,
        "grader_output": stats.grader_output_tokens,
    }
    parts = {
        "generator_cached": stats.generator_cached_tokens,
        "generator_reasoning": stats.generator_reasoning_tokens,
        "grader_cached": stats.grader_cached_tokens,
        "grader_reasoning": stats.grader_reasoning_tokens,
    }
    cost = money(spent(stats), config.prices)
    accepted = stats.high_quality or None
    return {
        "schema": "rsd.summary/1",
        "stats": {
            "total_samples": stats.seen,
            "processed_samples": processed,
            "high_quality_count": stats.high_quality,
            "low_quality_count": stats.low_quality,
            "failed_count": stats.failed,
            "duplicate_count": stats.duplicate,
            "withdrawn_count": stats.withdrawn,
            "queued_count": stats.queued + stats.active,
            "total_generation_time": round(stats.generation_time, 3),
            "total_grading_time": round(stats.grading_time, 3),
            "total_time": round(elapsed, 3),
            "average_generation_time": _ratio(stats.generation_time, stats.generated),
            "average_grading_time": _ratio(stats.grading_time, stats.grades),
            "samples_per_second": _ratio(processed, elapsed),
            "high_quality_percentage": round(100 * stats.high_quality / processed, 2)
            if processed
            else 0.0,
        },
        "config": {
            "prompt_keys": list(config.prompt_keys),
            "score_threshold": config.score_threshold,
            "temperature_range": list(config.temperature_range),
            "top_p_range": list(config.top_p_range),
            "top_k_range": list(config.top_k_range),
        },
        "candidates": {
            "generated": stats.generated,
            "graded": stats.graded,
            "ungraded": stats.generated - stats.graded,
            "failed": stats.sample_failures,
            "grades": stats.grades,
        },
        "score_distribution": {
            "candidates": _buckets(tallies, "score"),
            "best": _buckets(tallies, "best"),
        },
        "per_prompt": _levels(tallies, "prompt"),
        "per_temperature": _levels(tallies, "temperature"),
        "per_top_p": _levels(tallies, "top_p"),
        "per_top_k": _levels(tallies, "top_k"),
        "strategy": [
            {
                "key": record.learned.key,
                "generator_model": record.learned.generator_model,
                "grader_model": record.learned.grader_model,
                "rubric": record.learned.rubric,
                **msgspec.to_builtins(record.insight),
            }
            for record in (strategy.records if strategy is not None else ())
        ],
        "throughput": {
            "images_per_hour": _ratio(3600 * processed, elapsed),
            "candidates_per_hour": _ratio(3600 * stats.generated, elapsed),
        },
        "tokens": tokens | parts,
        "tokens_per_accepted": round(sum(tokens.values()) / accepted, 1) if accepted else None,
        "unused": {
            "calls": stats.unused_calls,
            "input_tokens": stats.unused_input_tokens,
            "output_tokens": stats.unused_output_tokens,
            "by_outcome": _reasons(tallies, "unused"),
        },
        "cost": cost,
        "cost_per_accepted": round(cost / accepted, 6) if cost is not None and accepted else None,
        "failures": {
            "images": _reasons(tallies, "failed"),
            "candidates": _reasons(tallies, "sample_failure"),
            "grades": _reasons(tallies, "grading_failure"),
        },
        "timestamp": now,
        "formatted_time": formatted(now),
    }


def _ratio(value: float, by: float) -> float:
    return round(value / by, 4) if by else 0.0


def _rows(tallies: dict[str, Tally], kind: str) -> dict[str, Tally]:
    start = f"{kind}:"
    return {n[len(start) :]: t for n, t in tallies.items() if n.startswith(start)}


def _levels(tallies: dict[str, Tally], kind: str) -> dict[str, Any]:
    return {
        name: {
            "generated": t.generated,
            "graded": t.graded,
            "compared": t.graded - t.selected,
            "mean_score": _mean(t),
            "wins": t.wins,
            "accepted": t.accepted,
        }
        for name, t in sorted(_rows(tallies, kind).items())
    }


def _mean(tally: Tally) -> float | None:
    """Without candidates that were graded for what they say: these flatter their arm."""
    compared = tally.graded - tally.selected
    return round((tally.score_sum - tally.selected_sum) / compared, 3) if compared else None


def _buckets(tallies: dict[str, Tally], kind: str) -> dict[str, int]:
    rows = _rows(tallies, kind)
    return {name: rows[name].count for name in sorted(rows, key=int)}


def _reasons(tallies: dict[str, Tally], kind: str) -> dict[str, int]:
    return {name: t.count for name, t in sorted(_rows(tallies, kind).items())}
