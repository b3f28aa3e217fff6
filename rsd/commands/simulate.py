"""`daemon.py simulate`: an OpenAI-compatible server that plays vLLM and grader. No model is in
it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

from rsd.errors import UserError
from rsd.simulator.server import Role, Simulator, samples_folder, serve
from rsd.simulator.truth import Pictures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `simulate`."""
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on")
    add("--port", type=int, default=36000, help="port of the generator (0: any free one)")
    add("--grader-port", type=int, default=36001, help="port of the grader (0: any free one)")
    add("--model", default="simulated-vlm", help="name of the served model")
    add("--any-model", action="store_true", help="accept every model name for generation")
    add("--grader-model", default="o4-mini", help="name of the grader")
    add("--truth", action="append", default=[], metavar="DIR", help="pictures with truth JSON")
    add("--slots", type=int, default=0, help="requests served at once per role (0: no limit)")
    add("--generator-slots", type=int, default=None, help="the same, generator only")
    add("--grader-slots", type=int, default=None, help="the same, grader only")
    add("--max-queue", type=int, default=None, help="requests that may wait; more get 503")
    add("--refuse", action="store_true", help="429 instead of waiting when all slots are taken")
    add("--service-seconds", type=float, default=0.0, help="mean service time")
    add("--generator-seconds", type=float, default=None, help="the same, generator only")
    add("--grader-seconds", type=float, default=None, help="the same, grader only")
    add("--noise", type=float, default=8.0, help="standard deviation of the grades, in points")
    add("--seed", type=int, default=0, help="seed of the service times")
    add("--api-key", default="", help="key that both roles ask for")
    add("--max-model-len", type=int, default=32768, help="context length")


def main(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C; prints one JSON line with the addresses when ready."""
    folders = [samples_folder(), *(Path(t) for t in args.truth)]
    for folder in folders[1:]:
        if not folder.is_dir():
            raise UserError(f"--truth {folder}: no such folder")

    def pick(value: Any, default: Any) -> Any:
        return default if value is None else value

    async def run() -> None:
        generator = Role(
            "generator",
            args.model,
            pick(args.generator_slots, args.slots),
            pick(args.generator_seconds, args.service_seconds),
            key=args.api_key,
            queue=args.max_queue,
            refuse=args.refuse,
            any_model=args.any_model,
            max_model_len=args.max_model_len,
        )
        grader = Role(
            "grader",
            args.grader_model,
            pick(args.grader_slots, args.slots),
            pick(args.grader_seconds, args.service_seconds),
            key=args.api_key,
            queue=args.max_queue,
            refuse=args.refuse,
            any_model=True,
        )
        simulator = Simulator(generator, grader, Pictures(folders), args.noise, args.seed)
        await serve(
            simulator,
            args.host,
            (args.port, args.grader_port),
            lambda urls: print(json.dumps(urls), flush=True),
        )

    try:
        asyncio.run(run())
    except OSError as e:
        raise UserError(f"--port: cannot listen on {args.host}: {e.strerror}") from None
    return 0
