"""Events of any shape, on their way out as a line of JSON and in the body of a request."""

from __future__ import annotations

import json
import urllib.parse

from hypothesis import strategies as st

from outfall import (
    NDJSON,
    Encoded,
    FormURLEncoded,
    HTTPSink,
    JSONArray,
    JSONObject,
    OrjsonRenderer,
    Projection,
)
from outfall.sinks.core.item import Batch
from tests.fuzz._fuzzing import fuzz
from tests.sinks.event.test_json import RENDERERS, SCALARS, Raising, check, fields


@fuzz(draw=st.randoms(use_true_random=False), name=st.sampled_from(sorted(RENDERERS)))
def test_any_dict_is_one_line_of_json(draw, name):
    """Whatever is in it: one line that parses, each field in it, the dict as it was."""
    check(RENDERERS[name], fields(draw, SCALARS, 4))


def _form(body):
    return urllib.parse.parse_qsl(body.decode("ascii"), keep_blank_values=True, strict_parsing=bool(body))


#: How to make the events of a body again.
BODIES = {
    "ndjson": (NDJSON(), lambda body: [json.loads(line) for line in body.split(b"\n")[:-1]]),
    "array": (JSONArray(), json.loads),
    "object": (JSONObject(), lambda body: [json.loads(body)]),
    "form": (FormURLEncoded(), lambda body: [_form(body)]),
}


@fuzz(draw=st.randoms(use_true_random=False), name=st.sampled_from(sorted(BODIES)), projects=st.booleans())
def test_no_event_breaks_the_body_it_shares_with_others(draw, name, projects):
    """A body has as many events as the batch, whatever is in them."""
    body, read = BODIES[name]
    chosen = Projection({"a": "event", "b": "exception.x", "c": "1"}) if projects else None
    sink = HTTPSink("http://127.0.0.1:9/", body=body, fields=chosen)
    events = [fields(draw, SCALARS, 2) for _ in range(1 if body.single else draw.randint(1, 4))]
    Raising.armed = True
    try:
        items = [sink.make_item(event) for event in events]
        encoded = body.encode(Batch(items))
    finally:
        Raising.armed = False
        sink.close()
    assert None not in items
    assert all(b"\n" not in item.data for item in items)
    assert len(read(encoded)) == len(events)


@fuzz(data=st.binary(max_size=60) | st.text(max_size=30).map(lambda text: json.dumps({"event": text}).encode()))
def test_an_item_of_any_bytes_is_an_event(data):
    """`Encoded.event` is a dict that can be rendered, whatever a sink's own renderer has made."""
    event = Encoded(data, 20, 0.0).event
    assert type(event) is dict
    assert OrjsonRenderer().render(event)


@fuzz(
    size=st.integers(1, 12),
    steps=st.lists(st.lists(st.integers(0, 11), unique=True, max_size=12).map(sorted), max_size=4),
    others=st.lists(st.lists(st.integers(0, 11), unique=True, max_size=12).map(sorted), max_size=4),
)
def test_parts_of_a_batch_have_the_same_key_only_if_they_hold_the_same(size, steps, others):
    """Whichever way a batch is cut up: the same events come under the same key, others never."""
    whole = Batch([Encoded(b"%d" % number, 20, 0.0) for number in range(size)], "root")

    def cut(part, ways):
        for way in ways:
            chosen = [index for index in way if index < len(part)]
            if chosen:
                part = part.part(chosen)
        return part

    one, other = cut(whole, steps), cut(whole, others)
    if one is not whole and other is not whole:
        assert (one.key == other.key) == (one.data == other.data)
    for part in (one, other):
        assert part.item_keys == [f"root.{data.decode()}" for data in part.data]
        assert [item.data for item in part] == part.data
