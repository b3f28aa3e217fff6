"""Facts about candidates and grades, and about what was learned and spent on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rsd.protocol import facts as f
from rsd.protocol.vocabulary import Grade, Role, Usage
from rsd.state.records import FailureRecord, grade_key, key16, key32
from rsd.state.tallies import score_of
from rsd.state.transaction import decode
from rsd.writer.ledger import Ledger, error_word


class CandidateRules:
    """Each rule changes all that its fact concerns, and nothing when it is applied again."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.rules: dict[type, Callable[[Any], None]] = {
            f.ConfigStored: self._config,
            f.DialectLearned: self._dialect,
            f.StepChosen: self._step,
            f.CandidateMade: self._made,
            f.CandidateGraded: self._graded,
            f.SampleFailed: self._sample_failed,
            f.GradingFailed: self._grading_failed,
            f.CallSpent: self._spent,
        }

    def _config(self, fact: f.ConfigStored) -> None:
        self.ledger.txn.put("configs", fact.recipe.fingerprint.encode(), fact.recipe)

    def _dialect(self, fact: f.DialectLearned) -> None:
        self.ledger.txn.put("profiles", f"{fact.endpoint}|{fact.model}".encode()[:500], fact)

    def _step(self, fact: f.StepChosen) -> None:
        self.ledger.txn.put_new("steps", key16(fact.image, fact.round), fact)

    def _made(self, fact: f.CandidateMade) -> None:
        made = fact.candidate
        if not self.ledger.txn.put_new("candidates", key32(fact.image, made.index), made):
            return
        self.ledger.stats.generated += 1
        self.ledger.stats.generation_time += made.generation_time
        self._tokens(Role.GENERATE, made.usage)
        self.ledger.tallies.generated(made)

    def _graded(self, fact: f.CandidateGraded) -> None:
        grade, ledger = fact.grade, self.ledger
        rows = ledger.txn.scan("grades", prefix=key32(fact.image, grade.index))
        where = grade_key(fact.image, grade.index, grade.number)
        if not ledger.txn.put_new("grades", where, grade):
            return
        ledger.stats.grades += 1
        ledger.stats.grading_time += grade.grading_time
        self._tokens(Role.GRADE, grade.usage)
        record = ledger.image(fact.image)
        made = ledger.candidate(fact.image, grade.index)
        rubric = ledger.rubric(record.config) if record is not None else ""
        if made is not None and grade.rubric == rubric:  # those of other rubrics are history
            before = [decode(Grade, value) for _, value in rows]
            ledger.score(made, score_of(before, rubric), score_of([*before, grade], rubric))

    def _sample_failed(self, fact: f.SampleFailed) -> None:
        record = FailureRecord(error=fact.error, time=fact.time)
        if self.ledger.txn.put_new("sample_failures", key32(fact.image, fact.index), record):
            self.ledger.stats.sample_failures += 1
            self.ledger.tallies.count("sample_failure", error_word(fact.error))

    def _grading_failed(self, fact: f.GradingFailed) -> None:
        record = FailureRecord(error=fact.error, time=fact.time)
        where = grade_key(fact.image, fact.index, fact.number)
        if self.ledger.txn.put_new("grade_failures", where, record):
            self.ledger.stats.grading_failures += 1
            self.ledger.tallies.count("grading_failure", error_word(fact.error))

    def _spent(self, fact: f.CallSpent) -> None:
        self.ledger.stats.unused_calls += 1
        self.ledger.stats.unused_input_tokens += fact.usage.input_tokens
        self.ledger.stats.unused_output_tokens += fact.usage.output_tokens
        self._tokens(fact.role, fact.usage)
        self.ledger.tallies.count("unused", f"{fact.role.value}:{fact.outcome}")

    def _tokens(self, role: Role, usage: Usage) -> None:
        """Whatever a call gave, its tokens are paid for."""
        stats = self.ledger.stats
        if role is Role.GENERATE:
            stats.generator_input_tokens += usage.input_tokens
            stats.generator_output_tokens += usage.output_tokens
            stats.generator_cached_tokens += usage.cached_tokens
            stats.generator_reasoning_tokens += usage.reasoning_tokens
        else:
            stats.grader_input_tokens += usage.input_tokens
            stats.grader_output_tokens += usage.output_tokens
            stats.grader_cached_tokens += usage.cached_tokens
            stats.grader_reasoning_tokens += usage.reasoning_tokens
