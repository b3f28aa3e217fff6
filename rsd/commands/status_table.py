"""The status in words, for a person."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from rsd.protocol.status import EndpointStatus, ProcessStatus, Status, ThrottleStatus


def table(found: Sequence[Status]) -> Table:
    """All instances, one below the other."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for k, status in enumerate(found):
        if k:
            grid.add_row("", "")
        for name, text in rows_of(status):
            grid.add_row(name, escape(text))
    return grid


def rows_of(status: Status) -> list[tuple[str, str]]:
    """Name and text of each line."""
    images, candidates, tokens = status.images, status.candidates, status.tokens
    since = f"{status.health}, running as pid {status.pid} for {span(status.uptime_seconds)}"
    cost = "" if status.cost is None else f", cost {status.cost:.2f}"
    unused = (
        f"; of these {lost} in probes and failed calls"
        if (lost := tokens.unused_input + tokens.unused_output)
        else ""
    )
    rows = [("rsd", since if status.running else "".join(status.reasons[:1]))]
    rows += [("", f"! {reason}") for reason in status.reasons if status.running]
    rows += [
        ("images", f"{status.image_dir or '?'} -> {status.output_dir or '?'}"),
        (
            "",
            f"{images.seen} seen: {images.high_quality} high, {images.low_quality} low, "
            f"{images.failed} failed, {images.duplicate} duplicate, {images.withdrawn} withdrawn, "
            f"{images.active} active, {images.queued} queued",
        ),
        (
            "candidates",
            f"{candidates.generated} generated, {candidates.graded} graded, "
            f"{candidates.ungraded} ungraded, {candidates.failed} failed",
        ),
        (
            "tokens",
            f"generator {tokens.generator_input} in, {tokens.generator_output} out; "
            f"grader {tokens.grader_input} in, {tokens.grader_output} out{unused}{cost}",
        ),
    ]
    return rows + rows_of_running(status) if status.running else rows


def rows_of_running(status: Status) -> list[tuple[str, str]]:
    """What only a running daemon has."""
    rates, flight, watch = status.rates, status.in_flight, status.watch
    left = f", {span(status.eta_seconds)} left" if status.eta_seconds else ""
    age = watch.last_scan_age_seconds
    scanned = "not scanned yet" if age is None else f"scanned {span(age)} ago"
    rows = [
        (
            "speed",
            f"{60 * rates.images_per_second:.1f} images/min, "
            f"{rates.candidates_per_second:.1f} candidates/s, "
            f"{rates.grades_per_second:.1f} grades/s{left}",
        ),
        (
            "in flight",
            f"{flight.generate} generating, {flight.grade} grading, "
            f"{status.retries} waiting to be tried again; held by: {status.bottleneck}",
        ),
    ]
    rows += [(e.role, endpoint_words(e)) for e in status.endpoints]
    if status.processes:
        rows.append(("processes", process_words(status.processes)))
    rows.append(("load", load_words(status.throttle)))
    rows.append(("watch", f"{watch.mode or 'not yet'}, {scanned}, {watch.settling} files settling"))
    return rows


def endpoint_words(endpoint: EndpointStatus) -> str:
    """One endpoint in a line."""
    why = f" ({endpoint.reason})" if endpoint.reason else ""
    text = f"{endpoint.url} {endpoint.model}".rstrip() + f": {endpoint.state}{why}, "
    text += f"{endpoint.in_flight}/{endpoint.limit} in flight"
    if endpoint.rate_limited:
        text += f", {endpoint.rate_limited} times too fast"
    if endpoint.waits_seconds:
        text += f", asked again in {span(endpoint.waits_seconds + 1)}"
    return text


def process_words(children: Sequence[ProcessStatus]) -> str:
    """How many children answer, and which do not."""
    up = sum(child.state == "up" for child in children)
    others = [f"{child.name} {child.state}" for child in children if child.state != "up"]
    return ", ".join([f"{up} of {len(children)} up", *others])


def load_words(throttle: ThrottleStatus) -> str:
    """Level, factor and reason of the throttle, and what was measured."""
    text = throttle.level
    if throttle.level == "reduced":
        text += f" to {100 * throttle.factor:.0f} % of the normal number of requests"
    if throttle.reason:
        text += f" ({throttle.reason})"
    measured = []
    if throttle.cpu_percent is not None:
        measured.append(f"CPU {throttle.cpu_percent} %")
    if throttle.own_cpu_percent is not None:
        measured.append(f"rsd's own {throttle.own_cpu_percent} %")
    if throttle.memory_percent is not None:
        measured.append(f"memory {throttle.memory_percent} %")
    if throttle.disk_free_bytes is not None:
        measured.append(f"disk {throttle.disk_free_bytes / 2**30:.1f} GiB free")
    return f"{text}: {', '.join(measured) or 'not measured yet'}"


def span(seconds: float) -> str:
    """A duration in words."""
    whole = int(seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if whole >= 2 * size:
            return f"{whole // size} {unit}"
    return f"{whole} s"
