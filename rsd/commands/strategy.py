"""`daemon.py strategy`: what was learned, for people and for the next run."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

import msgspec
from rich.console import Console

from rsd.commands import flags
from rsd.commands.isolated import isolated
from rsd.commands.prior import bring
from rsd.commands.status import needed_states
from rsd.commands.strategy_table import print_records
from rsd.errors import UserError
from rsd.pricing import prices_of
from rsd.protocol.vocabulary import Role, TokenPrices
from rsd.settings import load
from rsd.settings.fields import Prices
from rsd.state import lessons
from rsd.state.store import Store
from rsd.strategy.insight import StrategyDocument, document
from rsd.system.files import write_atomically

NOTHING = "nothing was learned yet: no image was decided with sampling.strategy = adaptive"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `strategy`."""
    parser.add_argument("--json", action="store_true", help="as JSON (rsd.strategy/1)")
    parser.add_argument("--export", metavar="FILE", help="write it to a file, for another run")
    parser.add_argument(
        "--from",
        dest="source",
        metavar="FILE",
        help="begin with what another run has learned: a prior, not truth",
    )
    parser.add_argument(
        "--levels",
        action="store_true",
        help="with --from: only what it says of prompts and parameters; for other models",
    )
    flags.add_state(parser)


def main(args: argparse.Namespace) -> int:
    """Exit codes: 0 done, 1 the state cannot be read, 2 wrong usage."""
    chosen = [f for f in ("json", "export", "source") if getattr(args, f)]
    if len(chosen) > 1:
        raise UserError("give one of --json, --export and --from")
    if args.levels and not args.source:
        raise UserError("--levels: only with --from")
    if args.source:
        return bring(args)
    states = needed_states(args)
    prices = prices_in_force(args)
    found = [document_of(state, prices) for state in states]
    if args.export:
        export(Path(args.export), states, found)
        return 0
    if args.json:
        whole = msgspec.json.encode(found[0] if len(found) == 1 else found)
        print(msgspec.json.format(whole, indent=2).decode())
        return 0
    out = Console(highlight=False)
    for state, one in zip(states, found, strict=True):
        if len(states) > 1:
            out.print(f"[bold]{state}[/]", soft_wrap=True)
        if one.records:
            print_records(out, one.records)
        else:
            out.print(NOTHING, soft_wrap=True)
    return 0


def document_of(state: Path, prices: dict[Role, TokenPrices]) -> StrategyDocument:
    """The records of a state, with their figures. Raises StateError."""
    found = isolated(_document, state, prices)
    return msgspec.json.decode(found, type=StrategyDocument)


def _document(state: Path, prices: dict[Role, TokenPrices]) -> bytes:
    with Store(state / "lmdb", readonly=True).reading() as txn:
        pairs = [(one, lessons.last_recipe(txn, one.key)) for one in lessons.records(txn)]
    return msgspec.json.encode(document(pairs, prices))


def prices_in_force(args: argparse.Namespace) -> dict[Role, TokenPrices]:
    """Those of the settings, as far as this user can read them: without, none is set."""
    with contextlib.suppress(UserError):
        return prices_of(load.load({}, file=load.find_config(args.config)).prices)
    return prices_of(Prices())


def export(file: Path, states: list[Path], found: list[StrategyDocument]) -> None:
    """Write the document of the one state that is meant. Raises UserError."""
    if len(states) > 1:
        raise UserError("several daemons run; say which with --output-dir")
    records = found[0].records
    if not records:
        raise UserError(f"--export {file}: {NOTHING}")
    if file.exists() and not file.is_file():  # a device or a pipe would be replaced by a file
        raise UserError(f"--export {file}: is no regular file; `strategy --json` prints the same")
    data = msgspec.json.format(msgspec.json.encode(found[0]), indent=2) + b"\n"
    try:
        write_atomically(file, data)
    except OSError as e:
        raise UserError(f"--export {file}: {e.strerror}") from None
    images = sum(r.learned.images + r.learned.prior_images for r in records)
    print(f"what {images} images have taught is in {file}; `strategy --from {file}` takes it along")
