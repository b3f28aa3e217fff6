"""Pictures for benchmarks: as big as is asked for, and no two alike."""

from __future__ import annotations

import random
import struct
import zlib
from pathlib import Path


def _chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png(width: int, height: int, noise_rows: int, seed: int, level: int = 1) -> bytes:
    """A white RGB page with a band of noise, which makes the file big: no other seed gives it."""
    row = b"\x00" + b"\xff" * (3 * width)
    noise = random.Random(seed).randbytes(noise_rows * (3 * width + 1))
    band = bytearray(noise)
    band[:: 3 * width + 1] = bytes(noise_rows)  # the filter byte of each row
    rows = bytes(band) + row * (height - noise_rows)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", head),
            _chunk(b"IDAT", zlib.compress(rows, level)),
            _chunk(b"IEND", b""),
        )
    )


def make_pictures(folder: Path, count: int, kilobytes: int) -> list[Path]:
    """Distinct pages of about so many kilobytes, 1024 x 768 or, above 1 MB, 1600 x 1200."""
    folder.mkdir(parents=True, exist_ok=True)
    width, height = (1024, 768) if kilobytes <= 1000 else (1600, 1200)
    rows = max(1, kilobytes * 1000 // (3 * width))
    made = []
    for seed in range(count):
        path = folder / f"p{seed:05d}.png"
        if not path.exists():
            path.write_bytes(png(width, height, rows, seed))
        made.append(path)
    return made
