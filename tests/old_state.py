"""A state of format 1, as the version before wrote it.

A hub of that version was killed twice: among its first images, and after a `retry --low` under
another grading prompt, so that two images are worked on by a second rubric.
"""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import lmdb
import msgspec

from rsd.protocol.vocabulary import path_key
from rsd.state.records import PathRecord

DATA = Path(__file__).parent / "data/state_format1.json"


def read() -> dict[str, Any]:
    """Databases and pictures, as they were stored."""
    data: dict[str, Any] = json.loads(DATA.read_text("utf-8"))
    return data


def value_of(text: str) -> bytes:
    return bytes.fromhex(text[4:]) if text.startswith("hex:") else text.encode()


def rows(database: str) -> dict[bytes, bytes]:
    """What one database held."""
    return {bytes.fromhex(k): value_of(v) for k, v in read()["databases"][database]}


def lay(folder: Path) -> None:
    """Write the LMDB of format 1 into a folder."""
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), max_dbs=24, map_size=1 << 26) as env:
        for name in read()["databases"]:
            handle = env.open_db(name.encode())
            with env.begin(write=True) as txn:
                for key, value in rows(name).items():
                    txn.put(key, value, db=handle)


def lay_pictures(folder: Path) -> None:
    """The pictures that it worked on, with the times that it knows."""
    known = rows("paths")
    for name, text in read()["pictures"].items():
        path = folder / name
        path.write_bytes(base64.b64decode(text))
        seen = msgspec.json.decode(known[path_key(name.encode())], type=PathRecord)
        os.utime(path, ns=(seen.mtime_ns, seen.mtime_ns))
