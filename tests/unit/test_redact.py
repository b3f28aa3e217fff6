"""Keys out of texts, in every form in which servers quote them."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote

import pytest

from rsd.system.redact import Redactor

KEY = 'se/cret+1=%&"\\-0123456789'


@pytest.mark.parametrize("prefix", ["", "Bearer ", "x", "xy", "user:"])
@pytest.mark.parametrize("code", [base64.b64encode, base64.urlsafe_b64encode])
def test_no_piece_of_it_in_base64(prefix: str, code: type[bytes]) -> None:
    text = code((prefix + KEY + " end").encode()).decode()  # type: ignore[call-arg]
    left = Redactor([KEY]).text(f"it was {text}, it was")
    assert left.startswith("it was ") and left.endswith(", it was")
    begin, _, rest = left[7:-8].partition("***")
    shown = base64.b64decode(
        begin + "=" * (-len(begin) % 4), altchars=b"-_" if "-" in begin else None
    )
    assert len(shown) <= len(prefix) + 2 and len(rest) <= 12


@pytest.mark.parametrize(
    "form",
    [
        KEY,
        quote(KEY),
        quote(KEY, safe=""),
        json.dumps(KEY)[1:-1],
        json.dumps(KEY)[1:-1].replace("/", "\\/"),
    ],
)
def test_quoted_forms(form: str) -> None:
    redactor = Redactor(["", KEY, "other"])
    assert redactor.text(f"a {form} b other c") == "a *** b *** c"
    assert redactor.data(f"a {form} b".encode()) == b"a *** b"


def test_a_short_key_is_looked_for_as_it_is_only() -> None:
    redactor = Redactor(["EMPTY"])
    code = base64.b64encode(b"EMPTY").decode()
    assert redactor.text(f"EMPTY {code}") == f"*** {code}"


def test_without_secrets_nothing_changes() -> None:
    assert Redactor([]).text("as it was") == "as it was"
    assert Redactor([""]).data(b"as it was") == b"as it was"


def test_a_key_that_is_cut_off_is_no_less_a_secret() -> None:
    """An answer breaks off, or a text is shortened: nobody finds the whole key in it any more."""
    key = "sk-live-ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    redactor = Redactor([key])
    for cut in range(10, len(key)):
        assert redactor.text(f"no such key: {key[:cut]}") == "no such key: ***"
        assert redactor.data(f"({key[:cut]}…)".encode()) == "(***…)".encode()
    assert redactor.text("sk-live- is how keys begin") == "sk-live- is how keys begin"
    assert Redactor(["sk-live-ABCDE"]).text("sk-live-ABCD") == "sk-live-ABCD"
