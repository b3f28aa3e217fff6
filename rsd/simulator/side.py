"""One simulated server: its role, and what it does with each request over HTTP.

Everything that is sent says that it is simulated. Answers are decided by `answers`, what is
accepted by `vllm` and `grader`, what goes wrong by `faults`.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from rsd.simulator.counters import Counters
from rsd.simulator.faults import TWISTS, Fault, Faults, busy, refusal
from rsd.simulator.pictures import DataUrls
from rsd.simulator.rules import (
    Picture,
    Plan,
    Question,
    Refused,
    Twist,
    openai_error,
)
from rsd.simulator.slots import Slots, service_seconds

#: Longest request body in bytes: a picture of 64 MiB in base64, and its text.
BODY_MAX: Final = 128 * 1024 * 1024
#: Pieces that a slowly dripping body is sent in.
DRIPS: Final = 50
MARK: Final = {"X-Simulated": "rsd"}
_CHAT: Final = "/v1/chat/completions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How the simulation is run; seconds are means, `slots` 0 is without limit."""

    host: str = "127.0.0.1"
    port: int = 0
    grader_port: int = 0
    model: str = "simulated-vlm"
    any_model: bool = False
    grader_model: str = "o4-mini"
    truth: tuple[Path, ...] = ()
    scenario: Path | None = None  #: what is said about the pictures that it names
    generator_slots: int = 0
    grader_slots: int = 0
    max_queue: int | None = None
    refuse: int = 503
    retry_after: float | None = None
    generator_seconds: float = 0.0
    grader_seconds: float = 0.0
    noise: float = 8.0
    seed: int = 0
    api_key: str = field(default="", repr=False)
    max_model_len: int = 32_768
    decode: bool = True
    local_media: str = ""  #: folder of which `file://` pictures are taken


class Change(Struct, kw_only=True, forbid_unknown_fields=True):
    """What may be changed while the simulation runs; absent: as it was."""

    role: Literal["generator", "grader"]
    slots: Annotated[int, Meta(ge=0)] | None = None
    seconds: Annotated[float, Meta(ge=0)] | None = None


@dataclass(frozen=True, slots=True)
class Role:
    """What distinguishes generator and grader for the HTTP side."""

    name: str
    mean_seconds: float
    busy_status: int
    read: Callable[[dict[str, Any]], Question]
    plan: Callable[[dict[str, Any], Question, Picture | None], Plan]
    error: Callable[[int, str], Refused]
    models: list[dict[str, Any]]


class Side:
    """One role on its port."""

    def __init__(
        self, role: Role, options: Options, slots: Slots, faults: Faults, urls: DataUrls
    ) -> None:
        self.role = role
        self.counters = Counters(slots)
        self._options = options
        self._slots = slots
        self._seconds = role.mean_seconds
        self._faults = faults
        self._urls = urls
        self.peers: dict[str, Side] = {role.name: self}

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Any request to this port."""
        path, method = request.path, request.method
        if path == _CHAT and method == "POST":
            return await self._chat(request)
        if path.startswith("/simulator/"):
            return await self._control(request)
        try:
            return await self._other(request, method, path)
        except Refused as e:
            return _json(e.status, e.body, e.headers)

    # ------------------------------------------------------------------- chat completions

    async def _chat(self, request: web.BaseRequest) -> web.StreamResponse:
        self.counters.arrive()
        outcome = "gone"
        try:
            try:
                response = await self._completion(request)
            except Refused as e:
                response = _json(e.status, e.body, e.headers)
            except web.HTTPException as e:
                text = e.text or e.reason
                response = _json(e.status, self.role.error(e.status, text).body)
            await _send(request, response)
            outcome = str(response.status)
            return response
        except _Dropped:
            outcome = "none"
            return await _drop(request)
        except ConnectionError:
            return await _drop(request)
        finally:
            self.counters.leave(outcome)

    async def _completion(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request; raises Refused or _Dropped when there is no completion."""
        self._authorize(request)
        body = await self._body(request)
        question = self.role.read(body)
        picture = None
        if question.images:
            picture = await self._urls.of(question.url, question.uuid)
        plan = self.role.plan(body, question, picture)
        fault = self._faults.strike(self.role.name, plan.identity, plan.text)
        kind = fault.kind if fault else ""
        if fault is not None and kind not in TWISTS and kind not in ("cut", "slow_drip"):
            return await self._fail(fault)
        if self._slots.full(len(plan.parts)):
            raise busy(self.role.busy_status, self._options.retry_after)
        self.counters.admit(plan)
        times = (service_seconds(self._seconds, part) for part in plan.parts)
        await self._slots.serve(tuple(times))
        reply = plan.reply(Twist(kind))
        response = _json(200, reply.body, reply.headers)
        if fault is not None:
            await self._spoil(request, fault, response)
            return response
        await _send(request, response)
        self.counters.answer(plan, reply)
        return response

    def _authorize(self, request: web.BaseRequest) -> None:
        key = self._options.api_key
        if not key:
            return
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if hmac.compare_digest(given.encode(), key.encode()):
            return
        if self.role.name == "generator":
            raise Refused(401, {"error": "Unauthorized"})
        raise openai_error(401, "Incorrect API key provided.", "invalid_api_key")

    async def _body(self, request: web.BaseRequest) -> dict[str, Any]:
        if not request.content_type.startswith("application/json"):
            text = "Unsupported Media Type: Only 'application/json' is allowed"
            raise self.role.error(400, text)
        raw = await request.read()
        self.counters.received_bytes += len(raw)
        try:
            body = msgspec.json.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError) as e:
            raise self.role.error(400, f"JSON decode error: {e}") from None
        if not isinstance(body, dict):
            raise self.role.error(400, "JSON decode error: the body is no object")
        given = request.headers.get("X-Request-Id")
        return body | {"request_id": given} if given else body

    # ------------------------------------------------------------------------------ faults

    async def _fail(self, fault: Fault) -> web.StreamResponse:
        """A fault instead of a completion."""
        if fault.kind == "hang":
            await self._faults.until_cleared(fault.seconds)
            raise _Dropped
        if fault.seconds:
            await asyncio.sleep(fault.seconds)
        refused = refusal(fault)
        if refused is not None:
            raise refused
        match fault.kind:
            case "redirect":
                return web.Response(status=307, headers=MARK | {"Location": "/login"})
            case "html":
                page = "<!DOCTYPE html><html><body><h1>Simulated log-in page</h1></body></html>"
                return web.Response(text=page, content_type="text/html", headers=MARK)
            case "empty":
                return web.Response(body=b"", content_type="application/json", headers=MARK)
            case "bad_json":
                broken = b'{"id": "chatcmpl-simulated", "choices": [{"index": 0, "mess'
                return web.Response(body=broken, content_type="application/json", headers=MARK)
            case "error_in_200":
                error = {"message": "Provider returned error", "code": None}
                return _json(200, {"error": error | {"type": "provider_error"}})
        raise _Dropped  # down

    async def _spoil(self, request: web.BaseRequest, fault: Fault, whole: web.Response) -> None:
        """Send a completion that is wrong by its kind: as it is, cut, or in slow drops."""
        if fault.kind not in ("cut", "slow_drip"):
            await _send(request, whole)
            return
        data = whole.body
        assert isinstance(data, bytes)
        drip = fault.kind == "slow_drip"
        response = web.StreamResponse(headers=whole.headers)
        response.content_length = len(data)
        await response.prepare(request)
        if not drip:
            await response.write(data[: len(data) // 2])
            raise _Dropped
        size = max(1, len(data) // DRIPS)
        pause = (30.0 if fault.seconds is None else fault.seconds) * size / len(data)
        for at in range(0, len(data), size):
            await asyncio.sleep(pause)
            await response.write(data[at : at + size])
        await response.write_eof()

    # ---------------------------------------------------------------------- other requests

    async def _other(self, request: web.BaseRequest, method: str, path: str) -> web.StreamResponse:
        fault = self._faults.whole_server(self.role.name)
        if fault is not None and (fault.kind in ("down", "hang") or path == "/v1/models"):
            try:
                return await self._fail(fault)
            except _Dropped:
                return await _drop(request)
        generator = self.role.name == "generator"
        known = {"/v1/models", "/health", "/ping", "/version", "/load", _CHAT}
        if generator:
            known.add("/metrics")
        if path not in known:
            detail = {"detail": "Not Found"}
            if not generator:
                detail = openai_error(404, f"Invalid URL ({method} {path})").body
            raise Refused(404, detail)
        if method != "GET" or path == _CHAT:
            raise Refused(405, {"detail": "Method Not Allowed"})
        match path:
            case "/v1/models":
                self._authorize(request)
                return _json(200, {"object": "list", "data": self.role.models})
            case "/version":
                return _json(200, {"version": "simulated-rsd", "simulated": True})
            case "/load":
                return _json(200, {"server_load": self.counters.in_flight})
            case "/metrics":
                text = self.counters.metrics(self._options.model)
                return web.Response(text=text, headers=MARK)
        return web.Response(headers=MARK)

    # ----------------------------------------------------------------------------- control

    async def _control(self, request: web.BaseRequest) -> web.StreamResponse:
        """What tests ask for, on either port."""
        match request.method, request.path:
            case "POST", "/simulator/faults":
                try:
                    fault = self._faults.add(await request.read())
                except (msgspec.DecodeError, ValueError) as e:
                    return _json(400, {"error": f"no usable fault: {e}"})
                return _json(200, {"fault": fault})
            case "DELETE", "/simulator/faults":
                self._faults.clear()
                return _json(200, {"faults": []})
            case "GET", "/simulator/faults":
                return _json(200, {"faults": self._faults.rules()})
            case "POST", "/simulator/settings":
                return self._change(await request.read())
            case "POST", "/simulator/reset":
                for peer in self.peers.values():
                    peer.counters.reset()
                self._faults.struck.clear()
                return _json(200, {"reset": True})
            case "GET", "/simulator/history":
                return _json(200, {n: p.counters.history() for n, p in self.peers.items()})
            case "GET", "/simulator/stats":
                detail = request.query.get("detail", "0") not in ("", "0")
                data: dict[str, Any] = {
                    name: peer.counters.document(detail=detail) for name, peer in self.peers.items()
                }
                return _json(200, {"simulated": True, "faults": self._faults.struck, **data})
        return _json(404, {"error": "no such control"})

    def _change(self, data: bytes) -> web.StreamResponse:
        """Other slots or another mean time of a role, while it runs."""
        try:
            change = msgspec.json.decode(data, type=Change)
        except msgspec.DecodeError as e:
            return _json(400, {"error": f"no usable settings: {e}"})
        side = self.peers[change.role]
        if change.seconds is not None:
            side._seconds = change.seconds
        if change.slots is not None:
            side._slots.resize(change.slots)
        return _json(200, {"settings": change})


class _Dropped(Exception):
    """The connection is to be closed without (the rest of) an answer."""


def _json(status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> web.Response:
    data = msgspec.json.encode(body)
    marked = MARK | headers if headers else MARK
    return web.Response(body=data, status=status, headers=marked, content_type="application/json")


async def _send(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Send an answer to its end, once; raises ConnectionError when the client is gone."""
    if not response.prepared:
        await response.prepare(request)
        await response.write_eof()


async def _drop(request: web.BaseRequest) -> web.StreamResponse:
    """Close the connection; the loss of it cancels this very handler."""
    if request.transport is not None:
        request.transport.close()
    await asyncio.sleep(60)
    return web.Response()
