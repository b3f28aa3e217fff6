"""The simulator as a process: HTTP, faults, queues, counters, its end."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support import HOME, Simulator, data_url, make_diagram, wait_for

Start = Callable[..., Simulator]
LIVELY = {"temperature": 0.8, "top_p": 0.9, "top_k": 40, "min_p": 0.0, "repetition_penalty": 1.0}


@pytest.fixture(scope="module")
def shared() -> Iterator[Simulator]:
    running = Simulator("--model", "vlm", "--max-model-len", "4096")
    yield running
    running.kill()


@pytest.fixture
def server(shared: Simulator) -> Simulator:
    shared.clear()
    shared.reset()
    return shared


@pytest.fixture
def url(tmp_path: Path) -> str:
    return data_url(make_diagram(tmp_path / "a.png", 1).read_bytes())


def chat(
    base: str, url: str | None, text: str = "Write the netlist.", **fields: Any
) -> requests.Response:
    content: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if url is not None:
        content.insert(0, {"type": "image_url", "image_url": {"url": url, "detail": "high"}})
    body = {"messages": [{"role": "user", "content": content}], **fields}
    key = fields.pop("key", "")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    body.pop("key", None)
    return requests.post(f"{base}/chat/completions", json=body, headers=headers, timeout=10)


def content(response: requests.Response) -> str:
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


GRADING = (
    'Grade.\n<answer id="A" nonce="abcd1234">\nADC --> DAC\n</answer nonce="abcd1234">\n\n'
    "Only the text that carries the nonce abcd1234 is judged. Reply with JSON."
)


def judge(
    server: Simulator, url: str, answer: str = "ADC --> DAC", **fields: Any
) -> requests.Response:
    asked = {"model": "o4-mini", "response_format": {"type": "json_object"}} | fields
    return chat(server.grader_url, url, GRADING.replace("ADC --> DAC", answer), **asked)


def test_everything_says_that_it_is_simulated(server: Simulator, url: str) -> None:
    answer = chat(server.generator_url, url, **LIVELY)
    assert answer.headers["X-Simulated"] == "rsd"
    assert answer.json()["system_fingerprint"].startswith("simulated")
    root = server.generator_url.removesuffix("/v1")
    card = requests.get(f"{root}/v1/models", timeout=5).json()["data"][0]
    assert (card["id"], card["owned_by"], card["max_model_len"]) == ("vlm", "rsd-simulator", 4096)
    assert requests.get(f"{root}/version", timeout=5).json()["simulated"] is True
    health = requests.get(f"{root}/health", timeout=5)
    assert (health.status_code, health.content) == (200, b"")
    assert requests.get(f"{root}/load", timeout=5).json() == {"server_load": 0}
    metrics = requests.get(f"{root}/metrics", timeout=5).text
    assert 'vllm:num_requests_running{engine="0",model_name="vlm"} 0' in metrics
    nothing = requests.get(f"{root}/v1/nothing", timeout=5)
    assert (nothing.status_code, nothing.json()) == (404, {"detail": "Not Found"})
    get = requests.get(f"{root}/v1/chat/completions", timeout=5)
    assert (get.status_code, get.json()) == (405, {"detail": "Method Not Allowed"})
    assert "X-Simulated" in nothing.headers and "X-Simulated" in get.headers


def test_unreadable_requests_are_refused(server: Simulator) -> None:
    where = f"{server.generator_url}/chat/completions"
    broken = requests.post(
        where, data="{no", headers={"Content-Type": "application/json"}, timeout=5
    )
    assert broken.status_code == 400 and "JSON decode error" in broken.text
    posted = requests.post(where, data="x=1", timeout=5)
    assert posted.status_code == 400 and "Unsupported Media Type" in posted.text
    bad = chat(server.generator_url, "data:image/png;base64,AAAA")
    assert bad.status_code == 400 and "Failed to load image" in bad.text
    assert server.stats("generator")["by_status"] == {"400": 3}


def test_answers_do_not_depend_on_order_or_process(
    server: Simulator, url: str, simulator: Start
) -> None:
    first = [content(chat(server.generator_url, url, seed=s, **LIVELY)) for s in (1, 2)]
    grades = [content(judge(server, url, first[0], seed=s)) for s in (0, 1)]
    other = simulator("--model", "vlm")
    again = [content(chat(other.generator_url, url, seed=s, **LIVELY)) for s in (2, 1)]
    assert again[::-1] == first and first[0] != first[1]
    assert [content(judge(other, url, first[0], seed=s)) for s in (1, 0)][::-1] == grades
    assert grades[0] != grades[1]


def test_repeated_calls_and_probes_are_counted(server: Simulator, url: str) -> None:
    chat(server.generator_url, url, seed=1, n=3, **LIVELY)
    chat(server.generator_url, url, seed=3, **LIVELY)
    chat(server.generator_url, None, "Say: ready.", max_tokens=16)
    for seed in (0, 1, 1):
        judge(server, url, seed=seed)
    generator = server.stats("generator", detail=True)
    assert (generator["requests"], generator["answered"], generator["probes"]) == (3, 3, 1)
    assert (generator["calls"]["distinct"], generator["calls"]["repeated"]) == (3, 1)
    assert sorted(generator["calls"]["detail"].values()) == [1, 1, 2]
    assert generator["images"] == 1 and generator["byte_strings_per_image_max"] == 1
    grader = server.stats("grader")
    assert (grader["calls"]["distinct"], grader["calls"]["repeated"]) == (2, 1)


@pytest.mark.parametrize(
    ("kind", "status"),
    [("rate_limit", 429), ("busy", 503), ("error", 500), ("unauthorized", 401), ("redirect", 307)],
)
def test_a_fault_strikes_as_often_as_told(
    server: Simulator, url: str, kind: str, status: int
) -> None:
    server.fault("grader", kind, count=1, retry_after=7)
    assert chat(server.generator_url, url).status_code == 200
    asked = {"json": {}, "timeout": 5, "allow_redirects": False}
    body = {
        "model": "o4-mini",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Say: ready."}]}],
    }
    where = f"{server.grader_url}/chat/completions"
    struck = requests.post(where, **asked | {"json": body})  # type: ignore[arg-type]
    assert struck.status_code == status and struck.headers["X-Simulated"] == "rsd"
    if kind in ("rate_limit", "busy"):
        assert struck.headers["Retry-After"] == "7"
    assert judge(server, url).status_code == 200
    assert server.struck() == {f"grader:{kind}": 1}
    assert server.stats("grader")["answered"] == 1


@pytest.mark.parametrize("kind", ["cut", "down", "hang"])
def test_a_connection_can_break(server: Simulator, url: str, kind: str) -> None:
    server.fault("generator", kind, count=1, **({"seconds": 0.05} if kind == "hang" else {}))
    with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        chat(server.generator_url, url)
    stats = server.stats("generator")
    assert stats["by_status"] == {"none": 1} and stats["answered"] == 0
    assert stats["calls"]["distinct"] == 0 and stats["in_flight"] == 0


def test_hanging_requests_end_when_faults_are_cleared(server: Simulator, url: str) -> None:
    server.fault("generator", "hang")
    failed = threading.Event()

    def ask() -> None:
        with pytest.raises(requests.ConnectionError):
            chat(server.generator_url, url)
        failed.set()

    thread = threading.Thread(target=ask)
    thread.start()
    wait_for(lambda: server.struck() == {"generator:hang": 1}, "the simulator")
    assert not failed.is_set()
    server.clear()
    assert failed.wait(5)
    thread.join()


def test_a_server_that_is_down_has_no_models_either(server: Simulator) -> None:
    server.fault("generator", "down")
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{server.generator_url}/models", timeout=5)
    server.clear()
    assert requests.get(f"{server.generator_url}/models", timeout=5).status_code == 200


@pytest.mark.parametrize("kind", ["html", "empty", "bad_json"])
def test_an_answer_can_be_no_json(server: Simulator, url: str, kind: str) -> None:
    server.fault("generator", kind, count=1)
    answer = chat(server.generator_url, url)
    assert answer.status_code == 200
    with pytest.raises(requests.JSONDecodeError):
        answer.json()


def test_an_answer_can_be_wrong(server: Simulator, url: str) -> None:
    def told(kind: str) -> dict[str, Any]:
        server.clear()
        server.fault("grader", kind, count=1)
        found: dict[str, Any] = judge(server, url).json()
        return found

    assert told("no_choices")["choices"] == []
    assert told("error_in_200")["error"]["message"]
    assert told("null_content")["choices"][0]["message"]["content"] is None
    assert told("refusal")["choices"][0]["message"]["refusal"]
    assert told("truncated")["choices"][0]["finish_reason"] == "length"
    assert '"score":850' in told("wrong_score")["choices"][0]["message"]["content"]
    assert '"score"' not in told("no_score")["choices"][0]["message"]["content"]
    assert server.stats("grader")["answered"] == 0


def test_a_body_can_drip(server: Simulator, url: str) -> None:
    server.fault("generator", "slow_drip", count=1, seconds=0.3)
    answer = chat(server.generator_url, url, seed=1, **LIVELY)
    assert answer.elapsed.total_seconds() < 0.3
    assert content(answer) == content(chat(server.generator_url, url, seed=1, **LIVELY))


def test_a_key_is_asked_for(simulator: Start, url: str) -> None:
    server = simulator("--api-key", "made-up")
    refused = chat(server.generator_url, url)
    assert (refused.status_code, refused.json()) == (401, {"error": "Unauthorized"})
    assert judge(server, url).json()["error"]["code"] == "invalid_api_key"
    assert requests.get(f"{server.grader_url}/models", timeout=5).status_code == 401
    root = server.generator_url.removesuffix("/v1")
    assert requests.get(f"{root}/health", timeout=5).status_code == 200
    assert chat(server.generator_url, url, key="made-up").status_code == 200


def test_what_does_not_fit_is_refused_and_what_waits_is_served(simulator: Start, url: str) -> None:
    server = simulator("--slots", "1", "--max-queue", "1", "--retry-after", "2")
    server.settings("generator", seconds=3600)

    def ask(seed: int) -> None:
        with pytest.raises(requests.ConnectionError):
            chat(server.generator_url, url, seed=seed, **LIVELY)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    wait_for(lambda: server.stats("generator")["waiting"] == 1, "the simulator")
    third = chat(server.generator_url, url, seed=3, **LIVELY)
    assert third.status_code == 503 and third.headers["Retry-After"] == "2"
    assert "currently busy" in third.text
    stats = server.stats("generator")
    assert (stats["running"], stats["in_flight"], stats["max_in_flight"]) == (1, 2, 3)
    server.kill()
    server.restart()
    assert chat(server.generator_url, url, seed=1, **LIVELY).status_code == 200
    for thread in threads:
        thread.join(5)


def test_a_client_that_leaves_frees_its_place(simulator: Start, url: str) -> None:
    server = simulator("--slots", "1")
    server.settings("generator", seconds=3600)
    with pytest.raises(requests.ReadTimeout):
        requests.post(
            f"{server.generator_url}/chat/completions",
            json={"messages": [{"role": "user", "content": "x"}]},
            timeout=0.2,
        )
    wait_for(lambda: server.stats("generator")["running"] == 0, "the simulator")
    stats = server.stats("generator")
    assert stats["by_status"] == {"gone": 1} and stats["answered"] == 0
    assert stats["busy_seconds"] > 0


def test_it_stops_at_once_and_starts_again_on_the_same_ports(simulator: Start, url: str) -> None:
    server = simulator()
    before = server.generator_url
    assert server.terminate() == 0
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{before}/models", timeout=5)
    server.restart()
    assert server.generator_url == before
    assert requests.get(f"{before}/models", timeout=5).status_code == 200


def test_mistakes_are_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for options in (["--port", str(taken.getsockname()[1])], ["--truth", "no-such-folder"]):
            command = [sys.executable, "-m", "rsd.simulator", "--grader-port", "0", *options]
            done = subprocess.run(command, capture_output=True, text=True, cwd=HOME, timeout=30)
            assert done.returncode not in (0, None) and done.stdout == ""
            assert len(done.stderr.strip().splitlines()) == 1 and options[1] in done.stderr
