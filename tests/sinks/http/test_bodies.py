"""The general formats of HTTP bodies, and what a format of one's own may rely on."""

from __future__ import annotations

import datetime as dt
import json
import logging
import logging.handlers
from decimal import Decimal
from urllib.parse import parse_qs

import pytest

from outfall import NDJSON, BodyFormat, Encoded, FormURLEncoded, HTTPSink, JSONArray, JSONObject
from outfall.sinks.core.item import Batch
from tests.sinks._http import Server


def batch(*events):
    """Return *events* as what a delivery hands out."""
    return [Encoded(json.dumps(event).encode(), 20, 0.0) for event in events]


@pytest.mark.parametrize("make", [list, Batch])
def test_json_formats_put_items_together(make):
    """Each item's JSON is in the body as it is, in order."""
    items = make(batch({"a": 1}, {"a": 2}))
    assert NDJSON().encode(items) == b'{"a": 1}\n{"a": 2}\n'
    assert JSONArray().encode(items) == b'[{"a": 1},{"a": 2}]'
    assert JSONObject().encode(items[:1]) == b'{"a": 1}'


def test_formats_say_what_they_are():
    """Each has its content type, which an argument replaces, and says if it takes one event only."""
    assert (NDJSON().content_type, NDJSON().single) == ("application/x-ndjson", False)
    assert (JSONArray().content_type, JSONArray().single) == ("application/json", False)
    assert (JSONObject().content_type, JSONObject().single) == ("application/json", True)
    assert (FormURLEncoded().content_type, FormURLEncoded().single) == ("application/x-www-form-urlencoded", True)
    assert NDJSON(content_type="application/jsonl").content_type == "application/jsonl"
    assert repr(NDJSON()) == "NDJSON()"
    for bad in (7, "a\nb", "ü"):
        with pytest.raises(ValueError, match="content_type="):
            JSONArray(content_type=bad)


def test_a_format_has_to_encode():
    """The base class says what is missing, and that an answer of 2xx is all there is to know."""

    class Half(BodyFormat):
        pass

    with pytest.raises(TypeError, match="Half has to implement encode"):
        Half().encode(batch({}))
    assert BodyFormat().read(200, {}, b'{"errors": true}', batch({})) is None
    assert BodyFormat().refusal(400, {}, b"") is None
    assert BodyFormat().prepare({"a": 1}) == {"a": 1}


# -- forms


def form(event):
    """Return the body that an event makes, as a sink does it."""
    sink = HTTPSink("http://localhost/", body=FormURLEncoded())
    return FormURLEncoded().encode([sink.encode(event)])


def test_a_form_has_the_text_of_each_value():
    """Values are what str makes of them, also those that JSON would change."""
    moment = dt.datetime(2024, 2, 29, 12, 0, tzinfo=dt.timezone.utc)
    event = {
        "event": "a b&c=d é",
        "n": 1,
        "big": 2**70,
        "x": 0.1,
        "nan": float("nan"),
        "none": None,
        "yes": True,
        "list": [1, "a"],
        "tuple": (1, "a"),
        "when": moment,
        "amount": Decimal("1.50"),
        "raw": b"bytes",
    }
    assert parse_qs(form(event).decode(), strict_parsing=True) == {
        "event": ["a b&c=d é"],
        "n": ["1"],
        "big": [str(2**70)],
        "x": ["0.1"],
        "nan": ["nan"],
        "none": ["None"],
        "yes": ["True"],
        "list": ["[1, 'a']"],
        "tuple": ["(1, 'a')"],
        "when": ["2024-02-29 12:00:00+00:00"],
        "amount": ["1.50"],
        "raw": ["bytes"],
    }


def test_a_form_has_no_metadata_and_a_rendered_exception():
    """What the renderer leaves out or makes of an event is so in a form too; a value that has no text is marked."""

    class Silent:
        def __str__(self):
            raise RuntimeError("no")

        __repr__ = __str__

    fields = parse_qs(form({"event": "x", "_record": 1, "exc_info": ValueError("broken"), "bad": Silent()}).decode())
    assert fields["exception"] == ["ValueError: broken"]
    assert fields["bad"][0].startswith("<")
    assert set(fields) == {"event", "exception", "exception_type", "exception_message", "bad"}
    assert form({"event": "\ud800", "\udfff": b"\xff"}).isascii()


def test_a_form_of_hostile_keys():
    """Keys whose own methods raise cost their field's name and nothing else."""

    class Key(str):
        __slots__ = ()

        def __hash__(self):
            if armed:
                raise RuntimeError("no")
            return 1

    armed = []
    event = {"event": "x", Key("k"): 1, 7: (1, 2)}
    armed.append(True)
    fields = parse_qs(form(event).decode(), strict_parsing=True)
    assert fields["event"] == ["x"]
    assert fields["7"] == ["[1, 2]"]
    assert len(fields) == 3


@pytest.mark.parametrize("query", ["", "?key=a%20b"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_forms_are_those_of_the_standard_library(method, query):
    """HTTPHandler and HTTPSink send the same record in the same request: target, body, content type, login."""
    record = logging.LogRecord("shop", logging.WARNING, "/shop.py", 7, "%s is low: %d", ("bolt M4", 3), None, "check")
    record.extra = {"nested": [1, 2.5, None]}

    class Handler(logging.handlers.HTTPHandler):
        def getConnection(self, host, secure):
            self.connection = super().getConnection(host, secure)
            return self.connection

    class Sink(HTTPSink):
        def map_event(self, event):
            # exc_info would be rendered otherwise, as in all sinks.
            return {**event, "exc_info": str(event["exc_info"])}

    with Server() as server:
        handler = Handler(f"{server.host}:{server.port}", f"/log{query}", method, credentials=("shop", "pass:wörd"))
        handler.emit(record)
        handler.connection.close()
        url = f"{server.url}/log{query}"
        with Sink(url, method, body=FormURLEncoded(), auth=("shop", "pass:wörd"), on_error="raise") as sink:
            sink.handle(vars(record))
    theirs, ours = server.requests
    assert (ours.method, ours.target, ours.raw_body) == (theirs.method, theirs.target, theirs.raw_body)
    for name in ("content-type", "authorization", "content-length", "host"):
        assert ours.headers.get(name) == theirs.headers.get(name)
