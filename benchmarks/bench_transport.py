"""What a call costs the client: rsd's own HTTP client, urllib3's public API, pycurl.

    python benchmarks/bench_transport.py --rounds 3

Each cell is a fresh process with as many threads as connections. It sends the same bytes to the
same server, which answers at once; the picture lies in a mapped file, as in a worker. The clients
take turns within a round, so that what else the machine does meets them all alike. pycurl is no
dependency of rsd: without it (`pip install pycurl`) its rows are left out.
"""

from __future__ import annotations

import argparse
import json
import mmap
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import common
import tables

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

#: Bytes of a body, and how many calls are measured with it.
SIZES = {3_000: 6_000, 300_000: 3_000, 1_500_000: 1_000}
CONNECTIONS = (64, 256)
CLIENTS = ("rsd", "urllib3", "pycurl", "pycurl-read")
SECONDS = 60.0
HEADERS = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "bench"}
#: libcurl's largest buffer for what it sends.
UPLOAD_BYTES = 2 * 1024 * 1024

Pieces = tuple[bytes, mmap.mmap, bytes]
Call = Callable[[], bytes]


def pieces_of(folder: Path, size: int) -> Pieces:
    """A request of about this many bytes; the picture is mapped from a file."""
    path = folder / "picture"
    path.write_bytes(b"data:image/png;base64," + b"QUJD" * ((size - 400) // 4))
    head = (
        b'{"model":"m","messages":[{"role":"user","content":'
        b'[{"type":"image_url","image_url":{"url":"'
    )
    tail = b'"}},{"type":"text","text":"' + b"x" * 250 + b'"}]}],"n":1,"seed":7}'
    with path.open("rb") as file:
        return head, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), tail


def by_rsd(url: str, pieces: Pieces, most: int) -> Callable[[], Call]:
    """The client that rsd has; the threads share its connections."""
    from urllib3.connectionpool import HTTPConnectionPool

    from rsd.workers.api.http1 import ConnectionPool

    parts = urlsplit(url)
    pool = ConnectionPool(HTTPConnectionPool(parts.hostname or "", parts.port), most)
    rows = [f"POST {parts.path} HTTP/1.1", f"Host: {parts.netloc}"]
    rows += [f"{name}: {value}" for name, value in HEADERS.items()]
    head = "".join(row + "\r\n" for row in rows).encode()
    return lambda: lambda: pool.exchange(head, pieces, SECONDS).body


def by_urllib3(url: str, pieces: Pieces, most: int) -> Callable[[], Call]:
    """urllib3's PoolManager; the threads share it. The pieces are sent as they are."""
    import urllib3

    pool = urllib3.PoolManager(1, maxsize=most, retries=False, timeout=SECONDS)
    headers = {**HEADERS, "Content-Length": str(sum(map(len, pieces)))}
    views = [memoryview(piece) for piece in pieces]

    def call() -> bytes:
        answer = pool.urlopen("POST", url, body=views, headers=headers, redirect=False)
        assert answer.status == 200
        return answer.data

    return lambda: call


def by_pycurl(url: str, pieces: Pieces, most: int, *, reads: bool = False) -> Callable[[], Call]:
    """libcurl's easy interface, a handle for each thread, which keeps its connection.

    Either the body is joined, because POSTFIELDS wants one string, or `reads`: libcurl asks for it.
    """
    import pycurl

    def make() -> Call:
        curl = pycurl.Curl()
        curl.setopt(pycurl.URL, url)
        curl.setopt(pycurl.POST, 1)
        curl.setopt(pycurl.NOSIGNAL, 1)
        curl.setopt(pycurl.TIMEOUT_MS, int(SECONDS * 1000))
        curl.setopt(pycurl.PROXY, "")
        rows = [f"{name}: {value}" for name, value in HEADERS.items()]
        curl.setopt(pycurl.HTTPHEADER, [*rows, "Expect:"])
        curl.setopt(pycurl.HEADERFUNCTION, lambda line: None)
        if reads:
            curl.setopt(pycurl.UPLOAD_BUFFERSIZE, UPLOAD_BYTES)
            curl.setopt(pycurl.POSTFIELDSIZE_LARGE, sum(map(len, pieces)))

        def call() -> bytes:
            parts: list[bytes] = []
            curl.setopt(pycurl.WRITEFUNCTION, parts.append)
            if reads:
                curl.setopt(pycurl.READFUNCTION, reading(pieces))
            else:
                curl.setopt(pycurl.POSTFIELDS, b"".join(pieces))
            curl.perform()
            assert curl.getinfo(pycurl.RESPONSE_CODE) == 200
            return b"".join(parts)

        return call

    return make


def reading(pieces: Pieces) -> Callable[[int], bytes]:
    """What gives the body bit by bit, as often as it is asked."""
    piece = start = 0

    def read(most: int) -> bytes:
        nonlocal piece, start
        while piece < len(pieces):
            data = pieces[piece][start : start + most]
            start += len(data)
            if data:
                return data
            piece, start = piece + 1, 0
        return b""

    return read


MAKERS: dict[str, Callable[[str, Pieces, int], Callable[[], Call]]] = {
    "rsd": by_rsd,
    "urllib3": by_urllib3,
    "pycurl": by_pycurl,
    "pycurl-read": lambda url, pieces, most: by_pycurl(url, pieces, most, reads=True),
}


def cell(client: str, url: str, size: int, connections: int) -> None:
    """Measure one client; one line of JSON on stdout."""
    with tempfile.TemporaryDirectory() as folder:
        pieces = pieces_of(Path(folder), size)
        make = MAKERS[client](url, pieces, connections)
        each = max(4, SIZES[size] // connections)
        warm, go = threading.Barrier(connections + 1), threading.Barrier(connections + 1)
        failed: list[BaseException] = []

        def work() -> None:
            try:
                call = make()
                call()
                warm.wait()
                go.wait()
                for _ in range(each):
                    assert b'"choices"' in call()
            except BaseException as e:
                failed.append(e)
                warm.abort()
                go.abort()

        threads = [threading.Thread(target=work) for _ in range(connections)]
        for thread in threads:
            thread.start()
        warm.wait()
        before, began = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
        go.wait()
        for thread in threads:
            thread.join()
        after, seconds = resource.getrusage(resource.RUSAGE_SELF), time.monotonic() - began
        if failed:
            raise failed[0]
        calls = each * connections
        user = (after.ru_utime - before.ru_utime) / calls
        system = (after.ru_stime - before.ru_stime) / calls
        print(json.dumps({"user": user, "system": system, "rate": calls / seconds}))


def main() -> None:
    """All cells, round by round; medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--markdown", type=Path, help="write the table here as well")
    parser.add_argument("--cell", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cell:
        client, url, size, connections = args.cell
        cell(client, url, int(size), int(connections))
        return
    clients = list(CLIENTS)
    try:
        import pycurl

        tables.print_line(pycurl.version)
    except ImportError:
        tables.print_line("pycurl is not installed: measured without it")
        clients = [c for c in clients if not c.startswith("pycurl")]
    report = tables.Report("What a call costs the client", args)
    found: dict[tuple[int, int, str], list[dict[str, float]]] = {}
    with common.simulator(kind=common.Places) as server:
        url = f"{server.generator}/chat/completions"
        for turn in range(args.rounds):
            for size in SIZES:
                for connections in CONNECTIONS:
                    for client in clients[turn % len(clients) :] + clients[: turn % len(clients)]:
                        command = [sys.executable, __file__, "--cell", client, url]
                        out = subprocess.run(
                            [*command, str(size), str(connections)],
                            check=True,
                            stdout=subprocess.PIPE,
                        ).stdout
                        seen = json.loads(out)
                        found.setdefault((size, connections, client), []).append(seen)
                        tables.print_line(f"{turn} {size} {connections} {client} {seen}")
    rows = []
    for (size, connections, client), runs in found.items():
        middle = {k: statistics.median(run[k] for run in runs) for k in runs[0]}
        cpu = [1000 * (run["user"] + run["system"]) for run in runs]
        rows.append(
            [
                f"{client}, {size // 1000} kB, {connections} connections",
                f"{statistics.median(cpu):.3f} ({min(cpu):.3f} to {max(cpu):.3f})",
                f"{1000 * middle['user']:.3f}",
                f"{1000 * middle['system']:.3f}",
                f"{middle['rate']:.0f}",
            ]
        )
    columns = ["client", "CPU ms a call", "user", "system", "calls/s"]
    report.table(columns, rows, f"Medians of {args.rounds} rounds; the least and the most.")
    report.close()


if __name__ == "__main__":
    main()
