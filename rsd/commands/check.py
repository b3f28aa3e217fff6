"""`daemon.py check`: is everything as it should be, and what will it cost? Two calls, no more."""

from __future__ import annotations

import argparse
import os
import shutil
import stat
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape

from rsd.commands import flags
from rsd.commands.costs import print_costs
from rsd.commands.isolated import isolated
from rsd.commands.preflight import prepare_output
from rsd.commands.status import status_of
from rsd.errors import ErrorClass, StateError, UserError
from rsd.hub.folder.stable import is_candidate, is_open_folder
from rsd.hub.policy import configure_of, policy_of
from rsd.protocol.dialects import adapt, initial_dialect
from rsd.protocol.tasks import (
    CandidateText,
    Configure,
    Generate,
    Generated,
    GradeCandidates,
    Graded,
    Probe,
    ProbeSampling,
)
from rsd.protocol.vocabulary import ImageInfo, Recipe, RequestDialect, Role, SamplingParams, Usage
from rsd.settings.fields import Settings, state_dir
from rsd.simulator.server import samples_folder
from rsd.state.store import refuse_network
from rsd.system.files import filesystem_type
from rsd.workers import generator, grader
from rsd.workers.api.client import Client
from rsd.workers.api.replies import CallFailed
from rsd.workers.memory import MemoryLimit
from rsd.workers.pictures import SpooledPictures
from rsd.workers.prepare import spooled
from rsd.workers.probes import probe, probe_sampling

#: Adaptations of a request's dialect that are tried before giving up.
ADAPTATIONS = 6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `run`."""
    flags.add_settings(parser)


def main(args: argparse.Namespace) -> int:
    """Exit codes: 0 all is well, 2 something is wrong."""
    settings, recipe = flags.settings_of(args)
    flags.warn_of_visible_keys(args)
    out = Console(highlight=False)
    wrong = 0

    def report(good: bool | None, what: str, detail: str) -> None:
        nonlocal wrong
        wrong += good is False
        mark = {True: "[green]ok[/]   ", None: "[yellow]note[/] ", False: "[red]wrong[/]"}[good]
        out.print(f"{mark} {what}: {escape(detail)}", soft_wrap=True)

    report(True, "prompts", f"{', '.join(recipe.prompts)} from {settings.prompts}")
    kind = "listwise" if recipe.listwise else "pointwise"
    report(True, "grading prompt", f"{settings.grading_prompt} ({kind})")
    for good, what, detail in check_folders(settings):
        report(good, what, detail)
    pictures = list_images(Path(settings.image_dir))
    left, known = backlog(settings, len(pictures))
    report(True, "images", f"{len(pictures)} in {settings.image_dir}, {known}")
    with tempfile.TemporaryDirectory(prefix="rsd-check-") as spool:
        trial = Trial(settings, recipe, Path(spool))
        try:
            source, info = trial.prepare(pictures)
            size = f"{info.width} x {info.height} {info.format}"
            report(True, "test picture", f"{source}, {size}, {info.sent_bytes} bytes sent")
        except UserError as e:
            report(False, "test picture", str(e))
            return 2
        for role in Role:
            for url in trial.urls(role):
                for verdict, what, detail in trial.endpoint(role, url):
                    report(verdict, what, detail)
        print_costs(out, settings, recipe, trial.spent, left)
    return 2 if wrong else 0


def check_folders(settings: Settings) -> list[tuple[bool, str, str]]:
    """Output and state: writable, on a local disk, with room."""
    found: list[tuple[bool, str, str]] = []
    try:
        prepare_output(settings)
    except (StateError, UserError) as e:
        return [(False, "output", str(e))]
    free = shutil.disk_usage(settings.output_dir).free / 2**20
    enough = free >= settings.throttle.disk_reduce_mebibytes
    found.append((enough, "output", f"{settings.output_dir}, {free / 1024:.1f} GiB free"))
    state = state_dir(settings)
    try:
        state.mkdir(parents=True, exist_ok=True)
        refuse_network(state)
    except (StateError, OSError) as e:
        found.append((False, "state", str(e)))
    else:
        found.append((True, "state", f"{state} on {filesystem_type(state) or 'an unknown disk'}"))
    return found


def backlog(settings: Settings, count: int) -> tuple[int, str]:
    """How many of the folder's `count` images are still to be done, and that in words."""
    try:
        images = status_of(state_dir(settings).resolve()).images
    except StateError as e:
        return count, f"but {e}"
    left = max(0, count - images.ended)
    return left, f"{left} to be done" if images.ended else "none done yet"


def list_images(folder: Path) -> list[bytes]:
    """Relative paths of all files that would be taken, in order."""
    root = os.fsencode(folder.resolve())
    found: list[bytes] = []
    for where, folders, names in os.walk(root):
        folders[:] = [f for f in folders if is_open_folder(f)]
        below = where[len(root) + 1 :] + b"/" if where != root else b""
        for name in names:
            whole = where + b"/" + name
            if is_candidate(below + name) and stat.S_ISREG(os.lstat(whole).st_mode):
                found.append(below + name)
    return sorted(found)


def decode(spool: Path, configuration: Configure, folder: bytes, path: bytes) -> bytes:
    """The info of a picture that is in the spool now, as JSON; runs in a process of its own. Raises
    UserError.
    """
    MemoryLimit(0).allow(configuration.decode_bytes)
    try:
        return msgspec.json.encode(spooled(configuration, folder, path))
    except CallFailed as e:
        raise UserError(e.error.message) from None


class Trial:
    """One picture through the code that the workers run; it is decoded in a process of its own."""

    def __init__(self, settings: Settings, recipe: Recipe, spool: Path) -> None:
        self.settings, self.recipe, self.spool = settings, recipe, spool
        self.policy = policy_of(settings, recipe, once=True)
        self.pictures = SpooledPictures(spool)
        self.candidate = "A --> B"
        self.info: ImageInfo | None = None
        self.spent: dict[Role, Usage] = {}

    def urls(self, role: Role) -> tuple[str, ...]:
        """The endpoints of a role."""
        return self.policy.roles[role].endpoints

    def prepare(self, pictures: list[bytes]) -> tuple[str, ImageInfo]:
        """The first acceptable picture of the folder, else a sample. Raises UserError."""
        configuration = msgspec.structs.replace(
            configure_of(self.settings, Role.GENERATE),
            endpoints=(),  # no key for whoever decodes
            spool_dir=str(self.spool),
            pictures="data",
        )
        samples = os.fsencode(samples_folder())
        tried = [(configuration.image_dir, path) for path in pictures[:20]]
        tried.append((samples, b"block_simple.png"))
        why = ""
        for folder, path in tried:
            name = os.fsdecode(path)
            try:
                found = isolated(
                    decode, self.spool, configuration, folder, path, died="it killed its decoder"
                )
            except (UserError, StateError) as e:
                why = why or f"{name}: {e}"
                continue
            self.info = msgspec.json.decode(found, type=ImageInfo)
            return name, self.info
        raise UserError(f"no acceptable picture ({why})")

    def endpoint(self, role: Role, url: str) -> list[tuple[bool | None, str, str]]:
        """Models, credit and sampling of one endpoint, then one real call; None: a warning."""
        word = "generator" if role is Role.GENERATE else "grader"
        configuration = configure_of(self.settings, role)
        me: Any = _Here(configuration, self.pictures)
        wanted = self.policy.roles[role].model
        dialect = initial_dialect(wanted, role)
        found: list[tuple[bool | None, str, str]] = []
        try:
            task = Probe(endpoint=url, model=wanted, completion=False, dialect=dialect)
            probed = probe(me, 1, task)
            warning = probed.warning
            if role is Role.GENERATE:
                sampling = ProbeSampling(endpoint=url, model=probed.model, dialect=dialect)
                warning = warning or probe_sampling(me, 1, sampling).warning
        except CallFailed as e:
            return [(False, f"{word} {url}", f"{e.error.error.value}: {e.error.message}")]
        length = f", context {probed.max_model_len}" if probed.max_model_len else ""
        served = ", ".join(probed.models[:8]) + (", ..." if len(probed.models) > 8 else "")
        listed = f"; serves {served}" if served not in ("", probed.model) else ""
        found.append((True, f"{word} {url}", f"{probed.model}{length}{listed}"))
        if warning:
            found.append((None, f"{word} sampling", warning))
        try:
            found.append((True, f"{word} call", self._call(me, role, url, probed.model, dialect)))
        except CallFailed as e:
            found.append((False, f"{word} call", f"{e.error.error.value}: {e.error.message}"))
        return found

    def _call(self, me: Any, role: Role, url: str, model: str, dialect: RequestDialect) -> str:
        for _ in range(ADAPTATIONS):
            try:
                return self._once(me, role, url, model, dialect)
            except CallFailed as e:
                adapted = adapt(dialect, e.error)
                if e.error.error is not ErrorClass.UNSUPPORTED or adapted is None:
                    raise
                dialect = adapted
        return self._once(me, role, url, model, dialect)

    def _once(self, me: Any, role: Role, url: str, model: str, dialect: RequestDialect) -> str:
        assert self.info is not None
        recipe = self.recipe
        common: dict[str, Any] = {
            "image": "",
            "sha256": self.info.sha256,
            "round": 0,
            "endpoint": url,
            "model": model,
            "dialect": dialect,
        }
        if role is Role.GENERATE:
            name, prompt = next(iter(recipe.prompts.items()))
            params = SamplingParams(
                temperature=recipe.temperatures[0], top_p=recipe.top_ps[0], top_k=recipe.top_ks[0]
            )
            made: Generated = generator.generate(
                me,
                1,
                Generate(
                    samples=(0,),
                    prompt_key=name,
                    prompt=prompt,
                    params=params,
                    seed=0,
                    max_tokens=recipe.max_tokens,
                    **common,
                ),
            )
            self.spent[Role.GENERATE] = made.usage
            self.candidate = made.completions[0].content or self.candidate
            first = self.candidate.strip().splitlines()[:1] or [""]
            return f"{_tokens(made.usage)} in {made.seconds:.1f} s; begins: {first[0][:60]}"
        graded: Graded = grader.grade(
            me,
            1,
            GradeCandidates(
                template=recipe.grading_template,
                candidates=(CandidateText(index=0, number=0, content=self.candidate),),
                max_tokens=self.policy.grade_tokens,
                reasoning_effort=self.policy.reasoning_effort,
                **common,
            ),
        )
        self.spent[Role.GRADE] = graded.usage
        score = graded.grades[0].score
        return f"{_tokens(graded.usage)} in {graded.seconds:.1f} s; score {score:g}"


class _Here(SimpleNamespace):
    """What the workers' functions need of a worker process."""

    def __init__(self, configuration: Configure, pictures: SpooledPictures) -> None:
        clients = {e.url: Client(e, 1) for e in configuration.endpoints}
        super().__init__(configuration=configuration, pictures=pictures, client=clients.__getitem__)


def _tokens(usage: Usage) -> str:
    return f"{usage.input_tokens} tokens in, {usage.output_tokens} out"
