"""`daemon.py status`: how the daemon is doing, from any other process, also while it is stopped."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.live import Live

from rsd import __version__
from rsd.commands import flags
from rsd.commands.isolated import isolated
from rsd.commands.locate import last_word, lives
from rsd.commands.status_table import table
from rsd.errors import StateError, UserError
from rsd.protocol.status import FOREIGN, Status, candidate_counts, image_counts, token_counts
from rsd.protocol.vocabulary import Stats
from rsd.state.store import Store
from rsd.system import processes, runtime_dir
from rsd.system.files import refusal, unwritable

#: Seconds without a new document after which a living daemon does not respond.
STALE_SECONDS = 15.0
#: Seconds between two documents of --watch.
WATCH_SECONDS = 2.0
NO_DAEMON = "no daemon found: give --output-dir DIR, --state-dir DIR or --config FILE"
#: Exit codes.
HEALTHY, DEGRADED, STOPPED = 0, 1, 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `status`."""
    parser.add_argument("--json", action="store_true", help="the whole document (rsd.status/1)")
    parser.add_argument("--watch", action="store_true", help="again every two seconds")
    flags.add_state(parser)


def main(args: argparse.Namespace) -> int:
    """Exit codes: 0 healthy, 1 degraded, 3 not running; 4, by StateError, state unreadable."""
    states = states_of(args)
    console = Console()
    if not states:
        if args.json:
            print_json(stopped(Stats(), None, None, NO_DAEMON))
        else:
            console.print(NO_DAEMON, soft_wrap=True)
        return STOPPED
    if args.watch and not args.json:
        watch(console, states)
    found = [status_of(state) for state in states]
    if args.json:
        print_json(found[0] if len(found) == 1 else found)
    else:
        console.print(table(found))
    return max(code_of(status) for status in found)


def watch(console: Console, states: Sequence[Path]) -> None:
    """Show the status again and again until Ctrl-C."""
    with (
        Live(console=console, refresh_per_second=4) as screen,
        contextlib.suppress(KeyboardInterrupt),
    ):
        while True:
            screen.update(table([status_of(state) for state in states]))
            time.sleep(WATCH_SECONDS)


def print_json(found: Status | list[Status]) -> None:
    """One document, or a list of several."""
    print(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())


def states_of(args: argparse.Namespace) -> list[Path]:
    """The state directories meant: flags and files first, then the running daemons' pointers.

    Empty when nothing says where one is.
    """
    settings = flags.settings_for_state(args)
    if settings is not None:
        return [flags.state_of(settings)]
    found = [p for p in runtime_dir.find_pointers() if Path(p.state_dir).is_dir()]
    living = [p for p in found if processes.hub_lives(p.pid, p.created, Path(p.state_dir))]
    return [Path(p.state_dir) for p in living or found]


def needed_states(args: argparse.Namespace) -> list[Path]:
    """Like `states_of`, for a command that can do nothing without. Raises UserError."""
    states = states_of(args)
    if not states:
        raise UserError(NO_DAEMON)
    return states


def status_of(state: Path, now: float | None = None) -> Status:
    """The status of one instance; `now` is monotonic, by default the clock's.

    Raises StateError when nothing can be read.
    """
    last = last_word(state)
    if last is not None and lives(last, state):
        if last.bottleneck == FOREIGN:
            last = with_counts(last, state)
        return with_silence(last, state, time.monotonic() if now is None else now)
    if last is None and not (state / "lmdb").exists():
        return stopped(Stats(), None, state, f"nothing has run here yet: {state}")
    return stopped(stats_of(state), last, state)


def with_counts(foreign: Status, state: Path) -> Status:
    """The status of a daemon whose document cannot be read: the store's counters, if they can."""
    with contextlib.suppress(StateError):
        return counted(foreign, stats_of(state))
    return foreign


def with_silence(status: Status, state: Path, now: float) -> Status:
    """Degraded when the hub has written nothing for too long."""
    age = now - status.written_monotonic
    if age <= STALE_SECONDS:
        return status
    silent = f"the hub has not responded for {age:.0f} s"
    if why := unwritable(state):
        why = refusal("state_dir", state, why)
        silent = f"the hub has had no place for its status for {age:.0f} s: {why}"
    return msgspec.structs.replace(status, health="degraded", reasons=(silent, *status.reasons))


def stats_of(state: Path) -> Stats:
    """The exact counters, from the store. Raises StateError whatever is wrong with it."""
    return msgspec.json.decode(isolated(_stats, state), type=Stats)


def _stats(state: Path) -> bytes:
    with Store(state / "lmdb", readonly=True).reading() as txn:
        return msgspec.json.encode(txn.stats())


def stopped(
    stats: Stats, last: Status | None, state: Path | None, reason: str = "not running"
) -> Status:
    """The status of a daemon that is down: exact counts, and what was last known of the rest."""
    last = last or Status()
    found = Status(
        version=__version__,
        reasons=(reason,),
        image_dir=last.image_dir,
        output_dir=last.output_dir,
        state_dir=None if state is None else str(state),
        cost=last.cost,
        watch=msgspec.structs.replace(last.watch, settling=0),
    )
    return counted(found, stats)


def counted(status: Status, stats: Stats) -> Status:
    """The same with these counters."""
    return msgspec.structs.replace(
        status,
        images=image_counts(stats),
        candidates=candidate_counts(stats),
        tokens=token_counts(stats),
        results_pending=stats.outbox,
    )


def code_of(status: Status) -> int:
    """Exit code of one instance."""
    if not status.running:
        return STOPPED
    return HEALTHY if status.health == "ok" else DEGRADED
