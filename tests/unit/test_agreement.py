"""What is read out of texts: every spelling of a claim, both ways; and what is read out of junk."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rsd.strategy import agreement
from rsd.strategy.agreement import (
    MOST_ARROWS,
    MOST_CLAIMS,
    MOST_LINE,
    MOST_NODES,
    MOST_TEXT,
    MOST_TOKENS,
    Claim,
    Reader,
)

AB: Claim = ("a", ">", "b")
BA: Claim = ("b", ">", "a")
BC: Claim = ("b", ">", "c")
AC: Claim = ("a", ">", "c")
LINE: Claim = ("a", "--", "b")


def claims(text: str) -> set[Claim]:
    return set(Reader().claims(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # The usual forms, and the arrows that are not.
        ("A --> B", {AB}),
        ("A -> B", {AB}),
        ("A <-> B", {AB, BA}),
        ("A <--> B", {AB, BA}),
        ("A <-- B", {BA}),
        ("A <- B", {BA}),
        ("A ==> B", {AB}),
        ("A =======> B", {AB}),
        ("A - > B", {AB}),
        ("A->B", {AB}),
        ("A-->B", {AB}),
        ("A<-B", {BA}),
        ("A → B", {AB}),
        ("A ⟶ B", {AB}),
        ("A ⇒ B", {AB}),
        ("A ➔ B", {AB}),
        ("A ← B", {BA}),
        ("A ⇐ B", {BA}),
        ("A ↔ B", {AB, BA}),
        ("A ⇔ B", {AB, BA}),
        ("A ──> B", {AB}),
        ("A —> B", {AB}),
        # A line without a head has no direction.
        ("A -- B", {LINE}),
        ("B -- A", {LINE}),
        ("A — B", {LINE}),
        ("B ── A", {LINE}),
        # Labels.
        ("A --> B : x1", {AB, ("a", ">", "b", "x1")}),
        ("A --> B: x1", {AB, ("a", ">", "b", "x1")}),
        ("A → B : x1", {AB, ("a", ">", "b", "x1")}),
        ("A -> B (x1)", {AB, ("a", ">", "b", "x1")}),
        ("A -->|x1| B", {AB, ("a", ">", "b", "x1")}),
        ('A -> B [label="x1"];', {AB, ("a", ">", "b", "x1")}),
        ("A <- B : X1", {BA, ("b", ">", "a", "x1")}),
        ("A <-> B : x1", {AB, BA, ("a", ">", "b", "x1")}),
        ("B -- A : x1", {LINE, ("a", "--", "b", "x1")}),
        # Chains and lists.
        ("A -> B -> C", {AB, BC}),
        ("A --> B --> C : x", {AB, BC, ("a", ">", "b", "x"), ("b", ">", "c", "x")}),
        ("A <- B -> C", {BA, BC}),
        ("A -> B --> C", {AB, BC}),
        ("A → B -> C", {AB, BC}),
        ("A -> B, C", {AB, AC}),
        ("A --> B, C.", {AB, AC}),
        # Sentences.
        ("A connects to B", {AB}),
        ("The A block is connected to the B block.", {AB}),
        ("A feeds B", {AB}),
        ("A feeds into B", {AB}),
        ("A drives B", {AB}),
        ("A is driven by B", {BA}),
        ("A is fed by B", {BA}),
        ("A receives data from B", {BA}),
        ("A gets from B", {BA}),
        ("A sends data to B", {AB}),
        ("A outputs to B", {AB}),
        ("A flows into B", {AB}),
        ("A goes to B", {AB}),
        ("A is bidirectionally connected to B", {AB, BA}),
        ("A exchanges data with B", {AB, BA}),
        ("A feeds B. B drives C.", {AB, BC}),
        ("A --> B; B --> C", {AB, BC}),
        # Values.
        ("R1 = 10k", {("r1", "=", "10k")}),
        ("R1=10k", {("r1", "=", "10k")}),
        # Decoration of lines and of names.
        ("- A --> B", {AB}),
        ("* A --> B", {AB}),
        ("• A --> B", {AB}),
        ("1. A --> B", {AB}),
        ("(12) A --> B", {AB}),
        ("3: - A --> B", {AB}),
        ("   A   -->\tB  ", {AB}),
        ("[A] --> [B]", {AB}),
        ("**a** --> `b`", {AB}),
        ("the A block --> Block B", {AB}),
        ('"A" --> (B)', {AB}),
        ("A block --> B node\nmodule B -> an A", {AB, BA}),
        ("Power  Supply --> B", {("power supply", ">", "b")}),
        ("ÄRGER --> 电机", {("ärger", ">", "电机")}),
        ("R1.2 -- R10.1", {("r1.2", "--", "r10.1")}),
        ("```\nA --> B\n```", {AB}),
        ("```mermaid\nA --> B\nB --> C\n```", {AB, BC}),
        ("Here are the connections:\n\nA --> B\nB --> C", {AB, BC}),
        ("A --> B\r\nB --> C\r\n", {AB, BC}),
        # JSON.
        ('[{"from": "A", "to": "B"}]', {AB}),
        ('{"edges": [{"source": "A", "target": "B"}, {"src": "B", "dst": "C"}]}', {AB, BC}),
        ('{"From": "A", "TO": "B", "label": "x1"}', {AB, ("a", ">", "b", "x1")}),
        ('{"from": "A", "to": "B", "bidirectional": true}', {AB, BA}),
        ('[["A", "B"], ["B", "C"]]', {AB, BC}),
        ('```json\n{"edges": [["A", "B"]]}\n```', {AB}),
        ('{"net": {"deep": [[{"start": "A", "end": "B"}]]}}', {AB}),
        ('{"a": "A", "b": "B", "to": 3}', {AB}),
        ('A --> B : "{x}"', {AB, ("a", ">", "b", "x")}),
    ],
)
def test_every_spelling(text: str, expected: set[Claim]) -> None:
    assert claims(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   \n\t\n",
        "I'm sorry, but I cannot help with that picture.",
        "这张图显示了一个由三个模块组成的系统。电源连接到电机，控制器读取传感器的数据。",
        "The picture has a box.\nIt is blue.\nAnother one is green.\nA --> B",  # one line in four
        "A --> ",
        "--> B",
        "( --> )",
        "x" * 81 + " --> B",
        "= 5",
        "a == b",
        '{"nodes": [], "edges": []}',
        '{"from": "A"}',
        '{"from": "A", "to": {"pin": 3}}',
        '{"broken": "',
        '["one", "two", "three"]',
        '[1, "A"]',
        '{"from": "' + "\ud800" + '", "to": "B"}',
    ],
)
def test_no_claim(text: str) -> None:
    assert claims(text) == set()


def test_a_third_of_the_lines_is_enough() -> None:
    assert claims("What I see:\nIt is a drawing.\nA --> B") == {AB}
    assert claims("What I see:\n\n```\nIt is a drawing.\n~~~\nA --> B") == {AB}


def test_a_chinese_netlist_is_read() -> None:
    assert claims("连接如下：\n电源 --> 电机\n控制器 → 电机 : 使能") == {
        ("电源", ">", "电机"),
        ("控制器", ">", "电机"),
        ("控制器", ">", "电机", "使能"),
    }


def test_wording_keeps_direction_and_ends_with_the_line() -> None:
    read = Reader()
    assert read.words("The pump fills the tank.\nIt leaks") == {
        ("the", "pump"),
        ("pump", "fills"),
        ("fills", "the"),
        ("the", "tank"),
        ("tank", "."),
        ("it", "leaks"),
    }
    # No space tells words apart: a whole sentence would be one token.
    assert read.words("电源A1接电机") == {
        ("电", "源"),
        ("源", "a1"),
        ("a1", "接"),
        ("接", "电"),
        ("电", "机"),
    }


def test_what_is_read_is_bounded() -> None:
    edge = "n{} --> m{}\n"
    many = "".join(edge.format(k, k) for k in range(600))
    assert len(many) < MOST_TEXT + 2000
    every = {(f"n{k}", ">", f"m{k}") for k in range(600)}
    found = claims(many)
    assert len(found) == MOST_CLAIMS and found < every
    assert sorted(found) == sorted(claims("".join(sorted(many.splitlines(keepends=True)))))
    rows = [[f"n{k}", f"m{k}"] for k in range(600)]
    assert len(claims(json.dumps(rows, separators=(",", ":"))[:MOST_TEXT])) in (0, MOST_CLAIMS)

    # Beyond the limit of a text, of a line, of a name, and of the arrows of a line.
    assert claims("A --> B\n" + " " * MOST_TEXT + "\nB --> C") == {AB}
    assert claims("A -> " + "," * MOST_LINE + "B, C") == set()
    assert claims("A -> " + ",".join(f"b{k}" for k in range(900))) <= {
        ("a", ">", f"b{k}") for k in range(MOST_LINE)
    }
    chain = " -> ".join(f"n{k}" for k in range(40))
    assert len(claims(chain)) == MOST_ARROWS - 1  # what follows is too long for a name
    assert len(Reader().words("".join(f"w{k} " for k in range(MOST_TEXT)))) < MOST_TOKENS


def test_nodes_of_json_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    text = '[["A","B"],' + ",".join(["0"] * (MOST_NODES // 2)) + "]"
    assert len(text) < MOST_TEXT and claims(text) == {AB}
    monkeypatch.setattr(agreement, "MOST_NODES", 100)
    assert claims(text) == set()  # the last ones come first, and the edge is too far


def test_memory_is_bounded_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"n{k} --> m{k % 7}\nn{k} --> B" for k in range(50)]
    plain = agreement.features(texts)
    monkeypatch.setattr(agreement, "MOST_REMEMBERED", 10)
    reader = Reader()
    assert agreement.features(texts, reader) == agreement.features(texts, reader) == plain
    for memory in ("_names", "_lines", "_texts", "_pairs"):
        assert len(getattr(reader, memory)) <= 10


#: What makes careless expressions take a second.
HOSTILE = [
    "-" * 8192,
    " -" * 4096,
    "<" * 8192,
    "<-" * 4096,
    "-= " * 2800,
    "a->" * 2700,
    "a -> " + ",b" * 4000,
    "a = " * 2048,
    "= " * 4096,
    "- " * 4096,
    "(1) " * 2048,
    " sends " * 1170,
    " receives x" * 744,
    "the " * 2048 + "--> the " + "a " * 2000,
    "[" * 8192,
    '"[' * 4096,
    '{"a":' * 1600,
    '{"a":' * 1000 + "1" + "}" * 1000,
    '["a",' * 1600 + "1" + "]" * 100,
    '[["a","b"],' * 700,
    '{"from":' + "9" * 8000 + "}",
    "|" * 8192 + " -> |",
    "a -->" + "|x" * 4000,
    "\u2028" * 8192,
    "\x00\ud800 --> \udfff\n" * 500,
    "ﬃ" * 8192,
    "ﬃ --> ß\n" * 1000,
    "\n" * 8192,
    "`" * 8192,
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_texts_are_read_within_the_limits(text: str) -> None:
    reader = Reader()
    for one in (text, text + "\nA --> B", text * 3):
        assert len(reader.claims(one)) <= MOST_CLAIMS
        assert len(reader.words(one)) < MOST_TOKENS


pieces = st.sampled_from(
    [
        *'AB <=:,()[]{}"|源',
        "->",
        "-->",
        "--",
        " : ",
        '"from":',
        '"to":',
        "\n",
        "- ",
        "1. ",
        "```",
        " feeds ",
        " is driven by ",
    ]
)


@given(st.one_of(st.text(max_size=300), st.lists(pieces, max_size=60).map("".join)))
@settings(max_examples=300, deadline=None)
@example("\ud800")
@example('{"":"')
def test_no_text_raises(text: str) -> None:
    for claim in Reader().claims(text):
        assert len(claim) in (3, 4) and all(claim) and claim[1] in (">", "--", "=")
        assert claim[1] != "--" or claim[0] <= claim[2]
    assert all(len(pair) == 2 for pair in Reader().words(text))


@given(st.lists(st.sampled_from(["A", "B", "C", "电源", "Pump 3"]), min_size=2, max_size=5))
def test_a_chain_is_its_edges(names: list[str]) -> None:
    edges = {(a.casefold(), ">", b.casefold()) for a, b in pairwise(names)}
    assert claims(" -> ".join(names)) == edges
    assert claims(" <- ".join(reversed(names))) == edges
    assert claims("\n".join(f"{a} --> {b}" for a, b in pairwise(names))) == edges
