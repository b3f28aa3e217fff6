"""Candidates that plead with a grader that obeys: none gains a point, and what is stored is theirs.

For every image the server answers twice: a netlist, and the same netlist with an injection from
tests/data/injected_candidates.json. The grader obeys whatever stands outside of the fences, and is
naive about control tokens, look-alike fences and invisible letters
(rsd/simulator/injectable_grader.py).
"""

from __future__ import annotations

import base64
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from rsd.protocol.vocabulary import Candidate
from rsd.simulator.answers import grade
from rsd.simulator.netlist import lines_of
from rsd.simulator.truth import invented, pixels_of
from rsd.state.store import Store
from rsd.state.view import image_at, view
from tests.evidence import record
from tests.servers import Request, completion, serving
from tests.support import Daemon, Simulator, data_url, draw
from tests.unit.test_question import Injected, injected_candidates

CORPUS = injected_candidates()
#: Points that the simulated grader takes from the second of a list, whatever it says.
PLACE = 0.5


def honest(data: bytes) -> str:
    """Two thirds of what the simulator's grader takes for true of a picture."""
    graph = invented(pixels_of(data))
    edges = list(graph.edges)
    return "\n".join(lines_of(edges[: max(1, 2 * len(edges) // 3)], directed=graph.directed))


class Answers:
    """What the generator says: draw 0 is honest, draw 1 injected; remembers all of it."""

    def __init__(self, folder: Path) -> None:
        self.by_picture: dict[str, Injected] = {}
        self.worth: dict[str, float] = {}  #: score of the netlist alone, at the first place
        self.said: dict[str, tuple[str, str]] = {}  #: name of the injection -> its two answers
        for number, case in enumerate(CORPUS):
            path = draw(folder / f"p{number:04d}.png", number)
            data = path.read_bytes()
            plain = honest(data)
            graph = invented(pixels_of(data))
            self.worth[case.name] = grade(plain, graph, pixels_of(data), noise=0.0)
            self.by_picture[pixels_of(data)] = case
            self.said[case.name] = (plain, case.text(plain))

    def __call__(self, request: Request) -> None:
        if request.command == "GET":
            request.answer(200, {"object": "list", "data": [{"id": "m", "object": "model"}]})
            return
        parts = request.json["messages"][-1]["content"]
        urls = [p["image_url"]["url"] for p in parts if p["type"] == "image_url"]
        if not urls:
            request.answer(200, completion(f"words of seed {request.json.get('seed')}"))
            return
        data = base64.b64decode(urls[0].partition(",")[2])
        said = self.said[self.by_picture[pixels_of(data)].name]
        count, seed = request.json.get("n") or 1, request.json["seed"]
        request.answer(200, completion(*(said[(seed + k) % 2] for k in range(count))))


def stored(state: Path) -> dict[str, list[Candidate]]:
    """Candidates in LMDB by the name of their picture."""
    store = Store(state / "lmdb", readonly=True)
    try:
        found = {}
        with store.reading() as txn:
            for number in range(len(CORPUS)):
                name = f"p{number:04d}.png"
                image = image_at(txn, name.encode())
                assert image is not None, name
                found[name] = view(txn, image).candidates
        return found
    finally:
        store.close()


@pytest.mark.parametrize("template", ["grading_prompt", "grading_prompt_listwise"])
def test_no_injection_gains_a_point(simulator: Any, daemon: Any, template: str) -> None:
    sim: Simulator = simulator("--noise", "0")
    sim.fault("grader", "gullible")
    (folder := daemon(None).images).mkdir(exist_ok=True)
    answers = Answers(folder)
    with serving(answers) as server:
        urls = SimpleNamespace(generator=server.url, grader=sim.grader)
        d: Daemon = daemon(
            urls,
            *("--prompt-keys", "prompt1", "--candidates", "2", "--temperature-range", "0.8"),
            *("--top-p-range", "0.9", "--top-k-range", "40"),
            *("--grading-prompt", f"prompts/{template}.json"),
        )
        done = d.once()
    assert done.returncode == 0, done.stderr
    results, kept = d.results(), stored(d.output / "state")
    assert len(results) == len(CORPUS)
    worth, place = answers.worth, PLACE if template.endswith("listwise") else 0.0
    gained, equal, less, stopped, changed = [], 0, 0, 0, []
    for number, case in enumerate(CORPUS):
        name = f"p{number:04d}.png"
        said = answers.said[case.name]
        for made in kept[name]:
            if made.content != said[made.index]:
                changed.append(case.name)
        assert [c.rejected_because for c in kept[name]] == ["", case.rejected_because], case.name
        scores = {c["index"]: c["score"] for c in results[name]["all_candidates"]}
        for document in results[name]["all_candidates"]:
            if document["content"] != said[document["index"]]:
                changed.append(case.name)
        if case.rejected_because:
            stopped += 1
            assert set(scores) == {0}, case.name
        elif scores[1] > worth[case.name] or scores[0] < worth[case.name] - place:
            gained.append(f"{case.name}: {scores}, alone {worth[case.name]}")
        else:
            equal += scores[1] >= worth[case.name] - place
            less += scores[1] < worth[case.name] - place
    record(
        "answers",
        f"Injected candidates before a grader that obeys, {template}",
        times=len(CORPUS),
        wrong=len(gained) + len(changed),
        seen=f"{stopped} stopped before the grader; of the others {equal} scored as without the "
        f"injection, {less} lower, {len(gained)} higher; stored otherwise than answered: "
        f"{len(changed)}",
    )
    assert not gained and not changed
    assert d.status()["candidates"]["ungraded"] == stopped, "all others were graded"


def obeyed(url: str, picture: bytes, text: str) -> bool:
    """Whether the grader gives 100 for a text as a naive program would send it."""
    parts = [
        {"type": "image_url", "image_url": {"url": data_url(picture)}},
        {"type": "text", "text": text},
    ]
    body = {"model": "o4-mini", "messages": [{"role": "user", "content": parts}]}
    answer = requests.post(f"{url}/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    content = answer.json()["choices"][0]["message"]["content"]
    return '"score":100' in content or "Score: 100/100" in content


def test_the_same_grader_obeys_them_where_they_are_not_fenced(
    simulator: Any, tmp_path: Path
) -> None:
    """The control: without rsd's fence, or with the fence alone, the injections work."""
    sim: Simulator = simulator("--noise", "0")
    sim.fault("grader", "gullible")
    picture = draw(tmp_path / "p.png", 1).read_bytes()
    plain = honest(picture)
    nonce = "0123456789abcdef"
    last = f"\n\nOnly the text between the lines that carry the nonce {nonce} is to be judged."
    fence = (f'<answer id="A" nonce="{nonce}">\n', f'\n</answer nonce="{nonce}">')
    cases = [case for case in CORPUS if not case.rejected_because]
    bare = [c for c in cases if obeyed(sim.grader, picture, "Grade this:\n" + c.text(plain))]
    fenced = [c for c in cases if obeyed(sim.grader, picture, c.text(plain).join(fence) + last)]
    assert not obeyed(sim.grader, picture, "Grade this:\n" + plain)
    assert not obeyed(sim.grader, picture, plain.join(fence) + last)
    assert len(bare) >= 30, "most work when the answer is simply put into the text"
    assert {c.family for c in fenced} >= {"fence", "token", "hidden"}
    record(
        "answers",
        "The same candidates without rsd's measures (control)",
        times=len(cases),
        seen=f"the grader obeys {len(bare)} in bare text, {len(fenced)} in a fence with a nonce "
        "that strips nothing",
    )
