"""The real vLLM generates: `RSD_VLLM_URL=http://127.0.0.1:PORT/v1 pytest -m real_vllm`."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from tests.support import Daemon, Simulator, draw

URL = os.environ.get("RSD_VLLM_URL", "")

pytestmark = [
    pytest.mark.real_vllm,
    pytest.mark.skipif(not URL, reason="RSD_VLLM_URL names no vLLM server"),
]


def test_n_and_seeds_are_what_single_requests_would_give(
    simulator: Callable[..., Simulator], daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    sim = simulator()
    prompt = "Write the netlist of this block diagram."  # small models have a short context
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps({"p1": prompt}))
    flags = ["--prompts", str(prompts), "--candidates", "4", "--temperature-range", "0.8"]
    flags += ["--top-p-range", "0.9", "--top-k-range", "40", "--max-tokens", "24"]
    d = daemon(sim, *flags)
    for seed in range(3):
        draw(d.images / f"p{seed}.png", seed)
    command = [URL if word == sim.generator else word for word in d.command("run", "--once")]
    d.command = lambda *_: command  # type: ignore[method-assign]
    done = d.once()
    assert done.returncode in (0, 1), done.stderr
    assert "take no effect" not in done.stderr and "not be reproducible" not in done.stderr
    shown = {n: d.run("show", str(d.images / n), "--json") for n in ("p0.png", "p1.png", "p2.png")}
    model = requests.get(f"{URL}/models", timeout=30).json()["data"][0]["id"]
    for name, answer in shown.items():
        document = json.loads(answer.stdout)
        candidates = document["candidates"]
        assert len(candidates) == 4
        picture = base64.b64encode((d.images / name).read_bytes()).decode()
        for candidate in candidates:
            single = requests.post(
                f"{URL}/chat/completions",
                json={
                    "model": model,
                    "messages": [
                        {
                            "role": "user",
                            "content": [
                                {
                                    "type": "image_url",
                                    "image_url": {"url": f"data:image/png;base64,{picture}"},
                                },
                                {"type": "text", "text": prompt},
                            ],
                        }
                    ],
                    **candidate["params"],
                    "seed": candidate["seed"],
                    "max_tokens": 24,
                },
                timeout=60,
            ).json()
            assert single["choices"][0]["message"]["content"] == candidate["content"]
