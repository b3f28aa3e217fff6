"""What a metrics page and a usage say, whoever wrote the numbers."""

from __future__ import annotations

import pytest

from rsd.protocol.vocabulary import Usage
from rsd.workers.api.replies import COUNT_MAX, CallFailed, Load, decode, read_load, read_usage

PAGE = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
vllm:num_requests_running{engine="0"} 3.0
vllm:num_requests_running{engine="1"} 2.0
vllm:num_requests_waiting{engine="0"} %b
"""


def test_the_gauges_of_all_engines_are_added() -> None:
    assert read_load(PAGE % b"4e0") == Load(5.0, 4.0)


@pytest.mark.parametrize(
    "number", [b"1e999", b"+Inf", b"9" * 400, b"1e308\nvllm:num_requests_waiting 1e308"]
)
def test_a_load_is_finite(number: bytes) -> None:
    """A frame knows no infinity: it would travel as null, and end who reads it."""
    with pytest.raises(CallFailed):
        read_load(PAGE % number)


@pytest.mark.parametrize("number", [b"NaN", b"-Inf", b"-3"])
def test_what_is_no_number_of_requests_counts_as_none(number: bytes) -> None:
    assert read_load(PAGE % number) == Load(5.0, 0.0)


@pytest.mark.parametrize("text", [b"1e999", b"-1e999", b"NaN", b'"inf"', b'"nan"', b"9" * 400])
def test_a_usage_holds_whole_numbers(text: bytes) -> None:
    usage = read_usage(decode(b'{"prompt_tokens":%b,"completion_tokens":1e300}' % text))
    assert usage == Usage(input_tokens=0, output_tokens=COUNT_MAX)
