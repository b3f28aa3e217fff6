"""What a path is called: on a screen, and as the name of its result file. Pure."""

from __future__ import annotations

from hashlib import blake2b

#: A result's stem is cut to this many bytes, so that `<stem>_<id>.json.tmp` fits into 255.
STEM_BYTES = 180


def display_path(path: bytes) -> str:
    r"""A path as text that any terminal, log or JSON file can hold (`\xNN` for odd bytes)."""
    text = path.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def result_name(path: bytes) -> str:
    """`<stem>_<id>.json` of a relative path: one name per path, safe as a file name anywhere."""
    name = path.rpartition(b"/")[2]
    stem = name.rpartition(b".")[0] or name
    text = stem[:STEM_BYTES].decode("utf-8", "ignore" if _is_utf8(stem) else "replace")
    safe = "".join(c if c.isprintable() and c not in "/\\\ufffd" else "_" for c in text)
    while len(safe.encode()) > STEM_BYTES:
        safe = safe[:-1]
    return f"{safe}_{blake2b(path, digest_size=6).hexdigest()}.json"


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
