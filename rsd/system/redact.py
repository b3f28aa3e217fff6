"""Keys out of texts: as they are, and as servers and tracebacks may quote them."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote, quote_plus

#: What stands in their place.
MASK = "***"
#: Keys shorter than this are looked for as they are only: `EMPTY` is no secret, and its encoded
#: pieces would be found in any text.
ENCODED_FROM = 8
#: Characters of a key by which the rest is known: an answer that breaks off, or a text that is cut,
#: holds no more of it.
BEGINNING: Final = 10
#: Keys shorter than this have no beginning of their own.
BEGINNING_FROM: Final = 20
#: What programs leave as it is when they quote a text for a URL: nothing, or the signs of a path,
#: or of a whole address.
URL_SAFE = ("", "/", ";,/?:@&=+$-_.!~*'()#")


class Redactor:
    """Replaces every form of some secrets, and how long ones begin; empty ones are ignored."""

    def __init__(self, secrets: Iterable[str]) -> None:
        secrets = [secret for secret in secrets if secret]
        found = {form for secret in secrets for form in forms(secret)}
        # The longest first: a form can be part of another.
        each = [re.escape(f) for f in sorted(found, key=len, reverse=True)]
        begun = {s[:BEGINNING] for s in secrets if len(s) >= BEGINNING_FROM}
        parts = "|".join([*each, *(rf"{re.escape(s)}[A-Za-z0-9._~+/=-]*+" for s in sorted(begun))])
        self._text = re.compile(parts) if parts else None
        self._bytes = re.compile(parts.encode()) if parts else None

    def text(self, text: str) -> str:
        """The text without them."""
        return self._text.sub(MASK, text) if self._text else text

    def data(self, data: bytes) -> bytes:
        """The bytes without them."""
        return self._bytes.sub(MASK.encode(), data) if self._bytes else data


def forms(secret: str) -> set[str]:
    """A secret as it is, escaped for JSON, for a URL, and inside of base64 (of the whole header,
    too: its first and last characters depend on what stands around the secret).
    """
    found = {secret}
    if len(secret) < ENCODED_FROM:
        return found
    escaped = json.dumps(secret)[1:-1]
    found |= {escaped, escaped.replace("/", "\\/"), quote_plus(secret)}
    found |= {quote(secret, safe=safe) for safe in URL_SAFE}
    raw = secret.encode()
    for shift in range(3):
        whole = len(raw) + shift - (len(raw) + shift) % 3  # bytes whose characters are sure
        code = base64.b64encode((b"\0" * shift + raw)[:whole]).decode()
        sure = code[4:] if shift else code
        found |= {sure, sure.replace("+", "-").replace("/", "_")}
    return found
