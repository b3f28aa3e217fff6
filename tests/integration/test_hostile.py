"""A corpus of hostile files against the code that meets them.

`RSD_HOSTILE_DIR` names a folder of files, `RSD_HOSTILE_EXPECTED` a JSON file beside it:
{"files": [{"path": ..., "want": "accept" | "refuse" | "ignore" | "wait"}, ...]}.
"""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path

import pytest

from rsd.hub.settle import is_candidate
from rsd.workers.images import BadImage, Limits, prepare

FOLDER = os.environ.get("RSD_HOSTILE_DIR", "")
EXPECTED = os.environ.get("RSD_HOSTILE_EXPECTED", "")

pytestmark = pytest.mark.skipif(
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
