"""Keys stay where they belong, files stay in their folders, servers get no more than their due."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import ssl
import stat
import subprocess
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from rsd.workers.endpoint import MAX_BODY_BYTES
from tests.evidence import record
from tests.servers import Request, Server, completion, serving
from tests.support import HOME, Daemon, Simulator, draw, wait_for

Make = Callable[..., Simulator]
MakeDaemon = Callable[..., Daemon]

#: Keys of characters that JSON, URLs and base64 write in other ways.
KEYS = {"generation": "gen/Key+1=~%41&zZ-4711-aaaa", "grading": 'gra/Key+2="\\q-0815-bbbb/?'}
WORKERS = ("--candidates", "2", "--gen-workers", "2", "--grade-workers", "2")


# ------------------------------------------------------------------------------------------ secrets


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


def echo(request: Request) -> str:
    """What a careless server or proxy says of a request: its key in every form."""
    header = request.headers.get("Authorization", "")
    key = header.removeprefix("Bearer ")
    code = base64.b64encode(header.encode()).decode()
    own = base64.b64encode(key.encode()).decode()
    return f"bad {header} {quote(key, safe='')} {code} {own} for {key}" + f" {key}" * 30


def slashed(data: Any) -> bytes:
    """JSON as PHP writes it."""
    return json.dumps(data).replace("/", "\\/").encode()


#: What the server answers to a completion, phase by phase.
PHASES: dict[str, Callable[[Request], None]] = {
    "401 that quotes the key": lambda r: r.answer(401, {"error": {"message": echo(r)}}),
    "401 that quotes it escaped": lambda r: r.answer(401, slashed({"error": {"message": echo(r)}})),
    "401 as a page": lambda r: r.answer(401, f"<html>{echo(r)}</html>".encode()),
    "403 in plain words": lambda r: r.answer(403, echo(r).encode()),
    "redirect with the key in it": lambda r: r.answer(
        307, b"", Location=f"/login?key={quote(r.headers.get('Authorization', ''))}"
    ),
    "500 that quotes the key": lambda r: r.answer(500, slashed({"error": {"message": echo(r)}})),
    "200 with an error that quotes it": lambda r: r.answer(
        200, slashed({"error": {"message": echo(r), "code": 500}})
    ),
    "200 that is no JSON": lambda r: r.answer(200, echo(r).encode()),
    "400 that quotes the key": lambda r: r.answer(400, slashed({"error": {"message": echo(r)}})),
}


class Careless:
    """A server of both roles whose phase a test sets; it answers well when there is none."""

    def __init__(self) -> None:
        self.phase = ""
        self.struck: dict[str, int] = {}

    def __call__(self, request: Request) -> None:
        if request.path.endswith("/models"):
            request.answer(200, {"object": "list", "data": [{"id": "tiny", "object": "model"}]})
        elif self.phase:
            self.struck[self.phase] = self.struck.get(self.phase, 0) + 1
            PHASES[self.phase](request)
        elif "Score" in request.body.decode() or "score" in request.body.decode():
            request.answer(200, completion("fine\n\nScore: 90"))
        else:
            request.answer(200, completion("A --> B"))


def give(source: str, folder: Path) -> dict[str, str]:
    """Settings by which a daemon gets its keys."""
    if source == "environment":
        return {f"RSD_{name.upper()}_KEY": key for name, key in KEYS.items()}
    folder.mkdir()
    settings: dict[str, str] = {}
    for name, key in KEYS.items():
        path = folder / f"{name}-key"
        path.write_text(key + "\n")
        path.chmod(0o600)
        settings[f"RSD_{name.upper()}_KEY_FILE"] = str(path)
    return {"CREDENTIALS_DIRECTORY": str(folder)} if source == "credentials" else settings


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


# -------------------------------------------------------------------------------------------- files


def modes(folder: Path) -> dict[str, int]:
    return {
        str(p.relative_to(folder)): stat.S_IMODE(p.lstat().st_mode)
        for p in [folder, *folder.rglob("*")]
    }


@pytest.mark.parametrize("umask", [pytest.param("022", marks=pytest.mark.slow), "000"])
def test_modes_of_state_and_logs(simulator: Make, tmp_path: Path, umask: str) -> None:
    sim = simulator("--service-seconds", "0.3")
    d = Daemon(tmp_path, sim, *WORKERS)
    for seed in range(6):
        draw(d.images / f"p{seed}.png", seed)
    line = ["sh", "-c", f'umask {umask}; exec "$@"', "sh", *d.command("run")]
    process = subprocess.Popen(line, cwd=HOME, env=d._env, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: list((d.output / "state/spool").glob("[0-9a-f]*")), "a spooled picture")
        wait_for(lambda: (d.output / "state/live.json").exists(), "a status")
        seen = modes(d.output)
        wait_for(lambda: len(d.results()) == 6, "the results")
        seen |= modes(d.output)
    finally:
        process.terminate()
        assert process.wait(timeout=60) == 0
    for name, mode in seen.items():
        assert not mode & 0o022, f"{name} can be written by others: {mode:o}"
    closed = [
        n
        for n in seen
        if (
            (n.startswith("state/") or n.startswith("logs/"))
            and (d.output / n).suffix in (".mdb", ".lock", ".log")
        )
        or n.startswith("state/spool/")
    ]
    assert {"state/lmdb/data.mdb", "state/instance.lock", "logs/rsd.log"} <= set(closed)
    for name in closed:
        assert not seen[name] & 0o027, f"{name} can be read by all: {seen[name]:o}"
    record(
        "security",
        injected=f"file modes under umask {umask}",
        times=f"{len(seen)} files and folders",
        wrong=0,
        seen="state and logs 0640 or less, nothing writable by others; live.json and results are "
        "for everybody to read",
    )


@pytest.mark.slow
def test_a_service_user_keeps_its_state_to_itself(simulator: Make) -> None:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv")
    # What may be executed lies where an ordinary user cannot look on some machines.
    look = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")

    def become(uid: int, *words: str) -> list[str]:
        return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *words]

    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        d = Daemon(folder, simulator(), *WORKERS, **give("environment", folder))
        d.output.mkdir()
        draw(d.images / "a.png", 1)
        for path in (d.output, d.images, folder):
            os.chown(path, 65534, 65534)
        process = subprocess.Popen(
            [*become(65534, *look), *d.command("run")],
            cwd=HOME,
            env=d._env,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for(lambda: d.results(), "a result")
            status = d.run("status", "--json")
            assert json.loads(status.stdout)["running"], "root may ask"
            looked, readable = 0, []
            secret = [
                *(d.output / "state").rglob("*.mdb"),
                *(d.output / "logs").iterdir(),
                Path(f"/proc/{process.pid}/environ"),
            ]
            for path in secret:
                looked += 1
                done = subprocess.run(
                    [*become(65533), "cat", str(path)], capture_output=True, check=False
                )
                readable += [str(path)] if done.returncode == 0 else []
            assert {p.stat().st_uid for p in d.output.rglob("*")} == {65534}
        finally:
            process.terminate()
            assert process.wait(timeout=60) == 0
    finally:
        shutil.rmtree(folder)
    assert readable == []
    record(
        "security",
        injected="another user reads the state, the logs and the environment of the service user",
        times=f"{looked} files",
        wrong=len(readable),
        seen="the daemon ran as uid 65534 without root's rights to write",
    )


def test_links_are_not_followed_even_when_swapped_in(
    simulator: Make, daemon: MakeDaemon, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    secret = draw(outside / "a.png", 4711)
    sim = simulator()
    d = daemon(sim, *WORKERS)
    (d.images / "sub").mkdir()
    draw(d.images / "sub" / "a.png", 1)
    draw(d.images / "swapped.png", 2)
    draw(d.images / "good.png", 3)
    (d.images / "link.png").symlink_to(secret)
    (d.images / "folder").symlink_to(outside)
    (d.images / "loop").symlink_to(d.images)
    sim.stop()  # nothing is prepared while no server answers
    d.start()
    seen = {"seen": 3, "queued": 3}
    wait_for(
        lambda: (s := d.status()) and all(s["images"][k] == v for k, v in seen.items()), "queue"
    )
    (d.images / "sub").rename(tmp_path / "moved")
    (d.images / "sub").symlink_to(outside)
    (d.images / "swapped.png").unlink()
    (d.images / "swapped.png").symlink_to(secret)
    sim.start()
    wait_for(lambda: "good.png" in d.results(), "a result")
    document = wait_for(
        lambda: (s := d.status()) and not s["images"]["queued"] + s["images"]["active"] and s, "end"
    )
    assert d.stop() == 0
    assert set(d.results()) == {"good.png"}
    assert document["images"]["seen"] == 3
    pictures = sim.stats("generator", detail=True)
    assert pictures["calls"]["distinct"] == 2, "one picture, two candidates"
    record(
        "security",
        injected="links to a file, to a folder, to itself; a file and a folder swapped for links "
        "between scan and open",
        times=5,
        wrong=0,
        seen="no byte of the files outside was sent",
    )


# ------------------------------------------------------------------------------------------ servers


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key; skips without openssl."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-keyout", str(key), "-out", str(cert), "-subj", "/CN=test"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


@contextlib.contextmanager
def encrypted(script: Callable[[Request], None], cert: Path, key: Path) -> Iterator[Server]:
    """`serving` over TLS; `url` is the caller's to change to https."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server = Server(script)
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def daemon_at(tmp_path: Path, url: str, *flags: str, **settings: str) -> Daemon:
    """A daemon with one picture whose two roles are one server."""
    d = Daemon(
        tmp_path,
        None,
        *("--vllm-api", url, "--grading-api", url, "--vllm-model", "tiny", *WORKERS, *flags),
        **{f"RSD_{name.upper()}_KEY": key for name, key in KEYS.items()},
        **settings,
    )
    draw(d.images / "a.png", 1)
    return d


@pytest.mark.slow
def test_redirects_carry_nothing_anywhere(tmp_path: Path) -> None:
    tried = 0
    cert, key = certificate(tmp_path)
    with serving(Careless()) as other:
        port = other.server_address[1]
        for where in (f"http://127.0.0.1:{port}/v1", f"http://localhost:{port}/v1"):
            for status in (301, 307, 308):

                def away(r: Request, to: str = where, code: int = status) -> None:
                    r.answer(code, b"", Location=to + r.path.removeprefix("/v1"))

                folder = tmp_path / f"{status}-{tried}"
                folder.mkdir()
                secure = tried == 0  # https to http, too
                opened = encrypted(away, cert, key) if secure else serving(away)
                with opened as server:
                    url = server.url.replace("http:", "https:") if secure else server.url
                    ca = {f"RSD_{n.upper()}_CA_FILE": str(cert) for n in KEYS} if secure else {}
                    done = daemon_at(folder, url, **ca).once()
                    asked = len(server.requests)
                assert done.returncode == 2, done.stderr
                assert "redirects to" in done.stderr and "not followed" in done.stderr
                assert asked
                tried += 1
                if status == 301 and tried > 1:
                    break
        reached = len(other.requests)
    assert reached == 0
    record(
        "security",
        injected="redirects 301, 307, 308: other port, other host, https to http",
        times=f"{tried} runs",
        wrong=reached,
        seen="the other server saw no request; MISCONFIGURED, one line, exit 2",
    )


def test_an_unknown_certificate_is_refused_and_an_own_authority_works(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    with encrypted(Careless(), cert, key) as server:
        url = server.url.replace("http:", "https:")
        refused = tmp_path / "refused"
        refused.mkdir()
        done = daemon_at(refused, url).once()
        assert done.returncode == 2
        assert "TLS" in done.stderr and "CERTIFICATE_VERIFY_FAILED" in done.stderr
        assert server.requests == [], "no request, so no key, before the certificate is known"
        trusted = tmp_path / "trusted"
        trusted.mkdir()
        ca = {f"RSD_{name.upper()}_CA_FILE": str(cert) for name in KEYS}
        d = daemon_at(trusted, url, **ca)
        done = d.once()
        assert done.returncode == 0, done.stderr
        assert set(d.results()) == {"a.png"}
        asked = len(server.requests)
    record(
        "security",
        injected="a certificate that signs itself; the same with ca_file",
        times="2 runs",
        wrong=0,
        seen=f"refused before any request (exit 2, TLS named); with ca_file {asked} requests",
    )


def peak(pids: list[int]) -> int:
    """The largest memory that any of these processes ever had, in bytes."""
    found = [0]
    for pid in pids:
        with contextlib.suppress(OSError):
            for row in Path(f"/proc/{pid}/status").read_text().splitlines():
                if row.startswith("VmHWM"):
                    found.append(int(row.split()[1]) * 1024)
    return max(found)


#: Longest that a worker may grow over its size before, in bytes: the bound of an answer for each
#: of its threads, twice (pieces and whole), and room for python.
GROWTH = 4 * 2 * MAX_BODY_BYTES + 64 * 1024 * 1024


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["body", "packed body", "header"])
def test_an_answer_without_end_is_cut_off(tmp_path: Path, kind: str) -> None:
    sent: list[int] = []
    bomb = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = bomb.compress(bytes(64 * 1024 * 1024))

    def endless(r: Request) -> None:
        if r.path.endswith("/models"):
            r.answer(200, {"object": "list", "data": [{"id": "tiny", "object": "model"}]})
            return
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
        piece = b"z" * 65536
        if kind == "body":
            r.wfile.write(head + b"\r\n{")
        elif kind == "packed body":
            r.wfile.write(head + b"Content-Encoding: gzip\r\n\r\n")
            piece = packed
        else:
            r.wfile.write(head)
            piece = b"X-More: " + b"z" * 60_000 + b"\r\n"
        r.close_connection = True
        taken = 0
        r.connection.settimeout(30)
        try:
            while taken < 10 * 2**30 and not r.server.over.is_set():
                r.wfile.write(piece)
                taken += len(piece)
        except OSError:
            pass
        sent.append(taken)

    with serving(endless) as server:
        d = daemon_at(tmp_path, server.url, RSD_GENERATION_TIMEOUT="5", RSD_GRADING_TIMEOUT="5")
        process = d.start()
        try:
            wait_for(lambda: len(d.children()) >= 5, "the workers")
            before = peak(list(d.children().values()))
            wait_for(lambda: len(sent) >= 3, "three answers that were cut off")
            after = peak(list(d.children().values()))
            assert d.status()["running"]
        finally:
            process.kill()
            process.wait()
    assert max(sent) < 2**30
    assert after < before + GROWTH, f"{before} -> {after}"
    record(
        "security",
        injected=f"an answer without end ({kind})",
        times=f"{len(sent)} answers",
        wrong=0,
        seen=f"cut off after {max(sent) / 2**20:.1f} MiB at most (socket buffers included); a "
        f"worker's memory rose by {(after - before) / 2**20:.0f} MiB",
    )
