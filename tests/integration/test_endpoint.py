"""One call against a real server: what is sent, and what is understood, however odd it is."""

from __future__ import annotations

import gzip
import json
import threading
import zlib
from pathlib import Path
from typing import Any

import pytest

from rsd.errors import ErrorClass
from rsd.protocol.vocabulary import Usage
from rsd.workers.api.client import chat_body
from rsd.workers.api.replies import CallFailed
from tests.integration.calls import COMPLETION, KEY, call, client
from tests.servers import Request, Script, completion, says, serving

# ------------------------------------------------------------------------------------ good answers


def test_a_completion_is_read() -> None:
    usage = {
        "prompt_tokens": "66",
        "completion_tokens": 16.0,
        "completion_tokens_details": {"reasoning_tokens": 9},
        "prompt_tokens_details": {"cached_tokens": "64"},
    }
    with serving(says("A --> B", "B --> C", usage=usage)) as server:
        reply = call(server)
    assert [c.content for c in reply.choices] == ["A --> B", "B --> C"]
    assert [c.finish_reason for c in reply.choices] == ["stop", "stop"]
    assert reply.model == "tiny-vl"
    assert reply.usage == Usage(
        input_tokens=66, output_tokens=16, reasoning_tokens=9, cached_tokens=64
    )
    assert 0 < reply.seconds < 5


def test_what_is_sent() -> None:
    body = chat_body("m", b"data:image/png;base64,QUJD", 'say "ä"\n', {"n": 2, "top_k": -1})
    with serving(says("x")) as server:
        client(server.url).chat(body)
        request = server.requests[0]
    assert request.path == "/v1/chat/completions"
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    assert request.headers["Content-Type"] == "application/json"
    assert request.json == {
        "model": "m",
        "messages": [
            {
                "role": "user",
                "content": [
                    {
                        "type": "image_url",
                        "image_url": {"url": "data:image/png;base64,QUJD", "detail": "high"},
                    },
                    {"type": "text", "text": 'say "ä"\n'},
                ],
            }
        ],
        "n": 2,
        "top_k": -1,
    }
    plain = json.loads(b"".join(chat_body("m", b"data:,", "\ud800", {}, detail=False)))
    assert plain["messages"][0]["content"][0]["image_url"] == {"url": "data:,"}
    assert plain["messages"][0]["content"][1]["text"] == "?"


def test_connections_are_kept_and_shared_by_threads() -> None:
    peers: set[Any] = set()

    def script(request: Request) -> None:
        peers.add(request.client_address)
        request.answer(200, completion("x"))

    with serving(script) as server:
        shared = client(server.url)

        def work() -> None:
            for _ in range(10):
                assert shared.chat(chat_body("m", None, "x", {})).choices[0].content == "x"

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(server.requests) == 40
    assert len(peers) <= 4


def test_an_url_keeps_its_query() -> None:
    with serving(says("x")) as server:
        client(server.url + "/?api-version=1").chat((b"{}",))
        assert server.requests[0].path == "/v1/chat/completions?api-version=1"


def test_a_proxy_is_not_asked_for_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with serving(says("x")) as server:
        assert call(server).choices[0].content == "x"


def test_netrc_does_not_replace_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    with serving(says("x")) as server:
        call(server)
        assert server.requests[0].headers["Authorization"] == f"Bearer {KEY}"


def chunked(request: Request, *parts: bytes) -> None:
    request.send_response(200)
    request.send_header("Transfer-Encoding", "chunked")
    request.end_headers()
    for part in parts:
        request.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))


def until_closed(request: Request) -> None:
    request.close_connection = True
    request.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + COMPLETION)


ODD_BUT_GOOD: dict[str, Script] = {
    "comments first": lambda r: r.answer(
        200, b": OPENROUTER PROCESSING\n\n: {odd}\n\n" + COMPLETION
    ),
    "gzip": lambda r: r.answer(200, gzip.compress(COMPLETION), Content_Encoding="gzip"),
    "deflate": lambda r: r.answer(200, zlib.compress(COMPLETION), Content_Encoding="deflate"),
    "wrong type": lambda r: r.answer(200, COMPLETION, Content_Type="text/html"),
    "byte order mark": lambda r: r.answer(200, b"\xef\xbb\xbf" + COMPLETION),
    "chunks": lambda r: chunked(r, COMPLETION[:9], COMPLETION[9:], b""),
    "until closed": until_closed,
    "created": lambda r: r.answer(201, COMPLETION),
    "no usage": says("A --> B", usage=None),
    "odd usage": says("A --> B", usage={"prompt_tokens": "many", "completion_tokens": 1e300}),
    "error null": says("A --> B", error=None),
    "list content": says([{"type": "text", "text": "A --> "}, {"type": "text", "text": "B"}]),
    "reasoning beside it": lambda r: r.answer(
        200,
        completion(
            choices=[{"message": {"content": "A --> B", "reasoning_content": "Score: 1"}}],
        ),
    ),
    "duplicate keys": lambda r: r.answer(200, COMPLETION.replace(b'{"id"', b'{"id":1,"id"', 1)),
}


@pytest.mark.parametrize("script", ODD_BUT_GOOD.values(), ids=ODD_BUT_GOOD.keys())
def test_odd_answers_are_understood(script: Script) -> None:
    with serving(script) as server:
        assert [c.content for c in call(server).choices] == ["A --> B"]


def test_lone_surrogates_and_bad_bytes_are_replaced() -> None:
    with serving(lambda r: r.answer(200, COMPLETION.replace(b"A", b"\\ud800"))) as server:
        assert call(server).choices[0].content == "\ufffd --> B"
    with serving(
        lambda r: r.answer(200, COMPLETION.replace(b"A", b"\xff\\ud83d\\ude00"))
    ) as server:
        assert call(server).choices[0].content == "\ufffd😀 --> B"


def choice(index: Any, content: str | None, **fields: Any) -> dict[str, Any]:
    return {"index": index, "message": {"content": content}, "finish_reason": "stop", **fields}


@pytest.mark.parametrize(
    ("choices", "contents"),
    [
        ([choice(1, "b"), choice(0, "a")], ["a", "b"]),
        ([choice(0, "a"), choice(2, "c")], ["a"]),
        ([choice(0, "a"), choice(0, "b")], ["a", "b"]),
        ([choice(0, "a"), choice(1, None)], ["a", ""]),
        ([choice(0, "a"), choice(1, "b", finish_reason="error")], ["a"]),
        ([choice(0, None, finish_reason="length")], [""]),
        ([choice(0, None, message={"refusal": "no"})], [""]),
    ],
)
def test_choice_k_belongs_to_sample_k(choices: list[Any], contents: list[str]) -> None:
    with serving(says(choices=choices)) as server:
        assert [c.content for c in call(server).choices] == contents


# -------------------------------------------------------------------------------------- the models


def test_models_are_listed() -> None:
    listing = {"data": [{"id": "a", "max_model_len": 2048}, {"id": "b"}, {"id": 3}, 4]}
    with serving(lambda r: r.answer(200, listing)) as server:
        models = client(server.url).models()
        assert server.requests[0].command == "GET"
        assert server.requests[0].path == "/v1/models"
    assert models.names == ("a", "b")
    assert models.lengths == {"a": 2048}


@pytest.mark.parametrize("body", [{"data": None}, [], "x"])
def test_no_list_of_models(body: Any) -> None:
    with serving(lambda r: r.answer(200, body)) as server, pytest.raises(CallFailed) as caught:
        client(server.url).models()
    assert caught.value.error.error in (ErrorClass.MISCONFIGURED, ErrorClass.BAD_REPLY)
