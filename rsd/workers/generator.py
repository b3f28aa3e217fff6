"""The generator process: pictures prepared, candidates made. Retries nothing, decides nothing."""

from __future__ import annotations

import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import msgspec

from rsd.errors import ErrorClass
from rsd.files import failpoint
from rsd.messages import Completion, Decoding, Generate, Generated, LeaseId, Prepare, Prepared
from rsd.vocabulary import SPOOL_REFUSED, CallError
from rsd.workers import images
from rsd.workers.endpoint import chat_body
from rsd.workers.process import SHORT_OF_MEMORY, Worker, token_cap
from rsd.workers.replies import CallFailed, Reply
from rsd.workers.wire import Body, Piece

#: In vLLM's words to one who asks for a file:// picture, when it was not started for that.
NO_FILES: Final = "allowed-local-media-path"


def main(inbox: Connection, outbox: Connection, name: str, slots: int) -> None:
    """Entry of the process: `slots` threads call, one prepares pictures."""
    Worker(inbox, outbox, slots, {Prepare: prepare, Generate: generate}).run()


def prepare(worker: Worker, lease: LeaseId, task: Prepare) -> Prepared:
    """Verify a picture and write what is sent of it into the spool. Raises images.BadImage, and
    CallFailed when the disk refuses.
    """
    configuration = worker.configuration
    assert configuration is not None

    def announce() -> None:
        """Before Pillow touches the bytes: a death from here on is held against the picture."""
        worker.mailbox.reply(Decoding(lease=lease, image=task.image))
        failpoint("generator.decoding", signal.SIGSEGV)

    limits = images.Limits(
        max_pixels=configuration.max_pixels,
        max_file_bytes=configuration.max_file_bytes,
        min_side=configuration.min_side,
        max_aspect=configuration.max_aspect,
        background=configuration.background,
    )
    spool, roomy = Path(configuration.spool_dir), worker.roomy
    try:
        info = images.prepare(
            configuration.image_dir,
            task.path,
            spool,
            limits,
            announce,
            plain=configuration.pictures == "file",
        )
    except images.SpoolRefused as e:
        refused = CallError(error=ErrorClass.TRANSIENT, message=str(e), reason=SPOOL_REFUSED)
        raise CallFailed(refused) from None
    except images.BadImage as e:
        if e.error.reason == images.TOO_MUCH_MEMORY and not roomy:
            raise CallFailed(SHORT_OF_MEMORY) from None  # the calls had taken it
        raise
    return Prepared(lease=lease, image=task.image, info=info)


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
        allowances=reply.allowances,
    )


def ask(worker: Worker, task: Generate) -> Reply:
    """Send a request, with its picture in the form that the settings name. Raises CallFailed."""
    configuration, client = worker.configuration, worker.client(task.endpoint)
    assert configuration is not None
    sent = parameters(task)
    detail = "detail" not in task.profile.drop

    def body(url: Piece | None, uuid: str = "") -> Body:
        return chat_body(task.model, url, task.prompt, sent, detail=detail, uuid=uuid)

    path = worker.spool / task.sha256
    # Not there: it was prepared before the setting changed.
    if configuration.pictures == "file" and not task.reduced and path.exists():
        try:
            return client.chat(body(path.resolve().as_uri().encode()))
        except CallFailed as e:
            if NO_FILES not in e.error.message:
                raise
            error = msgspec.structs.replace(
                e.error, error=ErrorClass.MISCONFIGURED, reason="no_local_files"
            )
            raise CallFailed(error) from None
    url, uuid = worker.pictures.get(worker.spool, task.sha256, reduced=task.reduced)
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
    sent = {k: v for k, v in wanted.items() if k not in task.profile.drop}
    sent[task.profile.token_parameter] = token_cap(task.max_tokens, task.profile)
    # vLLM refuses n at temperature 0; fewer answers than asked are completed by the brain.
    if len(task.samples) > 1 and task.profile.multiple and params.temperature > 0:
        sent["n"] = len(task.samples)
    return sent
