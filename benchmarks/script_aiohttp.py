"""What a competent engineer writes in an afternoon: asyncio and aiohttp, nothing stored but a file
of results. Each picture is read and encoded once and joined into ready bodies; both pools have
their own workers, so that grading overlaps generation.

    python benchmarks/script_aiohttp.py JOB.json      (`common.job` says what the file holds)
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from pathlib import Path
from typing import Any

import aiohttp
from question import question


async def post(session: aiohttp.ClientSession, url: str, body: bytes | dict[str, Any]) -> Any:
    """The choices of an answer; three tries."""
    sent: dict[str, Any] = {"data": body} if isinstance(body, bytes) else {"json": body}
    for wait in (1, 2, None):
        try:
            async with session.post(url + "/chat/completions", **sent) as response:
                if response.status == 200:
                    return (await response.json())["choices"]
                problem = f"{response.status}: {(await response.text())[:200]}"
        except aiohttp.ClientError as e:
            problem = repr(e)
        if wait is None:
            raise RuntimeError(problem)
        await asyncio.sleep(wait)


def body_of(picture: bytes | str, model: str, text: str, **fields: Any) -> bytes | dict[str, Any]:
    """Picture first, then the text. Of bytes the body is joined, and base64 never encoded again."""
    if isinstance(picture, str):
        url = {"type": "image_url", "image_url": {"url": picture}}
        content = [url, {"type": "text", "text": text}]
        return {"model": model, "messages": [{"role": "user", "content": content}], **fields}
    head = b'{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"'
    rest = json.dumps({"model": model, **fields}).encode()
    middle = b'"}},{"type":"text","text":%s}]}],' % json.dumps(text).encode()
    return b"".join((head, picture, middle, rest[1:]))


async def main(job: dict[str, Any]) -> None:
    """Draw, grade, keep the best."""
    draws: asyncio.Queue[Any] = asyncio.Queue()
    grades: asyncio.Queue[Any] = asyncio.Queue()
    images = [{**image, "texts": {}, "scores": {}} for image in job["images"]]
    for image in images:
        for first in range(0, job["candidates"], job["n"]):
            draws.put_nowait((image, first))
    left = len(images)
    done = asyncio.Event()
    output = Path(job["output"]).open("w")  # noqa: SIM115
    headers = {"Content-Type": "application/json"}
    timeout = aiohttp.ClientTimeout(total=1200)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        connector=connector, headers=headers, timeout=timeout
    ) as session:

        async def generate() -> None:
            while not draws.empty():
                image, first = draws.get_nowait()
                if "url" not in image:
                    data = Path(image["path"]).read_bytes()
                    url = b"data:image/png;base64," + base64.b64encode(data)
                    image["url"] = url if job["spliced"] else url.decode()
                asked = job["params"] | {"seed": image["seed"] + first}
                if job["n"] > 1:
                    asked["n"] = job["n"]
                body = body_of(image["url"], job["model"], job["prompt"], **asked)
                found = await post(session, job["generator"], body)
                new = {first + k: c["message"]["content"] for k, c in enumerate(found)}
                image["texts"] |= new
                if not job["listwise"]:
                    for index in new:
                        grades.put_nowait((image, [index]))
                elif len(image["texts"]) == job["candidates"]:
                    grades.put_nowait((image, sorted(image["texts"])))

        async def grade() -> None:
            nonlocal left
            while True:
                image, indices = await grades.get()
                text = question(job["template"], {f"C{i}": image["texts"][i] for i in indices})
                asked = {"response_format": {"type": "json_object"}, "seed": 0}
                asked["max_completion_tokens"] = 8192
                body = body_of(image["url"], job["grading_model"], text, **asked)
                reply = json.loads(
                    (await post(session, job["grader"], body))[0]["message"]["content"]
                )
                for entry in reply.get("results") or [reply | {"id": f"C{indices[0]}"}]:
                    image["scores"][int(entry["id"][1:])] = float(entry["score"])
                if len(image["scores"]) == job["candidates"]:
                    del image["url"]
                    output.write(json.dumps(image) + "\n")
                    left -= 1
                    if not left:
                        done.set()

        tasks = [asyncio.create_task(generate()) for _ in range(job["gen_workers"])]
        tasks += [asyncio.create_task(grade()) for _ in range(job["grade_workers"])]
        waiter = asyncio.create_task(done.wait())
        while not waiter.done():
            ended, _ = await asyncio.wait([waiter, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in ended & set(tasks):
                task.result()
                tasks.remove(task)
        for task in tasks:
            task.cancel()
    output.close()


if __name__ == "__main__":
    asyncio.run(main(json.loads(Path(sys.argv[1]).read_text())))
