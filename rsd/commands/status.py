"""`daemon.py status`: how the daemon is doing, from any other process, also while it is stopped."""

from __future__ import annotations

import argparse
import contextlib
import time
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from rsd import __version__
from rsd.commands import flags
from rsd.commands.isolated import isolated
from rsd.commands.locate import last_word
from rsd.errors import UserError
from rsd.protocol.vocabulary import Stats
from rsd.state.store import Store
from rsd.system import processes, runtime_dir
from rsd.system.files import refusal, unwritable

#: A living daemon whose document is older than this does not respond.
STALE_SECONDS = 15.0
#: Seconds between two looks of --watch.
WATCH_SECONDS = 2.0
NO_DAEMON = "no daemon found: give --output-dir DIR, --state-dir DIR or --config FILE"
#: Exit codes.
HEALTHY, DEGRADED, STOPPED, UNREADABLE = 0, 1, 3, 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `status`."""
    parser.add_argument("--json", action="store_true", help="the whole document (rsd.status/1)")
    parser.add_argument("--watch", action="store_true", help="again every two seconds")
    flags.add_state(parser)


def main(args: argparse.Namespace) -> int:
    """Exit codes: 0 healthy, 1 degraded, 3 not running, 4 state unreadable."""
    states = states_of(args)
    console = Console()
    if not states:
        if args.json:
            nothing = stopped(Stats(), None, None, NO_DAEMON)
            print(msgspec.json.format(msgspec.json.encode(nothing), indent=2).decode())
        else:
            console.print(NO_DAEMON, soft_wrap=True)
        return STOPPED
    if args.json:
        documents = [document_of(state) for state in states]
        shown: Any = documents[0] if len(documents) == 1 else documents
        print(msgspec.json.format(msgspec.json.encode(shown), indent=2).decode())
        return max(code_of(d) for d in documents)
    if args.watch:
        with (
            Live(console=console, refresh_per_second=4) as screen,
            contextlib.suppress(KeyboardInterrupt),
        ):
            while True:
                screen.update(picture([document_of(state) for state in states]))
                time.sleep(WATCH_SECONDS)
    documents = [document_of(state) for state in states]
    console.print(picture(documents))
    return max(code_of(d) for d in documents)


def states_of(args: argparse.Namespace) -> list[Path]:
    """The state directories meant: flags and files first, then the running daemons' pointers.

    Empty when nothing says where one is.
    """
    settings = flags.settings_for_state(args)
    if settings is not None:
        return [flags.state_of(settings)]
    found = [p for p in runtime_dir.find_pointers() if Path(p.state_dir).is_dir()]
    living = [p for p in found if processes.same_process(p.pid, p.created)]
    return [Path(p.state_dir) for p in living or found]


def needed_states(args: argparse.Namespace) -> list[Path]:
    """Like `states_of`, for a command that can do nothing without. Raises UserError."""
    states = states_of(args)
    if not states:
        raise UserError(NO_DAEMON)
    return states


def document_of(state: Path, now: float | None = None) -> dict[str, Any]:
    """The status document of one instance; `now` is monotonic, by default the clock's.

    Raises StateError when nothing can be read.
    """
    live = last_word(state)
    if live is not None and processes.same_process(int(live["pid"]), live.get("created")):
        age = (time.monotonic() if now is None else now) - float(live["written_monotonic"])
        if age > STALE_SECONDS:
            why = unwritable(state)
            silent = f"the hub has not responded for {age:.0f} s"
            if why:
                why = refusal("state_dir", state, why)
                silent = f"the hub has had no place for its status for {age:.0f} s: {why}"
            live["health"] = "degraded"
            live["reasons"] = [silent, *live["reasons"]]
        return live
    if live is None and not (state / "lmdb").exists():
        return stopped(Stats(), None, state, f"nothing has run here yet: {state}")
    return stopped(stats_of(state), live, state)


def stats_of(state: Path) -> Stats:
    """The exact counters, from the store. Raises StateError whatever is wrong with it."""
    return msgspec.json.decode(isolated(_stats, state), type=Stats)


def _stats(state: Path) -> bytes:
    with Store(state / "lmdb", readonly=True).reading() as txn:
        return msgspec.json.encode(txn.stats())


def stopped(
    stats: Stats, live: dict[str, Any] | None, state: Path | None, reason: str = "not running"
) -> dict[str, Any]:
    """The document of a daemon that is down: exact counts, and what was last known of the rest."""
    last = live or {}
    return {
        "schema": "rsd.status/1",
        "running": False,
        "pid": None,
        "version": __version__,
        **{name: last.get(name) for name in ("image_dir", "output_dir", "cost")},
        "state_dir": None if state is None else str(state),
        "uptime_seconds": 0.0,
        "health": "stopped",
        "reasons": [reason],
        "images": {name: getattr(stats, name) for name in IMAGES},
        "candidates": {
            "generated": stats.generated,
            "graded": stats.graded,
            "ungraded": stats.generated - stats.graded,
            "failed": stats.sample_failures,
        },
        "in_flight": {"generate": 0, "grade": 0},
        "retries": 0,
        "tokens": {
            name: getattr(stats, f"{name}_tokens")
            for name in ("generator_input", "generator_output", "grader_input", "grader_output")
        },
        "rates": dict.fromkeys(
            ("images_per_second", "candidates_per_second", "grades_per_second"), 0.0
        ),
        "eta_seconds": None,
        "bottleneck": "stopped",
        "throttle": {
            "level": "normal",
            "reason": "",
            "cpu_percent": None,
            "memory_percent": None,
            "disk_free_bytes": None,
        },
        "endpoints": [],
        "watch": {
            **dict.fromkeys(("path", "mode", "last_scan_age_seconds")),
            **(last.get("watch") or {}),
            "settling": 0,
        },
    }


#: The counts of `images`, as they are stored.
IMAGES = (
    "seen",
    "queued",
    "active",
    "high_quality",
    "low_quality",
    "failed",
    "duplicate",
    "withdrawn",
)


def code_of(document: dict[str, Any]) -> int:
    """Exit code of one instance."""
    if not document["running"]:
        return STOPPED
    return HEALTHY if document["health"] == "ok" else DEGRADED


def picture(documents: list[dict[str, Any]]) -> Table:
    """Everything on one screen."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for k, document in enumerate(documents):
        if k:
            grid.add_row("", "")
        for name, text in rows_of(document):
            grid.add_row(name, escape(text))
    return grid


def rows_of(d: dict[str, Any]) -> list[tuple[str, str]]:
    """Name and text of each line."""
    images, candidates = d["images"], d["candidates"]
    running = f"{d['health']}, running as pid {d['pid']} for {span(d['uptime_seconds'])}"
    rows = [("rsd", running if d["running"] else d["reasons"][0])]
    rows += [("", f"! {reason}") for reason in d["reasons"] if d["running"]]
    rows += [
        ("images", f"{d.get('image_dir') or '?'} -> {d.get('output_dir') or '?'}"),
        (
            "",
            f"{images['seen']} seen: {images['high_quality']} high, {images['low_quality']} low, "
            f"{images['failed']} failed, {images['duplicate']} duplicate, "
            f"{images['withdrawn']} withdrawn, {images['active']} active, "
            f"{images['queued']} queued",
        ),
        (
            "candidates",
            f"{candidates['generated']} generated, {candidates['graded']} graded, "
            f"{candidates['ungraded']} ungraded, {candidates['failed']} failed",
        ),
    ]
    tokens = d["tokens"]
    cost = "" if d.get("cost") is None else f", cost {d['cost']:.2f}"
    rows.append(
        (
            "tokens",
            f"generator {tokens['generator_input']} in, {tokens['generator_output']} out; "
            f"grader {tokens['grader_input']} in, {tokens['grader_output']} out{cost}",
        )
    )
    if not d["running"]:
        return rows
    rates, flight = d["rates"], d["in_flight"]
    left = "" if not d["eta_seconds"] else f", {span(d['eta_seconds'])} left"
    rows += [
        (
            "speed",
            f"{60 * rates['images_per_second']:.1f} images/min, "
            f"{rates['candidates_per_second']:.1f} candidates/s, "
            f"{rates['grades_per_second']:.1f} grades/s{left}",
        ),
        (
            "in flight",
            f"{flight['generate']} generating, {flight['grade']} grading, "
            f"{d['retries']} waiting to be tried again; held by: {d['bottleneck']}",
        ),
    ]
    for e in d["endpoints"]:
        why = f" ({e['reason']})" if e["reason"] else ""
        text = (
            f"{e['url']} {e['model']}: {e['state']}{why}, {e['in_flight']}/{e['limit']} in flight"
        )
        if e.get("rate_limited"):
            text += f", {e['rate_limited']} times too fast"
        if e.get("waits_seconds"):
            text += f", asked again in {span(e['waits_seconds'] + 1)}"
        rows.append((e["role"], text))
    throttle, watch = d["throttle"], d["watch"]
    free = throttle.get("disk_free_bytes")
    disk = "" if free is None else f", disk {free / 2**30:.1f} GiB free"
    why = f" ({throttle['reason']})" if throttle.get("reason") else ""
    rows.append(
        (
            "load",
            f"{throttle['level']}{why}: CPU {throttle.get('cpu_percent')} %, "
            f"memory {throttle.get('memory_percent')} %{disk}",
        )
    )
    age = watch["last_scan_age_seconds"]
    scanned = "not scanned yet" if age is None else f"scanned {span(age)} ago"
    rows.append(("watch", f"{watch['mode']}, {scanned}, {watch['settling']} files settling"))
    return rows


def span(seconds: float) -> str:
    """A duration in words."""
    whole = int(seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if whole >= 2 * size:
            return f"{whole // size} {unit}"
    return f"{whole} s"
