"""`random` and `grid` make the same facts as before there was a strategy that learns, byte by byte.

tests/data/facts_*.jsonl.gz were recorded from commit 12b26e5, the last one before it. To record
again: check that commit out into a folder of its own, copy this file into its tests/unit/, and run
`python -m tests.unit.test_unchanged_facts FOLDER` there. A change of the brain that is meant to
change facts, or of the order in which `World` lets things happen, is recorded from its own commit.
"""

from __future__ import annotations

import gzip
import random
import sys
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

import msgspec
import pytest

from rsd.errors import ErrorClass
from rsd.hub.brain.events import Action, Persist
from rsd.protocol.tasks import Completion, Generate, Generated, GradeCandidates
from rsd.protocol.vocabulary import CallError, Recipe, Usage
from tests.unit.world import World, policy, recipe, transient

DATA = Path(__file__).resolve().parents[1] / "data"
LIST = "score {candidate_answers}"
ONE_ARM: dict[str, object] = {
    **{"prompts": {"p1": "one"}, "temperatures": (1.0,), "top_ps": (0.9,), "top_ks": (40,)},
    "candidates": 6,
}
RECIPES: dict[str, list[Recipe]] = {
    "random": [
        recipe(candidates=7),
        recipe(candidates=9, repeats=2, stop_score=80.0),
        recipe(candidates=8, grading_template=LIST, list_size=3),
        recipe(candidates=12, grading_template=LIST, repeats=2, list_size=4, stop_score=90.0),
        recipe(**ONE_ARM),
    ],
    "grid": [
        recipe(strategy="grid", candidates=36),
        recipe(strategy="grid", candidates=36, grading_template=LIST, stop_score=95.0),
    ],
}
PATHS = [b"%c.png" % c for c in b"abcdefgh"] + [b"a.png+copy.png"]


def lot(*parts: object) -> float:
    """A number from 0 to 1 that depends on the parts alone."""
    digest = blake2b(repr(parts).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") / 2**32


class Troubled(World):
    """Some calls fail, some for good; some answers are not worth a grader; all facts are kept."""

    def __init__(self, with_recipe: Recipe) -> None:
        self.log: list[bytes] = []
        rng = random.Random(7)
        super().__init__(rng, policy(with_recipe), self._failure)

    def _failure(self, task: object, now: float) -> CallError | None:
        if isinstance(task, Generate):
            what: tuple[object, ...] = (task.image, task.samples)
        elif isinstance(task, GradeCandidates):
            what = (task.image, tuple((c.index, c.number) for c in task.candidates))
        else:
            return None
        if lot("refused", *what) < 0.08:
            return CallError(error=ErrorClass.REFUSED, message="no", reason="content_filter")
        return transient() if self.rng.random() < 0.1 else None

    def act(self, action: Action) -> None:
        if isinstance(action, Persist):
            self.log.append(msgspec.json.encode(action.fact, order="deterministic"))
        super().act(action)

    def work(self, lease: int, task: object):
        reply = super().work(lease, task)
        if isinstance(task, Generate) and isinstance(reply, Generated):
            made = tuple(
                Completion(content="", finish_reason="stop")
                if lot("empty", task.image, index) < 0.1
                else completion
                for index, completion in zip(task.samples, reply.completions, strict=True)
            )
            usage = Usage(input_tokens=100, output_tokens=10 * len(made))
            return msgspec.structs.replace(reply, completions=made, usage=usage)
        return reply


def facts(strategy: str) -> Iterator[bytes]:
    """All facts of the runs of a strategy, one after another."""
    for with_recipe in RECIPES[strategy]:
        world = Troubled(with_recipe)
        world.run(PATHS)
        yield from world.log


@pytest.mark.parametrize("strategy", RECIPES)
def test_facts_are_those_of_before(strategy: str) -> None:
    recorded = gzip.decompress((DATA / f"facts_{strategy}.jsonl.gz").read_bytes()).splitlines()
    kinds = {msgspec.json.decode(line)["kind"] for line in recorded}
    assert {"sample_failed", "grading_failed", "grade_fact", "decided", "set_aside"} <= kinds
    for number, (now, before) in enumerate(zip(facts(strategy), recorded, strict=True), 1):
        assert now == before, f"fact {number}"


if __name__ == "__main__":
    for name in RECIPES:
        text = b"".join(line + b"\n" for line in facts(name))
        path = Path(sys.argv[1]) / f"facts_{name}.jsonl.gz"
        path.write_bytes(gzip.compress(text, mtime=0))
        print(path, len(text), "bytes", text.count(b"\n"), "facts")
