"""What a strategy may keep between two decisions; it spares work and changes no decision. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from rsd.protocol.learned import Learned
from rsd.strategy.agreement import Features, Reader
from rsd.strategy.model import Look

T = TypeVar("T")

#: Solutions that are kept: of the newest record, under the recipes of the images in progress.
SOLVED_MAX: Final = 16


class Solved:
    """What was computed of a record of what was learned; shared by all images."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int, Hashable], tuple[Learned | None, object]] = OrderedDict()

    def get(self, learned: Learned | None, about: Hashable, solve: Callable[[], T]) -> T:
        """`solve()`, or what it returned for the same record before. `about` names what is solved
        and all that it depends on besides the record.
        """
        key = (id(learned), about)
        known = self._kept.get(key)
        if known is not None and known[0] is learned:  # the record is kept too: its id stays its
            self._kept.move_to_end(key)
            return known[1]  # type: ignore[return-value]
        found = solve()
        self._kept[key] = (learned, found)
        if len(self._kept) > SOLVED_MAX:
            self._kept.popitem(last=False)
        return found


@dataclass(slots=True)
class Memory:
    """Of one image."""

    solved: Solved = field(default_factory=Solved)
    reader: Reader = field(default_factory=Reader)  #: has read the image's candidates
    #: What they agree on: (texts, features), and (texts, those in the look, look).
    features: tuple[list[str], Features] | None = None
    look: tuple[list[str], tuple[int, ...], Look] | None = None
