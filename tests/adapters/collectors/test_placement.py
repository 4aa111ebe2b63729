"""Fields whose names or values a collector cannot take as they are: the event arrives, and no value is lost."""

from __future__ import annotations

import datetime as dt
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outfall import CaptureSink, HTTPSink
from outfall.adapters.collectors.datadog import DatadogLogs
from outfall.adapters.collectors.elasticsearch import ElasticsearchBulk
from outfall.adapters.collectors.gelf import GELFMessage
from outfall.adapters.collectors.loki import LokiStreams
from outfall.adapters.collectors.otlp import OTLPLogs
from outfall.adapters.collectors.placement import Placement
from outfall.sinks.core.item import Batch
from tests.adapters._collectors import parse_bulk, parse_datadog, parse_gelf, parse_loki, parse_otlp

OWN = {
    "_id",
    "_index",
    "_source",
    "_type",
    "_routing",
    "_ignored",
    "_field_names",
    "_nested_path",
    "_seq_no",
    "_version",
}


def encoded(*events):
    """Return *events* as a batch, as a sink makes it."""
    sink = CaptureSink()
    return Batch([sink.encode(event) for event in events])


def documents(*events, **options):
    """Return the documents of Elasticsearch for *events*."""
    return [document for _, document in parse_bulk(ElasticsearchBulk(**options).encode(encoded(*events)))]


def leaves(value, path=(), top=True):
    """Yield the path and the kind of each name in a document, and check that a server takes it."""
    if isinstance(value, dict):
        for name, inner in value.items():
            parts = name.split(".")
            assert all(part.strip() for part in parts), name
            assert not (top and parts[0] in OWN), name
            for count in range(1, len(parts)):
                yield (*path, *parts[:count]), "object"
            yield from leaves(inner, (*path, *parts), top=False)
        if path:
            yield path, "object"
    elif isinstance(value, list) and any(isinstance(each, dict) for each in value):
        for each in value:
            assert isinstance(each, dict), f"{path}: a list of objects and values"
            yield from leaves(each, path, top=False)
    else:
        if isinstance(value, list):
            for each in value:
                list(leaves(each, path, top=False))
        elif isinstance(value, int):
            assert -(2**63) <= value < 2**63, path
        yield path, "value"


def check(document):
    """Check that a server that takes dots for levels takes *document*."""
    kinds = {}
    for path, kind in leaves(document):
        assert kinds.setdefault(path, kind) == kind, f"{path} is a value and an object"
        assert len(path) <= 20, path


def texts(value):
    """Yield the values in *value* as text."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)
    elif value is not None:
        yield value if isinstance(value, str) else json.dumps(value)


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"error": "a", "log": "b", "trace": 7, "span": 1, "ecs": 2}, {"error_": "a", "log_": "b", "trace_": 7}),
        ({"error": {"code": 5}}, {"error": {"code": 5}}),
        ({"a": 1, "a.b": 2}, {"a": 1, "a_.b": 2}),
        ({"a.b": 2, "a": 1}, {"a.b": 2, "a_": 1}),
        ({"a.b.c": 3, "a.b": 2, "a": 1}, {"a.b.c": 3, "a.b_": 2, "a_": 1}),
        ({"a": {"b": {"c": 1}}, "a.b": 5}, {"a": {"b": {"c": 1}}, "a.b_": 5}),
        ({"a": {"b": 1}, "a.b.c": 5}, {"a": {"b": 1}, "a.b_.c": 5}),
        ({"a": {"b": 1, "b.c": 2}}, {"a": {"b": 1, "b_.c": 2}}),
        ({"a": None, "a.b": 1}, {"a": None, "a_.b": 1}),
        ({"": 1, " ": 2}, {"_": 1, "__": 2}),
        ({"x.": 1, ".y": 2, "a..b": 3}, {"x._": 1, "_.y": 2, "a._.b": 3}),
        ({"_id": 1, "_source": {"a": 2}, "_type.x": 3}, {"_id_": 1, "_source_": {"a": 2}, "_type_.x": 3}),
        ({"in": {"_id": 1}}, {"in": {"_id": 1}}),
        (
            {"n": 2**63, "m": [2**64, -(2**63)], "o": {"p": -(2**63) - 1}},
            {"n": str(2**63), "m": [str(2**64), -(2**63)]},
        ),
        ({"f": 1e39, "g": 0.5}, {"f": "1e+39", "g": 0.5}),
        ({"l": [{"a": 1}, 2]}, {"l": ['{"a":1}', "2"]}),
        ({"l": [{"a": 1}, {"a": {"b": 2}}]}, {"l": ['{"a":1}', '{"a":{"b":2}}']}),
        ({"l": [{"a": 1}, {"a": 2, "b": 3}]}, {"l": [{"a": 1}, {"a": 2, "b": 3}]}),
        ({"l": [1, None, "x"]}, {"l": [1, None, "x"]}),
    ],
)
def test_elasticsearch_places_every_field(event, expected):
    """What is a level of another's name, blank, the server's own or too large goes elsewhere, or as text."""
    for ecs in (True, False):
        [document] = documents({"event": "x", **event}, ecs=ecs)
        check(document)
        if ecs:
            assert {name: document[name] for name in expected} == expected
        assert sorted(text for text in texts(event) if text not in " ".join(texts(document))) == []


def test_elasticsearch_beside_an_exception():
    """A field `error` and the exception's parts are both there."""
    try:
        raise ValueError("bad")
    except ValueError:
        [document] = documents({"event": "x", "exc_info": True, "error": "a text", "error.type": "mine"})
    check(document)
    assert (document["error.type"], document["error.message"]) == ("ValueError", "bad")
    assert (document["error_"], document["error.type_"]) == ("a text", "mine")


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ("2020-01-01T00:00:00Z", "2020-01-01T00:00:00Z"),
        ("2020-01-01T00:00:00.5+01:00", "2020-01-01T00:00:00.5+01:00"),
        ("2020-01-01 00:00:00", "2020-01-01T00:00:00.000000Z"),
        ("2020-01-01", "2020-01-01T00:00:00.000000Z"),
        (1732620000.5, "2024-11-26T11:20:00.500000Z"),
        (1732620000, "2024-11-26T11:20:00.000000Z"),
        (1732620000500, 1732620000500),
    ],
)
def test_elasticsearch_own_timestamps(own, expected):
    """An `@timestamp` that is a date is the document's, in a form that the server takes."""
    for ecs in (True, False):
        [document] = documents({"event": "x", "@timestamp": own, "timestamp": "2026-01-01T00:00:00Z"}, ecs=ecs)
        assert document["@timestamp"] == expected


@pytest.mark.parametrize(
    "own", ["yesterday", True, "2020-13-01T00:00:00Z", "2021-02-29T00:00:00Z", [1], {"a": 1}, 1e300]
)
def test_elasticsearch_timestamps_that_are_none(own):
    """The event has the time it happened, and the value has another name."""
    [document] = documents({"event": "x", "@timestamp": own, "timestamp": "2026-01-01T00:00:00.000000Z"})
    assert document["@timestamp"] == "2026-01-01T00:00:00.000000Z"
    [value] = [document[name] for name in document if name.startswith("@timestamp_")]
    assert value == own or str(own) in str(value)


def test_elasticsearch_takes_no_bottomless_nest():
    """What is deeper than the server goes is JSON as text."""
    nest = {"end": "bottom"}
    for _ in range(40):
        nest = {"in": nest}
    [document] = documents({"event": "x", "nest": nest})
    check(document)
    assert "bottom" in json.dumps(document)


def test_elasticsearch_takes_numbers_of_32_bits():
    """Others are text, since that is what a fraction is to it by default."""
    [document] = documents({"event": "x", "most": 3.3e38, "more": 3.5e38, "in": [{"more": -1e300}]})
    assert (document["most"], document["more"], document["in"]) == (3.3e38, "3.5e+38", [{"more": "-1e+300"}])


def test_datadog_levels_agree():
    """Attributes that are a level of others give way, beside an exception too."""
    event = {"event": "x", "error": "text", "logger.name": 1, "dd": 2, "a": 1, "a.b": 2, "": 3, "n": 2**64}
    [log] = parse_datadog(DatadogLogs(service="s").encode(encoded({**event, "logger": "shop"})))
    check(log)
    assert (log["error_"], log["logger.name_"], log["dd_"], log["a"], log["a_.b"]) == ("text", 1, 2, 1, 2)
    assert log["n"] == str(2**64)


def test_otlp_attributes_are_unique_and_named():
    """No attribute is lost to one of ours, and none is without a name."""
    try:
        raise ValueError("bad")
    except ValueError:
        event = {"event": "x", "exc_info": True, "exception.type": "mine", "": 1, "a": 2, "a.b": 3, "d": {"": 4}}
        body = OTLPLogs().encode(encoded(event))
    [resource] = parse_otlp(body).resource_logs
    found = {each.key: each.value for each in resource.scope_logs[0].log_records[0].attributes}
    assert found["exception.type"].string_value == "ValueError"
    assert found["exception.type_"].string_value == "mine"
    assert (found["_"].int_value, found["a"].int_value, found["a_.b"].int_value) == (1, 2, 3)
    assert [each.key for each in found["d"].kvlist_value.values] == ["_"]


def test_gelf_names():
    """Dots are levels where Graylog keeps its fields."""
    event = {"event": "x", "a": 1, "a.b": 2, "": 3, "x.": 4, "id": 5, "level_name": 6, "a b": 7, "a_b": 8}
    message = parse_gelf(GELFMessage().encode(encoded({**event, "level": "info"})))
    assert {name: value for name, value in message.items() if name[0] == "_"} == {
        "_level_name": "info",
        "_a": 1,
        "_a_.b": 2,
        "__": 3,
        "_x._": 4,
        "_id_": 5,
        "_level_name_": 6,
        "_a_b": 7,
        "_a_b_": 8,
    }


def test_loki_metadata_names_do_not_meet():
    """Names that are one where Loki keeps them stay two."""
    format_ = LokiStreams(structured_metadata={"a.b": "x", "a_b": "y", "": "z", "1st": "u", "__meta": "v"})
    [(*_, metadata)] = parse_loki(format_.encode(encoded({"x": 1, "y": 2, "z": 3, "u": 4, "v": 5})))
    assert metadata == {"a_b": "1", "a_b_": "2", "_": "3", "_1st": "4", "_meta": "5"}


_NAMES = st.lists(
    st.sampled_from(["", " ", "a", "b", "_id", "error", "log", "type", "message", "event"]), min_size=1, max_size=4
)
_DOTTED = _NAMES.map(".".join)
_LEAVES = (
    st.none()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("xyz", max_size=3)
)
_VALUES = st.recursive(
    _LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_DOTTED, inner, max_size=3), max_leaves=8
)


@given(st.dictionaries(_DOTTED, _VALUES, max_size=6))
def test_any_names_and_values_can_be_taken(event):
    """Whatever collides with whatever, the documents have no clash, and the values are all there."""
    for ecs in (True, False):
        [document] = documents(event, ecs=ecs)
        check(document)
    [log] = parse_datadog(DatadogLogs(service="s").encode(encoded(event)))
    check({name: value for name, value in log.items() if not name.startswith("_")})
    parse_otlp(OTLPLogs().encode(encoded(event)))
    parse_gelf(GELFMessage().encode(encoded(event)))
    marked = {"a.b": {"mark": "first"}, "error": "second", **{f"{name}.mark": f"v{n}" for n, name in enumerate(event)}}
    text = json.dumps(documents({**event, **marked})[0])
    assert [value for value in texts(marked) if value not in text] == []


def test_usual_names_are_remembered():
    """So that looking at them costs little; unusual ones are looked at each time, and many are forgotten."""
    placement = Placement(own=("_id",))
    for _ in range(2):
        assert placement.usual(b'{"a":1}') == {"a": 1}
        assert placement.usual(b'{"a.b":1}') is None
        assert placement.usual(b'{"_id":1}') is None
        assert placement.usual(b'{"a":[1]}') is None
        assert placement.usual(b'{"a":100000000000000000000}') is None
    for number in range(3_000):
        assert placement.usual(b'{"n%d":1}' % number) == {f"n{number}": 1}
    assert len(placement._usual) <= 1_000


# -- times without a zone


@pytest.fixture
def far_from_utc(monkeypatch):
    """Be in New York."""
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(("naive", "expected"), [("utc", "10:00:00"), ("local", "15:00:00")])
@pytest.mark.parametrize("stamp", ["2026-01-15 10:00:00", "2026-01-15T10:00:00"])
def test_times_without_a_zone(far_from_utc, naive, expected, stamp):
    """They are UTC, as structlog writes them, or local where that is said; one with a zone is what it says."""
    sink = HTTPSink("http://localhost/", body=ElasticsearchBulk(), naive_timestamps=naive)
    items = [sink.encode({"event": "x", "timestamp": each}) for each in (stamp, stamp + "+02:00")]
    [(_, first), (_, second)] = parse_bulk(ElasticsearchBulk().encode(items))
    assert first["@timestamp"] == f"2026-01-15T{expected}.000000Z"
    assert second["@timestamp"] == "2026-01-15T08:00:00.000000Z"
    assert items[0].time == dt.datetime.fromisoformat(first["@timestamp"][:19] + "+00:00").timestamp()


def test_what_times_without_a_zone_are_is_one_of_two():
    """At construction."""
    with pytest.raises(ValueError, match="naive_timestamps='gmt'"):
        HTTPSink("http://localhost/", naive_timestamps="gmt")
