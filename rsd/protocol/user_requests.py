"""What a person may ask for: small files in the state's `requests/`, applied by the hub, or by the
command itself when no hub runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec
from msgspec import Struct

from rsd.protocol.facts import ImageRetried
from rsd.protocol.learned import Learned
from rsd.protocol.vocabulary import ImageId, ImageStatus

#: Paths of one request, and images that one question of it may find.
PATHS_MAX: Final = 500
#: Largest request in bytes: as many paths as long as Linux lets them be, in base64.
REQUEST_BYTES: Final = 4 * 1024 * 1024


class Retry(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="retry"
):
    """Take images up again: those at these paths, or all of a status."""

    paths: tuple[bytes, ...] = ()  #: relative to the image folder, PATHS_MAX at most
    status: ImageStatus | None = None
    fresh: bool = False  #: with another round of candidates


class PriorBrought(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="prior"
):
    """Begin with what another run has learned."""

    learned: Learned  #: as `rsd/strategy/prior.py` makes it


#: Grows with what people may ask for; each kind has its tag.
UserRequest = Retry | PriorBrought
request_decoder: Final = msgspec.json.Decoder(UserRequest)


def in_pieces(paths: Iterable[bytes], *, fresh: bool) -> list[Retry]:
    """As many requests as these paths need."""
    found = list(paths)
    return [
        Retry(paths=tuple(found[i : i + PATHS_MAX]), fresh=fresh)
        for i in range(0, len(found), PATHS_MAX)
    ]


def facts_of(request: Retry, images: Iterable[ImageId], wall: float) -> tuple[ImageRetried, ...]:
    """What a request means for the images that it was found to mean; `wall`: Unix seconds.

    Named images go before the backlog. A whole class does not: it may be the larger part of it.
    """
    named = bool(request.paths)
    return tuple(
        ImageRetried(image=image, fresh=request.fresh, first=named, time=wall) for image in images
    )
