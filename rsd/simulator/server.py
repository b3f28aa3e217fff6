"""The simulated servers: one process, two ports, HTTP and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from aiohttp import StreamReader, web
from aiohttp.http_parser import RawRequestMessage

from rsd.errors import UserError
from rsd.simulator import scenario, vllm
from rsd.simulator.faults import Faults
from rsd.simulator.grader import Bench, plan, read
from rsd.simulator.pictures import DataUrls, Reader
from rsd.simulator.rules import (
    openai_error,
    vllm_error,
)
from rsd.simulator.scene import Scene
from rsd.simulator.side import BODY_MAX, Options, Role, Side
from rsd.simulator.slots import Slots
from rsd.simulator.truth import Pictures

#: Threads that decode pictures.
DECODERS: Final = 2


def _sides(
    options: Options, urls: DataUrls, pictures: Pictures, scene: Scene | None
) -> tuple[Side, Side]:
    served = vllm.Served(
        options.model, options.any_model, options.max_model_len, options.seed, scene
    )
    bench = Bench(options.noise, options.seed, scene)
    now = int(time.time())
    card = {"object": "model", "created": now, "owned_by": "rsd-simulator", "simulated": True}
    more = {"root": options.model, "parent": None, "max_model_len": options.max_model_len}
    generator = Role(
        name="generator",
        mean_seconds=options.generator_seconds,
        busy_status=options.refuse,
        read=vllm.read,
        plan=lambda body, question, picture: vllm.plan(served, pictures, body, question, picture),
        error=lambda status, text: vllm_error(status, text),
        models=[{"id": options.model, **card, **more}],
    )
    grader = Role(
        name="grader",
        mean_seconds=options.grader_seconds,
        busy_status=429,
        read=read,
        plan=lambda body, question, picture: plan(bench, pictures, body, question, picture),
        error=lambda status, text: openai_error(status, text),
        models=[{"id": options.grader_model, **card}],
    )
    faults = Faults(options.seed)
    sides = (
        Side(generator, options, Slots(options.generator_slots, options.max_queue), faults, urls),
        Side(grader, options, Slots(options.grader_slots, options.max_queue), faults, urls),
    )
    for side in sides:
        side.peers = {each.role.name: each for each in sides}
    return sides


def samples_folder() -> Path:
    """The project's own samples, whose truth is always known."""
    return Path(__file__).resolve().parents[2] / "samples"


async def serve(options: Options, ready: Callable[[dict[str, Any]], None]) -> None:
    """Serve both roles until SIGTERM or SIGINT; `ready` is called once with the two base URLs.

    Raises UserError when a port, a truth folder or a scenario cannot be used.
    """
    reader = Reader(decode=options.decode)
    pictures = Pictures(list(options.truth), reader)
    scene = Scene(scenario.load(options.scenario)) if options.scenario else None
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with contextlib.ExitStack() as stack:
        executor = ThreadPoolExecutor(DECODERS, thread_name_prefix="decode")
        stack.callback(executor.shutdown, wait=False, cancel_futures=True)
        sides = _sides(options, DataUrls(reader, executor, options.local_media), pictures, scene)
        runners = [_runner(side) for side in sides]
        try:
            ports = []
            for runner, port in zip(runners, (options.port, options.grader_port), strict=True):
                await runner.setup()
                ports.append(await _listen(runner, options.host, port))
            host = "127.0.0.1" if options.host in ("0.0.0.0", "::", "") else options.host
            urls = [f"http://{host}:{port}/v1" for port in ports]
            ready({"simulator": True, "generator": urls[0], "grader": urls[1]})
            await stop.wait()
        finally:
            for runner in runners:
                await runner.cleanup()


def _runner(side: Side) -> web.ServerRunner:
    def factory(
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: Any,
        writer: Any,
        task: asyncio.Task[None],
    ) -> web.BaseRequest:
        loop = asyncio.get_running_loop()
        return web.BaseRequest(
            message, payload, protocol, writer, task, loop, client_max_size=BODY_MAX
        )

    # Cancellation: a client that leaves frees its slot at once, as with vLLM.
    server = web.Server(
        side.handle, request_factory=factory, handler_cancellation=True, access_log=None
    )
    return web.ServerRunner(server, shutdown_timeout=0.2)


async def _listen(runner: web.ServerRunner, host: str, port: int) -> int:
    site = web.TCPSite(runner, host, port, backlog=1024)
    try:
        await site.start()
    except OSError as e:
        raise UserError(f"{host}:{port}: cannot listen: {e.strerror or e}") from None
    return int(runner.addresses[0][1])
