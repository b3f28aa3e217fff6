"""One transaction over all databases, and the values that it reads."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from rsd.errors import StateError
from rsd.protocol.vocabulary import ImageId, Stats

T = TypeVar("T", bound=msgspec.Struct)
_decoders: dict[type, msgspec.json.Decoder[Any]] = {}


def decode(kind: type[T], data: bytes) -> T:
    """One stored value. Raises StateError when it is none."""
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.json.Decoder(kind)
    try:
        value: T = decoder.decode(data)
    except msgspec.DecodeError as e:
        raise StateError(f"a stored {kind.__name__} is unreadable: {e}") from None
    return value


class Transaction:
    """One transaction over all databases; `put` only inside a writing one. A database that a state
    of an earlier format does not have (None) is empty.
    """

    def __init__(self, txn: Any, databases: dict[str, Any]) -> None:
        self._txn = txn
        self._databases = databases

    def get(self, database: str, key: bytes) -> bytes | None:
        """The raw value, or None."""
        value = self._value(database, key)
        return None if value is None else bytes(value)

    def load(self, database: str, key: bytes, kind: type[T]) -> T | None:
        """The decoded value, or None."""
        value = self._value(database, key)
        return None if value is None else decode(kind, value)

    def _value(self, database: str, key: bytes) -> Any:
        handle = self._databases[database]
        return None if handle is None else self._txn.get(key, db=handle)

    def put(self, database: str, key: bytes, value: bytes | msgspec.Struct) -> None:
        """Write a value."""
        data = value if isinstance(value, bytes) else msgspec.json.encode(value)
        self._txn.put(key, data, db=self._databases[database])

    def put_new(self, database: str, key: bytes, value: bytes | msgspec.Struct) -> bool:
        """Write a value unless there is one; True when it was written."""
        data = value if isinstance(value, bytes) else msgspec.json.encode(value)
        return bool(self._txn.put(key, data, db=self._databases[database], overwrite=False))

    def delete(self, database: str, key: bytes) -> bool:
        """Remove a value; True when there was one."""
        return bool(self._txn.delete(key, db=self._databases[database]))

    def scan(
        self, database: str, *, start: bytes = b"", prefix: bytes = b"", limit: int = 0
    ) -> list[tuple[bytes, bytes]]:
        """Rows in key order from `start` (inclusive), with `prefix`, at most `limit` (0 = all)."""
        rows: list[tuple[bytes, bytes]] = []
        if self._databases[database] is None:
            return rows
        with self._txn.cursor(db=self._databases[database]) as cursor:
            at = max(start, prefix)
            found = cursor.set_range(at) if at else cursor.first()
            while found:
                key = bytes(cursor.key())
                if prefix and not key.startswith(prefix):
                    break
                rows.append((key, bytes(cursor.value())))
                if limit and len(rows) >= limit:
                    break
                found = cursor.next()
        return rows

    def last_key(self, database: str) -> bytes | None:
        """The highest key, or None."""
        if self._databases[database] is None:
            return None
        with self._txn.cursor(db=self._databases[database]) as cursor:
            return bytes(cursor.key()) if cursor.last() else None

    def last_of(self, database: str, prefix: bytes) -> bytes | None:
        """The highest key with a prefix, or None."""
        if self._databases[database] is None:
            return None
        with self._txn.cursor(db=self._databases[database]) as cursor:
            behind = cursor.set_range(prefix + b"\xff" * 9)  # longer than any rest of a key
            if not (cursor.prev() if behind else cursor.last()):
                return None
            key = bytes(cursor.key())
            return key if key.startswith(prefix) else None

    def entries(self, database: str) -> int:
        """Number of rows."""
        if self._databases[database] is None:
            return 0
        return int(self._txn.stat(self._databases[database])["entries"])

    def stats(self) -> Stats:
        """The exact counters."""
        data = self.get("stats", b"all")
        return decode(Stats, data) if data is not None else Stats()


def class_key(status: str, image: ImageId) -> bytes:
    """`classes`: index of the images that a command may ask for by status."""
    return status.encode() + b"\0" + bytes.fromhex(image)
