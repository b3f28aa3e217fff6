"""Settings turned into what the brain, the workers and the writer act on. Pure."""

from __future__ import annotations

import os
from pathlib import Path

from rsd.errors import UserError
from rsd.hub.brain.events import Policy, RolePolicy
from rsd.pricing import prices_of
from rsd.protocol.tasks import Configure, Endpoint
from rsd.protocol.vocabulary import Rates, Recipe, Role, SummaryConfig
from rsd.protocol.writer_talk import Open, Reconfigure
from rsd.settings.fields import Generation, Grading, Settings, state_dir
from rsd.settings.load import FOLDERS

#: Most requests in flight per endpoint when the settings name no number. vLLM says itself how many
#: it can compute at once; other servers only refuse, and are asked more carefully.
DEFAULT_CAPS = {Role.GENERATE: 256, Role.GRADE: 64}
#: Memory for decoding, flattening and encoding a picture; Pillow was seen to take up to 24 bytes
#: per pixel (WebP with transparency).
DECODE_BYTES_PER_PIXEL = 32


def section_of(settings: Settings, role: Role) -> Generation | Grading:
    """The settings of a role."""
    sections: dict[Role, Generation | Grading] = {
        Role.GENERATE: settings.generation,
        Role.GRADE: settings.grading,
    }
    return sections[role]


def processes_of(settings: Settings, role: Role) -> int:
    """How many processes of a role there are."""
    processes = settings.processes
    return {Role.GENERATE: processes.generators, Role.GRADE: processes.graders}[role]


def role_policy_of(settings: Settings, role: Role) -> RolePolicy:
    """What the brain acts on, of one role."""
    section = section_of(settings, role)
    cap = section.workers or DEFAULT_CAPS[role] * len(section.api)
    return RolePolicy(
        endpoints=section.api,
        model=section.model,
        cap=cap,
        endpoint_cap=section.workers or DEFAULT_CAPS[role],
        timeout=section.timeout,
        slots=-(-cap // processes_of(settings, role)),
        rates=Rates(
            requests=section.requests_per_minute,
            input_tokens=section.input_tokens_per_minute,
            output_tokens=section.output_tokens_per_minute,
        ),
    )


def slots(settings: Settings) -> dict[Role, int]:
    """Threads of one process, by role."""
    return {role: role_policy_of(settings, role).slots for role in Role}


def policy_of(settings: Settings, recipe: Recipe, *, once: bool) -> Policy:
    """What the brain acts on."""
    generation, grading, errors = settings.generation, settings.grading, settings.errors
    return Policy(
        recipe=recipe,
        roles={role: role_policy_of(settings, role) for role in Role},
        max_n=generation.max_n,
        grade_tokens=grading.max_tokens,
        reasoning_effort=grading.reasoning_effort,
        max_attempts=errors.max_attempts,
        max_age=errors.max_age_hours * 3600,
        backoff=errors.backoff_seconds,
        backoff_max=errors.backoff_max_seconds,
        probe_pause=errors.probe_seconds,
        quota_pause=errors.quota_probe_seconds,
        patience=0.0 if once else settings.watch.patience_seconds,
        once=once,
        affinity=generation.affinity,
        images_in_flight=settings.sampling.images_in_flight,
        prices=prices_of(settings.prices),
    )


def configure_of(settings: Settings, role: Role) -> Configure:
    """The configuration of a worker of a role; holds the keys of that role only."""
    section = section_of(settings, role)
    limits = settings.images
    return Configure(
        endpoints=tuple(
            Endpoint(url=url, key=section.key, timeout=section.timeout, ca_file=section.ca_file)
            for url in section.api
        ),
        image_dir=os.fsencode(Path(settings.image_dir).resolve()),
        spool_dir=str(state_dir(settings).resolve() / "spool"),
        max_pixels=int(limits.max_megapixels * 1e6),
        max_file_bytes=int(limits.max_mebibytes * 1024 * 1024),
        min_side=limits.min_side,
        max_aspect=limits.max_aspect,
        background=limits.background,
        pictures=settings.generation.pictures if role is Role.GENERATE else "data",
        decode_bytes=decode_bytes(settings) if role is Role.GENERATE else 0,
        log_level=settings.log_level,
    )


def decode_bytes(settings: Settings) -> int:
    """Memory that decoding one picture may take, in bytes."""
    limits = settings.images
    if limits.decode_mebibytes is not None:
        return limits.decode_mebibytes * 1024 * 1024
    files = 2 * int(limits.max_mebibytes * 1024 * 1024)
    return files + int(limits.max_megapixels * 1e6 * DECODE_BYTES_PER_PIXEL)


def keys_of(settings: Settings) -> tuple[str, ...]:
    """What no log may show."""
    return settings.generation.key, settings.grading.key


def refuse_fixed(before: Settings, after: Settings) -> None:
    """Raises UserError when a reload would change where rsd works."""
    for name in FOLDERS:
        if getattr(before, name) != getattr(after, name):
            raise UserError(
                f"{name} = {getattr(after, name)}: cannot change while rsd runs (it is "
                f"{getattr(before, name)}); restart it"
            )


def waiting_for_restart(before: Settings, after: Settings) -> list[str]:
    """Settings that differ and that a reload cannot apply, by their dotted names."""
    return [
        f"watch.{name}"
        for name in before.watch.__struct_fields__
        if getattr(before.watch, name) != getattr(after.watch, name)
    ]


def opening_of(settings: Settings, recipe: Recipe, state: Path, *, life: str) -> Open:
    """The first message to the writer; `life` names this life of the hub."""
    return Open(
        state_dir=str(state),
        output_dir=str(Path(settings.output_dir).resolve()),
        life=life,
        recover=True,
        checkpoint_interval=settings.checkpoint_interval,
        summary=summary_config_of(settings, recipe),
        log_level=settings.log_level,
    )


def summary_config_of(settings: Settings, recipe: Recipe) -> SummaryConfig:
    """What `summary.json` repeats of the settings."""
    return SummaryConfig(
        image_dir=str(Path(settings.image_dir).resolve()),
        prompt_keys=tuple(recipe.prompts),
        score_threshold=recipe.score_threshold,
        temperature_range=recipe.temperatures,
        top_p_range=recipe.top_ps,
        top_k_range=recipe.top_ks,
        prices=prices_of(settings.prices),
    )


def reconfigure_of(settings: Settings, recipe: Recipe) -> Reconfigure:
    """What a reload changes for the writer."""
    return Reconfigure(
        summary=summary_config_of(settings, recipe),
        checkpoint_interval=settings.checkpoint_interval,
    )
