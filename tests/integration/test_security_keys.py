"""Keys stay where they belong: in the requests, and nowhere else."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.evidence import record
from tests.integration.careless import KEYS, PHASES, WORKERS, Careless, give
from tests.servers import serving
from tests.support import HOME, Daemon, draw, wait_for


def spellings(key: str) -> set[bytes]:
    """A key as it could stand in a file, in many forms."""
    found = {key, quote(key), quote(key, safe=""), json.dumps(key)[1:-1], key.replace("/", "\\/")}
    found |= {json.dumps(key)[1:-1].replace("/", "\\/"), repr(key)[1:-1]}
    out = {text.encode() for text in found}
    out.add(key.encode().hex().encode())
    for prefix in ("", "Bearer ", "x", "xy", "user:"):
        code = base64.b64encode((prefix + key).encode())
        out |= {code[-24:-4], base64.urlsafe_b64encode((prefix + key).encode())[-24:-4]}
    out |= {key[:14].encode(), key[-14:].encode()}  # most of it is too much as well
    return out


class Scan:
    """Looks for the keys in places, and counts what it looked at."""

    def __init__(self) -> None:
        self.places = self.bytes = 0
        self.found: list[str] = []
        self._forms = {form for key in KEYS.values() for form in spellings(key)}

    def look(self, place: str, data: bytes) -> None:
        """One place."""
        self.places += 1
        self.bytes += len(data)
        self.found += [f"{place}: {form!r}" for form in self._forms if form in data]

    def files(self, folder: Path) -> None:
        """Everything below a folder, names and contents."""
        for path in folder.rglob("*"):
            self.look(f"name of {path}", os.fsencode(path))
            if path.is_file() and not path.is_symlink():
                with contextlib.suppress(OSError):
                    self.look(str(path), path.read_bytes())

    def children(self, hub: int) -> int:
        """Arguments and environment of all descendants of a process; how many there were."""
        count = 0
        for task in Path(f"/proc/{hub}/task").iterdir():
            for pid in (task / "children").read_text().split():
                with contextlib.suppress(OSError):
                    self.look(f"cmdline of {pid}", Path(f"/proc/{pid}/cmdline").read_bytes())
                    self.look(f"environ of {pid}", Path(f"/proc/{pid}/environ").read_bytes())
                    count += 1 + self.children(int(pid))
        return count


@pytest.mark.slow
@pytest.mark.parametrize("source", ["environment", "key files", "credentials"])
def test_keys_are_nowhere_but_in_the_requests(tmp_path: Path, source: str) -> None:
    scan, server_script = Scan(), Careless()
    secrets = Path(tempfile.mkdtemp())  # outside of everything that is looked through
    try:
        with serving(server_script) as server:
            settings = give(source, secrets / "keys")
            d = Daemon(
                tmp_path,
                None,
                *("--vllm-api", server.url, "--grading-api", server.url, "--vllm-model", "tiny"),
                *WORKERS,
                RSD_LOG_LEVEL="DEBUG",
                RSD_ERRORS_MAX_ATTEMPTS="2",
                **settings,
            )
            process = d.start()
            try:
                for seed, phase in enumerate(PHASES):
                    server_script.phase = phase
                    draw(d.images / f"p{seed}.png", seed)
                    wait_for(lambda p=phase: server_script.struck.get(p, 0), phase)  # type: ignore[misc]
                    for words in (("status",), ("status", "--json")):
                        done = d.run(*words)
                        scan.look(f"{words} in {phase}", (done.stdout + done.stderr).encode())
                    server_script.phase = ""  # soon, so that the pauses of its probes stay short
                    wait_for(lambda: d.status().get("health") == "ok", "health")
                assert scan.children(process.pid) >= 5
                server_script.phase = "400 that quotes the key"
                wait_for(lambda: len(d.failures()) >= 1, "a failed image")
                server_script.phase = ""
                draw(d.images / "good.png", 99)
                wait_for(lambda: "good.png" in d.results(), "a result")
                os.kill(next(iter(d.children().values())), 9)
                wait_for(lambda: "killed by SIGKILL" in d.log(), "a death in the log")
                for image in ("p0.png", "good.png"):
                    done = d.run("show", image)
                    scan.look(f"show {image}", (done.stdout + done.stderr).encode())
                assert d.stop() == 0
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
            server_script.phase = "401 that quotes the key"
            for phase in ("401 that quotes the key", "200 that is no JSON"):
                server_script.phase = phase
                check = subprocess.run(
                    d.command("check"),
                    cwd=HOME,
                    env=d._env,
                    capture_output=True,
                    timeout=120,
                    check=False,
                )
                scan.look(f"check in {phase}", check.stdout + check.stderr)
            sent = {r.headers.get("Authorization", "") for r in server.requests}
        assert sent == {f"Bearer {key}" for key in KEYS.values()}, "they did reach the server"
    finally:
        shutil.rmtree(secrets)
    scan.files(tmp_path)
    assert "***" in d.log(), "the server's words are there, without the key"
    assert scan.found == []
    assert scan.places > 40
    record(
        "security",
        injected=f"keys by {source}; servers that quote them in {len(PHASES)} ways, DEBUG log, "
        "a killed worker",
        times=f"{scan.places} places, {scan.bytes:,} bytes",
        wrong=len(scan.found),
        seen="logs, stderr, LMDB, live.json, results, failed/, status, show, check, arguments and "
        "environment of children; as text, JSON, URL, base64, hex, and half of it",
    )


def test_children_need_no_key_in_arguments_or_environment(tmp_path: Path) -> None:
    scan = Scan()
    with serving(Careless()) as server:
        d = Daemon(
            tmp_path,
            None,
            *("--vllm-api", server.url, "--grading-api", server.url, "--vllm-model", "tiny"),
            *WORKERS,
            **give("environment", tmp_path),
        )
        draw(d.images / "a.png", 1)
        process = d.start()
        try:
            wait_for(lambda: d.results(), "a result")
            assert scan.children(process.pid) >= 5, "four workers and the writer"
            scan.look("environ of the hub", Path(f"/proc/{process.pid}/environ").read_bytes())
            process.send_signal(1)
            wait_for(lambda: "reloaded" in d.log(), "a reload")
            draw(d.images / "b.png", 2)
            wait_for(lambda: "b.png" in d.results(), "a result with the key of before")
            assert d.stop() == 0
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        sent = {r.headers.get("Authorization", "") for r in server.requests}
    assert sent == {f"Bearer {key}" for key in KEYS.values()}
    assert scan.found == []
