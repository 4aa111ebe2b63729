"""Messages of RFC 5424, as pure functions."""

from __future__ import annotations

import re
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outfall.sinks.system import rfc5424
from tests.sinks._rsyslogd import fields_of, parsed

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=60)
NASTY_TEXT = st.text('"]\\[=% ~\n\0\x85aé世', max_size=60)


@given(st.lists(st.one_of(ANY_TEXT, NASTY_TEXT), unique=True, max_size=12))
def test_names_fit_do_not_collide_and_come_back(names):
    """Whatever the fields are called, each has a parameter of its own, whose whole name can be told."""
    data = rfc5424.structured_data("x@1", [(name, "v") for name in names], escape_controls=False)
    if not names:
        assert data == "-"
        return
    elements = parsed(data)
    assert len(elements["x@1"]) == len(names)
    assert all(rfc5424.is_name(name) for name in elements["x@1"])
    whole = elements.get("names@1", {})
    readable = {
        whole.get(short, None) if short in whole else unquote(short, errors="surrogatepass")
        for short in elements["x@1"]
    }
    assert readable == {
        name.replace("\0", "\\u0000") if "~" in rfc5424.parameter_name(name) else name for name in names
    }


def test_usual_names_stay():
    """A name that may stand there is not touched."""
    for name in ("status", "order_id", "a.b-c:d/e", "X" * 32, "$"):
        assert rfc5424.parameter_name(name) == name


def test_odd_names_are_percent_encoded():
    """Characters that may not stand there, and those that encode others, are encoded as in a URL."""
    assert rfc5424.parameter_name('a b="]%~ä') == "a%20b%3D%22%5D%25%7E%C3%A4"


def test_digits_that_are_taken_are_exchanged(monkeypatch):
    """Two long names whose digits are the same still have parameters of their own."""
    real = rfc5424._digits
    monkeypatch.setattr(rfc5424, "_digits", lambda name, attempt: real(name, attempt) if attempt else "0" * 12)
    rfc5424.parameter_name.cache_clear()
    try:
        names = ["n" * 40 + str(number) for number in range(3)]
        data = rfc5424.structured_data("outfall@32473", [(name, name) for name in names], escape_controls=False)
    finally:
        rfc5424.parameter_name.cache_clear()
    assert fields_of(data) == {name: name for name in names}


@given(st.dictionaries(st.from_regex("[a-z]{1,20}", fullmatch=True), st.one_of(ANY_TEXT, NASTY_TEXT), max_size=8))
def test_values_come_back(fields):
    """Any text is read back as it was, NUL apart."""
    data = rfc5424.structured_data("outfall@32473", fields.items(), escape_controls=False)
    assert fields_of(data) == {name: value.replace("\0", "\\u0000") for name, value in fields.items()}


@given(st.one_of(ANY_TEXT, NASTY_TEXT))
def test_escaped_values_have_no_control_characters(value):
    """With control characters escaped none is left, in text and in bytes."""
    controls = re.compile("[\x00-\x1f\x7f-\x9f]")
    assert not controls.search(rfc5424.escaped(value, controls=True))
    data = rfc5424.without_controls(value.encode("utf-8", "backslashreplace"))
    assert not controls.search(data.decode())


@given(st.text(), st.integers(0, 100))
def test_text_is_cut_between_characters(text, limit):
    """What is left is the beginning, as much as fits."""
    data = text.encode("utf-8", "replace")
    left = rfc5424.cut(data, limit)
    assert data.startswith(left)
    assert len(data) <= limit or limit - 3 <= len(left) <= limit
    assert text.startswith(left.decode()) or "?" in left.decode()


def test_what_is_no_text_is_cut_all_the_same():
    """Bytes that are no UTF-8 lose three more at most."""
    assert 97 <= len(rfc5424.cut(b"\x80" * 200, 100)) <= 100
    assert rfc5424.cut(b"\x80" * 200, 0) == b""


@pytest.mark.parametrize(
    ("when", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000000Z"),
        (1773500966.535897, "2026-03-14T15:09:26.535897Z"),
        (-0.25, "1969-12-31T23:59:59.750000Z"),
        (1e11, "5138-11-16T09:46:40.000000Z"),
        (9e11, "-"),
        (float("inf"), "-"),
    ],
)
def test_timestamps(when, text):
    """Times are in UTC with microseconds; one that cannot be written is not known."""
    assert rfc5424.timestamp(when) == text


def test_header_fields_are_printable():
    """A header's field has no space and no control character, and is not empty."""
    assert rfc5424.header_field("my app\né", 48) == "my_app__"
    assert rfc5424.header_field("", 48) == "-"
    assert rfc5424.header_field("x" * 50, 48) == "x" * 48


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1"),
        (True, "true"),
        (None, "null"),
        (12.5, "12.5"),
        (float("nan"), "null"),
        ([1, {"a": "é"}], '[1,{"a":"é"}]'),
    ],
)
def test_values_that_are_no_text_are_json(value, text):
    """Numbers, truth, nothing and containers are JSON."""
    assert rfc5424.value_text(value) == text


def test_the_element_of_whole_names_is_never_that_of_the_fields():
    """RFC 5424 forbids an element twice."""
    assert rfc5424.names_id("shop@99") == "names@99"
    assert rfc5424.names_id("origin") == "names@32473"
    assert rfc5424.names_id("names@99") != "names@99"
    assert all(rfc5424.is_name(rfc5424.names_id(sd_id)) for sd_id in ("names@99", "x@" + "9" * 30, "x@", "@"))
    long = "names@" + "9" * 26
    assert rfc5424.names_id(long) != long


def test_plain_fields_of_any_event():
    """What JSON does not have is what the renderer makes of it; metadata is no field."""

    class Odd:
        def __repr__(self):
            raise RuntimeError("no")

    fields = rfc5424.plain_fields({"event": "x", "n": 10**5000, "odd": Odd(), 5: "key", "_record": 1, "big": 2**70})
    assert fields["5"] == "key"
    assert fields["big"] == 2**70
    assert "_record" not in fields
    assert all(isinstance(rfc5424.value_text(value), str) for value in fields.values())
