"""What fuzzing has found, each as a test of its own."""

from __future__ import annotations

import urllib.parse

import pytest

from outfall import NDJSON, FormURLEncoded, HTTPSink, OversizeDeliveryError, Projection
from tests.sinks._http import Answer, Server
from tests.sinks.event.test_json import Raising


def test_a_key_that_cannot_be_hashed_does_not_cost_a_form_its_event():
    """The event is sent, with the other fields as they are."""
    key = Raising()
    event = {"event": "odd", key: 1, "number": 7}
    sink = HTTPSink("http://127.0.0.1:9/", body=FormURLEncoded())
    Raising.armed = True
    try:
        body = sink.body.encode([sink.encode(event)])
    finally:
        Raising.armed = False
        sink.close()
    assert {("event", "odd"), ("number", "7")} <= set(urllib.parse.parse_qsl(body.decode()))


def test_a_server_that_says_it_takes_nothing_is_asked_again():
    """An Upload-Limit of 0 is no limit that is kept: it would refuse every event from then on."""
    with Server() as server, HTTPSink(server.url, body=NDJSON()) as sink:
        server.answers.append(Answer(413, headers={"Upload-Limit": "max-size=0"}))
        items = [sink.encode({"event": "one"})]
        with pytest.raises(OversizeDeliveryError):
            sink.emit_batch(items)
        assert sink.emit_batch(items) is None


@pytest.mark.parametrize("path", ["odd.x", ("odd", "x")])
def test_a_path_through_a_value_whose_class_cannot_be_asked_leads_nowhere(path):
    """The projection leaves it out, and has the rest."""
    event = {"event": "hello", "odd": Raising()}
    Raising.armed = True
    try:
        projected = Projection({"said": "event", "found": path}).project(event)
    finally:
        Raising.armed = False
    assert projected == {"said": "hello"}
