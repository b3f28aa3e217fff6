"""What is learned of a decided image: in the transaction of its decision, in the order of the
commits, and never twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from rsd.protocol import facts as f
from rsd.protocol.learned import Learned, learned_key
from rsd.protocol.vocabulary import Recipe
from rsd.state import lessons
from rsd.state.records import ImageRecord, lesson_key, prior_key
from rsd.strategy.prior import PRIOR_IMAGES
from rsd.writer.ledger import Ledger

log = logging.getLogger(__name__)


class LearnRules:
    """The records that one transaction changes; each is read and written once."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._changed: dict[str, Learned] = {}
        self.rules: dict[type, Callable[[Any], None]] = {f.LearnedImported: self._imported}

    def decided(self, record: ImageRecord) -> None:
        """Learn from an image, unless it was learned from, or its strategy does not learn."""
        recipe = self.ledger.recipe(record.decided_config)
        if recipe is None or recipe.strategy != lessons.ADAPTIVE or record.learned:
            return
        if record.winner is None or record.score is None:
            return
        txn, key = self.ledger.txn, learned_key(recipe)
        row, lesson = lessons.noted(txn, record, recipe)
        record.learned, record.learned_key = lessons.last_number(txn, key) + 1, key
        txn.put("lessons", lesson_key(key, record.learned), row)
        self._changed[key], failed = lessons.taught(self._learned(key, recipe), lesson)
        if failed is not None:
            log.error("image %s teaches nothing, which is a bug", record.image, exc_info=failed)

    def _learned(self, key: str, recipe: Recipe) -> Learned:
        found = self._changed.get(key) or self.ledger.txn.load("learned", key.encode(), Learned)
        return found or lessons.first_of(self.ledger.txn, key, recipe)

    def _imported(self, fact: f.LearnedImported) -> None:
        prior, txn = fact.learned, self.ledger.txn
        if why := lessons.prior_refused(txn, prior):
            log.warning("what another run has learned is not taken: %s", why)
            return
        txn.put("learned", prior_key(prior.key), prior)
        record = prior
        for row in lessons.page(txn, prior.key, 0, PRIOR_IMAGES):
            record, _ = lessons.taught(record, lessons.lesson_of(txn, row))
        self._changed[prior.key] = record
        log.info("began with what %d images taught another run", prior.prior_images)

    def finish(self) -> tuple[Learned, ...]:
        """Write what has changed, and return it."""
        for key, record in self._changed.items():
            self.ledger.txn.put("learned", key.encode(), record)
        return tuple(self._changed.values())
