"""A daemon with keys that are easy to find again, and a careless server that quotes them."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.servers import Request, completion

#: Keys of characters that JSON, URLs and base64 write in other ways.
KEYS = {"generation": "gen/Key+1=~%41&zZ-4711-aaaa", "grading": 'gra/Key+2="\\q-0815-bbbb/?'}
WORKERS = ("--candidates", "2", "--gen-workers", "2", "--grade-workers", "2")


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
