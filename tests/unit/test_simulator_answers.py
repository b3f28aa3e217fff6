"""Netlists, truth, candidates and grades of the simulator: pure functions."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rsd.errors import UserError
from rsd.simulator.answers import (
    Params,
    candidate_text,
    diversity,
    error_rate,
    explain,
    grade,
    words,
)
from rsd.simulator.netlist import Edge, Graph, edge_f1, edges_of, lines_of, plain_label
from rsd.simulator.pictures import Reader
from rsd.simulator.truth import Pictures, graph_of, invented, pixels_of
from tests.support import make_diagram

TRUTH = Graph(("A", "B", "C"), (Edge("A", "B"), Edge("B", "C", "yes"), Edge("C", "B")))
LIVELY = Params(temperature=0.8, top_p=0.9, top_k=40)


def params(**fields: float) -> Params:
    values = {"temperature": 0.8, "top_p": 0.9, "top_k": 40} | fields
    return Params(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("line", "edges"),
    [
        ("A --> B", {("a", "b")}),
        ("A->B", {("a", "b")}),
        ("A <-- B", {("b", "a")}),
        ("A <-> B", {("a", "b"), ("b", "a")}),
        ("A <--> B", {("a", "b"), ("b", "a")}),
        ("A → B : on", {("a", "b")}),
        ("A -->|on| B", {("a", "b")}),
        ("A --> B --> C", {("a", "b"), ("b", "c")}),
        ("- `Top  Level` --> **B**", {("top level", "b")}),
        ("12. A --> B;", {("a", "b")}),
        ("A -- B", {("a", "b")}),
        ("the arrow leads nowhere", set()),
        ("--> B", set()),
        ("tail-drop --> B-2", {("tail-drop", "b-2")}),
    ],
)
def test_a_line_is_read(line: str, edges: set[tuple[str, str]]) -> None:
    assert edges_of(line) == edges


def test_prose_and_fences_around_a_netlist_do_not_count() -> None:
    text = "Here it is:\n```\nA --> B\nB --> C : yes\nC --> B\n```\nThat is all."
    assert edge_f1(text, TRUTH) == 1.0


def test_f1_counts_misses_and_inventions() -> None:
    assert edge_f1("A --> B\nB --> C", TRUTH) == pytest.approx(2 * 2 / (2 + 3))
    assert edge_f1("A --> B\nB --> A", TRUTH) == pytest.approx(2 * 1 / (2 + 3))
    assert edge_f1("nothing", TRUTH) == 0.0


def test_undirected_edges_have_no_order() -> None:
    bus = Graph(("A", "B"), (Edge("A", "B"),), directed=False)
    assert edge_f1("B -- A", bus) == 1.0
    assert edge_f1("B --> A", bus) == 1.0
    assert edge_f1("B --> A", Graph(("A", "B"), (Edge("A", "B"),))) == 0.0


#: A bar at the end of a line is a table's border to whoever reads it back.
labels = (
    st.text(min_size=1, max_size=12)
    .map(plain_label)
    .filter(lambda t: "|" not in t and edges_of(f"{t} --> x"))
)


@given(
    st.lists(st.tuples(labels, labels, st.one_of(st.just(""), labels)), max_size=8), st.booleans()
)
def test_what_is_written_reads_back(edges: list[tuple[str, str, str]], directed: bool) -> None:
    graph = Graph((), tuple(Edge(*e) for e in edges), directed)
    text = "\n".join(lines_of(list(graph.edges), directed=directed))
    assert edge_f1(text, graph) == 1.0


@given(st.text(max_size=300))
def test_any_text_has_an_f1(text: str) -> None:
    assert 0.0 <= edge_f1(text, TRUTH) <= 1.0


def test_both_truth_forms_mean_the_same() -> None:
    nodes = [{"id": "n1", "label": "Top -> level"}, {"id": "n2", "label": "B"}]
    first = graph_of({"nodes": nodes, "edges": [{"from": "n1", "to": "n2", "label": "x"}]})
    assert first == Graph(("Top - level", "B"), (Edge("Top - level", "B", "x"),))
    second = graph_of({"nodes": ["A", "B"], "edges": [["A", "B"]], "answer": "A --> B"})
    assert second == Graph(("A", "B"), (Edge("A", "B"),))


def test_truth_is_found_by_pixels_not_by_bytes(tmp_path: Path) -> None:
    picture = make_diagram(tmp_path / "one.png", 1)
    (tmp_path / "truth").mkdir()
    graph = {"image": "one.png", "nodes": ["A", "B"], "edges": [["A", "B"]]}
    (tmp_path / "truth" / "one.json").write_text(json.dumps(graph))
    reader = Reader()
    known = Pictures([tmp_path], reader)
    copy = tmp_path / "copy.bmp"
    with Image.open(picture) as image:
        image.save(copy)
    same, other = reader.read(picture.read_bytes()), reader.read(copy.read_bytes())
    assert same.pixels == other.pixels == pixels_of(copy.read_bytes())
    assert same.sha256 != other.sha256
    assert known.graph(other.pixels) == Graph(("A", "B"), (Edge("A", "B"),))
    foreign = reader.read(make_diagram(tmp_path / "two.png", 2).read_bytes())
    assert known.graph(foreign.pixels) == invented(foreign.pixels)


def test_a_broken_truth_file_is_named(tmp_path: Path) -> None:
    make_diagram(tmp_path / "one.png", 1)
    (tmp_path / "one.json").write_text('{"nodes": ["A"], "edges": [["A"]]}')
    with pytest.raises(UserError, match=r"one\.json"):
        Pictures([tmp_path])
    with pytest.raises(UserError, match="no such folder"):
        Pictures([tmp_path / "nowhere"])


@given(st.text(alphabet="0123456789abcdef", min_size=32, max_size=32))
def test_an_invented_graph_is_perfectly_described_by_its_own_lines(pixels: str) -> None:
    graph = invented(pixels)
    assert len(graph.nodes) >= 4
    assert edge_f1("\n".join(lines_of(list(graph.edges), directed=True)), graph) == 1.0


def texts(count: int, asked: Params, prompt: str = "Write it.") -> list[str]:
    graph = invented("p")
    return [candidate_text(graph, "p", prompt, asked, seed) for seed in range(count)]


def test_a_candidate_is_a_function_of_what_is_asked() -> None:
    assert texts(5, LIVELY) == texts(5, LIVELY)
    graph = invented("p")
    one = candidate_text(graph, "p", "Write it.", LIVELY, 3)
    assert one == texts(5, LIVELY)[3]
    others = [
        candidate_text(graph, "p", "Write it.", LIVELY, 3, base_seed=1),
        candidate_text(graph, "p", "Other words.", LIVELY, 3),
        candidate_text(graph, "p", "Write it.", params(temperature=1.0), 3),
    ]
    assert one not in others


@pytest.mark.parametrize("greedy", [params(temperature=0.0), params(top_k=1)])
def test_greedy_answers_are_all_alike(greedy: Params) -> None:
    assert diversity(greedy) == 0.0
    assert len(set(texts(20, greedy))) == 1
    assert words("Say it.", greedy, 1) == words("Say it.", greedy, 2)


def test_narrow_parameters_make_answers_more_alike() -> None:
    wide = len(set(texts(40, params(temperature=1.0, top_p=1.0, top_k=-1))))
    assert wide > 20
    for narrow in (params(temperature=0.1), params(top_p=0.05), params(top_k=2)):
        assert diversity(narrow) < diversity(LIVELY)
        assert len(set(texts(40, narrow))) < wide


def test_heat_and_clumsy_prompts_cost_quality() -> None:
    assert error_rate("p", "x", params(temperature=1.5)) > error_rate("p", "x", LIVELY)
    rates = [error_rate("p", f"prompt {k}", LIVELY) for k in range(20)]
    assert max(rates) - min(rates) > 0.05
    graph = invented("p")
    mean = {
        t: statistics.mean(edge_f1(text, graph) for text in texts(200, params(temperature=t)))
        for t in (0.7, 2.0)
    }
    assert mean[2.0] < mean[0.7]


def test_words_follow_their_seed() -> None:
    assert words("Say it.", LIVELY, 11) == words("Say it.", LIVELY, 11)
    assert words("Say it.", LIVELY, 11) != words("Say it.", LIVELY, 22)


def test_a_grade_is_the_f1_plus_noise() -> None:
    half = "A --> B\nB --> C"
    assert grade(half, TRUTH, "p", noise=0.0) == 80.0
    assert grade(half, TRUTH, "p", noise=0.0, position=1) == 79.5
    assert grade(half, TRUTH, "p", noise=0.0, position=9) == 76.0
    assert grade(f"  {half}\n", TRUTH, "p", call=3) == grade(half, TRUTH, "p", call=3)
    many = [grade(half, TRUTH, "p", call=k) for k in range(400)]
    assert len(set(many)) > 100
    assert statistics.mean(many) == pytest.approx(80, abs=2)
    assert statistics.stdev(many) == pytest.approx(8, abs=1.5)


@given(st.text(max_size=50), st.integers(0, 5), st.floats(0, 200))
def test_a_grade_stays_on_the_scale(text: str, index: int, noise: float) -> None:
    score = grade(text, TRUTH, "p", call=index, noise=noise)
    assert 0.0 <= score <= 100.0 and score == round(score, 1)


def test_the_explanation_counts() -> None:
    told = explain(TRUTH, "A --> B\nA --> C")
    assert "1 of 3 connections are right, 1 are not in the picture, 2 are missing" in told
