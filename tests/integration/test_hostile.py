"""A corpus of hostile files against the code that meets them, and against the running daemon.

`RSD_HOSTILE_DIR` names a folder of files, `RSD_HOSTILE_EXPECTED` a JSON file beside it:
{"files": [{"path": ..., "want": "accept" | "refuse" | "ignore" | "wait"}, ...]}.
`RSD_HOSTILE_SCRIPT` names a program that plays scenarios: `SCRIPT --play NAME FOLDER` writes,
replaces, moves and removes pictures in FOLDER for a while; `--list-scenarios` names them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rsd.hub.folder.stable import is_candidate
from rsd.state import view
from rsd.state.records import ImageRecord
from rsd.state.store import Store
from rsd.workers.images import BadImage, Limits, prepare
from tests.evidence import record
from tests.support import Daemon, Simulator, draw, wait_for

FOLDER = os.environ.get("RSD_HOSTILE_DIR", "")
EXPECTED = os.environ.get("RSD_HOSTILE_EXPECTED", "")

SCRIPT = os.environ.get("RSD_HOSTILE_SCRIPT", "")

corpus = pytest.mark.skipif(
    not (FOLDER and EXPECTED), reason="RSD_HOSTILE_DIR and RSD_HOSTILE_EXPECTED name no corpus"
)

#: Where rsd does otherwise on purpose: extensions that are not listed (MPO), formats that are not
#: (PPM), sides under 16 pixels, aspect ratios over 200 (vLLM refuses them), links (never seen).
OTHERWISE = {
    "modes/stereo.mpo",
    "modes/plain_ppm.png",
    "content/many_chunks.png",
    "content/sliver_4000x12.png",
    "fs/link_outside.png",
    "fs/link_up.png",
    "big/wide_400000x100.png",
    "big/tall_100x400000.png",
}

LIMITS = Limits(
    max_pixels=50_000_000,
    max_file_bytes=64 * 2**20,
    min_side=16,
    max_aspect=200.0,
    background="auto",
)


def outcome(path: bytes, spool: Path) -> str:
    """`accept`, `refuse: reason` or `ignore`, as the watcher and a generator would find."""
    if not is_candidate(path):
        return "ignore: name"
    try:
        about = os.lstat(os.fsencode(FOLDER) + b"/" + path)
    except OSError:
        return "ignore: gone"
    if not stat.S_ISREG(about.st_mode):
        return "ignore: no regular file"
    try:
        prepare(os.fsencode(FOLDER), path, spool, LIMITS, lambda: None)
    except BadImage as e:
        return f"refuse: {e.error.reason}"
    return "accept"


def raw(text: str) -> bytes:
    r"""The path of an entry; odd bytes are written as `\xNN` in the list."""
    return re.sub(
        rb"\\x([0-9a-f]{2})", lambda m: bytes([int(m.group(1), 16)]), text.encode("utf-8")
    )


@corpus
def test_every_entry_is_accepted_refused_or_ignored_as_expected(tmp_path: Path) -> None:
    entries = json.loads(Path(EXPECTED).read_text())["files"]
    differ = {}
    for entry in entries:
        got = outcome(raw(entry["path"]), tmp_path)
        want = entry["want"]
        kind = got.partition(":")[0]
        if not (kind == want or (want == "wait" and got == "refuse: empty")):
            differ[entry["path"]] = f"{got}, expected {want}: {entry['why']}"
    for path, why in differ.items():
        print(f"{path!r}: {why}")
    assert set(differ) <= OTHERWISE


def record_at(store: Store, path: bytes) -> ImageRecord | None:
    """What rsd knows of a path."""
    with store.reading() as txn:
        return view.image_at(txn, path)


def ended(d: Daemon, path: bytes) -> str:
    """`accept`, `refuse: reason` or `ignore` of a path, by the state that a run left behind."""
    store = Store(d.output / "state/lmdb", readonly=True)
    try:
        known = record_at(store, path)
    finally:
        store.close()
    if known is None:
        return "ignore: unknown"
    if known.status in ("high_quality", "low_quality", "duplicate"):
        return "accept"
    return f"refuse: {known.reason}" if known.status == "failed" else known.status


def peaks(d: Daemon, worst: dict[str, int]) -> None:
    """Highest resident memory that each role's processes have had, in MiB."""
    try:
        live = json.loads((d.output / "state/live.json").read_bytes())
    except (OSError, ValueError):
        return
    for child in live["processes"]:
        try:
            text = Path(f"/proc/{child['pid']}/status").read_text()
        except OSError:
            continue
        found = re.search(r"VmHWM:\s+(\d+) kB", text)
        if found:
            worst[child["role"]] = max(worst.get(child["role"], 0), int(found[1]) // 1024)


@corpus
@pytest.mark.slow
def test_the_daemon_ends_every_entry_as_expected_and_no_worker_dies(
    simulator: Callable[..., Simulator], daemon: Callable[..., Daemon]
) -> None:
    sim = simulator()
    d = daemon(sim, "--candidates", "2", RSD_IMAGE_DIR=FOLDER)
    d.images = Path(FOLDER)
    process = d.start("--once")
    worst: dict[str, int] = {}
    while process.poll() is None:
        peaks(d, worst)
        time.sleep(0.2)
    assert process.returncode == 1, "some entries fail, which is its exit code"
    entries = json.loads(Path(EXPECTED).read_text())["files"]
    differ, kinds = {}, Counter[str]()
    for entry in entries:
        got = ended(d, raw(entry["path"]))
        kind = got.partition(":")[0]
        kinds[kind] += 1
        if not (kind == entry["want"] or (entry["want"] == "wait" and got == "refuse: empty")):
            differ[entry["path"]] = got
    assert set(differ) <= OTHERWISE, differ
    assert "killed by" not in d.log()
    assert "Traceback" not in d.log()
    record(
        "files",
        "the corpus of hostile entries, through the daemon",
        times=len(entries),
        lost=0,
        repeated=sim.stats()["generator"]["calls"]["repeated"],
        recovery="no worker died",
        seen=f"{kinds['accept']} accepted, {kinds['refuse']} refused with a reason, "
        f"{kinds['ignore']} ignored; {len(differ)} otherwise than the corpus, on purpose; "
        f"most memory of a generator {worst.get('generate', 0)} MiB",
    )


# ------------------------------------------------------------------------------------- scenarios

#: The program replaces the bytes and puts the old size and the old time back: no look at a folder
#: can see that, and rsd (like rsync by default) does not.
UNSEEN = {"samesize"}
#: These move or remove the watched folder itself.
ROOT = {"rootgone", "rootnew"}


def scenarios() -> list[str]:
    if not SCRIPT:
        return []
    listed = [sys.executable, SCRIPT, "--list-scenarios"]
    return subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split()


def regular_files(root: bytes) -> Iterator[bytes]:
    """Paths of the pictures in a folder that rsd must know, relative to it."""
    for folder, _, names in os.walk(root):
        for name in names:
            path = folder + b"/" + name
            relative = os.path.relpath(path, root)
            if is_candidate(relative) and stat.S_ISREG(os.lstat(path).st_mode):
                yield relative


def wrong_ends(d: Daemon) -> dict[str, str]:
    """Pictures whose end is not that of the bytes that they hold now."""
    root, wrong = os.fsencode(d.images), {}
    store = Store(d.output / "state/lmdb", readonly=True)
    try:
        for path in regular_files(root):
            data = Path(os.fsdecode(root + b"/" + path)).read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            known = record_at(store, path)
            fine = known is not None and known.status in ("high_quality", "low_quality")
            fine = fine or (known is not None and known.status == "duplicate")
            if known is None or not fine or known.sha256 != digest:
                wrong[os.fsdecode(path)] = "unknown" if known is None else known.status
    finally:
        store.close()
    return wrong


@pytest.mark.skipif(not SCRIPT, reason="RSD_HOSTILE_SCRIPT names no program")
@pytest.mark.slow
def test_every_scenario_ends_with_the_bytes_that_lie_there(
    simulator: Callable[..., Simulator], daemon: Callable[..., Daemon]
) -> None:
    sim = simulator()
    d = daemon(sim, "--candidates", "2", RSD_WATCH_SETTLE_SECONDS="2")
    d.start()
    wait_for(lambda: (d.output / "state/live.json").exists(), "the start")
    names = [n for n in scenarios() if n not in ROOT]
    playing = [
        subprocess.Popen([sys.executable, SCRIPT, "--play", name, str(d.images / name)])
        for name in names
    ]
    assert [p.wait(timeout=300) for p in playing] == [0] * len(names)
    draw(d.images / "last.png", 99)
    allowed = {f"{name}/{name}.png" for name in UNSEEN}
    wait_for(lambda: not set(wrong_ends(d)) - allowed, "every end", 300)
    wait_for(lambda: d.settled(1), "quiet", 120)
    assert set(wrong_ends(d)) <= allowed
    assert "killed by" not in d.log()
    assert "Traceback" not in d.log()
    images = d.status()["images"]
    record(
        "files",
        "scenarios over time: grown, stalled, replaced, moved, vanishing, swapped for links ...",
        times=len(names),
        lost=0,
        repeated=sim.stats()["generator"]["calls"]["repeated"],
        recovery="each picture ends with the bytes that lie there last",
        seen=f"{images['seen']} paths seen: {images['high_quality'] + images['low_quality']} with "
        f"a result, {images['duplicate']} copies, {images['withdrawn']} gone again",
    )


@pytest.mark.skipif(not SCRIPT, reason="RSD_HOSTILE_SCRIPT names no program")
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ROOT))
def test_the_watched_folder_itself_goes_and_comes_back(
    name: str, simulator: Callable[..., Simulator], daemon: Callable[..., Daemon]
) -> None:
    sim = simulator()
    d = daemon(sim, "--candidates", "2")
    draw(d.images / "first.png", 1)
    d.start()
    wait_for(lambda: d.settled(1), "the first")
    subprocess.run([sys.executable, SCRIPT, "--play", name, str(d.images)], check=True)
    wait_for(lambda: not wrong_ends(d) and len(list(regular_files(os.fsencode(d.images)))), "it")
    assert "Traceback" not in d.log()
    record("files", f"the watched folder: {name}", times=1, lost=0, recovery="seen again by itself")


@pytest.mark.slow
def test_a_burst_of_a_hundred_thousand_files_forgets_none(
    simulator: Callable[..., Simulator], daemon: Callable[..., Daemon]
) -> None:
    count = 100_000
    sim = simulator()
    d = daemon(sim, "--candidates", "1", RSD_WATCH_RESCAN_SECONDS="30")
    d.start()
    wait_for(lambda: (d.output / "state/live.json").exists(), "the start")
    first = draw(d.images / "b000000.png", 1)
    data = first.read_bytes()
    began = time.monotonic()
    for n in range(1, count):
        # every hundredth has bytes of its own, after the end of its picture
        own = b"%06d" % n if n % 100 == 0 else b""
        (d.images / f"b{n:06d}.png").write_bytes(data + own)
    written = time.monotonic() - began
    wait_for(lambda: d.settled(count), "all of them", 1800)
    took = time.monotonic() - began
    images = d.status()["images"]
    distinct = count // 100
    assert images["high_quality"] + images["low_quality"] == distinct
    assert images["duplicate"] == count - distinct
    assert sim.stats()["generator"]["calls"] == {"distinct": distinct, "repeated": 0}
    assert d.stop() == 0
    shutil.rmtree(d.images)
    record(
        "files",
        "a burst of 100,000 files",
        times=count,
        lost=0,
        repeated=0,
        recovery=f"written in {written:.0f} s, all at their end after {took:.0f} s",
        seen=f"{distinct:,} results, {count - distinct:,} copies named, 0 forgotten",
    )
