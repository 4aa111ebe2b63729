"""What an HTTP answer means, and what of its words may be repeated."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outfall import OversizeDeliveryError, PausedDeliveryError, TemporaryDeliveryError
from outfall.sinks.http.answers import (
    RefusedDeliveryError,
    clean,
    failure_of,
    is_page,
    quote,
    retry_after_seconds,
    told_limit_bytes,
)

NOW = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT


def failure(status, headers=()):
    """Return the failure that a status is."""
    return failure_of(status, dict(headers), peer="logs.test:443", now=NOW)


@pytest.mark.parametrize("status", [200, 201, 202, 204, 206, 299])
def test_success_is_no_failure(status):
    """All of 2xx mean that the events were taken."""
    assert failure(status) is None


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *[(status, TemporaryDeliveryError) for status in (408, 409, 425, 429, 460, 499)],
        *[(status, TemporaryDeliveryError) for status in (500, 501, 502, 503, 504, 507, 511, 599)],
        *[(status, PausedDeliveryError) for status in (401, 402, 403, 404, 405, 406, 407, 410, 411, 412, 414, 415)],
        *[(status, PausedDeliveryError) for status in (416, 417, 418, 421, 423, 424, 426, 428, 431, 444, 451)],
        *[(status, PausedDeliveryError) for status in (494, 495, 496, 497)],
        *[(status, PausedDeliveryError) for status in (300, 301, 302, 303, 304, 307, 308, 399)],
        (413, OversizeDeliveryError),
        *[(status, RefusedDeliveryError) for status in (400, 422)],
        *[(status, TemporaryDeliveryError) for status in (100, 103, 199, 600, 999)],
    ],
)
def test_each_status_has_its_failure(status, kind):
    """The exact class decides what a delivery does; the message has peer and status."""
    made = failure(status)
    assert type(made) is kind
    assert str(made).startswith(f"logs.test:443 answered {status}")


def test_only_two_statuses_may_be_about_an_event():
    """Whatever a gateway answers, no event is refused for it; 413 alone halves a batch."""
    kinds = {status: type(failure(status)) for status in range(100, 1000) if not 200 <= status < 300}
    assert [status for status, kind in kinds.items() if issubclass(kind, RefusedDeliveryError)] == [400, 422]
    assert [status for status, kind in kinds.items() if issubclass(kind, OversizeDeliveryError)] == [413]
    assert {kind for kind in kinds.values() if not issubclass(kind, TemporaryDeliveryError)} == {
        RefusedDeliveryError,
        OversizeDeliveryError,
    }


@pytest.mark.parametrize("status", [413, 414, 431])
def test_an_event_in_the_url_may_be_too_large_for_it(status):
    """Where the events are in the URL, limits of URL and headers are limits of the event."""
    assert type(failure_of(status, {}, peer="logs.test:443", now=NOW, in_url=True)) is OversizeDeliveryError


@pytest.mark.parametrize(("status", "hint"), [(401, "credentials"), (404, "path"), (411, "length"), (421, "host")])
def test_what_to_try_is_told(status, hint):
    """A failure of the set-up says where to look."""
    assert hint in str(failure(status))


@pytest.mark.parametrize(
    ("location", "told"),
    [
        ("https://new.test/ingest/T0KEN?key=s3cret", " to https://new.test,"),
        ("http://u:pw@new.test:8080/x", " to http://new.test:8080,"),
        ("/elsewhere/T0KEN", ","),
        ("http://[", ","),
        ("https://new.test:port/", ","),
        ("https://new\x07.test/", ","),
        (f"https://{'x' * 300}/", ","),
    ],
)
def test_a_redirect_tells_the_host_alone(location, told):
    """Where a redirect leads helps to mend the address; its path and its query may be secret."""
    message = str(failure(301, {"LOCATION": location}))
    assert message == f"logs.test:443 answered 301, a redirect{told} which is not followed"


# -- Retry-After


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("3", 3.0),
        (" 120 ", 120.0),
        ("1.5", 1.5),
        ("3600", 3600.0),
        ("3601", 3600.0),
        ("9" * 400, 3600.0),
        ("Tue, 14 Nov 2023 22:13:25 GMT", 5.0),
        ("Tuesday, 14-Nov-23 22:13:25 GMT", 5.0),
        ("Tue Nov 14 22:13:25 2023", 5.0),
        ("Tue, 14 Nov 2023 23:13:25 +0100", 5.0),
        ("Tue, 14 Nov 2023 22:13:15 GMT", 0.0),
        ("Fri, 31 Dec 2099 23:59:59 GMT", 3600.0),
        ("Fri, 31 Dec 0001 23:59:59 +2300", 0.0),
        ("-5", None),
        ("nan", None),
        ("inf", None),
        ("1e3", None),
        ("²", None),
        ("soon", None),
        ("", None),
        ("Tue, 99 Nov 2023 22:13:25 GMT", None),
        ("Tue, 14 Nov 99999 22:13:25 GMT", None),
    ],
)
def test_retry_after_is_read_in_both_forms(value, seconds):
    """Seconds and dates are read and kept within an hour; what is neither says nothing."""
    assert retry_after_seconds({"Retry-After": value}, NOW) == seconds


@given(st.text(), st.floats(0, 4e9))
def test_retry_after_never_fails(value, now):
    """Whatever a server sends, the wait is from nothing to an hour, or none is told."""
    seconds = retry_after_seconds({"retry-after": value}, now)
    assert seconds is None or 0 <= seconds <= 3600


@pytest.mark.parametrize("status", [429, 503, 401, 307])
def test_waits_are_told(status):
    """Failures that pass have what Retry-After says, and None without one."""
    assert failure(status, {"retry-after": "7"}).retry_after == 7
    assert failure(status).retry_after is None


# -- limits


@pytest.mark.parametrize(
    ("value", "limit"),
    [
        ("max-size=1000", 1000),
        ("max-append-size=5, max-size=1000, expires=60", 1000),
        ("max-size=1000;x", 1000),
        ("max-append-size=5", None),
        ("max-size=-1", None),
        ("max-size=many", None),
        ("", None),
    ],
)
def test_a_limit_is_read(value, limit):
    """Upload-Limit says the largest body that is taken."""
    assert told_limit_bytes({"Upload-Limit": value}) == limit
    assert told_limit_bytes({}) is None


# -- the server's words


EVENT = {"event": "card declined", "card": "4111-1111-1111-1111", "user": {"mail": "ann@example.org"}, "pin": 123456}


def quoted(body, kind="application/json", secrets=()):
    """Return what is repeated of *body*."""
    return quote(body.encode(), {"content-type": kind}, secrets, [EVENT])


def test_the_words_of_a_refusal_are_repeated():
    """What the server says of its own is told, in one line."""
    assert quoted('{"error":\n  "no such field: colour"}') == '{"error": "no such field: colour"}'
    assert quoted("too many fields", "text/plain; charset=utf-8") == "too many fields"
    assert quote(b"bad", {}, [], []) == "bad"


@pytest.mark.parametrize(
    "body",
    [
        "cannot parse 'card declined'",
        "value 4111-1111-1111-1111 is no number",
        "value 4111 1111 1111 1111 is no number",
        "at 1111-1111",
        "unknown mail ann@example.org",
        "unknown mail ANN@EXAMPLE.ORG",
        "Preview: 'ample.or'",
        "pin: 123456",
        "pin: 1234",
        '{"got": {"mail": "ann\\u0040example.org"}}',
    ],
)
def test_what_repeats_the_event_is_left_out(body):
    """Values of the event, their words, and pieces of those do not come back in a message."""
    said = quoted(body)
    assert "…" in said
    for part in ("declined", "4111", "1111", "example", "EXAMPLE", "ample", "1234"):
        assert part not in said


def test_secrets_are_left_out():
    """A credential that the server repeats is not told, in part neither."""
    said = quoted("the key Tk-abcd-1234 (Tk-abcd…) has expired", secrets=["Tk-abcd-1234", ""])
    assert "abcd" not in said
    assert said.endswith("has expired")


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        ("<html><body>400 Bad Request</body></html>", "text/html", "a page of HTML"),
        ("<!DOCTYPE html><title>Sign in &amp; go</title>", "text/plain", "a page, “Sign in & go”"),
        (
            "<html><HEAD><TITLE class='x'>\n 400 No required\n SSL certificate </TITLE>",
            "",
            "a page, “400 No required SSL ",
        ),
        ("<html><title>no such card: 4111-1111-1111-1111</title>", "text/html", "a page, “no such …”"),
        ("<html><title> </title>", "text/html", "a page of HTML"),
        ("<?xml version='1.0'?><e/>", "application/xml", ""),
        ("\x00\x01", "application/octet-stream", ""),
    ],
)
def test_of_a_page_the_title_is_repeated(body, kind, said):
    """HTML is told by its title, without what it repeats; XML and binary answers say nothing that fits into a line."""
    assert quoted(body, kind).startswith(said)
    assert bool(quoted(body, kind)) is bool(said)


@pytest.mark.parametrize(
    ("body", "kind", "page"),
    [
        (b"<!doctype html>\n<p>", "", True),
        (b"\n <!-- made by a proxy -->\n<html lang='en'>", "application/json", True),
        (b"<h1>It works</h1>", "text/html; charset=utf-8", True),
        (b"", "text/html", False),
        (b"\n", "text/html", False),
        (b'{"html": "<html>"}', "application/json", False),
        (b"<?xml version='1.0'?><html/>", "application/xml", False),
        (b"ok", "text/plain", False),
    ],
)
def test_a_page_is_known(body, kind, page):
    """By its type or its beginning; an answer without a body is none."""
    assert is_page({"Content-Type": kind}, body) is page


def test_words_are_short_and_printable():
    """A long answer is cut, control characters are none, and what is no UTF-8 is replaced."""
    said = quoted("no " * 5000)
    assert len(said) == 200
    assert said.endswith("…")
    assert quoted("a\x1b[31mb\x00\u202ec") == "a?[31mb?" + "?c"
    assert quote(b"caf\xff", {}, [], []) == "caf\ufffd"


@given(st.text(min_size=4), st.text(), st.text())
def test_no_value_survives(value, before, after):
    """Whatever stands around it, a value of the event is not repeated."""
    printable = "".join(char for char in " ".join(value.split()) if char.isprintable())
    said = clean(before + value + after, [], [{"x": value}])
    if len(printable) >= 4 and "…" not in printable and "?" not in printable:
        assert printable not in said.replace("…", "\n")
