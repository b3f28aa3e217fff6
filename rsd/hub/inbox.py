"""Requests of other processes (`daemon.py retry`), left as files while the hub runs."""

from __future__ import annotations

import base64
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from rsd.hub.brain.events import RetryAsked
from rsd.protocol.facts import ImageRetried
from rsd.protocol.writer_talk import FindImages, Query

log = logging.getLogger("rsd")

#: Largest request file in bytes, and files taken in one look; both only guard against accidents.
REQUEST_BYTES, REQUESTS_PER_LOOK = 16 * 1024 * 1024, 16
#: Facts given to the brain at once.
SLICE = 256
#: Query numbers of this room; the brain counts from 1, the folder from 2**40.
FIRST_QUERY = 1 << 41


class RetryRequests:
    """Turns request files into questions to the writer, and its answers into facts.

    A file is `{"retry": {"paths": [base64, ...], "status": "failed" | "low" | ""}, "fresh": bool}`.
    """

    def __init__(self, folder: Path, ask: Callable[[Query], None]) -> None:
        self._folder = folder
        self._ask = ask
        self._query = FIRST_QUERY
        self._fresh: dict[int, bool] = {}

    def look(self) -> None:
        """Take the requests that lie there; each file is removed once it is read."""
        with contextlib.suppress(OSError):
            for path in sorted(self._folder.glob("*.json"))[:REQUESTS_PER_LOOK]:
                if path.is_symlink() or path.stat().st_size > REQUEST_BYTES:
                    path.unlink()
                    continue
                data = path.read_bytes()
                path.unlink()
                self._take(data, path.name)

    def _take(self, data: bytes, name: str) -> None:
        try:
            document: dict[str, Any] = msgspec.json.decode(data)
            wanted = document["retry"]
            paths = [base64.b64decode(p, validate=True) for p in wanted.get("paths", [])]
            status, fresh = str(wanted.get("status", "")), bool(document.get("fresh", False))
        except (msgspec.DecodeError, KeyError, TypeError, AttributeError, ValueError) as e:
            log.warning("request %s is not understood: %s", name, e)
            return
        for path in paths:
            self._send(FindImages(query=self._next(), path=path), fresh)
        if status:
            self._send(FindImages(query=self._next(), status=status), fresh)

    def _next(self) -> int:
        self._query += 1
        return self._query

    def _send(self, query: FindImages, fresh: bool) -> None:
        self._fresh[query.query] = fresh
        self._ask(query)

    def found(self, query: int, images: tuple[str, ...], wall: float) -> list[RetryAsked]:
        """The writer named the images of a request; `wall` is Unix time."""
        fresh = self._fresh.pop(query, False)
        facts = [ImageRetried(image=image, fresh=fresh, time=wall) for image in images]
        if facts:
            log.info("retry of %d images asked for", len(facts))
        return [RetryAsked(facts=tuple(facts[i : i + SLICE])) for i in range(0, len(facts), SLICE)]
