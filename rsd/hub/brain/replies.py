"""Replies of the workers turned into candidates and grades. Pure."""

from __future__ import annotations

from rsd.errors import ErrorClass
from rsd.hub.brain.image import ActiveImage
from rsd.hub.brain.prefilter import rejection_of
from rsd.hub.brain.queue import Work
from rsd.protocol.tasks import Generated, Graded
from rsd.protocol.vocabulary import CallError, Candidate, Grade, Usage


def candidates_of(
    work: Work, reply: Generated, image: ActiveImage
) -> tuple[list[Candidate], list[tuple[int, CallError]]]:
    """The candidates of one call, and the draws that the model refused to answer."""
    made: list[Candidate] = []
    refused: list[tuple[int, CallError]] = []
    count = max(1, len(reply.completions))
    for index, completion in zip(work.indices, reply.completions, strict=False):
        draw = image.draws[index]
        if draw.answered:
            continue
        if completion.refusal or completion.finish_reason == "content_filter":
            message = completion.refusal or "the content filter stopped the answer"
            error = CallError(error=ErrorClass.REFUSED, message=message[:300], reason="refusal")
            refused.append((index, error))
            continue
        made.append(
            Candidate(
                index=index,
                round=draw.round,
                prompt_key=draw.planned.arm.prompt_key,
                params=draw.planned.arm.params,
                seed=draw.planned.seed,
                content=completion.content,
                finish_reason=completion.finish_reason,
                rejected_because=rejection_of(completion),
                generation_time=reply.seconds,
                usage=_share(reply.usage, count),
                model=reply.model,
                endpoint=work.endpoint,
                config=image.config,
                explore=draw.planned.explore,
                timestamp=reply.timestamp,
            )
        )
    return made, refused


def grades_of(work: Work, reply: Graded, rubric: str) -> list[Grade]:
    """The grades of one call, which was made by the rubric of the image's recipe."""
    count = max(1, len(work.indices))
    return [
        Grade(
            index=judgement.index,
            number=judgement.number,
            score=judgement.score,
            explanation=judgement.explanation,
            grading_time=reply.seconds,
            usage=_share(reply.usage, count),
            model=reply.model,
            endpoint=work.endpoint,
            timestamp=reply.timestamp,
            rubric=rubric,
        )
        for judgement in reply.grades
    ]


def _share(usage: Usage, count: int) -> Usage:
    """One answer's part of a call; what does not divide is lost, never invented."""
    return Usage(
        input_tokens=usage.input_tokens // count,
        output_tokens=usage.output_tokens // count,
        reasoning_tokens=usage.reasoning_tokens // count,
        cached_tokens=usage.cached_tokens // count,
    )
