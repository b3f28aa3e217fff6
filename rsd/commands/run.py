"""`daemon.py run`: the daemon in the foreground, or with `--once` a pass with a progress bar."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from contextlib import closing
from pathlib import Path

from rsd.commands import flags, preflight, progress
from rsd.errors import UserError
from rsd.hub import supervisor
from rsd.settings.fields import Settings, state_dir
from rsd.settings.secrets import take_environment
from rsd.system import signals
from rsd.system.files import InstanceLock

#: What `--fresh` moves away.
MOVED = ("state", "high_quality", "low_quality", "failed", "summary.json", "logs")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `run`."""
    parser.add_argument("--once", action="store_true", help="process what lies there and exit")
    parser.add_argument(
        "--samples", type=int, default=-1, metavar="N", help="with --once: only the first N paths"
    )
    parser.add_argument("--resume", action="store_true", help="accepted: rsd always resumes")
    parser.add_argument("--fresh", action="store_true", help="move earlier state and results away")
    parser.add_argument("--yes", action="store_true", help="do not ask before --fresh")
    flags.add_settings(parser)


def main(args: argparse.Namespace) -> int:
    """Exit codes: 0 all have a result, 1 some failed, 2 wrong usage, 130 interrupted; of the daemon
    0 when a signal stopped it.
    """
    signals.end_orderly()
    if args.samples != -1 and not args.once:
        raise UserError(f"--samples = {args.samples}: only with --once")
    if args.samples < -1 or args.samples == 0:
        raise UserError(f"--samples = {args.samples}: -1 (all) or at least 1")
    environ = take_environment()
    settings, recipe = flags.settings_of(args, environ)
    if args.resume:
        print("rsd: --resume is not needed: rsd always resumes", file=sys.stderr)
    flags.warn_of_visible_keys(args)
    if args.fresh:
        start_afresh(settings, yes=args.yes)
    preflight.prepare(settings)
    if not args.once:
        return supervisor.run(settings, recipe, lambda: flags.settings_of(args, environ))
    with closing(progress.shown()) as bar:
        code = supervisor.run(
            settings,
            recipe,
            once=True,
            samples=args.samples if args.samples > 0 else None,
            on_progress=bar.show,
            stderr_log=not bar.live,
        )
    bar.summarise(settings)
    return code


def start_afresh(settings: Settings, *, yes: bool) -> None:
    """Move state and results to OUTPUT/previous-<time>/; nothing is deleted. Raises UserError."""
    output, state = Path(settings.output_dir), state_dir(settings)
    if not output.exists():
        return
    lock = InstanceLock(state / "instance.lock")
    if state.exists() and not lock.acquire():
        raise UserError(f"--fresh: a daemon works in {state}; stop it first")
    try:
        _move_away(output, state, yes=yes)
    finally:
        lock.release()


def _move_away(output: Path, state: Path, *, yes: bool) -> None:
    found = [output / name for name in MOVED if (output / name).exists()]
    if state.exists() and state.resolve() not in [f.resolve() for f in found]:
        found.append(state)
    if not found:
        return
    if not yes:
        if not sys.stdin.isatty():
            raise UserError("--fresh: without a terminal it needs --yes")
        answer = input(f"Move state and results of {output} to previous-<time>/? [y/N] ")
        if answer.strip().lower() not in ("y", "yes"):
            raise UserError("--fresh: not confirmed")
    target = output / time.strftime("previous-%Y%m%d-%H%M%S")
    try:
        target.mkdir()
        for path in found:
            shutil.move(path, target / ("state" if path == state else path.name))
    except OSError as e:
        raise UserError(f"--fresh: {target}: {e.strerror or e}") from None
    print(f"rsd: earlier state and results are now in {target}", file=sys.stderr)
