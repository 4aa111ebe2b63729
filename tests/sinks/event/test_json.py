"""Any event as one line of JSON."""

from __future__ import annotations

import builtins
import collections
import dataclasses
import datetime as dt
import decimal
import enum
import functools
import itertools
import json
import pickle
import subprocess
import sys
import threading
import types
import typing
import uuid

import attrs
import numpy as np
import orjson
import pydantic
import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outfall.sinks.event.event import METADATA, LevelledEvent
from outfall.sinks.event.json import OPTIONS, OrjsonRenderer, plain_line

RENDERERS = {
    "default": OrjsonRenderer(),
    "sorted": OrjsonRenderer(sort_keys=True),
    "ordered": OrjsonRenderer(key_order=("event", "level", "timestamp")),
    "snapshot": OrjsonRenderer(snapshot=True),
    "dict": OrjsonRenderer(tracebacks="dict"),
}


@pytest.fixture(params=RENDERERS.values(), ids=RENDERERS)
def renderer(request):
    """Each way of configuring it."""
    return request.param


def read(line):
    """Return what a reader gets of *line*, which must be one line of UTF-8."""
    assert type(line) is bytes
    assert b"\n" not in line
    assert b"\r" not in line
    return json.loads(line.decode("utf-8"))


def caught(function, *args):
    """Return the exception that *function* raises."""
    try:
        function(*args)
    except BaseException as error:
        return error
    raise AssertionError


def limits_tuples():
    """Tell whether orjson refuses tuples nested too deep: 3.12.0 and 3.13.0 go on until they crash the process."""
    value = 1
    for _ in range(300):
        value = (value,)
    try:
        orjson.dumps(value)
    except TypeError:
        return True
    return False


LIMITS_TUPLES = limits_tuples()


def needs_a_limit(renderer):
    """Skip a test that would crash the process with the orjson at hand."""
    if renderer is not RENDERERS["snapshot"] and not LIMITS_TUPLES:
        pytest.skip("this orjson has no limit for tuples and crashes: see the documentation of snapshot")


class Raising:
    """Raises, once armed, at whatever is asked of it; before, it can be put into dicts."""

    armed = False

    def _raise(self, *args):
        raise ZeroDivisionError

    @property
    def __class__(self):
        if Raising.armed:
            raise ZeroDivisionError
        return Raising

    def __hash__(self):
        if Raising.armed:
            raise ZeroDivisionError
        return id(Raising)

    def __eq__(self, other):
        if Raising.armed:
            raise ZeroDivisionError
        return self is other

    def __repr__(self):
        if Raising.armed:
            raise ZeroDivisionError
        return "Raising()"

    __bool__ = __len__ = __iter__ = __str__ = __structlog__ = _raise


@pytest.fixture
def armed(monkeypatch):
    """Give a function from which on keys raise when they are hashed or compared."""
    return lambda: monkeypatch.setattr(Raising, "armed", True)


class Twin(str):
    """A text that is equal to nothing, so that a dict takes it beside its equal."""

    __slots__ = ()

    def __eq__(self, other):
        return self is other

    __hash__ = str.__hash__


class Colour(enum.Enum):
    """An ordinary enum."""

    RED = "red"


# -- options


def test_by_default_a_line_is_what_orjson_makes():
    """The usual event is rendered by orjson alone, without a final newline; options are or-ed in."""
    event = {"event": "é", "n": [1, 2.5, None, True, {"a": []}]}
    assert OrjsonRenderer().render(event) == orjson.dumps(event)
    assert OrjsonRenderer()(None, "info", event) == orjson.dumps(event)
    assert OrjsonRenderer().render(event, orjson.OPT_APPEND_NEWLINE) == orjson.dumps(event) + b"\n"
    assert OrjsonRenderer().render({**event, "s": {1}}, orjson.OPT_APPEND_NEWLINE).endswith(b"}\n")


def test_the_usual_event_costs_one_call_of_orjson(monkeypatch):
    """Nothing else is called on the fast path."""
    calls = []
    monkeypatch.setattr("outfall.sinks.event.json.dumps", lambda *args: calls.append(args) or b"{}")
    monkeypatch.setattr(OrjsonRenderer, "_prepared", None)
    monkeypatch.setattr(OrjsonRenderer, "_render_slowly", None)
    event = {"event": "x"}
    assert OrjsonRenderer().render(event) == b"{}"
    ((given_event, default, option),) = calls
    assert given_event is event
    assert (default, option) == (None, OPTIONS)


@pytest.mark.parametrize(
    ("arguments", "plain"),
    [
        ({}, True),
        ({"sort_keys": True}, False),
        ({"key_order": ["a"]}, False),
        ({"snapshot": True}, False),
        ({"tracebacks": "dict"}, True),
    ],
)
def test_it_says_whether_hot_paths_may_do_its_work(arguments, plain):
    """Only where one call of orjson is the same may it be inlined, and never for a subclass."""
    assert OrjsonRenderer(**arguments).is_plain is plain
    assert not type("Sub", (OrjsonRenderer,), {})(**arguments).is_plain


def test_dates_and_dataclasses_are_kept_from_orjson():
    """Both run Python code within orjson, or have fields that are not to be shown."""
    assert OPTIONS == orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS


@pytest.mark.parametrize("extra", [{}, {"s": frozenset([1])}])
def test_keys_are_sorted_on_request(extra):
    """Nested ones too, on the fast and on the slow way."""
    line = OrjsonRenderer(sort_keys=True).render({"c": {"z": 1, "y": 2}, "a": 1, **extra})
    assert line.startswith(b'{"a":1,"c":{"y":2,"z":1}')


@pytest.mark.parametrize("extra", [{}, {"s": {1}}, {"_record": 1}])
def test_keys_come_in_the_order_asked_for(extra):
    """Those named first, the others as they were; those that are missing are no harm, nor is one named twice."""
    renderer = OrjsonRenderer(key_order=(key for key in ("event", "level", "event", "timestamp")))
    for _ in range(2):
        assert list(read(renderer.render({"b": 1, "timestamp": 2, "a": 3, "event": 4, **extra}))) == [
            "event",
            "timestamp",
            "b",
            "a",
            *(key for key in extra if key == "s"),
        ]


def test_keys_come_in_the_order_asked_for_beside_hostile_ones(armed):
    """A key that cannot be compared keeps its place, and the others theirs."""
    event = {Raising(): 1, "a": 2, "event": 3}
    armed()
    assert list(read(OrjsonRenderer(key_order=("event",)).render(event)).values()) == [3, 1, 2]


def test_the_order_neither_shows_metadata_nor_an_exception_unrendered():
    """Naming a key does not bring it in, and a rendered exception can be named."""
    event = {"a": 1, "_record": 2, "exc_info": ValueError("bad")}
    line = OrjsonRenderer(key_order=("_record", "exc_info", "exception")).render(event)
    assert list(read(line)) == ["exception", "a", "exception_type", "exception_message"]


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"tracebacks": "html"}, ValueError, "tracebacks='html'"),
        ({"tracebacks": None}, ValueError, "tracebacks=None"),
        ({"key_order": "event"}, TypeError, "key_order='event'"),
        ({"key_order": ["a", 1]}, TypeError, "key_order="),
        ({"key_order": b"ab"}, TypeError, "key_order="),
        ({"key_order": 5}, TypeError, "key_order=5"),
        ({"key_order": None}, TypeError, "key_order=None"),
        ({"key_order": ["a"], "sort_keys": True}, ValueError, r"key_order=\['a'\] .*sort_keys"),
    ],
)
def test_a_wrong_option_is_refused_by_name_and_value(arguments, error, match):
    """Misconfiguration raises at construction."""
    with pytest.raises(error, match=match):
        OrjsonRenderer(**arguments)


def test_its_repr_shows_how_it_was_made():
    """What is printed can be evaluated."""
    renderer = OrjsonRenderer(key_order=["event"], snapshot=True, tracebacks="dict")
    assert repr(renderer) == "OrjsonRenderer(tracebacks='dict', sort_keys=False, key_order=('event',), snapshot=True)"
    assert repr(eval(repr(renderer))) == repr(renderer)


def test_it_holds_no_state_and_can_be_pickled():
    """A child process can be given one."""
    assert not hasattr(OrjsonRenderer(), "__dict__")
    renderer = pickle.loads(pickle.dumps(OrjsonRenderer(key_order=["b"])))
    assert renderer.render({"a": 1, "b": 2}) == b'{"b":2,"a":1}'


def test_it_is_a_structlog_processor():
    """BytesLogger writes what it makes."""
    output = []
    logger = structlog.wrap_logger(
        types.SimpleNamespace(info=output.append),
        processors=[structlog.processors.add_log_level, OrjsonRenderer()],
        wrapper_class=structlog.BoundLogger,
    )
    logger.info("x", s={1})
    assert json.loads(output[0]) == {"event": "x", "s": [1], "level": "info"}


# -- metadata


@pytest.mark.parametrize("make", [lambda: None, bool, int, str, object, Raising, set])
@pytest.mark.parametrize("key", sorted(METADATA))
def test_metadata_is_never_written(renderer, key, make):
    """Not even where its value is false, hostile, or all there is."""
    assert read(renderer.render({"event": "x", key: make(), "s": {1}})) == {"event": "x", "s": [1]}
    assert read(renderer.render({"event": "x", key: make()})) == {"event": "x"}
    assert read(renderer.render({key: make()})) == {}


@pytest.mark.parametrize("key", sorted(METADATA))
def test_metadata_is_not_written_under_a_text_of_another_type(renderer, key):
    """A member of a str enum, or a text with its own idea of equality, is the same key."""
    member = enum.Enum("K", {"A": key}, type=str).A
    assert read(renderer.render({member: 1, "a": 2})) == {"a": 2}
    assert read(renderer.render({Twin(key): 1, key: 2, "a": 3})) == {"a": 3}
    assert read(renderer.render(LevelledEvent({key: 1, "a": 2}, 20))) == {"a": 2}


def test_metadata_is_not_written_beside_hostile_keys(renderer, armed):
    """The way for keys that raise leaves it out as well."""
    event = {Raising(): 1, **dict.fromkeys(METADATA, 2), "a": 3}
    armed()
    shown = read(renderer.render(event))
    assert sorted(shown.values()) == [1, 3]
    assert not METADATA & shown.keys()


def test_a_nested_key_of_that_name_is_a_field_like_any_other(renderer):
    """Only the event itself has metadata."""
    assert read(renderer.render({"d": {"_name": 1}})) == {"d": {"_name": 1}}


# -- exceptions


class Triple(typing.NamedTuple):
    """A tuple of another type."""

    kind: object
    error: object
    traceback: object


def boom(message="bad"):
    """Raise."""
    raise ValueError(message)


def triple(error):
    """Return *error* as sys.exc_info() gives it."""
    return (type(error), error, error.__traceback__)


@pytest.mark.parametrize("form", [lambda e: e, triple, lambda e: Triple(*triple(e))])
def test_an_exception_becomes_text(renderer, form):
    """An exception or a tuple of three is rendered as the interpreter does."""
    shown = read(renderer.render({"event": "x", "exc_info": form(caught(boom))}))
    assert next(iter(shown)) == "event"
    if renderer is RENDERERS["dict"]:
        assert (shown["exception"][0]["exc_type"], shown["exception"][0]["exc_value"]) == ("ValueError", "bad")
    else:
        assert shown["exception"].startswith("Traceback (most recent call last):\n")
        assert shown["exception"].endswith("\nValueError: bad")
        assert "in boom" in shown["exception"]


@pytest.mark.parametrize("exc_info", [True, 1])
@pytest.mark.parametrize("extra", [{}, {"s": {1}}, {"big": 2**70}])
def test_true_stands_for_the_exception_being_handled(renderer, exc_info, extra):
    """The application's own, also where orjson refuses the event and raises one itself."""
    try:
        boom("mine")
    except ValueError:
        shown = read(renderer.render({"exc_info": exc_info, **extra}))
    assert "mine" in json.dumps(shown["exception"])
    assert "JSON" not in json.dumps(shown["exception"])


def test_true_stands_for_the_applications_exception_beside_hostile_keys(renderer, armed):
    """Errors met while rendering are not taken for it."""
    event = {Raising(): 1, "exc_info": True}
    armed()
    try:
        boom("mine")
    except ValueError:
        shown = read(renderer.render(event))
    assert "mine" in json.dumps(shown["exception"])
    assert "ZeroDivisionError" not in json.dumps(shown["exception"])


@pytest.mark.parametrize("exc_info", [True, 1, False, 0, None, (None, None, None)])
@pytest.mark.parametrize("extra", [{}, {"s": {1}}, {"_name": 1}])
def test_without_an_exception_there_is_no_field(renderer, exc_info, extra):
    """Neither ``exception`` nor ``exc_info`` is written where nothing was raised."""
    shown = read(renderer.render({"event": "x", "exc_info": exc_info, **extra}))
    assert shown.keys() - {"s"} == {"event"}


@pytest.mark.parametrize(
    ("exc_info", "shown"),
    [
        ("text", "text"),
        ("", ""),
        (2.5, 2.5),
        ([], []),
        ({"a": 1}, {"a": 1}),
        ((), []),
        ((1, 2), [1, 2]),
        ((1, 2, 3), [1, 2, 3]),
        ((ValueError, None, None), ["<class 'ValueError'>", None, None]),
        ((1, 2, 3, 4), [1, 2, 3, 4]),
        (ValueError, "<class 'ValueError'>"),
    ],
)
def test_an_exc_info_with_no_exception_in_it_is_a_field_like_any_other(renderer, exc_info, shown):
    """What somebody wrote there is kept under its own name."""
    assert read(renderer.render({"exc_info": exc_info, "after": 1})) == {"exc_info": shown, "after": 1}


def test_a_hostile_exc_info_costs_no_other_field(renderer, armed):
    """A value that raises when it is looked at is marked."""
    armed()

    class HostileTuple(tuple):
        __slots__ = ()
        __iter__ = __len__ = __getitem__ = __eq__ = Raising._raise
        __hash__ = None

    marked = read(renderer.render({"exc_info": Raising(), "after": 1}))
    assert marked == {"exc_info": "<unrenderable Raising: ZeroDivisionError>", "after": 1}
    assert read(renderer.render({"exc_info": HostileTuple((1, 2, 3)), "after": 1})) == {
        "exc_info": [1, 2, 3],
        "after": 1,
    }
    shown = read(renderer.render({"exc_info": HostileTuple(triple(caught(boom))), "after": 1}))
    assert shown.keys() - {"exception_type", "exception_message"} == {"exception", "after"}


def test_a_rendered_exception_is_not_written_over(renderer):
    """Where both are there, both are kept."""
    shown = read(renderer.render({"exception": "mine", "exc_info": ValueError("bad"), "s": {1}}))
    assert shown["exception"] == "mine"
    assert "bad" in json.dumps(shown["exc_info"])


class UnprintableError(Exception):
    """An exception whose texts raise."""

    def __str__(self):
        raise ZeroDivisionError

    __repr__ = __str__


class UnrenderableError(Exception):
    """An exception whose traceback raises."""

    __cause__ = property(Raising._raise)
    __traceback__ = property(Raising._raise)


def cyclic():
    """Return an exception that is its cause's cause."""
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    return first


def chained(length):
    """Return an exception with a long chain of causes."""
    error = ValueError("bottom")
    for _ in range(length):
        above = ValueError("above")
        above.__cause__ = error
        error = above
    return error


@pytest.mark.parametrize(
    "make",
    [
        UnprintableError,
        UnrenderableError,
        cyclic,
        lambda: chained(3_000),
        lambda: ValueError("\ud800\n"),
        lambda: ValueError(Raising()),
        lambda: SyntaxError("bad", ("f.py", 1, 1, "x\n", 1, 2)),
        lambda: KeyboardInterrupt("mine"),
        lambda: caught([].pop),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_no_exception_makes_it_fail(renderer, make, nested):
    """Texts that raise, cycles and long chains cost at most the exception itself."""
    error = make()
    shown = read(renderer.render({"event": "x", "exc_info": error, "s": {1}, **({"e": [error]} if nested else {})}))
    assert (shown["event"], shown["s"]) == ("x", [1])
    assert type(error).__name__ in json.dumps(shown["exception"])


def test_causes_are_shown(renderer):
    """A chain is rendered with all its links."""
    try:
        try:
            boom("inner")
        except ValueError as error:
            raise KeyError("outer") from error
    except KeyError as error:
        text = json.dumps(read(renderer.render({"exc_info": error})))
    assert "inner" in text
    assert "outer" in text


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups came with Python 3.11")
def test_groups_and_notes_are_shown():
    """What a group holds, and what was noted, is in the text."""
    error = caught(boom, "in a group")
    error.add_note("a note")
    group = builtins.ExceptionGroup("several", [error, UnprintableError()])
    text = read(OrjsonRenderer().render({"exc_info": group}))["exception"]
    for part in ("several", "in a group", "a note", "UnprintableError"):
        assert part in text


def test_dict_tracebacks_have_no_locals():
    """A frame's variables are not anyone's log."""
    secret = "s3cret"
    line = OrjsonRenderer(tracebacks="dict").render({"exc_info": caught(lambda text: boom(len(text)), secret)})
    frames = read(line)["exception"][0]["frames"]
    assert [frame["name"] for frame in frames][-1] == "boom"
    assert not any(frame.get("locals") for frame in frames)
    assert secret.encode() not in line


def test_a_callable_makes_the_traceback():
    """It gets the tuple of three, and whatever it returns is rendered."""
    seen = []
    renderer = OrjsonRenderer(tracebacks=lambda exc_info: seen.append(exc_info) or {"kind": exc_info[0]})
    error = caught(boom)
    assert read(renderer.render({"exc_info": error})) == {"exception": {"kind": "<class 'ValueError'>"}}
    assert seen[0] == triple(error)
    assert type(seen[0]) is tuple


def test_a_callable_may_say_that_there_is_nothing_to_show():
    """None from it leaves the field out."""
    assert read(OrjsonRenderer(tracebacks=lambda _: None).render({"a": 1, "exc_info": ValueError()})) == {"a": 1}


@pytest.mark.parametrize("raises", [ZeroDivisionError, GeneratorExit])
def test_a_callable_that_raises_is_told_of_in_the_field(raises):
    """The exception's type is kept, and so is all else."""

    def fail(_):
        raise raises

    shown = read(OrjsonRenderer(tracebacks=fail).render({"a": 1, "exc_info": ValueError("bad")}))
    assert shown == {
        "a": 1,
        "exception_type": "ValueError",
        "exception_message": "bad",
        "exception": f"<unrenderable traceback of ValueError: {raises.__name__}>",
    }


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_interrupts_pass_through(interrupt, armed):
    """Ctrl-C while rendering is still Ctrl-C, wherever it comes."""

    class Interrupting:
        def __structlog__(self):
            raise interrupt

    class InterruptingMapping(collections.abc.Mapping):
        __len__ = __getitem__ = None

        def __iter__(self):
            raise interrupt

    def interrupting(_):
        raise interrupt

    class Key:
        live = False

        def __hash__(self):
            return hash("exc_info")

        def __eq__(self, other):
            if self.live:
                raise interrupt
            return False

    keyed = {Key(): 1}
    Key.live = True
    for event, renderer in (
        ({"v": Interrupting()}, OrjsonRenderer()),
        ({"v": Interrupting()}, OrjsonRenderer(snapshot=True)),
        ({"exc_info": ValueError()}, OrjsonRenderer(tracebacks=interrupting)),
        (InterruptingMapping(), OrjsonRenderer()),
        (keyed, OrjsonRenderer()),
    ):
        with pytest.raises(interrupt):
            renderer.render(event)


# -- any dict


def test_fields_that_orjson_refuses_cost_no_other(renderer):
    """One object makes the whole event take the slow way, and nothing is lost on it."""
    event = {"event": "x", "level": "info", 1: "one", "1": "text", None: 0, "big": 2**70, "s": {1}, "\ud800": "\udfff"}
    assert read(renderer.render(event)) == {
        "event": "x",
        "level": "info",
        "1": "one",
        "1#2": "text",
        "null": 0,
        "big": 2**70,
        "s": [1],
        "\\ud800": "\\udfff",
    }


def test_nan_and_the_infinities_are_null_on_either_way(renderer):
    """JSON has no words for them."""
    for extra in ({}, {"s": {1}}):
        shown = read(renderer.render({"a": float("nan"), "b": [float("inf")], "c": {"d": float("-inf")}, **extra}))
        assert (shown["a"], shown["b"], shown["c"]) == (None, [None], {"d": None})


def test_line_breaks_in_keys_and_values_do_not_break_the_line(renderer):
    """Whoever can put text into an event cannot forge a line."""
    text = "a\nb\rc\r\n\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\x00"
    for extra in ({}, {"s": {1}}):
        assert read(renderer.render({text: text, **extra}))[text] == text


def test_an_event_that_holds_itself_is_marked_where_it_closes(renderer):
    """The event's own cycle is found at once, without its metadata coming in by it."""
    event = {"a": 1, "_record": 2, "exc_info": None}
    event["me"] = event
    event["l"] = [event]
    assert read(renderer.render(event)) == {"a": 1, "me": "<cycle: dict>", "l": ["<cycle: dict>"]}


@pytest.mark.parametrize("nest", [lambda v: [v], lambda v: {"k": v}, lambda v: [({"k": v},)], lambda v: (v,)])
def test_ten_thousand_levels_cost_what_is_below_the_limit_alone(renderer, nest):
    """A nest too deep is cut, and all other fields are there."""
    value = "bottom"
    if "(" in repr(nest(1)):
        needs_a_limit(renderer)
    for _ in range(10_000):
        value = nest(value)
    line = renderer.render({"a": 1, "deep": value, "z": 2})
    assert b"<nested too deep: " in line
    shown = read(line)
    assert (shown["a"], shown["z"]) == (1, 2)


def test_a_cycle_by_way_of_a_tuple_is_marked(renderer):
    """Whatever the cycle is made of, it ends."""
    needs_a_limit(renderer)
    value = []
    value.append((value,))
    assert read(renderer.render({"v": value, "after": 1})) == {"v": [["<cycle: list>"]], "after": 1}
    event = {"a": 1}
    event["me"] = (event,)
    assert read(renderer.render(event)) == {"a": 1, "me": ["<cycle: dict>"]}


@pytest.mark.parametrize("depth", [100, 190, 199, 201, 250, 254, 255, 256, 300])
def test_a_nest_near_the_limits_is_valid(renderer, depth):
    """Both limits, orjson's and ours, may be met exactly."""
    value = 1
    for _ in range(depth):
        value = [value]
    read(renderer.render({"deep": value}))
    read(renderer.render({"deep": value, "s": {1}}))


def at_depth(function, frames):
    """Call *function* below *frames* more frames."""
    return function() if frames == 0 else at_depth(function, frames - 1)


def test_a_stack_nearly_used_up_costs_what_there_is_no_room_for(renderer):
    """Wherever `render` can be called at all it returns a line, with the plain fields in it if it can be."""
    events = [
        {"event": "x", "s": {1}, "deep": [[[[(({"a": {2}},),)]]]]},
        {"event": "x", "s": {1}, "exc_info": caught(boom), "_record": 1},
        {"event": "x", Twin("k"): object(), "exc_info": None},
    ]
    limit = sys.getrecursionlimit()
    depth = len(list(itertools.takewhile(bool, iter_frames())))
    sys.setrecursionlimit(depth + 150)
    kept = lost = called = 0
    try:
        for event, room in itertools.product(events, range(150)):

            def attempt(event=event):
                nonlocal called
                render = renderer.render
                called += 1
                return render(event)

            before = called
            try:
                line = at_depth(attempt, room)
            except RecursionError:
                # Only if not even the call of render could be made.
                lost += called != before
                continue
            shown = json.loads(line)
            assert not METADATA & shown.keys()
            kept += shown["event"] == "x"
    finally:
        sys.setrecursionlimit(limit)
    assert kept > 250
    # For each event there is once room for `attempt` and for nothing it calls; Python 3.10 counts calls of C as well,
    # and a tracer's own calls need room too.
    assert lost <= len(events) * ((1 if sys.version_info >= (3, 11) else 2) + (0 if sys.gettrace() is None else 3))


def iter_frames():
    """Yield the frames of this thread, the innermost first."""
    frame = sys._getframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


def test_another_mapping_is_rendered_as_a_dict(renderer):
    """Any mapping will do, with whatever it can give."""

    class Partly(collections.abc.Mapping):
        def __iter__(self):
            return iter(("a", "b"))

        def __getitem__(self, key):
            return {"a": 1}[key]

        def __len__(self):
            raise ZeroDivisionError

    assert read(renderer.render(types.MappingProxyType({"a": 1, "_name": 2, "exc_info": None}))) == {"a": 1}
    assert read(renderer.render(Partly())) == {"a": 1, "b": "<unrenderable value: KeyError>"}
    assert read(renderer.render(collections.OrderedDict(a=1, s={1}))) == {"a": 1, "s": [1]}


@pytest.mark.parametrize(("value", "shown"), [("text", "text"), ([1], [1]), (None, None), (5, 5)])
def test_what_is_no_mapping_is_the_message(renderer, value, shown):
    """A chain that ends otherwise than in a dict still gives a line."""
    assert read(renderer.render(value)) == {"event": shown}


def test_a_mapping_that_cannot_be_read_gives_a_line_that_says_so(renderer):
    """There is a line for each event, if nothing else."""

    class Unreadable(collections.abc.Mapping):
        __iter__ = __len__ = __getitem__ = Raising._raise

    assert read(renderer.render(Unreadable())) == {"event": "<unrenderable event>", "unrenderable": "ZeroDivisionError"}


def test_a_fragment_on_the_fast_way_is_trusted_and_with_snapshot_is_not():
    """Ready JSON goes as it is; with snapshot=True it stays on the line, and what is no JSON is text."""
    event = {"f": orjson.Fragment(b'{"a":1}')}
    assert OrjsonRenderer().render(event) == OrjsonRenderer(snapshot=True).render(event) == b'{"f":{"a":1}}'
    careful = OrjsonRenderer(snapshot=True)
    assert read(careful.render({"f": orjson.Fragment(b'{\n"a":1}')})) == {"f": {"a": 1}}
    assert read(careful.render({"f": orjson.Fragment(b'"}\n{"forged":1')})) == {"f": '"}\n{"forged":1'}
    # On the slow way it is looked at in any case.
    assert read(OrjsonRenderer().render({"f": orjson.Fragment(b"}\n{"), "s": {1}})) == {"f": "}\n{", "s": [1]}


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), PLAIN, max_size=4))
@settings(max_examples=100)
def test_both_ways_render_plain_values_alike(event):
    """What orjson takes comes out the same on the slow way, byte for byte."""
    event.pop("exc_info", None)
    assert OrjsonRenderer(snapshot=True).render(event) == OrjsonRenderer().render(event)


@dataclasses.dataclass
class Point:
    """A dataclass, perhaps made half."""

    x: object
    y: object = 2


@attrs.define
class Attrs:
    """An attrs class, perhaps made half."""

    x: object


class Model(pydantic.BaseModel):
    """A pydantic model, perhaps made half."""

    x: object


class RaisingMember(enum.Enum):
    """Its value is Python code that raises."""

    A = 1

    @property
    def value(self):
        raise ZeroDivisionError


class Structlogged:
    """An object that says what to log of it."""

    def __init__(self, shown):
        self.shown = shown

    def __structlog__(self):
        return self.shown


class RaisingZone(dt.tzinfo):
    """A time zone that raises."""

    utcoffset = dst = tzname = Raising._raise


class Endless:
    """A generator that must not be asked for anything."""

    def __iter__(self):
        return self

    def __next__(self):
        raise AssertionError


def half(kind):
    """Return an object of *kind* whose __init__ never ran."""
    return object.__new__(kind) if issubclass(kind, enum.Enum) else kind.__new__(kind)


# Drawn from hypothesis, but not built by its strategies, which compare, hash and show what they make.
SCALARS = [
    lambda draw: draw.choice([None, True, False, 0, -1, 2**63, 2**64, -(2**63) - 1, 10**5_000]),
    lambda draw: draw.choice([0.0, -1.5, 1e300, float("nan"), float("inf"), 1j]),
    lambda draw: draw.choice(
        ["", "x", "é", "\n\r", "\u2028\x85\x0b", "\ud800", "\ud83d\ude00", "\x00", '"\\', Twin("t")]
    ),
    lambda draw: draw.choice([b"", b"\xff", bytearray(b"\n"), memoryview(b"ab"), np.bytes_(b"x")]),
    lambda draw: draw.choice([decimal.Decimal("sNaN"), decimal.Decimal(10) ** 99, uuid.UUID(int=5), range(10**9)]),
    lambda draw: draw.choice([dt.datetime.min, dt.date.max, dt.time.max, dt.timedelta.min, dt.timezone.utc]),  # noqa: DTZ901 - the extremes
    lambda draw: dt.datetime(2020, 1, 1, tzinfo=RaisingZone()),
    lambda draw: draw.choice([Colour.RED, Colour, int, len, ..., NotImplemented, list[int], json]),
    lambda draw: draw.choice([np.int8(1), np.float64("nan"), np.array([1, {2}], dtype=object), np.void(b"x")]),
    lambda draw: draw.choice([ValueError, UnprintableError, UnrenderableError, KeyboardInterrupt])(),
    lambda draw: Raising(),
    lambda draw: Endless(),
    lambda draw: (number for number in Endless()),
    lambda draw: half(draw.choice([Point, Attrs, Model, ValueError, Structlogged])),
    lambda draw: orjson.Fragment(b'{"a": [1e5]}'),
    lambda draw: threading.Lock(),
]

#: What crashes bare orjson, or is written by it unread: outside of the promise but with snapshot=True.
UNTRUSTED = [
    lambda draw: RaisingMember.A,
    lambda draw: half(draw.choice([uuid.UUID, Colour, RaisingMember])),
    lambda draw: orjson.Fragment(draw.choice([b"\xff\n}", b'{\n"a"\r\n:1}', b"", b"1,2"])),
    lambda draw: looped_by_tuples([1]),
    lambda draw: nested(1, 10_000, lambda value: (value,)),
]


class Pair(tuple):
    """A tuple that orjson refuses."""

    __slots__ = ()


def key(draw):
    """Return a key of any kind; many are the same text."""
    texts = ["event", "level", "exc_info", "exception", *sorted(METADATA), "1", "null", "a#2", "a", "\ud800", "é", "\n"]
    others = [
        None,
        1,
        1.0,
        True,
        2**70,
        float("nan"),
        b"1",
        (1,),
        Twin("a"),
        Twin("_record"),
        Colour.RED,
        int,
        frozenset(),
    ]
    return draw.choice([draw.choice(texts), draw.choice(texts), draw.choice(others), Raising()])


def fields(draw, leaves, depth):
    """Return the items of a dict."""
    return {key(draw): value(draw, leaves, depth) for _ in range(draw.randint(0, 4))}


def value(draw, leaves, depth):
    """Return a value of any kind."""
    if depth == 0 or draw.randint(0, 2) == 0:
        return draw.choice(leaves)(draw)
    inner = value(draw, leaves, depth - 1)
    items = [inner, *(value(draw, leaves, depth - 1) for _ in range(draw.randint(0, 2)))]
    make = draw.choice(
        [
            lambda: items,
            lambda: tuple(items) if LIMITS_TUPLES or leaves is not SCALARS else Pair(items),
            lambda: collections.deque(items),
            lambda: {Raising(), 1, "x"},
            lambda: frozenset([Raising()]),
            lambda: fields(draw, leaves, depth - 1),
            lambda: types.MappingProxyType(fields(draw, leaves, depth - 1)),
            lambda: collections.OrderedDict(fields(draw, leaves, depth - 1)),
            lambda: Point(inner, items),
            lambda: Attrs(inner),
            lambda: Model.model_construct(x=inner),
            lambda: Structlogged(inner),
            lambda: ValueError(inner),
            lambda: np.array([inner, None], dtype=object) if np.ndim(0) == 0 and type(inner) in (int, str) else [inner],
            lambda: looped(items),
            lambda: looped(fields(draw, leaves, depth - 1)),
            lambda: nested(inner, draw.choice([1, 150, 300]), lambda inner: [inner]),
            lambda: nested(inner, 10_000 if draw.randint(0, 9) == 9 else 60, lambda inner: {"k": inner}),
        ]
    )
    return make()


def looped(container):
    """Return *container* holding itself."""
    if isinstance(container, list):
        container.append(container)
    else:
        container["self"] = container
    return container


def looped_by_tuples(container):
    """Return *container* holding itself by way of a tuple."""
    container.append((container,))
    return container


def nested(value, depth, nest):
    """Return *value* in *depth* containers."""
    for _ in range(depth):
        value = nest(value)
    return value


def shape(value):
    """Return what *value* is made of, by identity, without running code of what is in it."""
    seen, found, todo = set(), [], [value]
    while todo and len(found) < 1_000:
        item = todo.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if type(item) in (dict, collections.OrderedDict):
            parts = [part for pair in dict.items(item) for part in pair]
        elif type(item) in (list, tuple, collections.deque):
            parts = list(item)
        elif type(item) in (Point, Attrs, Structlogged):
            parts = [getattr(item, name, None) for name in ("x", "y", "shown")]
        else:
            continue
        # Along with the parts, so that no other object can have their ids.
        found.append((item, [id(part) for part in parts], parts))
        todo += parts
    return found


def check(renderer, event):
    """Render *event* and see that every promise is kept."""
    before = shape(event)
    Raising.armed = True
    try:
        line = renderer.render(event)
    finally:
        Raising.armed = False
    after = shape(event)
    assert [(id(item), ids) for item, ids, _ in before] == [(id(item), ids) for item, ids, _ in after]
    shown = read(line)
    assert type(shown) is dict
    # None lost, none invented.
    left_out = sum(
        1
        for key, value in event.items()
        if (type(key) in (str, Twin) and str.__str__(key) in METADATA)
        or (type(key) is str and key == "exc_info" and shows_no_exception(value))
    )
    added = len({"exception_type", "exception_message"} & shown.keys())
    assert len(shown) == len(event) - left_out + added
    for key, value in event.items():
        if type(key) is not str or key in METADATA or key in ("exc_info", "exception"):
            continue
        written = key.encode("utf-8", "backslashreplace").decode()
        assert written in shown
        if type(value) in (str, int, bool, type(None)) and value in (None, True, 0, "", "x", "é", 2**64):
            # Under its own name, or a numbered one where another key has the same text.
            assert value in [shown[name] for name in shown if name == written or name.startswith(f"{written}#")]


def shows_no_exception(value):
    """Tell whether *value* stands for no exception."""
    return type(value) in (bool, int, type(None))


@given(draw=st.randoms(use_true_random=False), name=st.sampled_from(sorted(RENDERERS)))
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_any_dict_is_one_line_of_json_with_every_field_and_stays_as_it_was(draw, name):
    """One line, valid UTF-8, read by json, no field lost, the input unchanged: whatever is in it."""
    check(RENDERERS[name], fields(draw, SCALARS, 3))


@given(draw=st.randoms(use_true_random=False))
@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_with_snapshot_any_dict_is_rendered_that_crashes_orjson_too(draw):
    """Members whose value raises, UUIDs made half, fragments that are no JSON: nothing is trusted."""
    check(RENDERERS["snapshot"], fields(draw, SCALARS + UNTRUSTED, 3))


# -- other threads


def test_a_dict_that_another_thread_changes_meanwhile_is_rendered(renderer):
    """Sizes change in the middle of it, thousands of times, on both ways; each line is whole."""
    nested_dict = {str(number): number for number in range(50)}
    nested_list = list(range(50))
    shared = {"event": "x", "d": nested_dict, "l": nested_list, "s": {1}, "q": collections.deque(range(50), 50)}
    fast = {"event": "x", "d": nested_dict, "l": nested_list}
    stop = threading.Event()

    def change():
        for number in itertools.count():
            if stop.is_set():
                return
            key = str(number % 200)
            for target in (nested_dict, shared, fast):
                if target.pop(key, None) is None:
                    target[key] = [number]
            nested_list[: number % 7] = [number] * (number % 7 if len(nested_list) < 100 else 0)
            shared["q"].append(number)
            shared["s"] = {number}

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=change)
    thread.start()
    try:
        for event in (shared, fast) * 100:
            shown = read(renderer.render(event))
            assert shown["event"] == "x"
            assert type(shown["d"]) is dict
            assert type(shown["l"]) is list
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)


# What the value's Python code waits for is another thread that empties the list the value is in, and takes its memory.
# orjson goes on reading the list by the size it had: seen with 3.10.7 to 3.13.0 on Python 3.10 to 3.13, each time. With
# a dict in place of the list it did not crash, but repeated one field hundreds of times.
CHANGED_MEANWHILE = """
import datetime, enum, sys, threading
import orjson
from outfall.sinks.event.json import OrjsonRenderer

begun, changed = threading.Event(), threading.Event()

def change():
    begun.wait(60)
    container.clear()
    keep.extend(bytes(number % 512) for number in range(10_000))
    changed.set()

def wait():
    begun.set()
    changed.wait(60)

class Member(enum.Enum):
    A = 1
    @property
    def value(self):
        wait()
        return 1

class Zone(datetime.tzinfo):
    def utcoffset(self, when):
        wait()
        return datetime.timedelta(0)

keep = []
value = Member.A if sys.argv[1] == "enum" else datetime.datetime(2020, 1, 1, tzinfo=Zone())
others = [str(number) * 20 for number in range(1_000)]
container = [value, *others] if sys.argv[2] == "list" else {"k": value, **dict.fromkeys(others, 1)}
threading.Thread(target=change, daemon=True).start()
event = {"event": "x", "c": container}
render = {
    "orjson": orjson.dumps,
    "default": OrjsonRenderer().render,
    "snapshot": OrjsonRenderer(snapshot=True).render,
}[sys.argv[3]]
sys.stdout.buffer.write(render(event))
"""

# What crashes bare orjson alone, with no other thread: seen with 3.10.7 to 3.13.0 on Python 3.10 to 3.13, each time.
CRASHING = """
import enum, sys, uuid
import orjson
from outfall.sinks.event.json import OrjsonRenderer

class Raising(enum.Enum):
    A = 1
    @property
    def value(self):
        raise ZeroDivisionError

class Plain(enum.Enum):
    A = 1

value = {
    "raising": Raising.A,
    "half": object.__new__(Plain),
    "uuid": uuid.UUID.__new__(uuid.UUID),
}[sys.argv[1]]
render = {"orjson": orjson.dumps, "snapshot": OrjsonRenderer(snapshot=True).render}[sys.argv[2]]
sys.stdout.buffer.write(render({"event": "x", "v": value, "after": 1}))
"""


def run(code, *arguments):
    """Run *code* in a child process; return its exit code and what it wrote."""
    child = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, timeout=60, check=False)
    return child.returncode, child.stdout


@pytest.mark.parametrize("kind", ["enum", "zone"])
def test_orjson_crashes_when_the_list_it_reads_is_changed(kind):
    """The fault exists that the renderer is built around; a version without it makes the option needless."""
    code, _ = run(CHANGED_MEANWHILE, kind, "list", "orjson")
    assert code != 0


@pytest.mark.parametrize(("kind", "way"), [("zone", "default"), ("zone", "snapshot"), ("enum", "snapshot")])
@pytest.mark.parametrize("container", ["list", "dict"])
def test_a_container_changed_meanwhile_crashes_nothing(kind, way, container):
    """A Python-written zone is safe always, an enum member with snapshot=True; the line is that of one moment."""
    code, line = run(CHANGED_MEANWHILE, kind, container, way)
    assert code == 0
    shown = read(line)
    assert shown["event"] == "x"
    assert len(shown["c"]) == 1_001
    first = shown["c"][0] if container == "list" else shown["c"]["k"]
    assert first == (1 if kind == "enum" else "2020-01-01T00:00:00+00:00")


@pytest.mark.parametrize("kind", ["raising", "half", "uuid"])
def test_what_crashes_orjson_by_itself_is_a_field_with_snapshot(kind):
    """Bare orjson ends the process at such a value; the renderer keeps or marks it."""
    code, _ = run(CRASHING, kind, "orjson")
    assert code != 0
    code, line = run(CRASHING, kind, "snapshot")
    assert code == 0
    shown = read(line)
    assert (shown["event"], shown["after"]) == ("x", 1)
    assert (
        shown["v"]
        == {
            "raising": 1,
            "half": "<unrenderable Plain: AttributeError>",
            "uuid": "<unrenderable UUID: AttributeError>",
        }[kind]
    )


# -- the plain event


@pytest.mark.parametrize("level", [0, 30])
def test_a_plain_event_is_the_line_that_the_renderer_makes(level):
    """What short cuts write is what the pipeline would write."""
    event = {"event": "ä", "level": "warning", "n": 1.5, "nested": {"list": [1, "\n"]}}
    assert plain_line(event, level) == OrjsonRenderer().render(event) + b"\n"
    assert plain_line(event, level, OPTIONS) == OrjsonRenderer().render(event)


def test_a_plain_event_below_the_level_is_nothing():
    """An empty line says that the level keeps the event out."""
    assert plain_line({"event": "e", "level": "INFO"}, 30) == b""


@pytest.mark.parametrize(
    ("event", "level"),
    [
        *(({"event": "e", key: None}, 0) for key in ("exc_info", *METADATA)),
        ({"event": "e", "level": "error", "level_number": 10}, 30),
        (collections.OrderedDict(event="e"), 0),
        ("text", 0),
        ({"event": functools.reduce(lambda nested, _: [nested], range(100), [])}, 0),
    ],
)
def test_an_event_that_is_not_plain_takes_the_pipeline(event, level):
    """Metadata, exceptions, level numbers, deep nests and whatever is no dict are not for a short cut."""
    assert plain_line(event, level) is None


@pytest.mark.parametrize("event", [{"event": "e"}, {"level": 3}, {"level": "unheard of"}, {"level": ["info"]}])
def test_a_plain_line_raises_where_only_the_pipeline_knows(event):
    """Without a known level by its usual name there is nothing to compare."""
    with pytest.raises((KeyError, TypeError)):
        plain_line(event, 30)
