"""Fields chosen, renamed and made: one projection for any sink."""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from types import MappingProxyType

import pytest
import structlog
from structlog import DropEvent

from outfall import CaptureSink, Constant, FileSink, Projection
from outfall.sinks.event.levels import level_of

EVENT = {
    "event": "order placed",
    "level": "info",
    "user": {"id": 7, "name": "Ann", "address": {"city": "Ulm", "zip": "89073"}},
    "tags": ["a", "b"],
    "http.status": 200,
}


# -- a sequence: fields are kept


def test_a_sequence_keeps_those_fields_in_its_order():
    """Fields that are named stay, in the order of the names, and the others go."""
    assert list(Projection(["level", "event"])(EVENT).items()) == [("level", "info"), ("event", "order placed")]
    assert Projection(("tags",))(EVENT) == {"tags": ["a", "b"]}


def test_a_nested_path_keeps_its_place():
    """Of a nested dict only the parts that are named are kept, where they are."""
    projection = Projection(["event", "user.id", "user.address.city"])
    assert projection(EVENT) == {"event": "order placed", "user": {"id": 7, "address": {"city": "Ulm"}}}


@pytest.mark.parametrize("fields", [["user", "user.id"], ["user.id", "user"]])
def test_a_whole_and_its_part_is_the_whole(fields):
    """A dict that is kept as a whole stays whole, whatever part of it is named too, and is not changed."""
    event = copy.deepcopy(EVENT)
    assert Projection(fields)(event) == {"user": EVENT["user"]}
    assert event == EVENT


def test_what_is_not_there_is_left_out():
    """A path that leads nowhere adds nothing, not even on its way."""
    assert Projection(["event", "nothing", "user.nothing", "event.x", "a.b.c", "tags.0"])(EVENT) == {
        "event": "order placed"
    }
    assert Projection(["nothing"])({}) == {}


# -- a mapping: fields are named anew


def test_a_mapping_renames():
    """A mapping goes from the new name to the path; a nested value gets the new name alone."""
    projection = Projection({"msg": "event", "city": "user.address.city", "where": "user.address", "no": "user.no"})
    assert projection(EVENT) == {"msg": "order placed", "city": "Ulm", "where": {"city": "Ulm", "zip": "89073"}}
    assert list(projection(EVENT)) == ["msg", "city", "where"]


def test_any_mapping_is_a_mapping():
    """Mappings that are no dict serve as fields and as nested values."""
    projection = Projection(MappingProxyType({"city": "user.city"}))
    assert projection({"user": OrderedDict(city="Ulm")}) == {"city": "Ulm"}
    assert projection({"user": MappingProxyType({"city": "Ulm"})}) == {"city": "Ulm"}


def test_a_key_with_dots_wins_over_the_path():
    """An exact key is meant before a nested one, at each depth, and is kept by that name."""
    assert Projection(["http.status"])(EVENT) == {"http.status": 200}
    both = {"a.b": 1, "a": {"b": 2}}
    assert Projection({"x": "a.b"})(both) == {"x": 1}
    assert Projection({"x": "a.b.c"})({"a": {"b.c": 3, "b": {"c": 4}}}) == {"x": 3}
    assert Projection({"x": "a.b.c"})({"a.b": {"c": 5}}) == {"x": 5}
    assert Projection({"x": "a.b.c"})({"a.b": 0, "a": {"b": {"c": 6}}}) == {"x": 6}


def test_a_tuple_names_each_key():
    """In a tuple each item is one key, dots and all."""
    event = {"a": {"b.c": 1, "b": {"c": 2}}, "a.b": 3, "n": {1: "one"}}
    assert Projection({"x": ("a", "b.c"), "y": ("a", "b", "c"), "z": ("n", 1), "no": ("a.b", "c")})(event) == {
        "x": 1,
        "y": 2,
        "z": "one",
    }
    assert Projection([("a", "b.c"), ("n", 1)])(event) == {"a": {"b.c": 1}, "n": {1: "one"}}


def test_values_may_be_made():
    """A callable gets the event."""
    projection = Projection({"size": lambda event: len(event["event"]), "tags": lambda event: ",".join(event["tags"])})
    assert projection(EVENT) == {"size": 12, "tags": "a,b"}


@pytest.mark.parametrize("value", [2, 2.5, None, True, b"raw", ["a"], {"a": 1}])
def test_what_is_no_text_is_a_constant(value):
    """Values that cannot be paths stand for themselves, and so does any value in a Constant."""
    assert Projection({"x": value, "msg": "event"})(EVENT) == {"x": value, "msg": "order placed"}
    assert Projection({"x": Constant(value)})({}) == {"x": value}


def test_a_constant_text_is_marked():
    """A text is a path unless it is in a Constant, which tells its value to nobody."""
    constant = Constant("event")
    assert Projection({"x": constant})(EVENT) == {"x": "event"}
    assert constant.value == "event"
    projection = Projection({"key": Constant("hunter2-secret"), "msg": "event"})
    assert "hunter2" not in repr(projection) + repr(Constant("hunter2-secret"))
    assert repr(projection) == "Projection to key, msg"
    assert repr(Projection(["event", ("a", 1)])) == "Projection(['event', ('a', 1)])"


# -- what goes wrong


def test_a_callable_that_raises_costs_its_field_alone():
    """The other fields are kept, and the one that could not be made says which exception it was, not what it said."""

    def fail(event):
        raise KeyError(event["event"])

    assert Projection({"msg": "event", "bad": fail, "level": "level"})(EVENT) == {
        "msg": "order placed",
        "bad": "<unrenderable value: KeyError>",
        "level": "info",
    }


def test_a_callable_can_drop_the_event():
    """DropEvent from a callable filters the event, in a sink too."""

    def drop(_event):
        raise DropEvent

    projection = Projection({"x": drop})
    with pytest.raises(DropEvent):
        projection(EVENT)
    with CaptureSink(processors=[projection]) as sink:
        sink.handle(EVENT)
        assert (sink.stats().filtered, sink.events) == (1, [])


def test_interrupts_pass_through():
    """A KeyboardInterrupt in a callable is nobody's value."""

    def interrupt(_event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Projection({"x": interrupt})(EVENT)


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ("event", TypeError, "fields: a sequence of paths or a mapping"),
        (b"event", TypeError, "fields: a sequence of paths or a mapping"),
        (42, TypeError, "not int"),
        ([], ValueError, "fields=[]"),
        ({}, ValueError, "fields={}"),
        (["event", 7], TypeError, "7"),
        ([""], ValueError, "''"),
        ({"x": ""}, ValueError, "''"),
        ({"x": ()}, ValueError, "()"),
        ({7: "event"}, TypeError, "7"),
        ({"_record": "event"}, ValueError, "'_record'"),
    ],
)
def test_misuse_is_told_at_once(fields, error, words):
    """Fields that cannot be meant raise at construction and say what it was."""
    with pytest.raises(error) as caught:
        Projection(fields)
    assert words in str(caught.value)


def test_a_call_with_other_arguments_is_refused():
    """It is called with an event, or as structlog calls a processor."""
    with pytest.raises(TypeError, match="2 arguments"):
        Projection(["event"])(None, "info")


# -- metadata, exceptions, levels


def test_metadata_is_never_there():
    """No path leads to a metadata key, and a callable does not see one."""
    event = {"event": "hello", "_record": {"secret": 1}, "_logger": "l", "_name": "n", "_from_structlog": True}
    assert Projection(["event", "_record", "_name", "_record.secret", ("_record", "secret")])(event) == {
        "event": "hello"
    }
    assert Projection({"a": "_logger", "b": ("_record", "secret"), "c": sorted})(event) == {"c": ["event"]}
    assert "_record" in event


def test_an_exception_that_nobody_rendered_is_there():
    """The path "exception" finds what the renderer would make of exc_info; a rendered one wins."""
    try:
        raise ValueError("broken")
    except ValueError as error:
        event = {"event": "failed", "exc_info": error}
    for made in (Projection(["exception"])(event), Projection({"exception": "exception"})(event)):
        assert made["exception"].startswith("Traceback")
        assert made["exception"].endswith("ValueError: broken")
    assert Projection({"e": "exception"})({"exception": "as it is", "exc_info": True}) == {"e": "as it is"}
    assert Projection(["exception"])({"exc_info": None}) == {}
    assert Projection(["exception"])({"exc_info": "a text of somebody's own"}) == {}


def test_a_level_that_is_left_out_still_counts():
    """What compares levels after a projection does not take an error for INFO; nothing is written for that."""
    made = Projection({"msg": "event"})(None, "error", {"event": "hello", "level": "error"})
    assert level_of(made) == 40
    assert made == {"msg": "hello"}
    kept = Projection({"msg": "event", "level": Constant("debug")})(None, "error", {"event": "hello", "level": "error"})
    assert level_of(kept) == 10
    with CaptureSink(processors=[Projection({"msg": "event"})]) as sink:
        assert sink.encode(sink._processed({"event": "hello", "level": "error"})).level == 40


# -- in use


def test_the_event_is_not_changed():
    """The dict that is projected, and what is nested in it, stays as it was."""
    event = copy.deepcopy(EVENT)
    Projection(["event", "user.id", "user.address.city", "tags"])(event)
    Projection({"msg": "event", "user": "user", "city": "user.address.city", "n": len})(event)
    assert event == EVENT


def test_it_is_a_processor_of_any_sink(tmp_path):
    """Among a sink's processors it decides what that sink writes."""
    path = tmp_path / "events.jsonl"
    with FileSink(path, processors=[Projection({"msg": "event", "user": "user.id"})]) as sink:
        sink.handle(EVENT)
    assert json.loads(path.read_text()) == {"msg": "order placed", "user": 7}


@pytest.mark.usefixtures("own_logging")
def test_it_is_a_processor_of_a_chain():
    """In a structlog chain it decides what comes after it."""
    factory = structlog.testing.CapturingLoggerFactory()
    structlog.configure(
        processors=[Projection({"msg": "event", "service": Constant("shop")}), structlog.processors.JSONRenderer()],
        logger_factory=factory,
    )
    structlog.get_logger().info("hello", order=1)
    [call] = factory.logger.calls
    assert json.loads(call.args[0]) == {"msg": "hello", "service": "shop"}


def test_rendered_text_is_projected_too():
    """Text that somebody else rendered is an event with that message."""
    with CaptureSink(processors=[Projection({"msg": "event"})]) as sink:
        sink.handle("some text")
        assert sink.events == [{"msg": "some text"}]
