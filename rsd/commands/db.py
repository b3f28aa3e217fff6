"""`daemon.py db rebuild-stats`: sum up again what was learned, and compare with what is stored."""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec
from msgspec import Struct

from rsd.commands import flags
from rsd.commands.isolated import isolated
from rsd.commands.status import needed_states
from rsd.errors import UserError
from rsd.state.rebuild import Rebuilt, rebuild
from rsd.state.store import Store
from rsd.system.files import InstanceLock, holding
from rsd.writer.offline import rebuild_records

#: Exit codes.
EQUAL, DIFFERENT = 0, 1


class Compared(Struct, frozen=True, kw_only=True):
    """What became of one record."""

    key: str
    models: str
    lessons: int
    unlearned: int
    differences: tuple[str, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `db`."""
    parser.add_argument(
        "action",
        choices=["rebuild-stats"],
        metavar="rebuild-stats",
        help="sum up again what was learned, image by image, and compare it with what is stored",
    )
    parser.add_argument(
        "--write", action="store_true", help="store the new sums (while no daemon runs)"
    )
    flags.add_state(parser)


def main(args: argparse.Namespace) -> int:
    """Exit codes: 0 all equal, 1 something differs (with --write: it did), 2 wrong usage."""
    states = needed_states(args)
    if len(states) > 1:
        raise UserError("several daemons run; say which with --output-dir")
    state = states[0]
    if not args.write:
        return _report(_decoded(isolated(_compare, state)), written=False)
    with holding(InstanceLock(state / "instance.lock")) as taken:
        if not taken:
            raise UserError("--write: a daemon works on this state; stop it first")
        return _report(_decoded(isolated(_write, state)), written=True)


def _decoded(found: bytes) -> list[Compared]:
    return msgspec.json.decode(found, type=list[Compared])


def _compare(state: Path) -> bytes:
    store = Store(state / "lmdb", readonly=True)
    return _summary(rebuild(store))


def _write(state: Path) -> bytes:
    return _summary(rebuild_records(state))


def _summary(found: list[Rebuilt]) -> bytes:
    compared = []
    for one in found:
        record = one.stored or one.summed
        models = "of a recipe that is not stored"
        if record is not None:
            generator = record.generator_model or "the model that is served"
            models = f"{generator}, graded by {record.grader_model}"
        compared.append(
            Compared(
                key=one.key,
                models=models,
                lessons=one.lessons,
                unlearned=one.unlearned,
                differences=one.differences,
            )
        )
    return msgspec.json.encode(compared)


def _report(found: list[Compared], *, written: bool) -> int:
    if not found:
        print("nothing was learned yet")
    for one in found:
        images = "1 image" if one.lessons == 1 else f"{one.lessons} images"
        if one.differences:
            verdict = "DIFFERENT in " + ", ".join(one.differences)
            verdict += "; the new sums are stored" * written
        else:
            verdict = "equal, bit by bit"
        print(f"{one.key} ({one.models}), {images}: {verdict}")
        if one.unlearned:
            print(f"{one.key}: {one.unlearned} of them teach nothing (see the log)")
    return DIFFERENT if any(one.differences for one in found) else EQUAL
