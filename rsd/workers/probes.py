"""Probes of an endpoint: its models, a tiny completion, its load."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from rsd.errors import ErrorClass
from rsd.protocol.dialects import is_reasoning
from rsd.protocol.tasks import (
    LeaseId,
    LoadRead,
    Probe,
    Probed,
    ReadLoad,
)
from rsd.protocol.vocabulary import CallError, RequestDialect
from rsd.workers.api.client import Client, chat_body
from rsd.workers.api.refusals import excerpt
from rsd.workers.api.replies import CallFailed, Reply
from rsd.workers.worker import Handler, Worker

#: Longest answer to a probe, in tokens: enough for a few words, too few to cost anything.
PROBE_TOKENS = 16
#: Sampling parameters that make two seeds differ, if seeds take effect at all.
LIVELY = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
#: Seeds of the tiny completions that show whether seeds take effect.
SEEDS = (1, 1, 2)
#: Errors of a tiny completion that only a server at work can give.
AT_WORK = {
    ErrorClass.UNSUPPORTED,
    ErrorClass.TOO_BIG,
    ErrorClass.REFUSED,
    ErrorClass.TRUNCATED,
}


def probe(worker: Worker, lease: LeaseId, task: Probe) -> Probed:
    """Models first (that finds a wrong key or address), then a tiny completion (credit, path).
    Raises CallFailed.
    """
    client = worker.client(task.endpoint)
    names: tuple[str, ...] = ()
    lengths: dict[str, int] = {}
    try:
        models = client.models()
        names, lengths = models.names, models.lengths
    except CallFailed as e:
        if not (task.model and e.error.status in (404, 405)):  # some servers have no such listing
            raise
    model = _resolve(task, names)
    # All at once: work waits for this probe, and the answers do not need each other.
    with ThreadPoolExecutor(len(SEEDS)) as threads:
        seeds = SEEDS if task.sampling else (None,)
        said = [threads.submit(_say, client, model, task.dialect, seed=seed) for seed in seeds]
    try:
        said[0].result()
    except CallFailed as e:
        if e.error.error not in AT_WORK:
            raise
        warning = f"a tiny completion was refused: {e.error.message}"
        if e.error.error is ErrorClass.UNSUPPORTED:
            warning = ""  # the first item adapts the dialect
    else:
        warning = _try_sampling(task.dialect, said) if task.sampling else ""
    return Probed(
        lease=lease,
        model=model,
        models=names,
        max_model_len=lengths.get(model),
        warning=excerpt(warning),
    )


def read_load(worker: Worker, lease: LeaseId, task: ReadLoad) -> LoadRead:
    """vLLM's own account of its load. Raises CallFailed when the server has none."""
    load = worker.client(task.endpoint).load()
    return LoadRead(lease=lease, running=load.running, waiting=load.waiting)


def _resolve(task: Probe, names: tuple[str, ...]) -> str:
    """The model to ask for. Raises CallFailed when it is not served, or not the only one."""
    if task.model and (task.model in names or not names or is_reasoning(task.model)):
        return task.model  # proxies of commercial models list only some of what they take
    if not task.model and len(names) == 1:
        return names[0]
    listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    if task.model:
        text = f"the model {task.model} is not served there; served: {listed}"
    else:
        text = f"name the model in the settings; served: {listed or 'none'}"
    raise CallFailed(
        CallError(error=ErrorClass.MISCONFIGURED, message=excerpt(text), reason="no_model")
    )


def _say(client: Client, model: str, dialect: RequestDialect, *, seed: int | None) -> Reply:
    """A tiny completion without a picture."""
    wanted: dict[str, Any] = {} if seed is None else {**LIVELY, "seed": seed}
    sent = {k: v for k, v in wanted.items() if k not in dialect.drop}
    sent[dialect.token_parameter] = PROBE_TOKENS
    return client.chat(chat_body(model, None, "Write six random words.", sent))


def _try_sampling(dialect: RequestDialect, said: list[Future[Reply]]) -> str:
    """Whether seeds and temperature do anything: the same seed twice, then another."""
    if "seed" in dialect.drop or "temperature" in dialect.drop:
        return ""
    try:
        texts = [each.result().choices[0].content for each in said]
    except CallFailed as e:
        return f"sampling parameters could not be tried: {e.error.message}"
    if not all(texts):
        return ""  # a reasoning model spent the tokens on thoughts: nothing can be seen
    if texts[0] == texts[1] == texts[2]:
        return "different seeds give the same answer: sampling parameters may take no effect"
    if texts[0] != texts[1]:
        return "the same seed gives different answers: results will not be reproducible"
    return ""


#: What every worker answers beside its own tasks.
HANDLERS: dict[type, Handler] = {Probe: probe, ReadLoad: read_load}
