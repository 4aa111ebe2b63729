"""What comes to a sink, made an event; copies; time stamps."""

from __future__ import annotations

import collections
import datetime as dt
import math
import time
import types

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from outfall.sinks.event.event import (
    METADATA,
    LevelledEvent,
    TextEvent,
    as_event,
    checked_naive,
    copy_event,
    snapshot,
    timestamp_of,
    without_metadata,
    zoned,
)
from outfall.sinks.event.levels import level_of
from tests.sinks._zones import ZONES, local_zone


class Lying:
    """Says it is a dict, as a proxy of one does."""

    __class__ = dict


class Raising:
    """Raises when it is asked what it is."""

    @property
    def __class__(self):
        raise ZeroDivisionError


def test_a_dict_is_an_event_as_it_is():
    """No copy is made of what already is an event."""
    event = {"event": "x", "level": "info"}
    assert as_event(event) is event
    assert as_event(event, "error") is event
    levelled = LevelledEvent({}, 30)
    assert as_event(levelled, "error") is levelled


@pytest.mark.parametrize(
    "mapping",
    [
        collections.OrderedDict(a=1),
        types.MappingProxyType({"a": 1}),
        collections.ChainMap({"a": 1}),
        collections.UserDict(a=1),
    ],
)
def test_another_mapping_becomes_a_dict(mapping):
    """Any mapping is an event."""
    event = as_event(mapping)
    assert (type(event), event) == (dict, {"a": 1})


@pytest.mark.parametrize(
    ("given_text", "raw", "text"),
    [
        ("x", "x", "x"),
        (b"x", b"x", "x"),
        (bytearray(b"x"), b"x", "x"),
        (memoryview(b"x"), b"x", "x"),
        (b"\xff", b"\xff", "\\xff"),
    ],
)
def test_rendered_text_is_kept_and_readable_as_a_field(given_text, raw, text):
    """Byte sinks find the original, all others ``{"event": text}``."""
    event = as_event(given_text, "error")
    assert type(event) is TextEvent
    assert event == {"event": text}
    assert (event.raw, event.rendered(), event.carried_level) == (raw, raw, 40)


def test_a_processor_may_replace_the_text():
    """What is written is the text that a processor put there, whatever it put."""
    event = TextEvent(b"secret \xff")
    event["event"] = "***"
    assert event.rendered() == "***"
    event["event"] = b"bytes"
    assert event.rendered() == b"bytes"
    event["event"] = 5
    assert event.rendered() == "5"
    del event["event"]
    assert event.rendered() == "None"


@pytest.mark.parametrize("not_an_event", [None, 5, [], object(), (1, 2), ("x",), ((), {}, 3), {1}])
def test_what_is_no_event_is_refused_by_its_type(not_an_event):
    """The message names the type and not the value, which may be a secret."""
    with pytest.raises(TypeError, match=rf"^an event is a dict, not {type(not_an_event).__name__}$"):
        as_event(not_an_event)


@pytest.mark.parametrize(("method", "level"), [("info", 20), ("warn", 30), ("exception", 40), ("FATAL", 50)])
def test_the_level_of_the_method_counts_and_is_not_written(method, level):
    """An event without a level has that of the method, outside its fields."""
    event = as_event({"event": "x"}, method)
    assert event == {"event": "x"}
    assert level_of(event) == level


def test_a_method_that_is_no_level_gives_none():
    """The event counts as INFO then, and is left as it is."""
    event = {"event": "x"}
    assert as_event(event, "nonsense") is event


def test_the_metadata_keys_are_those_of_structlog():
    """These four are left out, and nothing else."""
    assert sorted(METADATA) == ["_from_structlog", "_logger", "_name", "_record"]
    event = dict.fromkeys([*METADATA, "event", "_other"], 0)
    assert without_metadata(event) == {"event": 0, "_other": 0}
    assert len(event) == 6


def test_a_wrapped_event_is_unwrapped():
    """The (args, kwargs) of wrap_for_formatter are the event and its metadata."""
    wrapped = structlog.stdlib.ProcessorFormatter.wrap_for_formatter("logger", "info", {"event": "x", "k": 1})
    event = as_event(wrapped, "info")
    assert without_metadata(event) == {"event": "x", "k": 1}
    assert event["_logger"] == "logger"


def test_a_copy_shares_no_container():
    """Every nested dict, list, set and tuple of such is another object with the same content."""
    leaf = object()
    event = {"d": {"l": [{1}, ([leaf],)]}, "t": (1, [2]), "s": {3}, "leaf": leaf, "text": "x"}
    copied = copy_event(event)
    assert copied == event
    assert copied is not event
    for path in (["d"], ["d", "l"], ["d", "l", 0], ["d", "l", 1], ["d", "l", 1, 0], ["t"], ["t", 1], ["s"]):
        mine, yours = event, copied
        for step in path:
            mine, yours = mine[step], yours[step]
        assert mine is not yours, path
    assert copied["leaf"] is copied["d"]["l"][1][0][0] is leaf


def test_a_copy_keeps_subclasses_out_of_it():
    """No code of a subclass of a container runs when it is copied."""

    def refuse(self, *args):
        raise ZeroDivisionError

    methods = dict.fromkeys(
        ["__iter__", "__copy__", "__deepcopy__", "__len__", "__getitem__", "copy", "items", "keys"], refuse
    )
    event = {}
    for base, content in ((dict, {"k": [1]}), (list, [[1]]), (set, {1})):
        event[base.__name__] = type("Sub", (base,), {})(content)
        for name, method in methods.items():
            setattr(type(event[base.__name__]), name, method)
    copied = copy_event(event)
    assert dict.__getitem__(copied["dict"], "k") == [1]
    assert dict.__getitem__(copied["dict"], "k") is not dict.__getitem__(event["dict"], "k")
    assert list.__getitem__(copied["list"], 0) == [1]
    assert copied["set"] is not event["set"]
    assert set.__len__(copied["set"]) == 1


@pytest.mark.parametrize("make", [Lying, Raising])
def test_an_object_that_is_not_what_it_says_is_shared(make):
    """A proxy is no container, whatever its __class__ says; asking it must not cost the event."""
    proxy = make()
    copied = copy_event({"a": proxy, "b": [proxy], "c": {"d": (proxy,)}})
    assert copied["a"] is copied["b"][0] is copied["c"]["d"][0] is proxy


def test_a_cycle_stays_a_cycle_of_copies():
    """The copy of what holds itself holds its copy, by way of dicts, lists and tuples."""
    event = {"l": []}
    event["l"] += [event, event["l"], (event["l"],)]
    copied = copy_event(event)
    assert copied["l"] is not event["l"]
    assert copied["l"][0] is copied
    assert copied["l"][1] is copied["l"][2][0] is copied["l"]


@pytest.mark.parametrize("grow", [lambda v: [v, v], lambda v: (v, v), lambda v: {"a": v, "b": v}])
def test_what_is_shared_in_the_original_is_copied_once(grow):
    """A value that stands in 2 ** 60 places is one object, and takes no longer than that."""
    value = grow([])
    for _ in range(60):
        value = grow(value)
    copied = copy_event({"v": value})["v"]
    assert copied is not value
    first, second = copied.values() if isinstance(copied, dict) else copied
    assert first is second


def test_the_copy_does_not_confuse_objects_that_follow_each_other_in_memory():
    """An original that is let go of during the copy does not leave its id, and so its copy, to another."""

    class Key:
        """Its hash is asked while the copy is made, where another thread might run as well."""

        def __init__(self, act):
            self.act = act

        def __hash__(self):
            return self.act()

    def let_go():
        event["first"][0] = None
        # Enough new lists for one of them to take the place of the one let go of.
        while len(event["last"]) < 100:
            event["last"].append([len(event["last"])])
        return 0

    key = Key(lambda: 0)
    # The first container is a list whose only reference is replaced while the second is copied.
    event = {"first": [["first"]], "middle": {key: []}, "last": []}
    key.act = let_go
    copied = copy_event(event)
    assert copied["first"] == [["first"]]
    assert copied["last"][:100] == [[number] for number in range(100)]


def test_deep_nests_are_shared_below_a_hundred_levels():
    """The copy never runs out of stack: 10 000 levels do not fail."""
    value = bottom = []
    for _ in range(10_000):
        value = [value]
    copied = copy_event({"v": value})["v"]
    depth = 0
    original = value
    while copied is not original:
        copied, original = copied[0], original[0]
        depth += 1
    assert depth == 100
    assert bottom == []


def test_the_copy_of_a_text_event_is_one():
    """Text, its original bytes, its carried level and added fields are all there."""
    event = TextEvent(b"\xff", 40)
    event["tags"] = ["x"]
    copied = copy_event(event)
    assert (type(copied), copied, copied.raw, copied.carried_level) == (TextEvent, event, b"\xff", 40)
    assert copied["tags"] is not event["tags"]


def test_the_copy_of_a_levelled_event_is_one():
    """The carried level goes with the copy."""
    copied = copy_event(LevelledEvent({"a": [1]}, 40))
    assert (type(copied), copied, copied.carried_level) == (LevelledEvent, {"a": [1]}, 40)


NESTED = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3) | st.tuples(inner, inner)
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.text(max_size=3), NESTED, max_size=4))
def test_a_copy_is_equal_to_its_original(event):
    """Whatever is nested in it, the copy has the same content and types."""
    assert repr(copy_event(event)) == repr(event)


UTC = dt.timezone.utc
LOCAL = dt.datetime(2001, 9, 9, 1)  # noqa: DTZ001 - naive ones are local time


class NotATime(dt.datetime):
    """As pandas has it."""

    def timestamp(self):
        return math.nan


class RaisingZone(dt.tzinfo):
    """A time zone whose Python code raises."""

    def utcoffset(self, when):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("stamp", "seconds"),
    [
        (0, 0.0),
        (1.5, 1.5),
        (-1, -1.0),
        (dt.datetime(1970, 1, 1, 0, 0, 2, tzinfo=UTC), 2.0),
        (dt.datetime(1970, 1, 1, 2, tzinfo=dt.timezone(dt.timedelta(hours=2))), 0.0),
        (LOCAL, LOCAL.timestamp()),
        ("1970-01-01T00:00:02Z", 2.0),
        ("1970-01-01T00:00:02.500000z", 2.5),
        ("1970-01-01 00:00:02+00:00", 2.0),
        ("1970-01-01T02:00:02.123456+02:00", 2.123456),
        ("2001-09-09T01:00:00", 1_000_000_000 - 2_800),
        ("2001-09-09 01:46:40", 1_000_000_000),
        ("2001-09-09 01:46:40.250000", 1_000_000_000.25),
        # As others write it: Go, logging's asctime, strftime's %z, PostgreSQL.
        ("1970-01-01T00:00:02.123456789Z", 2.123456),
        ("1970-01-01 00:00:02,5", 2.5),
        ("1970-01-01T02:00:02+0200", 2.0),
        ("1970-01-01 02:00:02.25+02", 2.25),
        ("1970-01-01T00:30-01:30", 7_200.0),
    ],
)
def test_a_time_stamp_is_read_from_seconds_datetimes_and_iso_text(stamp, seconds):
    """All three forms mean epoch seconds; a naive datetime is local time, naive text is UTC."""
    when = timestamp_of({"timestamp": stamp})
    assert (type(when), when) == (float, pytest.approx(seconds, abs=1e-6))


@pytest.mark.parametrize(
    "stamp",
    [
        None,
        True,
        "",
        "Z",
        "yesterday",
        "1970-13-01T00:00:00Z",
        math.nan,
        math.inf,
        -math.inf,
        1e12,
        1700000000000,
        10**400,
        [],
        b"1970-01-01",
        dt.date(1970, 1, 1),
        dt.datetime.min,  # noqa: DTZ901 - before what local time can be computed for
        NotATime(1970, 1, 1),
        dt.datetime(1970, 1, 1, tzinfo=RaisingZone()),
    ],
)
def test_what_is_no_time_gives_none(stamp):
    """A time stamp nobody can read is none: milliseconds, nonsense, a zone that raises."""
    assert timestamp_of({"timestamp": stamp}) is None


@pytest.mark.parametrize("zone", ZONES)
def test_text_without_a_zone_is_utc_wherever_the_process_runs(zone):
    """As structlog's TimeStamper writes it; only where one says so it is local."""
    stamp = structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S")(None, "info", {})
    with local_zone(zone):
        assert timestamp_of(stamp) == pytest.approx(time.time(), abs=60)
        local = structlog.processors.TimeStamper(fmt="iso", utc=False)(None, "info", {})
        assert timestamp_of(local, "local") == pytest.approx(time.time(), abs=60)
        made = zoned({"event": "x", **local}, "local")
        assert timestamp_of(made) == pytest.approx(time.time(), abs=60)


@pytest.mark.parametrize("stamp", ["2001-09-09T01:46:40Z", "2001-09-09T01:46:40+02:00", "never", 5, None, LOCAL])
def test_what_has_a_zone_or_is_no_text_stays_as_it_is(stamp):
    """Only text without a zone is asked for one."""
    event = {"timestamp": stamp}
    assert zoned(event, "local") is event


def test_naive_text_stays_as_it_is_where_it_is_utc():
    """Nothing is copied for it."""
    event = {"timestamp": "2001-09-09T01:46:40"}
    assert zoned(event, "utc") is event
    assert zoned(event, "local") is not event
    assert event == {"timestamp": "2001-09-09T01:46:40"}


def test_a_wrong_word_for_naive_timestamps_is_named():
    """The message names argument, value and what is right."""
    with pytest.raises(ValueError, match="naive_timestamps='UTC' is none of 'utc', 'local'"):
        checked_naive("UTC")


def test_no_time_stamp_gives_none():
    """An event need not have one; a hostile one counts as none."""
    assert timestamp_of({}) is None
    assert timestamp_of({"timestamp": Raising()}) is None


def test_a_snapshot_carries_the_time_it_was_made():
    """An event without a timestamp that can be read gets no field, but its time is known; copies keep it."""
    for event in ({"event": "x"}, {"event": "x", "timestamp": "yesterday"}, {"event": "x", "timestamp": 1e15}):
        before = time.time()
        made = snapshot(event)
        when = timestamp_of(made)
        assert when is not None
        assert before <= when <= time.time()
        assert made == event
        assert timestamp_of(copy_event(made)) == when
    text = snapshot(TextEvent("said", 40))
    assert timestamp_of(copy_event(text)) == timestamp_of(text) is not None
    assert (text.rendered(), level_of(text)) == ("said", 40)


def test_a_snapshot_of_an_event_with_a_timestamp_is_a_plain_dict():
    """Its own timestamp is what counts, also if a processor changes it later."""
    made = snapshot({"event": "x", "timestamp": 5})
    assert type(made) is dict
    assert timestamp_of(made) == 5
    carried = snapshot({"event": "x"})
    carried["timestamp"] = 7
    assert timestamp_of(carried) == 7


def test_a_snapshot_holds_the_exception_that_is_being_handled():
    """exc_info=True, or 1, stands for it only now; where there is none it stands for none. An exception is kept."""
    error = ValueError("now")
    try:
        raise error
    except ValueError:
        assert snapshot({"exc_info": True})["exc_info"][1] is error
        assert snapshot({"exc_info": 1})["exc_info"][1] is error
        assert snapshot({"exc_info": False})["exc_info"] is False
    assert snapshot({"exc_info": True})["exc_info"] is None
    assert snapshot({"exc_info": error})["exc_info"] is error
