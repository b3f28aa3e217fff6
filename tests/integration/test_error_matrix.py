"""Servers that misbehave, through a running daemon: what it says, what it asks, what it loses.

The rows are in `error_outages.py`, `error_dialects.py` and `error_oddities.py`. One daemon meets
them one after another: a reload turns it to an endpoint of the row's own, which behaves, then
misbehaves while pictures come, then behaves again.
"""

from __future__ import annotations

import json
import re
import signal
import ssl
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from rsd.errors import ErrorClass
from rsd.hub.brain.limits import FAILURES_TO_OPEN, FIRST_LIMIT
from rsd.workers import images
from tests.evidence import record
from tests.integration.error_dialects import DIALECTS, Dialect
from tests.integration.error_oddities import ATTEMPTS, ODDITIES, POISON, Oddity
from tests.integration.error_outages import OUTAGES, Outage
from tests.servers import Gate, Request, Seen, gating, generates, grades
from tests.support import Daemon, data_url, draw, wait_for

KEYS = {"generator": "key-of-the-generator-31415926", "grader": "key-of-the-grader-27182818"}
SECTION = {"generator": "generation", "grader": "grading"}
#: Draws per picture.
DRAWS = 2
#: Probes that must meet the fault, to show that they go on.
PROBES = 2


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def certificate(folder: Path, name: str) -> Path:
    """A self-signed one for 127.0.0.1, with its key."""
    path = folder / f"{name}.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(folder / f"{name}.key"), "-out", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return path


class Line:
    """A daemon between two servers, one of each role, that can be turned to other endpoints."""

    def __init__(self, folder: Path, generator: Gate, grader: Gate) -> None:
        self.gates = {"generator": generator, "grader": grader}
        self.config = folder / "rsd.toml"
        self.trusted = folder / "trusted.pem"
        self.daemon = Daemon(
            folder,
            None,
            *("--config", str(self.config)),
            RSD_ERRORS_MAX_ATTEMPTS=str(ATTEMPTS),
            RSD_GENERATION_KEY=KEYS["generator"],
            RSD_GRADING_KEY=KEYS["grader"],
        )
        self.fed = 0

    def write(self, role: str = "", name: str = "ok", scheme: str = "http", **more: str) -> str:
        """rsd.toml: this endpoint of this role, the others behave. Returns the URL."""
        urls = {}
        for each, gate in self.gates.items():
            mine = each == role
            urls[each] = gate.url_of(name if mine else "ok", scheme if mine else "http")
        settings = {
            "sampling.candidates": str(DRAWS),
            "grading.model": '"judge"',
            "generation.ca_file": json.dumps(str(self.trusted)) if scheme == "https" else '""',
            **{f"{SECTION[r]}.api": json.dumps([url]) for r, url in urls.items()},
            **{key.replace("__", "."): value for key, value in more.items()},
        }
        self.config.write_text("".join(f"{k} = {v}\n" for k, v in settings.items()))
        return urls.get(role, "")

    def turn(self, role: str, name: str, scheme: str = "http", **more: str) -> str:
        """Reload, and wait until the new endpoint is up. Returns its URL."""
        self.heal()
        gate = self.gates[role]
        gate.present("trusted" if scheme == "https" else "")
        gate.hang_up()
        url = self.write(role, name, scheme, **more)
        assert self.daemon.process is not None
        self.daemon.process.send_signal(signal.SIGHUP)
        wait_for(lambda: f"{url} answers, model" in self.daemon.log(), f"{url} to be up")
        return url

    def heal(self) -> None:
        """Both servers behave."""
        for gate in self.gates.values():
            gate.fault = None
            gate.open()

    def feed(self, count: int) -> list[str]:
        """New pictures; their stems."""
        stems = []
        for _ in range(count):
            self.fed += 1
            stems.append(f"p{self.fed:04d}")
            path = draw(self.config.parent / f"{stems[-1]}.png", self.fed)
            path.rename(self.daemon.images / path.name)
        return stems

    def ends(self, stems: list[str]) -> Counter[str]:
        """How many files these pictures have, by folder."""
        found: Counter[str] = Counter()
        for folder in ("high_quality", "low_quality", "failed"):
            for stem in stems:
                found[folder] += len(list((self.daemon.output / folder).glob(f"{stem}_*.json")))
        return found

    def live(self, url: str) -> dict[str, Any]:
        """An endpoint as the hub wrote it last; {} if it is not there."""
        try:
            document = json.loads((self.daemon.output / "state/live.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return next((e for e in document["endpoints"] if e["url"] == url), {})

    def recovered(self, stems: list[str], what: str) -> str:
        """Every one of these pictures gets exactly one result, from the same process; in words."""
        assert self.daemon.process is not None
        wait_for(lambda: self.ends(stems).total() >= len(stems), f"the results after: {what}")
        assert self.ends(stems) == Counter(high_quality=len(stems)), self.daemon.log()[-3000:]
        assert self.daemon.process.poll() is None
        for stem in stems:
            path = next((self.daemon.output / "high_quality").glob(f"{stem}_*.json"))
            document = json.loads(path.read_text())
            assert document["failed_candidates"] == 0
            assert all(c["grades"] for c in document["all_candidates"])
        return f"{len(stems)} of {len(stems)} images, no restart"


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    folder = tmp_path_factory.mktemp("matrix")
    with ExitStack() as stack:
        generator, grader = (stack.enter_context(gating(h)) for h in (generates, grades))
        generator.elsewhere, grader.elsewhere = (
            grader.url_of("elsewhere"),
            generator.url_of("elsewhere"),
        )
        for name in ("trusted", "stranger"):
            path = certificate(folder, name)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(path, path.with_suffix(".key"))
            generator.certificates[name] = context
        made = Line(folder, generator, grader)
        made.write()
        made.daemon.start()
        try:
            for gate in (generator, grader):
                wait_for(lambda g=gate: f"{g.url_of('ok')} answers" in made.daemon.log(), "a start")
            yield made
        finally:
            process = made.daemon.process
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()


def marked(rows: tuple[Any, ...]) -> list[Any]:
    """Most rows are for the long run; those marked `ci` for every run."""
    return [
        pytest.param(row, id=slug(row.name), marks=() if row.ci else pytest.mark.slow)
        for row in rows
    ]


def items(gate: Gate, name: str) -> list[Seen]:
    """The requests with a picture that met a fault at this endpoint."""
    with gate.lock:
        return [s for s in gate.struck if s.item and s.path.startswith(f"/{name}/")]


def probes(gate: Gate, name: str) -> int:
    with gate.lock:
        return sum(not s.item and s.path.startswith(f"/{name}/") for s in gate.struck)


# ------------------------------------------------------------------------------------------ outages


@pytest.mark.parametrize("row", marked(OUTAGES))
def test_an_outage_consumes_nothing_and_heals(line: Line, row: Outage) -> None:
    name, gate, section = slug(row.name), line.gates[row.role], SECTION[row.role]
    limited = row.kind is ErrorClass.RATE_LIMITED
    settings = {f"{section}__timeout": str(row.timeout)}
    if limited:  # one call at a time, so that the pause between two can be seen
        settings[f"{section}__workers"] = "1"
    url = line.turn(row.role, name, row.scheme, **settings)
    accepted = gate.accepted
    gate.fault = row.strike
    if row.begin is not None and not row.late:
        row.begin(gate)
    stems = line.feed(2)
    if row.begin is not None and row.late:
        wait_for(lambda: items(gate, name), "a call under way")
        row.begin(gate)

    def shown() -> bool:
        about = line.live(url)
        if limited:
            return len(items(gate, name)) > ATTEMPTS and about["rate_limited"] > ATTEMPTS
        probed = row.begin is not None or probes(gate, name) >= PROBES
        return probed and about.get("state") == row.state

    wait_for(shown, f"{row.state} after: {row.name}")
    plain = line.daemon.run("status")
    document = line.daemon.status()
    about = next(e for e in document["endpoints"] if e["url"] == url)
    assert about["state"] == row.state
    assert row.said in about["reason"], about
    for key in KEYS.values():
        assert key not in plain.stdout + json.dumps(document) + line.daemon.log()
    if limited:
        assert document["health"] == "ok"
        assert about["rate_limited"] > ATTEMPTS
        unfolded = "".join(plain.stdout.split())  # a long line is folded anywhere
        assert row.said.replace(" ", "") in unfolded and "timestoofast" in unfolded
        said = f"up ({about['reason']}), {about['rate_limited']} times too fast"
    else:
        assert document["health"] == "degraded" and plain.returncode == 1
        assert any(row.role in r and row.said in r for r in document["reasons"])
        said = f"{about['state']}: {about['reason']}"
    # The backlog is as it was: these pictures wait, nothing of them has failed.
    assert not line.ends(stems).total()
    waiting = document["images"]["queued"] + document["images"]["active"]
    assert waiting + document["watch"]["settling"] >= len(stems), document["images"]
    struck = items(gate, name)
    if limited:
        for a, b in pairwise(struck):
            assert b.at - a.at >= row.wait - 0.05, "asked again before its time"
    else:  # those in flight when it began, and what it takes to see that it is no accident
        times = 1 + probes(gate, name) if row.blind else 1
        assert len(struck) < (FIRST_LIMIT + FAILURES_TO_OPEN) * times
    seen = f"{len(struck)} with a picture, {probes(gate, name)} probes"
    if row.strike is None:
        seen = f"none; {gate.accepted - accepted} connections"
    gate.fault = None
    gate.present("trusted" if row.scheme == "https" else "")
    gate.open()
    recovery = line.recovered(stems, row.name)
    for other in line.gates.values():
        assert not any("/elsewhere/" in s.path for s in other.requests), "followed a redirect"
    if limited:
        recovery += f"; {row.wait:g} s or more between two requests"
    record(
        "errors",
        injected=f"{row.role}: {row.name}",
        classed=row.kind.name,
        requests=seen,
        status=said.replace(url.removesuffix("/v1"), "URL"),
        lost=0,
        recovery=recovery,
    )


@pytest.mark.slow
def test_a_host_name_that_nobody_knows(line: Line) -> None:
    url = "http://no-such-host.invalid/v1"
    line.turn("generator", "before-dns")
    line.write(generation__api=f'["{url}"]')
    assert line.daemon.process is not None
    line.daemon.process.send_signal(signal.SIGHUP)
    stems = line.feed(2)
    about = wait_for(lambda: (a := line.live(url)).get("state") == "down" and a, "the outage")
    assert "host name" in about["reason"]
    assert not line.ends(stems).total()
    line.turn("generator", "after-dns")
    record(
        "errors",
        injected="generator: a host name that nobody knows, then a reload with the right one",
        classed="TRANSIENT",
        requests="none",
        status=f"down: {about['reason']}",
        lost=0,
        recovery=line.recovered(stems, "DNS"),
    )


# ----------------------------------------------------------------------------------------- dialects


@pytest.mark.parametrize("row", marked(DIALECTS))
def test_a_dialect_is_learned_and_nothing_is_lost(line: Line, row: Dialect) -> None:
    name, gate = slug(row.name), line.gates[row.role]
    settings = {k.replace(".", "__"): v for k, v in row.settings.items()}
    if row.model:
        settings["grading__model"] = json.dumps(row.model)
    refused: list[Seen] = []
    taken: list[dict[str, Any]] = []

    def refuse(request: Request) -> None:
        body = request.json if request.command == "POST" else {}
        answer = row.refuses(body)
        seen = Seen(request.command, request.path, request.headers, request.body)
        if answer is not None:
            with gate.lock:
                refused.append(seen)
            request.answer(*answer)
            return
        if seen.item:
            with gate.lock:
                taken.append(body)
        gate.healthy(request)

    line.turn(row.role, name, **settings)
    gate.fault = refuse
    stems = line.feed(3)
    recovery = line.recovered(stems, row.name)
    gate.fault = None
    assert taken
    for body in taken:
        assert not [word for word in row.gone if word in body]
        assert "logprobs" not in body and "extra_body" not in body
        assert body["messages"][0]["content"][0]["type"] == "image_url", "the picture comes first"
    if row.role == "generator":  # vLLM fills what is missing from its model's own defaults
        for word in {"temperature", "top_p", "top_k", "min_p", "repetition_penalty"} - {*row.gone}:
            assert all(word in body for body in taken)
    # Calls under way together may all meet the same refusal, once for each thing to learn.
    assert len(refused) <= FIRST_LIMIT * max(1, len(row.gone), 2 * (not row.gone))
    learned = re.findall(rf"/{name}/v1 .*asked with (.*)", line.daemon.log())
    wait_for(lambda: line.daemon.status()["health"] == "ok", "health")
    told = "; ".join(dict.fromkeys(learned[-1:])) or "nothing to learn"
    record(
        "errors",
        injected=f"{row.role}: {row.name}",
        classed="RATE_LIMITED" if "503" in row.name else "UNSUPPORTED",
        requests=f"{len(refused)} refused, {len(taken)} answered",
        status=f"ok; log: {told}",
        lost=0,
        recovery=recovery,
    )


# ---------------------------------------------------------------------------------------- oddities


class Odd:
    """All oddities at once, each with a picture of its own among good ones."""

    def __init__(self, line: Line) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()  # requests by role and stem
        self.rows: dict[str, Oddity] = {}
        self._stems: dict[str, str] = {}
        self._line = line

    def run(self, rows: tuple[Oddity, ...] = ODDITIES) -> list[str]:
        """All pictures to their end; the stems of the odd ones."""
        line = self._line
        line.turn("grader", "grader")
        for role, gate in line.gates.items():
            gate.fault = lambda request, role=role: self._answer(role, request)
        good = []
        for k, row in enumerate(rows):
            if k % 5 == 0:
                good += line.feed(1)
            line.fed += 1
            stem = f"p{line.fed:04d}"
            path = draw(line.config.parent / f"{stem}.png", line.fed)
            data = path.read_bytes()
            for sent in (data, images.halved(data)):
                self._stems[data_url(sent)] = stem
            self.rows[stem] = row
            path.rename(line.daemon.images / path.name)
        line.recovered(good, "others beside odd answers")
        wait_for(lambda: line.ends([*self.rows]).total() >= len(self.rows), "the odd ones")
        return [*self.rows]

    @property
    def kept(self) -> list[str]:
        """Pictures whose answers are there, but worth no grade."""
        return [stem for stem, row in self.rows.items() if row.kept]

    def count(self, role: str, request: Request) -> str:
        """Note whose picture it is, and answer well."""
        stem = self._note(role, request)
        self._line.gates[role].healthy(request)
        return stem

    def _note(self, role: str, request: Request) -> str:
        stem = ""
        if b'"image_url"' in request.body:
            url = request.json["messages"][0]["content"][0]["image_url"]["url"]
            stem = self._stems.get(url, "")
        if stem:
            with self._line.gates[role].lock:
                self.counts[role, stem] += 1
        return stem

    def _answer(self, role: str, request: Request) -> None:
        stem = self._note(role, request)
        if stem and self.rows[stem].role == role:
            self.rows[stem].strike(request)
        else:
            self._line.gates[role].healthy(request)


def test_odd_answers_end_their_own_picture_only(line: Line) -> None:
    odd = Odd(line)
    odd.run()
    daemon, log = line.daemon, line.daemon.log()
    assert "Traceback" not in log
    wait_for(lambda: daemon.status()["health"] == "ok", "health")
    said: dict[str, str] = {}
    for stem, row in odd.rows.items():
        (path,) = (
            p
            for folder in ("high_quality", "low_quality", "failed")
            for p in (daemon.output / folder).glob(f"{stem}_*.json")
        )
        told = json.loads(path.read_text())
        errors = told.get("errors", [])
        found = {(e["class"], e["reason"]) for e in errors}
        classed = row.kind is not None and row.ends and not row.kept
        assert found == ({(row.kind, row.reason)} if classed else set()), row
        assert told.get("reason", "") == row.ends, row
        assert odd.counts[row.role, stem] == DRAWS * row.requests, row
        if row.kept:
            assert told["candidates"] == DRAWS and not odd.counts["grader", stem]
        if row.ends and row.role == "grader":
            assert told["candidates"] == DRAWS, "what was paid for is kept"
        said[stem] = row.ends and f"failed ({row.ends})"
        for error in errors:
            said[stem] = f"failed ({row.ends}): {error['message']}"
            assert f"given up ({row.kind}: {error['message']})" in log, "an excerpt in the log"
    # Behaving again: what failed is asked for once more, what was answered is not.
    line.heal()
    before = Counter(odd.counts)
    for role, gate in line.gates.items():
        gate.fault = lambda request, role=role: odd.count(role, request)
    assert daemon.run("retry", "--failed").returncode == 0
    again = [stem for stem, row in odd.rows.items() if row.ends and not row.kept]
    wait_for(lambda: line.ends(again)["failed"] == 0, "the retries")
    line.recovered(list(set(odd.rows) - set(odd.kept)), "retry")
    for stem, row in odd.rows.items():
        if row.role == "grader":
            assert odd.counts["generator", stem] == before["generator", stem], "paid twice"
        result = "understood, a result"
        if row.ends:
            result = "others went on; a result after `retry`"
        if row.kept:
            result = "others went on; `retry` asks nothing again"
        record(
            "errors",
            injected=f"{row.role}, one picture: {row.name}",
            classed=row.kind.name if row.kind else "none",
            requests=f"{before[row.role, stem]} for {DRAWS} draws",
            status=said[stem] or "ok",
            lost=0,
            recovery=result,
        )


@pytest.mark.slow
def test_a_picture_that_a_server_dies_of(line: Line) -> None:
    """500 for one picture and no other: after others were answered, it is that picture's own."""
    odd = Odd(line)
    (bad,) = odd.run((POISON,))
    (path,) = (line.daemon.output / "failed").glob(f"{bad}_*.json")
    told = json.loads(path.read_text())
    assert {(e["class"], e["reason"]) for e in told["errors"]} == {("transient", "server_error")}
    asked = odd.counts["generator", bad]
    assert DRAWS * ATTEMPTS <= asked <= DRAWS * ATTEMPTS * FAILURES_TO_OPEN
    record(
        "errors",
        injected=f"generator, one picture: {POISON.name}",
        classed="TRANSIENT",
        requests=f"{asked} for {DRAWS} draws",
        status=f"failed ({told['reason']}): {told['errors'][0]['message']}",
        lost=0,
        recovery="others went on",
    )
