"""The grader process: candidates scored. Retries nothing, decides nothing."""

from __future__ import annotations

import logging
import time
from multiprocessing.connection import Connection
from typing import Any

from rsd.errors import ErrorClass
from rsd.protocol.dialects import is_reasoning, token_cap
from rsd.protocol.tasks import (
    HALF,
    WHOLE,
    GradeCandidates,
    Graded,
    GradeGiven,
    LeaseId,
    to_worker_decoder,
)
from rsd.protocol.vocabulary import CallError
from rsd.system import signals
from rsd.system.failpoints import failpoint
from rsd.system.queues import Mailbox
from rsd.workers.api.client import chat_body
from rsd.workers.api.refusals import excerpt
from rsd.workers.api.replies import CallFailed, Reply
from rsd.workers.channel import Channel
from rsd.workers.grading import scores
from rsd.workers.grading.question import ONLY, Question, ask, response_format
from rsd.workers.pictures import SpooledPictures
from rsd.workers.probes import HANDLERS
from rsd.workers.worker import Worker

log = logging.getLogger(__name__)


def main(inbox: Connection, outbox: Connection, name: str, slots: int) -> None:
    """Entry of the process: `slots` threads call."""
    signals.ignore()
    channel: Channel = Mailbox(inbox, outbox, to_worker_decoder)
    Worker(channel, SpooledPictures(), slots, HANDLERS | {GradeCandidates: grade}).run()


def grade(worker: Worker, lease: LeaseId, task: GradeCandidates) -> Graded:
    """One grading call. Raises CallFailed."""
    question = ask(task)
    url, _ = worker.pictures.get(
        task.sha256, variant=HALF if task.reduced else WHOLE, sent_bytes=task.sent_bytes
    )
    detail = "detail" not in task.dialect.drop
    body = chat_body(task.model, url, question.text, parameters(task, question), detail=detail)
    reply = worker.client(task.endpoint).chat(body)
    failpoint("grader.answered")
    return Graded(
        lease=lease,
        grades=grades(reply, question, token_cap(task.max_tokens, task.dialect)),
        usage=reply.usage,
        seconds=reply.seconds,
        model=reply.model or task.model,
        timestamp=time.time(),
        rate_windows=reply.rate_windows,
    )


def parameters(task: GradeCandidates, question: Question) -> dict[str, Any]:
    """What a grader is asked with: no sampling of its own, a seed per grade, the JSON form."""
    wanted: dict[str, Any] = {"seed": task.candidates[0].number}
    if not is_reasoning(task.model):
        wanted["temperature"] = 0.0
    if task.reasoning_effort:
        wanted["reasoning_effort"] = task.reasoning_effort
    sent = {k: v for k, v in wanted.items() if k not in task.dialect.drop}
    sent[task.dialect.token_parameter] = token_cap(task.max_tokens, task.dialect)
    form = response_format(task.dialect.response_format, listwise=question.listwise)
    if form is not None:
        sent["response_format"] = form
    return sent


def grades(reply: Reply, question: Question, cap: int) -> tuple[GradeGiven, ...]:
    """The scores of a reply. Raises CallFailed when there is none: an error is never a score."""
    choice = reply.choices[0]
    if choice.refusal:
        raise CallFailed(_error(ErrorClass.REFUSED, choice.refusal, "refusal"), reply.usage)
    if choice.finish_reason == "content_filter":
        text = "the content filter stopped the grade"
        raise CallFailed(_error(ErrorClass.REFUSED, text, "content_filter"), reply.usage)
    if choice.finish_reason == "length":
        thought = reply.usage.reasoning_tokens or reply.usage.output_tokens
        text = f"token budget used by reasoning ({thought} of {cap})"
        if choice.content.strip():
            text = f"the grade was cut off at its token cap ({reply.usage.output_tokens} of {cap})"
        raise CallFailed(_error(ErrorClass.TRUNCATED, text, "truncated"), reply.usage)
    if question.listwise:
        found = scores.listwise(choice.content, list(question.ids))
        why = "no score of the list can be read"
    else:
        score = scores.pointwise(choice.content, question.shown[ONLY])
        found = {ONLY: score} if isinstance(score, scores.Score) else {}
        why = score.why if isinstance(score, scores.Unparsable) else ""
    if len(found) < len(question.ids):
        log.warning("unparsable grade (%s): %s", why, excerpt(choice.content))
    if not found:
        raise CallFailed(_error(ErrorClass.BAD_REPLY, why, "unparsable"), reply.usage)
    return tuple(
        GradeGiven(
            index=question.ids[name].index,
            number=question.ids[name].number,
            score=score.score,
            explanation=score.explanation,
        )
        for name, score in found.items()
    )


def _error(kind: ErrorClass, message: str, reason: str) -> CallError:
    return CallError(error=kind, message=excerpt(message), reason=reason, status=200)
