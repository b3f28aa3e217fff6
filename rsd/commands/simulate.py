"""Play vLLM and the grader on this machine: no GPU, no key, every answer marked as simulated."""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

from rsd.simulator.server import samples_folder, serve
from rsd.simulator.side import Options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `simulate`."""
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=_port, default=36000, help="the generator's; 0: any (default: %(default)s)")
    add(
        "--grader-port",
        type=_port,
        default=36001,
        help="the grader's; 0: any (default: %(default)s)",
    )
    add("--model", default="simulated-vlm", help="the generator's name (default: %(default)s)")
    add("--any-model", action="store_true", help="the generator answers to every model name")
    add("--grader-model", default="o4-mini", help="what the grader lists (default: %(default)s)")
    add(
        "--truth",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="pictures with truth: JSON files beside them or in DIR/truth; may be repeated",
    )
    add(
        "--scenario",
        type=Path,
        metavar="FILE",
        help="recorded answers and grades, or a world to draw them from (docs/simulator.md)",
    )
    add("--slots", type=_count, default=0, help="answers at once, per role; 0: no limit")
    add("--generator-slots", type=_count, help="the same, generator only")
    add("--grader-slots", type=_count, help="the same, grader only")
    add("--max-queue", type=_count, help="answers that may wait; more are refused")
    add(
        "--refuse",
        type=int,
        nargs="?",
        choices=(429, 503),
        const=429,
        default=503,
        help="how the generator refuses what is more: 503, or 429 when given without a value",
    )
    add("--retry-after", type=_positive, help="seconds, sent with such a refusal")
    add(
        "--service-seconds",
        type=_positive,
        default=0.0,
        metavar="MEAN",
        help="mean time of an answer",
    )
    add("--generator-seconds", type=_positive, metavar="MEAN", help="the same, generator only")
    add("--grader-seconds", type=_positive, metavar="MEAN", help="the same, grader only")
    add("--noise", type=_positive, default=8.0, help="standard deviation of a grade, in points")
    add("--seed", type=int, default=0, help="another seed: other answers and grades")
    add("--api-key", default="", help="ask for this key (a made-up one: `ps` shows it)")
    add("--max-model-len", type=int, default=32_768, help="context length in tokens")
    add("--allowed-local-media-path", default="", help="take file:// pictures below this folder")
    add(
        "--image-decode",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="decode pictures (off: a picture is known by its bytes)",
    )


def main(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT; one JSON line on stdout says where. Raises UserError."""
    generator_slots = args.slots if args.generator_slots is None else args.generator_slots
    grader_slots = args.slots if args.grader_slots is None else args.grader_slots
    mean = args.service_seconds
    samples = samples_folder()
    options = Options(
        host=args.host,
        port=args.port,
        grader_port=args.grader_port,
        model=args.model,
        any_model=args.any_model,
        grader_model=args.grader_model,
        truth=(*([samples] if samples.is_dir() else []), *args.truth),
        scenario=args.scenario,
        generator_slots=generator_slots,
        grader_slots=grader_slots,
        max_queue=args.max_queue,
        refuse=args.refuse,
        retry_after=args.retry_after,
        generator_seconds=mean if args.generator_seconds is None else args.generator_seconds,
        grader_seconds=mean if args.grader_seconds is None else args.grader_seconds,
        noise=args.noise,
        seed=args.seed,
        api_key=args.api_key,
        max_model_len=args.max_model_len,
        decode=args.image_decode,
        local_media=args.allowed_local_media_path,
    )
    asyncio.run(serve(options, _ready))
    return 0


def _ready(where: dict[str, Any]) -> None:
    print(json.dumps(where), flush=True)


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number from 0 on")
    return value
