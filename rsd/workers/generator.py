"""The generator process: pictures prepared, candidates made. Retries nothing, decides nothing."""

from __future__ import annotations

import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import msgspec

from rsd.errors import ErrorClass
from rsd.protocol.dialects import token_cap
from rsd.protocol.tasks import (
    HALF,
    WHOLE,
    Completion,
    Generate,
    Generated,
    LeaseId,
    Prepare,
    to_worker_decoder,
)
from rsd.system import signals
from rsd.system.failpoints import failpoint
from rsd.system.queues import Mailbox
from rsd.workers.api.client import chat_body
from rsd.workers.api.replies import CallFailed, Reply
from rsd.workers.api.transport import Body, Piece
from rsd.workers.channel import Channel
from rsd.workers.pictures import SpooledPictures
from rsd.workers.prepare import prepare
from rsd.workers.probes import HANDLERS
from rsd.workers.worker import Worker

#: In vLLM's words to one who asks for a file:// picture, when it was not started for that.
NO_FILES: Final = "allowed-local-media-path"


def main(inbox: Connection, outbox: Connection, name: str, slots: int) -> None:
    """Entry of the process: `slots` threads call, one prepares pictures."""
    signals.ignore()
    channel: Channel = Mailbox(inbox, outbox, to_worker_decoder)
    Worker(
        channel, SpooledPictures(), slots, HANDLERS | {Prepare: prepare, Generate: generate}
    ).run()


def generate(worker: Worker, lease: LeaseId, task: Generate) -> Generated:
    """One chat completion. Raises CallFailed."""
    reply = ask(worker, task)
    failpoint("generator.answered")
    return Generated(
        lease=lease,
        completions=tuple(
            Completion(content=c.content, finish_reason=c.finish_reason, refusal=c.refusal)
            for c in reply.choices[: len(task.samples)]
        ),
        usage=reply.usage,
        seconds=reply.seconds,
        model=reply.model or task.model,
        timestamp=time.time(),
        rate_windows=reply.rate_windows,
    )


def ask(worker: Worker, task: Generate) -> Reply:
    """Send a request, with its picture in the form that the settings name. Raises CallFailed."""
    configuration, client = worker.configuration, worker.client(task.endpoint)
    assert configuration is not None
    sent = parameters(task)
    detail = "detail" not in task.dialect.drop

    def body(url: Piece | None, uuid: str = "") -> Body:
        return chat_body(task.model, url, task.prompt, sent, detail=detail, uuid=uuid)

    path: Path | None = None
    if configuration.pictures == "file" and not task.reduced:
        path = worker.pictures.file(task.sha256, sent_bytes=task.sent_bytes)
    if path is not None:
        try:
            return client.chat(body(path.resolve().as_uri().encode()))
        except CallFailed as e:
            if NO_FILES not in e.error.message:
                raise
            error = msgspec.structs.replace(
                e.error, error=ErrorClass.MISCONFIGURED, reason="no_local_files"
            )
            raise CallFailed(error) from None
    url, uuid = worker.pictures.get(
        task.sha256, variant=HALF if task.reduced else WHOLE, sent_bytes=task.sent_bytes
    )
    if not uuid:
        return client.chat(body(url))
    if uuid in client.holds:
        try:
            return client.chat(body(None, uuid))
        except CallFailed as e:
            if e.error.reason != "picture_not_held":
                raise
    reply = client.chat(body(url, uuid))
    client.holds.add(uuid)
    return reply


def parameters(task: Generate) -> dict[str, Any]:
    """Every sampling parameter, explicitly: a server fills what is missing from its model's own
    defaults, and Qwen2.5-VL ships temperature 0.1 and top-k 1.
    """
    params = task.params
    wanted: dict[str, Any] = {
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "min_p": params.min_p,
        "repetition_penalty": params.repetition_penalty,
        "seed": task.seed,
    }
    sent = {k: v for k, v in wanted.items() if k not in task.dialect.drop}
    sent[task.dialect.token_parameter] = token_cap(task.max_tokens, task.dialect)
    # vLLM refuses n at temperature 0; the brain asks again for choices that are missing.
    if len(task.samples) > 1 and task.dialect.multiple and params.temperature > 0:
        sent["n"] = len(task.samples)
    return sent
