"""`daemon.py show IMAGE`: all that is known of one image."""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape

from rsd.commands import flags
from rsd.commands.isolated import isolated
from rsd.commands.locate import find, image_dir_of
from rsd.commands.status import needed_states
from rsd.errors import UserError
from rsd.names import display_path, result_name
from rsd.protocol.vocabulary import image_id
from rsd.state import view
from rsd.state.lessons import ADAPTIVE
from rsd.state.records import ImageRecord
from rsd.state.results import STOP_WORDS, failed_document, formatted
from rsd.state.store import Store
from rsd.state.tallies import score_of
from rsd.state.view import ImageView


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `show`."""
    parser.add_argument("image", metavar="IMAGE", help="path, result file or id")
    parser.add_argument("--json", action="store_true", help="as JSON")
    flags.add_state(parser)


def main(args: argparse.Namespace) -> int:
    """Exit codes: 0 found, 2 unknown image."""
    settings = flags.settings_for_state(args)
    for state in needed_states(args):
        image_dir = image_dir_of(state, settings.image_dir if settings else "")
        words = Console()
        found = isolated(
            _render, state, args.image, image_dir, args.json, words.is_terminal, words.width
        )
        if found:
            print(found.decode(), end="")
            return 0
    raise UserError(f"{args.image}: no such image is known (give its path, result file or id)")


def _render(
    state: Path, image: str, image_dir: Path | None, json: bool, terminal: bool, width: int
) -> bytes:
    """All that is known of an image, as text; empty when there is none."""
    with Store(state / "lmdb", readonly=True).reading() as txn:
        record = find(txn, image, image_dir)
        if record is None:
            return b""
        seen = view.view(txn, record)
        older = [
            earlier
            for version in range(record.version)
            if (earlier := view.image_record(txn, image_id(record.path, version)))
        ]
        original = view.image_record(txn, record.of) if record.of else None
    if json:
        return msgspec.json.format(msgspec.json.encode(as_json(seen, older)), indent=2) + b"\n"
    text = io.StringIO()
    out = Console(file=text, highlight=False, force_terminal=terminal, width=width)
    print_image(out, seen, older, display_path(original.path) if original else "")
    return text.getvalue().encode("utf-8", "backslashreplace")


def as_json(seen: ImageView, older: list[ImageRecord]) -> dict[str, Any]:
    """Record, earlier contents of the path, candidates with all their grades, errors."""
    return {
        "image": msgspec.to_builtins(seen.record) | {"path": display_path(seen.record.path)},
        "earlier_versions": [
            {"image": r.image, "version": r.version, "sha256": r.sha256, "score": r.score}
            for r in older
        ],
        "rubric": seen.rubric,
        "steps": msgspec.to_builtins(seen.steps),
        "candidates": [
            msgspec.to_builtins(c) | {"grades": msgspec.to_builtins(seen.grades.get(c.index, []))}
            for c in seen.candidates
        ],
        "errors": failed_document(seen, "")["errors"],
    }


def print_image(out: Console, seen: ImageView, older: list[ImageRecord], original: str) -> None:
    """For a person."""
    record = seen.record

    def line(name: str, text: object) -> None:
        out.print(f"[bold]{name:<11}[/] {escape(str(text))}", soft_wrap=True)

    line("image", display_path(record.path))
    line("id", f"{record.image} (version {record.version})")
    for r in older:
        score = "no score" if r.score is None else f"score {r.score:.1f}"
        line("earlier", f"version {r.version}, {score}: show {r.image}")
    status = record.status + (f": {record.reason}" if record.reason else "")
    line("status", status + (f" ({record.message})" if record.message else ""))
    if original:
        line("original", original)
    if record.info is not None:
        i = record.info
        line("picture", f"{i.width} x {i.height} {i.format}, {i.bytes} bytes, sha256 {i.sha256}")
    if record.score is not None:
        what = f"{record.decision}: candidate {record.winner}, score {record.score:.1f}"
        if record.agreement is not None:  # else nothing but the score was expected
            what += f", expected {record.expected_score:.1f}"
        line("decision", what)
        if record.stop_reason:
            line("stopped", STOP_WORDS.get(record.stop_reason, record.stop_reason))
        if record.agreement is not None:
            a = record.agreement
            texts = "1 text" if a.distinct == 1 else f"{a.distinct} texts"
            line("agreement", f"{a.level:.2f} over {texts}; {a.winner:.2f} of the best one")
        if record.learned:
            line("learned", f"as number {record.learned} of {record.learned_key}")
        line("result", f"{record.status}/{result_name(record.path)}")
    for name, moment in (("started", record.started_at), ("ended", record.ended_at)):
        if moment:
            line(name, formatted(moment))
    recipe = seen.recipes.get(view.config_in_force(record))
    learns = recipe is not None and recipe.strategy == ADAPTIVE
    twins = seen.twins(seen.rubric) if learns else {}
    for made in seen.candidates:
        p = made.params
        twin = twins.get(made.index)
        grades = seen.grades.get(made.index, [])
        counted = score_of(grades if twin is None else seen.grades[twin], seen.rubric)
        score = made.rejected_because or "ungraded" if counted is None else f"{counted:.1f}"
        same = f", the same text as #{twin}" if twin is not None else ""
        best = "  <- best" if made.index == record.winner else ""
        out.print(
            f"\n[bold]#{made.index}[/] {escape(made.prompt_key)} T={p.temperature:g} "
            f"top_p={p.top_p:g} top_k={p.top_k} seed={made.seed}: [bold]{score}[/]{same}{best}"
        )
        for grade in grades:
            word = "grade" if grade.rubric == seen.rubric else "grade by another rubric"
            out.print(f"   {word} {grade.score:g}: {escape(grade.explanation)}", soft_wrap=True)
        out.print("   " + escape(made.content).replace("\n", "\n   "), soft_wrap=True)
    for error in failed_document(seen, "")["errors"]:
        what = f"candidate {error['index']}" + (
            f" grade {error['grade']}" if "grade" in error else ""
        )
        out.print(f"\n[bold]{what}[/] failed: {error['class']} {escape(error['message'])}")
