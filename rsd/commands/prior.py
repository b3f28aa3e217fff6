"""`strategy --from FILE`: begin with what another run has learned."""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec
from msgspec import Struct

from rsd.commands.isolated import isolated
from rsd.commands.requests import bring_prior
from rsd.commands.status import states_of
from rsd.errors import UserError
from rsd.hub.recipe import load_recipe
from rsd.protocol.learned import Learned, learned_key
from rsd.protocol.vocabulary import Recipe
from rsd.settings import load
from rsd.state.store import Store
from rsd.state.transaction import decode
from rsd.strategy.insight import SCHEMA
from rsd.strategy.prior import prior_of

#: Largest file that is read, in bytes; a record with all levels that it may have takes 100 kB.
FILE_BYTES = 16 * 1024 * 1024


class _Record(Struct, frozen=True, kw_only=True):
    learned: Learned


class _Document(Struct, frozen=True, kw_only=True):
    """What is read of a document; its figures are made anew."""

    schema: str
    records: tuple[_Record, ...]


def bring(args: argparse.Namespace) -> int:
    """Exit codes: 0 taken, 1 the state cannot be used, 2 not to be taken."""
    name = f"--from {args.source}"
    records = read(Path(args.source), name)
    states = states_of(args)
    if len(states) != 1:
        wrong = "several daemons run" if states else "no state is named"
        raise UserError(f"{name}: {wrong}; say which with --output-dir")
    state = states[0]
    priors = fitting(records, recipes_here(args, state, name), name, levels_only=args.levels)
    state.mkdir(parents=True, exist_ok=True, mode=0o750)
    for prior, source in priors:
        try:
            stored = bring_prior(state, prior)
        except UserError as e:
            raise UserError(f"{name}: {e}") from None
        images = source.images + source.prior_images
        what = f"{images} image has" if images == 1 else f"{images} images have"
        whose = f"{prior.generator_model or 'the only model served'} and {prior.grader_model}"
        when = "at the next run" if stored else "from now on; a daemon runs and was given it"
        print(f"what {what} taught counts as {prior.prior_images} for {whose} {when}")
    return 0


def read(file: Path, name: str) -> list[Learned]:
    """The records of a file. Raises UserError, which begins with `name`."""
    try:
        with file.open("rb") as source:
            data = source.read(FILE_BYTES + 1)
    except OSError as e:
        raise UserError(f"{name}: {e.strerror}") from None
    if len(data) > FILE_BYTES:
        raise UserError(f"{name}: is larger than {FILE_BYTES // 2**20} MiB")
    try:
        document = msgspec.json.decode(data, type=_Document)
    except (msgspec.DecodeError, RecursionError) as e:
        raise UserError(f"{name}: is not what `strategy --export` writes ({e})") from None
    if document.schema != SCHEMA:
        raise UserError(f"{name}: is of {document.schema!r}; this rsd reads {SCHEMA}")
    if not document.records:
        raise UserError(f"{name}: holds nothing that was learned")
    return [record.learned for record in document.records]


def recipes_here(args: argparse.Namespace, state: Path, name: str) -> list[Recipe]:
    """One recipe for each models and rubric of the state; of the settings when it has none yet.

    Raises UserError, and StateError when the state is damaged.
    """
    if (state / "lmdb" / "data.mdb").exists():
        found = msgspec.json.decode(isolated(_recipes, state), type=list[Recipe])
        if found:
            return found
    try:
        return [load_recipe(load.load({}, file=load.find_config(args.config)))]
    except UserError as e:
        raise UserError(
            f"{name}: nothing says which models work here ({e}); give --config FILE, or start "
            "the run first"
        ) from None


def _recipes(state: Path) -> bytes:
    with Store(state / "lmdb", readonly=True).reading() as txn:
        known = [decode(Recipe, value) for _, value in txn.scan("configs")]
    named = {r.rubric for r in known if r.generator_model}  # the others got a server's name since
    kept = [r for r in known if r.generator_model or r.rubric not in named]
    return msgspec.json.encode(list({learned_key(recipe): recipe for recipe in kept}.values()))


def fitting(
    records: list[Learned], recipes: list[Recipe], name: str, *, levels_only: bool
) -> list[tuple[Learned, Learned]]:
    """Priors, and the records that they come from: those of the same models and rubric, or with
    `levels_only` the one that most images have taught. Raises UserError when none fits.
    """
    if levels_only:
        if len(recipes) > 1:
            raise UserError(f"{name}: --levels: several models or rubrics were in use here")
        records = [max(records, key=lambda r: r.images + r.prior_images)]
    found: list[tuple[Learned, Learned]] = []
    why = ""
    for recipe in recipes:
        for record in records:
            here = recipe
            if not recipe.generator_model:
                # The server will name its model; if it is another one, nobody asks for this prior.
                here = msgspec.structs.replace(recipe, generator_model=record.generator_model)
            try:
                found.append((prior_of(record, here, levels_only=levels_only), record))
            except UserError as e:
                why = why or str(e)
    if not found:
        raise UserError(f"{name}: {why}")
    return found
