"""Walks over many images: short transactions, a page of bounded size at a time."""

from __future__ import annotations

from collections.abc import Iterator

from rsd.protocol.vocabulary import ImageId, ImageStatus
from rsd.state.records import ImageRecord, key
from rsd.state.store import Store
from rsd.state.transaction import Transaction, class_key, decode
from rsd.state.view import image_at

#: Images of a page.
PAGE = 256


def all_images(store: Store, after: ImageId = "", page: int = PAGE) -> Iterator[ImageRecord]:
    """Every image in the order of ids, behind `after`. No transaction is open between two pages:
    what is stored meanwhile is seen if it lies ahead.
    """
    start = key(after) + b"\0" if after else b""
    while True:
        with store.reading() as txn:
            rows = txn.scan("images", start=start, limit=page)
        for _, value in rows:
            yield decode(ImageRecord, value)
        if len(rows) < page:
            return
        start = rows[-1][0] + b"\0"


def images_of(
    txn: Transaction, status: ImageStatus, after: ImageId, count: int
) -> tuple[ImageId, ...]:
    """A page of the ended images of a status, in the order of ids; fewer than `count`: the end."""
    prefix = class_key(status, "")
    start = class_key(status, after) + b"\0" if after else b""
    rows = txn.scan("classes", start=start, prefix=prefix, limit=count)
    return tuple(row[len(prefix) :].hex() for row, _ in rows)


def images_at(txn: Transaction, paths: tuple[bytes, ...]) -> tuple[ImageId, ...]:
    """The current images at these paths; what is not known is left out."""
    found = (image_at(txn, path) for path in paths)
    return tuple(record.image for record in found if record is not None)
