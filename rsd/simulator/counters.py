"""What the simulated servers have seen: the figures that tests count by."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

#: Picture URLs whose byte strings are told apart per picture.
IMAGES_MAX = 1_000_000


@dataclass(slots=True)
class Counters:
    """One role's figures."""

    requests: int = 0
    answered: int = 0  #: answers with status 200, sent whole
    children: int = 0  #: answers counted one by one, `n` of a request each
    probes: int = 0  #: answered requests without a picture
    in_flight: int = 0
    waiting: int = 0
    max_in_flight: int = 0
    busy_seconds: float = 0.0  #: slots in use times seconds
    input_tokens: int = 0
    output_tokens: int = 0
    by_status: Counter[int] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)  #: answers per logical call
    byte_strings: dict[str, set[bytes]] = field(default_factory=dict)  #: per picture
    cached: int = 0  #: requests whose picture's byte string had been seen
    attempts: Counter[str] = field(default_factory=Counter)

    def picture(self, pixels: str, key: bytes) -> None:
        """A request showed this picture as this byte string."""
        known = self.byte_strings.setdefault(pixels, set())
        if key in known:
            self.cached += 1
        elif len(self.byte_strings) <= IMAGES_MAX:
            known.add(key)

    def document(self, *, detail: bool) -> dict[str, Any]:
        """As JSON; `detail` adds every call."""
        repeated = sum(n - 1 for n in self.calls.values())
        data: dict[str, Any] = {
            "requests": self.requests,
            "answered": self.answered,
            "children": self.children,
            "probes": self.probes,
            "in_flight": self.in_flight,
            "waiting": self.waiting,
            "max_in_flight": self.max_in_flight,
            "busy_seconds": round(self.busy_seconds, 3),
            "by_status": {str(k): v for k, v in sorted(self.by_status.items())},
            "calls": {"distinct": len(self.calls), "repeated": repeated},
            "images": len(self.byte_strings),
            "byte_strings_per_image_max": max(map(len, self.byte_strings.values()), default=0),
        }
        if detail:
            data["calls"]["detail"] = dict(self.calls)
        return data

    def metrics(self, model: str) -> str:
        """Prometheus text with vLLM's names."""
        labels = f'{{engine="0",model_name="{model}"}}'
        rows = {
            "vllm:num_requests_running": ("gauge", self.in_flight - self.waiting),
            "vllm:num_requests_waiting": ("gauge", self.waiting),
            "vllm:kv_cache_usage_perc": ("gauge", 0.0),
            "vllm:prompt_tokens_total": ("counter", self.input_tokens),
            "vllm:generation_tokens_total": ("counter", self.output_tokens),
            "vllm:mm_cache_queries_total": ("counter", self.answered),
            "vllm:mm_cache_hits_total": ("counter", self.cached),
        }
        text = "# simulated by rsd\n"
        for name, (kind, value) in rows.items():
            text += f"# TYPE {name} {kind}\n{name}{labels} {value}\n"
        done = labels[:-1] + ',finished_reason="stop"}'
        return text + f"vllm:request_success_total{done} {self.children}\n"


def plain(text: str) -> web.Response:
    """A text answer."""
    return web.Response(text=text, headers={"X-Simulated": "rsd"})
