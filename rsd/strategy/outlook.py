"""What is known of an image: its different answers, what they agree on, what grades said. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum

from rsd.protocol.facts import Agreement
from rsd.strategy.agreement import Features, duplicates, features
from rsd.strategy.base import Seen
from rsd.strategy.linalg import Vector
from rsd.strategy.memory import Memory
from rsd.strategy.model import Consensus, Look, Posterior


@dataclass(frozen=True, slots=True)
class Answer:
    """One text, whoever gave it: its candidates share their grades."""

    index: int  #: the candidate that is graded for all of them, the first
    place: int  #: of that one among the gradable candidates
    count: int  #: candidates with this text
    scores: tuple[float, ...]  #: first to last
    bought: int  #: gradings, those without a grade included
    kept: int  #: the candidate whose own grades the text has, else `index`
    explore: bool  #: one of them was drawn uniformly

    @property
    def failed(self) -> int:
        """Gradings that gave no grade."""
        return self.bought - len(self.scores)


@dataclass(frozen=True, slots=True)
class Outlook:
    """Candidates without an answer, and those that no grader is shown, have no part in it."""

    gradable: tuple[Seen, ...]
    answer_of: tuple[int, ...]  #: gradable candidate -> its answer
    answers: tuple[Answer, ...]  #: by index
    features: Features
    consensus: Consensus
    look: Look
    seen: tuple[int, ...]  #: place in the look -> answer
    prior: Vector  #: of each answer: mean before any grade, points
    mean: Vector  #: of each answer: mean now, points
    posterior: Posterior  #: of the answers in the look

    @staticmethod
    def of(candidates: Sequence[Seen], consensus: Consensus, memory: Memory) -> Outlook:
        """All grades included, in the order of the answers."""
        gradable = tuple(c for c in candidates if c.gradable)
        texts = [c.text or "" for c in gradable]
        same = duplicates(texts)
        answers = _answers(gradable, same)
        number = {answer.place: k for k, answer in enumerate(answers)}
        found = _features(texts, memory)
        known = [a for a in answers if a.scores]
        known.sort(key=lambda a: (-round(fsum(a.scores) / len(a.scores), 6), a.index))
        chosen = consensus.choose(found, same, [a.place for a in known])
        look = _look(texts, found, same, chosen, memory)
        seen = tuple(number[place] for place in look.candidates)
        mean, covariance = consensus.prior(look)
        posterior = Posterior(mean, covariance, consensus.tau2)
        prior = list(mean)
        for place, k in enumerate(seen):
            for score in answers[k].scores:
                posterior.grade(place, score)
        every, now = _spread_out(answers, found, look, seen, prior, posterior, consensus)
        return Outlook(
            gradable=gradable,
            answer_of=tuple(number[place] for place in same),
            answers=answers,
            features=found,
            consensus=consensus,
            look=look,
            seen=seen,
            prior=every,
            mean=now,
            posterior=posterior,
        )

    def agreement(self, index: int) -> Agreement:
        """How much the candidates agree, if this one wins."""
        place = next(p for p, c in enumerate(self.gradable) if c.index == index)
        return Agreement(
            level=self.features.level,
            distinct=len(self.answers),
            winner=self.features.agree[self.features.group[place]],
        )


def _features(texts: list[str], memory: Memory) -> Features:
    if memory.features is None or memory.features[0] != texts:
        memory.features = (texts, features(texts, memory.reader))
    return memory.features[1]


def _look(
    texts: list[str],
    found: Features,
    same: Sequence[int],
    chosen: tuple[int, ...],
    memory: Memory,
) -> Look:
    kept = memory.look
    if kept is None or kept[0] != texts or kept[1] != chosen:
        kept = memory.look = (texts, chosen, Look.of(found, same, chosen))
    return kept[2]


def _answers(gradable: Sequence[Seen], same: Sequence[int]) -> tuple[Answer, ...]:
    members: dict[int, list[Seen]] = {}
    for candidate, place in zip(gradable, same, strict=True):
        members.setdefault(place, []).append(candidate)
    return tuple(
        Answer(
            index=alike[0].index,
            place=place,
            count=len(alike),
            scores=tuple(score for c in alike for score in c.scores),
            bought=sum(max(c.bought, len(c.scores)) for c in alike),
            kept=next((c.index for c in alike if c.scores), alike[0].index),
            explore=any(c.explore for c in alike),
        )
        for place, alike in sorted(members.items())
    )


def _spread_out(
    answers: Sequence[Answer],
    found: Features,
    look: Look,
    seen: Sequence[int],
    prior: Vector,
    posterior: Posterior,
    consensus: Consensus,
) -> tuple[Vector, Vector]:
    """Means of all answers, before and after the grades. Those that are not in the look move with
    the image, by what the others have moved on average.
    """
    if len(seen) == len(answers):
        return prior, list(posterior.mean)
    total = fsum(look.share)
    moved = [b - a for a, b in zip(prior, posterior.mean, strict=True)]
    shift = fsum(s * m for s, m in zip(look.share, moved, strict=True)) / total
    at = {k: place for place, k in enumerate(seen)}
    before: Vector = []
    after: Vector = []
    for k, answer in enumerate(answers):
        place = at.get(k)
        if place is not None:
            before.append(prior[place])
            after.append(posterior.mean[place])
            continue
        agree = found.agree[found.group[answer.place]]
        share = answer.count / look.n
        expected = consensus.expected(agree, share, look.level, look.n, look.distinct)
        before.append(expected)
        after.append(expected + shift)
    return before, after
