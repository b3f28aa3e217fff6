"""The same work with the openai client, as its README shows it: AsyncOpenAI, a semaphore a pool,
the picture as a data URL in the messages, the client's own retries.

    python benchmarks/script_openai.py JOB.json      (`common.job` says what the file holds)
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI
from question import question


def messages(url: str, text: str) -> Any:
    """One user turn: picture first, then the text."""
    picture = {"type": "image_url", "image_url": {"url": url}}
    return [{"role": "user", "content": [picture, {"type": "text", "text": text}]}]


async def main(job: dict[str, Any]) -> None:
    """Draw, grade, keep the best."""
    generator = AsyncOpenAI(base_url=job["generator"], api_key="none", timeout=1200)
    grader = AsyncOpenAI(base_url=job["grader"], api_key="none", timeout=1200)
    drawing = asyncio.Semaphore(job["gen_workers"])
    grading = asyncio.Semaphore(job["grade_workers"])
    # Pictures in memory: more than enough to keep both pools busy.
    ahead = 4 * job["gen_workers"] * job["n"] // job["candidates"] + 4
    room = asyncio.Semaphore(ahead)
    params = dict(job["params"])
    extra = {k: params.pop(k) for k in ("top_k", "min_p", "repetition_penalty")}

    async def grade(url: str, texts: dict[int, str]) -> dict[int, float]:
        text = question(job["template"], {f"C{i}": t for i, t in texts.items()})
        async with grading:
            answer = await grader.chat.completions.create(
                model=job["grading_model"],
                messages=messages(url, text),
                response_format={"type": "json_object"},
                max_completion_tokens=8192,
                seed=0,
            )
        reply = json.loads(answer.choices[0].message.content or "")
        entries = reply.get("results") or [reply | {"id": f"C{next(iter(texts))}"}]
        return {int(e["id"][1:]): float(e["score"]) for e in entries}

    async def draw(url: str, seed: int, first: int) -> tuple[dict[int, str], dict[int, float]]:
        more = {"n": job["n"]} if job["n"] > 1 else {}
        async with drawing:
            answer = await generator.chat.completions.create(
                model=job["model"],
                messages=messages(url, job["prompt"]),
                seed=seed + first,
                extra_body=extra,
                **params,
                **more,
            )
        texts = {first + k: c.message.content or "" for k, c in enumerate(answer.choices)}
        if job["listwise"]:
            return texts, {}
        scored = await asyncio.gather(*(grade(url, {i: t}) for i, t in texts.items()))
        return texts, {i: s for found in scored for i, s in found.items()}

    async def one(image: dict[str, Any]) -> dict[str, Any]:
        async with room:
            data = await asyncio.to_thread(Path(image["path"]).read_bytes)
            url = "data:image/png;base64," + base64.b64encode(data).decode()
            firsts = range(0, job["candidates"], job["n"])
            parts = await asyncio.gather(*(draw(url, image["seed"], k) for k in firsts))
            texts = {i: t for part, _ in parts for i, t in part.items()}
            scores = {i: s for _, part in parts for i, s in part.items()}
            if job["listwise"]:
                scores = await grade(url, texts)
        return {**image, "texts": texts, "scores": scores}

    results = await asyncio.gather(*(one(image) for image in job["images"]))
    Path(job["output"]).write_text("".join(json.dumps(r) + "\n" for r in results))


if __name__ == "__main__":
    asyncio.run(main(json.loads(Path(sys.argv[1]).read_text())))
