"""Probes of an endpoint: its models, a tiny completion, its load."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rsd.errors import ErrorClass
from rsd.protocol.dialects import is_reasoning
from rsd.protocol.tasks import (
    LeaseId,
    LoadRead,
    Probe,
    Probed,
    ProbeSampling,
    ReadLoad,
    SamplingProbed,
)
from rsd.protocol.vocabulary import CallError, RequestDialect, Usage
from rsd.workers.api.client import Client, chat_body
from rsd.workers.api.refusals import excerpt
from rsd.workers.api.replies import CallFailed, Reply
from rsd.workers.worker import Handler, Worker

#: Longest reply to a probe, in tokens: enough for a few words, too few to cost anything.
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
    """The list of models (that finds a wrong key or address), then a tiny completion if it is asked
    for or nothing is listed. Raises CallFailed.
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
    warning, usage = "", Usage()
    if task.completion or not names:  # a server without a listing has shown nothing so far
        try:
            usage = _complete(client, model, task.dialect).usage
        except CallFailed as e:
            if e.error.error not in AT_WORK:
                raise
            usage = e.usage
            if e.error.error is not ErrorClass.UNSUPPORTED:  # the first item adapts the dialect
                warning = f"a tiny completion was refused: {e.error.message}"
    return Probed(
        lease=lease,
        model=model,
        models=names,
        max_model_len=lengths.get(model),
        warning=excerpt(warning),
        usage=usage,
    )


def probe_sampling(worker: Worker, lease: LeaseId, task: ProbeSampling) -> SamplingProbed:
    """Whether seeds and temperature do anything: the same seed twice, then another. Raises
    CallFailed only for an endpoint that a reload removed; a call that fails is a warning.
    """
    client = worker.client(task.endpoint)
    if "seed" in task.dialect.drop or "temperature" in task.dialect.drop:
        return SamplingProbed(lease=lease)
    texts: list[str] = []
    usages: list[Usage] = []
    warning = ""
    with ThreadPoolExecutor(len(SEEDS)) as threads:
        asked = [
            threads.submit(_complete, client, task.model, task.dialect, seed=seed) for seed in SEEDS
        ]
    for each in asked:
        try:
            reply = each.result()
        except CallFailed as e:
            usages.append(e.usage)
            # What a dialect without its parameters cannot show, no user has to know.
            if e.error.error is not ErrorClass.UNSUPPORTED:
                warning = f"sampling parameters could not be tried: {e.error.message}"
        else:
            usages.append(reply.usage)
            texts.append(reply.choices[0].content)
    if len(texts) == len(SEEDS):
        warning = _verdict(*texts)
    return SamplingProbed(lease=lease, warning=excerpt(warning), usage=_sum(usages))


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


def _complete(
    client: Client, model: str, dialect: RequestDialect, *, seed: int | None = None
) -> Reply:
    """A tiny completion without a picture. Raises CallFailed."""
    wanted: dict[str, Any] = {} if seed is None else {**LIVELY, "seed": seed}
    sent = {k: v for k, v in wanted.items() if k not in dialect.drop}
    sent[dialect.token_parameter] = PROBE_TOKENS
    return client.chat(chat_body(model, None, "Write six random words.", sent))


def _verdict(first: str, same_seed: str, other_seed: str) -> str:
    """What the three texts show to be wrong; "" when nothing."""
    if not (first and same_seed and other_seed):
        return ""  # a reasoning model spent the tokens on thoughts: nothing can be seen
    if first == same_seed == other_seed:
        return "different seeds give the same answer: sampling parameters may take no effect"
    if first != same_seed:
        return "the same seed gives different answers: results will not be reproducible"
    return ""


def _sum(usages: list[Usage]) -> Usage:
    return Usage(
        input_tokens=sum(u.input_tokens for u in usages),
        output_tokens=sum(u.output_tokens for u in usages),
        reasoning_tokens=sum(u.reasoning_tokens for u in usages),
        cached_tokens=sum(u.cached_tokens for u in usages),
    )


#: What every worker handles beside its own tasks.
HANDLERS: dict[type, Handler] = {
    Probe: probe,
    ProbeSampling: probe_sampling,
    ReadLoad: read_load,
}
