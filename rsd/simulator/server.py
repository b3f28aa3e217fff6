"""Two HTTP servers in one process: a simulated vLLM and a simulated grader. Everything says so.

Slots are bounded and service times seeded from the request's content, so that load tests are
repeatable. `/simulator/...` on either port injects faults and tells what was seen.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import msgspec
from aiohttp import web

from rsd.simulator import answers, rules
from rsd.simulator.counters import Counters, plain
from rsd.simulator.faults import Fault
from rsd.simulator.rules import Prompt, Refused, openai_error, vllm_error
from rsd.simulator.truth import NotAnImage, Pictures

#: Largest request body, in bytes.
BODY_BYTES: Final = 256 * 1024 * 1024
#: Tokens that a picture counts.
IMAGE_TOKENS: Final = 64
#: Spread of the service times (sigma of the log-normal).
SIGMA: Final = 0.5
HEADERS: Final = {"X-Simulated": "rsd"}

_NONCE = re.compile(r"\bnonce ([0-9A-Za-z]{4,64})\b")


@dataclass(slots=True)
class Role:
    """One of the two servers."""

    name: str  #: `generator` or `grader`
    model: str
    slots: int
    seconds: float
    key: str = ""
    queue: int | None = None
    refuse: bool = False  #: answer 429 when all slots are taken
    any_model: bool = False
    max_model_len: int = 32_768
    counters: Counters = field(default_factory=Counters)
    free: asyncio.Condition = field(default_factory=asyncio.Condition)
    running: int = 0


class Simulator:
    """State shared by both servers."""

    def __init__(self, generator: Role, grader: Role, pictures: Pictures, noise: float, seed: int):
        self.roles = {"generator": generator, "grader": grader}
        self.pictures = pictures
        self.noise = noise
        self.seed = seed
        self.faults: list[Fault] = []
        self.cleared = asyncio.Event()

    def app(self, role: Role) -> web.Application:
        """The application of one role."""
        app = web.Application(client_max_size=BODY_BYTES)
        add = app.router
        add.add_post("/v1/chat/completions", self._guarded(role, self._chat))
        add.add_get("/v1/models", self._guarded(role, self._models))
        add.add_get("/health", self._health)
        add.add_get("/ping", self._health)
        add.add_get("/version", self._version)
        add.add_get("/load", lambda _: self._load(role))
        add.add_get("/metrics", lambda _: self._metrics(role))
        add.add_post("/simulator/faults", self._add_fault)
        add.add_delete("/simulator/faults", self._clear_faults)
        add.add_get("/simulator/stats", self._stats)
        add.add_post("/simulator/reset", self._reset)
        add.add_post("/simulator/settings", self._settings)
        return app

    # ------------------------------------------------------------------------------------- routes

    def _guarded(
        self, role: Role, handler: Callable[[Role, web.Request], Awaitable[web.StreamResponse]]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def guarded(request: web.Request) -> web.StreamResponse:
            try:
                if role.key and request.headers.get("Authorization") != f"Bearer {role.key}":
                    raise self._unauthorized(role)
                response = await handler(role, request)
            except Refused as e:
                role.counters.by_status[e.status] += 1
                return web.json_response(e.body, status=e.status, headers=HEADERS | e.headers)
            role.counters.by_status[response.status] += 1
            return response

        return guarded

    @staticmethod
    def _unauthorized(role: Role) -> Refused:
        if role.name == "generator":
            return Refused(401, {"error": "Unauthorized"})
        return openai_error(
            401, "Incorrect API key provided.", "invalid_request_error", "invalid_api_key"
        )

    async def _models(self, role: Role, request: web.Request) -> web.Response:
        if any(f.role == role.name and f.kind == "down" for f in self.faults):
            self._hang_up(request)
        model = {
            "id": role.model,
            "object": "model",
            "created": 0,
            "owned_by": "rsd-simulator",
            "root": role.model,
            "max_model_len": role.max_model_len,
        }
        return web.json_response({"object": "list", "data": [model]}, headers=HEADERS)

    async def _health(self, request: web.Request) -> web.Response:
        return plain("")

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "simulated"}, headers=HEADERS)

    async def _load(self, role: Role) -> web.Response:
        return web.json_response({"server_load": role.counters.in_flight}, headers=HEADERS)

    async def _metrics(self, role: Role) -> web.Response:
        return plain(role.counters.metrics(role.model))

    async def _add_fault(self, request: web.Request) -> web.Response:
        try:
            self.faults.append(Fault.of(await request.json()))
        except (ValueError, TypeError, json.JSONDecodeError) as e:
            return web.json_response({"error": str(e)}, status=400, headers=HEADERS)
        return web.json_response({"faults": len(self.faults)}, headers=HEADERS)

    async def _clear_faults(self, request: web.Request) -> web.Response:
        self.faults.clear()
        self.cleared.set()
        self.cleared = asyncio.Event()
        return web.json_response({"faults": 0}, headers=HEADERS)

    async def _stats(self, request: web.Request) -> web.Response:
        detail = "detail" in request.query
        data = {n: r.counters.document(detail=detail) for n, r in self.roles.items()}
        return web.json_response({"simulated": True, **data}, headers=HEADERS)

    async def _reset(self, request: web.Request) -> web.Response:
        for role in self.roles.values():
            role.counters = Counters(in_flight=role.counters.in_flight)
        return web.json_response({}, headers=HEADERS)

    async def _settings(self, request: web.Request) -> web.Response:
        """Change slots or service seconds of a role while it runs."""
        data = await request.json()
        role = self.roles[data["role"]]
        role.slots = int(data.get("slots", role.slots))
        role.seconds = float(data.get("seconds", role.seconds))
        async with role.free:
            role.free.notify_all()
        return web.json_response({}, headers=HEADERS)

    # --------------------------------------------------------------------------------- completions

    async def _chat(self, role: Role, request: web.Request) -> web.StreamResponse:
        counters = role.counters
        counters.requests += 1
        counters.in_flight += 1
        counters.max_in_flight = max(counters.max_in_flight, counters.in_flight)
        try:
            raw = await request.read()
            try:
                body = msgspec.json.decode(raw)
            except msgspec.DecodeError as e:
                raise vllm_error(400, f"JSON decode error: {e}") from None
            if not isinstance(body, dict):
                raise vllm_error(400, "1 validation error: body")
            return await self._complete(role, request, body)
        finally:
            counters.in_flight -= 1

    async def _complete(
        self, role: Role, request: web.Request, body: dict[str, Any]
    ) -> web.StreamResponse:
        error = vllm_error if role.name == "generator" else _grader_error
        if body.get("stream"):
            raise error(400, "this simulation does not stream")
        model = self._model(role, body)
        prompt = rules.prompt_of(body, error)
        pixels = self._see(role, prompt, error)
        content = _content_key(pixels, prompt.text, body)
        role.counters.attempts[content] += 1
        attempt = role.counters.attempts[content]
        fault = next(
            (f for f in self.faults if f.meets(role.name, prompt.text, content, attempt)), None
        )
        if fault is not None:
            struck = await self._strike(fault, request)
            if struck is not None:
                return struck
        if role.name == "generator":
            document, calls = self._generate(role, model, prompt, pixels, body)
        else:
            document, calls = self._grade(role, model, prompt, pixels, body, fault)
        await self._serve(role, content)
        if fault is not None and fault.kind in ("refusal", "truncated", "null_content"):
            document = _spoiled(document, fault.kind)
        data = msgspec.json.encode(document)
        if fault is not None and fault.kind in ("cut", "slow_drip"):
            return await _broken(request, data, fault)
        response = web.Response(body=data, content_type="application/json", headers=HEADERS)
        self._count(role, document, calls, pixels)
        return response

    def _model(self, role: Role, body: dict[str, Any]) -> str:
        asked = body.get("model") or role.model
        if role.name == "generator" and not role.any_model and asked != role.model:
            text = f"The model `{asked}` does not exist. Valid aliases: {role.model}."
            raise vllm_error(404, text, "NotFoundError", "model")
        return str(asked)

    def _see(self, role: Role, prompt: Prompt, error: Callable[..., Refused]) -> str:
        if prompt.url is None:
            return ""
        try:
            pixels, key = self.pictures.pixels(prompt.url)
        except NotAnImage as e:
            raise error(400, str(e)) from None
        role.counters.picture(pixels, key)
        return pixels

    def _generate(
        self, role: Role, model: str, prompt: Prompt, pixels: str, body: dict[str, Any]
    ) -> tuple[dict[str, Any], list[str]]:
        params, seed, n, limit = rules.sampling_of(body, role.max_model_len)
        choices, calls, tokens = [], [], 0
        for k in range(n):
            if pixels:
                graph = self.pictures.graph(pixels)
                text = answers.candidate_text(graph, pixels, prompt.text, params, seed + k)
            else:
                text = answers.words(prompt.text, params, seed + k)
            cut = len(text) > 4 * limit
            text = text[: 4 * limit]
            tokens += len(text) // 4 + 1
            choices.append(_choice(k, text, "length" if cut else "stop"))
            if pixels:
                calls.append(_hash(f"{pixels}|{prompt.text}|{params}|{seed + k}"))
        return _document(model, choices, prompt, pixels, tokens, 0), calls

    def _grade(
        self,
        role: Role,
        model: str,
        prompt: Prompt,
        pixels: str,
        body: dict[str, Any],
        fault: Fault | None,
    ) -> tuple[dict[str, Any], list[str]]:
        limit = rules.check_grading(body, model)
        call = int(body.get("seed") or 0)
        entries, calls = [], []
        for position, (name, text) in enumerate(fenced(prompt.text)):
            graph = self.pictures.graph(pixels or _hash(text))
            score = answers.grade(
                text, graph, pixels, position=position, call=call, noise=self.noise
            )
            f1 = answers.edge_f1(text, graph)
            why = f"Simulated grade: edge F1 {f1:.3f} against the known graph, plus noise."
            entries.append({"id": name, "explanation": why, "score": score})
            if pixels:
                calls.append(_hash(f"{pixels}|{text}|{position}|{call}"))
        form = body.get("response_format") or {}
        listwise = '"results"' in prompt.text.rpartition("\n\n")[2]
        content = _reply(entries, listwise, form.get("type"), fault)
        thought = 64 + 16 * len(entries)
        if limit < 64:
            return _document(model, [_choice(0, "", "length")], prompt, pixels, limit, limit), []
        tokens = len(content) // 4 + 1 + thought
        return (
            _document(model, [_choice(0, content, "stop")], prompt, pixels, tokens, thought),
            calls,
        )

    async def _serve(self, role: Role, content: str) -> None:
        """Take a slot for the service time of this request."""
        if role.slots and role.running >= role.slots:
            if role.refuse:
                raise openai_error(
                    429, "Rate limit reached", "rate_limit_error", "rate_limit_exceeded"
                )
            if role.queue is not None and role.counters.waiting >= role.queue:
                raise vllm_error(
                    503,
                    "The engine is currently busy and cannot accept new requests. Please try "
                    "again later.",
                    "Service Unavailable",
                )
            role.counters.waiting += 1
            try:
                async with role.free:
                    await role.free.wait_for(lambda: role.running < role.slots or not role.slots)
                    role.running += 1
            finally:
                role.counters.waiting -= 1
        else:
            role.running += 1
        began = time.monotonic()
        try:
            if role.seconds > 0:
                drawn = random.Random(f"{self.seed}:{content}").gauss(0, SIGMA)
                await asyncio.sleep(role.seconds * math.exp(drawn - SIGMA**2 / 2))
        finally:
            role.running -= 1
            role.counters.busy_seconds += time.monotonic() - began
            if role.slots:
                async with role.free:
                    role.free.notify(1)

    def _count(self, role: Role, document: dict[str, Any], calls: list[str], pixels: str) -> None:
        counters = role.counters
        counters.answered += 1
        counters.children += len(document["choices"])
        counters.probes += not pixels
        counters.input_tokens += document["usage"]["prompt_tokens"]
        counters.output_tokens += document["usage"]["completion_tokens"]
        counters.calls.update(calls)

    # -------------------------------------------------------------------------------------- faults

    async def _strike(self, fault: Fault, request: web.Request) -> web.StreamResponse | None:
        refusal = fault.refusal()
        if refusal is not None:
            raise refusal
        match fault.kind:
            case "hang":
                await self.cleared.wait()
                self._hang_up(request)
            case "down":
                self._hang_up(request)
            case "redirect":
                return web.Response(status=302, headers=HEADERS | {"Location": "http://127.0.0.2/"})
            case "html":
                return web.Response(
                    text="<html><body>nginx</body></html>", content_type="text/html"
                )
            case "empty":
                return web.Response(body=b"", content_type="application/json")
            case "bad_json":
                return web.Response(body=b'{"choices": [', content_type="application/json")
            case "no_choices":
                return web.json_response({"id": "x", "choices": [], "usage": None})
            case "error_in_200":
                return web.json_response({"error": {"message": "upstream broke", "code": 502}})
        return None

    @staticmethod
    def _hang_up(request: web.Request) -> None:
        if request.transport is not None:
            request.transport.abort()
        raise asyncio.CancelledError


def fenced(text: str) -> list[tuple[str, str]]:
    """(id, candidate) of a grading request; only fences with the announced nonce count."""
    nonces = _NONCE.findall(text)
    if not nonces:
        return []
    nonce = re.escape(nonces[-1])
    form = rf'<answer id="([^"]+)" nonce="{nonce}">\n(.*?)\n</answer nonce="{nonce}">'
    return re.findall(form, text, re.DOTALL)


def _reply(
    entries: list[dict[str, Any]], listwise: bool, form: str | None, fault: Fault | None
) -> str:
    if fault is not None and fault.kind == "no_score":
        return "The answer has some of the connections right."
    if fault is not None and fault.kind == "wrong_score":
        entries = [{**e, "score": 850} for e in entries]
    if not entries:
        return "ready."
    if form not in ("json_schema", "json_object") and not listwise:
        return f"{entries[0]['explanation']}\n\nScore: {entries[0]['score']}/100"
    if listwise:
        return msgspec.json.encode({"results": entries}).decode()
    one = {"explanation": entries[0]["explanation"], "score": entries[0]["score"]}
    return msgspec.json.encode(one).decode()


def _grader_error(status: int, message: str) -> Refused:
    return openai_error(status, message, "invalid_request_error", "invalid_request")


def _hash(text: str) -> str:
    return blake2b(text.encode("utf-8", "replace"), digest_size=12).hexdigest()


def _content_key(pixels: str, text: str, body: dict[str, Any]) -> str:
    drawn = {k: v for k, v in body.items() if k != "messages"}
    shown = _NONCE.sub("nonce", re.sub(r'nonce="[^"]*"', "", text))
    return _hash(f"{pixels}|{shown}|{sorted(drawn.items(), key=str)}")


def _choice(index: int, text: str, reason: str) -> dict[str, Any]:
    return {
        "index": index,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "logprobs": None,
        "finish_reason": reason,
    }


def _document(
    model: str,
    choices: list[dict[str, Any]],
    prompt: Prompt,
    pixels: str,
    tokens: int,
    thought: int,
) -> dict[str, Any]:
    given = len(prompt.text) // 4 + 1 + (IMAGE_TOKENS if pixels else 0)
    return {
        "id": "chatcmpl-simulated-" + _hash(prompt.text + pixels),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": choices,
        "system_fingerprint": "simulated-by-rsd",
        "usage": {
            "prompt_tokens": given,
            "completion_tokens": tokens,
            "total_tokens": given + tokens,
            "completion_tokens_details": {"reasoning_tokens": thought},
        },
    }


def _spoiled(document: dict[str, Any], kind: str) -> dict[str, Any]:
    for choice in document["choices"]:
        if kind == "refusal":
            choice["message"] = {
                "role": "assistant",
                "content": None,
                "refusal": "I can't help with that.",
            }
        elif kind == "truncated":
            choice["finish_reason"] = "length"
        else:
            choice["message"]["content"] = None
    return document


async def _broken(request: web.Request, data: bytes, fault: Fault) -> web.StreamResponse:
    response = web.StreamResponse(headers=HEADERS | {"Content-Type": "application/json"})
    response.content_length = len(data)
    await response.prepare(request)
    if fault.kind == "cut":
        await response.write(data[: len(data) // 2])
        Simulator._hang_up(request)
    for byte in data:
        await response.write(bytes([byte]))
        await asyncio.sleep(fault.seconds)
    return response


async def serve(
    simulator: Simulator,
    host: str,
    ports: tuple[int, int],
    announce: Callable[[dict[str, Any]], None],
) -> None:
    """Serve both roles until SIGTERM or SIGINT; `announce` gets the addresses when ready."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    runners, urls = [], {}
    for (name, role), port in zip(simulator.roles.items(), ports, strict=True):
        runner = web.AppRunner(simulator.app(role), access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, host, port, backlog=1024)
        await site.start()
        bound = runner.addresses[0][1]
        shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
        urls[name] = f"http://{shown}:{bound}/v1"
        runners.append(runner)
    announce({"simulator": True, **urls})
    await stop.wait()
    for runner in runners:
        await runner.cleanup()


def samples_folder() -> Path:
    """The project's own samples, whose truth is always known."""
    return Path(__file__).resolve().parents[2] / "samples"
