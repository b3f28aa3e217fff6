"""Files stay in their folders, servers get no more than their due."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import ssl
import stat
import subprocess
import tempfile
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from rsd.workers.api.transport import MAX_BODY_BYTES
from tests.evidence import record
from tests.integration.careless import KEYS, WORKERS, Careless, give
from tests.servers import Request, Server, serving
from tests.support import HOME, Daemon, Simulator, draw, wait_for

Make = Callable[..., Simulator]
MakeDaemon = Callable[..., Daemon]


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


def encrypted(
    script: Callable[[Request], None], cert: Path, key: Path
) -> AbstractContextManager[Server]:
    """`serving` over TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return serving(script, context)


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
