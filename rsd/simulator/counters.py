"""What a simulated server has seen: the figures that tests count by, and vLLM's metrics."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from typing import Any, Final

from rsd.simulator.rules import Picture, Plan, Reply, digest
from rsd.simulator.slots import History, Slots

#: Logical calls, and pictures, that are told apart; above that only totals are right.
CALLS_MAX: Final = 2_000_000
PICTURES_MAX: Final = 500_000
#: Distinct byte strings that are told apart per picture; one is right, more is news.
BYTE_STRINGS_MAX: Final = 64
#: Prompts and pictures that the simulated prefix cache holds.
PREFIXES_MAX: Final = 100_000
#: Tokens of a block of the prefix cache; only whole blocks hit.
BLOCK: Final = 16


class Counters:
    """One role's figures since the start or the last reset."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self.reset()

    def reset(self) -> None:
        """Forget everything but what is in flight."""
        self.requests = 0
        self.answered = 0
        self.children = 0
        self.probes = 0
        self.overflowed = 0
        self.in_flight = getattr(self, "in_flight", 0)
        self.max_in_flight = self.in_flight
        self.prompt_tokens = self.output_tokens = 0
        self.prefix_queries = self.prefix_hits = 0
        self.picture_queries = self.picture_hits = 0
        self.by_status: Counter[str] = Counter()
        self.finished: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.byte_strings: dict[str, set[str]] = {}
        self._prefixes: OrderedDict[str, None] = OrderedDict()
        self.first: float | None = None  #: monotonic, of the first call with a picture
        self.last: float | None = None  #: monotonic, of the last answer to such a call
        self._slots.busy_seconds = 0.0
        self._slots.history = History()

    def arrive(self) -> None:
        """A chat completion is asked for."""
        self.requests += 1
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)

    def leave(self, outcome: str) -> None:
        """It is over: a status, `gone` (the client left) or `none` (no answer was sent)."""
        self.in_flight -= 1
        self.by_status[outcome] += 1

    def admit(self, plan: Plan) -> None:
        """A request is worked on: what its picture and prompt find in vLLM's caches."""
        whole = (plan.prompt_tokens - 1) // BLOCK * BLOCK
        hit = 0
        sha256 = plan.picture.sha256 if plan.picture else ""
        if plan.picture is not None:
            self.first = self.first or time.monotonic()
            self.picture_queries += 1
            seen = self._remember(sha256)
            self.picture_hits += seen
            hit = plan.image_tokens // BLOCK * BLOCK if seen else 0
            self._picture(plan.picture)
        if self._remember(digest(sha256, plan.text)):
            hit = whole
        self.prefix_queries += plan.prompt_tokens * len(plan.parts)
        self.prefix_hits += hit + whole * (len(plan.parts) - 1)

    def answer(self, plan: Plan, reply: Reply) -> None:
        """A right answer was sent whole."""
        self.answered += 1
        self.children += len(plan.parts)
        self.prompt_tokens += reply.prompt_tokens * len(plan.parts)
        self.output_tokens += reply.output_tokens
        self.finished.update(reply.finish_reasons)
        if plan.picture is None:
            self.probes += 1
            return
        self.last = time.monotonic()
        for call in plan.calls if reply.final else ():
            if call in self.calls or len(self.calls) < CALLS_MAX:
                self.calls[call] += 1
            else:
                self.overflowed += 1

    def _picture(self, picture: Picture) -> None:
        known = self.byte_strings.get(picture.pixels)
        if known is None:
            if len(self.byte_strings) >= PICTURES_MAX:
                return
            known = self.byte_strings[picture.pixels] = set()
        if len(known) < BYTE_STRINGS_MAX:
            known.add(picture.sha256)

    def _remember(self, key: str) -> bool:
        """Whether a key was known; it is now, and the oldest is forgotten."""
        known = key in self._prefixes
        self._prefixes[key] = None
        self._prefixes.move_to_end(key)
        if len(self._prefixes) > PREFIXES_MAX:
            self._prefixes.popitem(last=False)
        return known

    def document(self, *, detail: bool = False) -> dict[str, Any]:
        """As JSON; `detail` adds every logical call and every picture."""
        calls: dict[str, Any] = {
            "distinct": len(self.calls),
            "repeated": self.calls.total() - len(self.calls),
        }
        strings = {pixels: len(known) for pixels, known in self.byte_strings.items()}
        if detail:
            calls["detail"] = dict(self.calls)
        data: dict[str, Any] = {
            "requests": self.requests,
            "answered": self.answered,
            "children": self.children,
            "probes": self.probes,
            "by_status": dict(sorted(self.by_status.items())),
            "finish_reasons": dict(sorted(self.finished.items())),
            "in_flight": self.in_flight,
            "max_in_flight": self.max_in_flight,
            "running": self._slots.running,
            "waiting": self._slots.waiting,
            "busy_seconds": round(self._slots.busy_seconds, 4),
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "images": len(strings),
            "byte_strings": sum(strings.values()),
            "byte_strings_per_image_max": max(strings.values(), default=0),
            "calls": calls,
            "calls_overflowed": self.overflowed,
        }
        if detail:
            data["byte_strings_per_image"] = strings
        return data

    def history(self) -> dict[str, Any]:
        """Busy places and waiting answers over time, and when pictures were first and last in it
        (monotonic seconds).
        """
        self._slots.note()
        return {"first": self.first, "last": self.last, **self._slots.history.document()}

    def metrics(self, model: str) -> str:
        """Prometheus text with vLLM's names; each of the `n` answers of a request counts."""
        label = model.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        labels = f'engine="0",model_name="{label}"'
        gauges = {
            "num_requests_running": self._slots.running,
            "num_requests_waiting": self._slots.waiting,
            "kv_cache_usage_perc": 0.0,
        }
        counters = {
            "prefix_cache_queries_total": self.prefix_queries,
            "prefix_cache_hits_total": self.prefix_hits,
            "mm_cache_queries_total": self.picture_queries,
            "mm_cache_hits_total": self.picture_hits,
            "prompt_tokens_total": self.prompt_tokens,
            "generation_tokens_total": self.output_tokens,
            "num_preemptions_total": 0,
        }
        lines = ["# simulated by rsd, not a real vLLM"]
        for kind, rows in (("gauge", gauges), ("counter", counters)):
            for name, value in rows.items():
                lines += [f"# TYPE vllm:{name} {kind}", f"vllm:{name}{{{labels}}} {value}"]
        lines.append("# TYPE vllm:request_success_total counter")
        for reason in ("stop", "length", "abort", "error"):
            row = f'vllm:request_success_total{{{labels},finished_reason="{reason}"}}'
            lines.append(f"{row} {self.finished[reason]}")
        return "\n".join(lines) + "\n"
