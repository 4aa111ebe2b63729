"""Every kind of value made plain."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import json
import math
import pathlib
import sys
import types
import uuid
import weakref

import attrs
import numpy as np
import orjson
import pydantic
import pytest
import structlog

from outfall.sinks.event.jsonable import MAX_DEPTH, items_of, plain, plain_fields, plain_key

HUGE = 10**5_000


def through_json(value):
    """Return *value* made plain, as a reader of the line gets it."""
    return json.loads(orjson.dumps(plain(value)))


class Raising:
    """An object all of whose usual methods raise."""

    def __getattribute__(self, name):
        raise ZeroDivisionError

    def __repr__(self):
        raise ZeroDivisionError

    __str__ = __bool__ = __hash__ = __eq__ = __len__ = __iter__ = __structlog__ = __repr__


class RaisingRepr:
    """An object whose texts raise."""

    __repr__ = __str__ = Raising.__repr__


class RaisingClass(Raising):
    """An object that raises when it is asked for its class."""

    @property
    def __class__(self):
        raise ZeroDivisionError


class Lying:
    """A proxy that says it is something else."""

    def __init__(self, kind):
        self.kind = kind

    @property
    def __class__(self):
        return self.kind

    def __repr__(self):
        return "a proxy"


class Meta(type):
    """A metaclass that raises."""

    def __repr__(cls):
        raise ZeroDivisionError


class Colour(enum.Enum):
    """Members with all kinds of value."""

    RED = 1
    NAME = "red"
    DAY = dt.date(2020, 1, 2)
    PAIR = (1, b"x")


class Number(enum.IntEnum):
    """A number that is a member."""

    ONE = 1


class Text(str, enum.Enum):
    """A text that is a member."""

    A = "a"


class Bits(enum.Flag):
    """Members that combine."""

    A = 1
    B = 2


class RaisingMember(enum.Enum):
    """A member whose value is Python code that raises."""

    A = 1

    @property
    def value(self):
        raise ZeroDivisionError


@dataclasses.dataclass
class Point:
    """A dataclass with a secret."""

    x: int
    y: list = dataclasses.field(default_factory=list)
    secret: str = dataclasses.field(default="s3cret", repr=False)


@dataclasses.dataclass
class RaisingField:
    """A dataclass with a field that raises."""

    x: int = 1
    y: int = 2

    def __getattribute__(self, name):
        if name == "y":
            raise ZeroDivisionError
        return super().__getattribute__(name)


@attrs.define
class Attrs:
    """An attrs class, slotted."""

    x: int
    secret: str = attrs.field(default="s3cret", repr=False)
    masked: str = attrs.field(default="s3cret", repr=lambda value: "***")


class Model(pydantic.BaseModel):
    """A pydantic model."""

    model_config = pydantic.ConfigDict(extra="allow")

    x: int
    token: pydantic.SecretStr = pydantic.SecretStr("s3cret")
    hidden: str = pydantic.Field(default="s3cret", repr=False)
    excluded: str = pydantic.Field(default="s3cret", exclude=True)


class Structlogged:
    """An object that says what to log of it."""

    def __init__(self, shown):
        self.shown = shown

    def __structlog__(self):
        if isinstance(self.shown, BaseException):
            raise self.shown
        return self.shown


class OwnText(str):
    """Text with another face."""

    __slots__ = ()

    def __str__(self):
        return "other"

    isascii = encode = __repr__ = __hash__ = __eq__ = Raising.__repr__


class OwnInt(int):
    """A number with another face."""

    __index__ = __int__ = __repr__ = __str__ = __le__ = Raising.__repr__


class OwnFloat(float):
    """A number with another face."""

    __float__ = __repr__ = __str__ = Raising.__repr__


class OwnDict(dict):
    """A dict whose methods are not to be used."""

    __iter__ = __len__ = keys = items = values = copy = __getitem__ = __repr__ = Raising.__repr__


class OwnList(list):
    """A list whose methods are not to be used."""

    __iter__ = __len__ = copy = __getitem__ = __repr__ = Raising.__repr__


class OwnTuple(tuple):
    """A tuple whose methods are not to be used."""

    __slots__ = ()
    __iter__ = __len__ = __getitem__ = __repr__ = Raising.__repr__


class OwnSet(set):
    """A set whose methods are not to be used."""

    __iter__ = __len__ = copy = __repr__ = Raising.__repr__


class Endless:
    """Iterates for ever; a test of consuming it would never end."""

    def __iter__(self):
        while True:
            yield 1


class EndlessDeque(collections.deque):
    """A deque that iterates for ever."""

    __iter__ = Endless.__iter__


class EndlessMapping(collections.abc.Mapping):
    """A mapping that has every number as a key."""

    def __iter__(self):
        number = 0
        while True:
            yield number
            number += 1

    def __getitem__(self, key):
        if key == 1:
            raise ZeroDivisionError
        return key

    def __len__(self):
        raise ZeroDivisionError


class EndlessSet(collections.abc.Set):
    """A set of every number."""

    __iter__ = EndlessMapping.__iter__
    __len__ = EndlessMapping.__len__

    def __contains__(self, item):
        raise ZeroDivisionError


class Pair(tuple):
    """As a named tuple."""

    __slots__ = ()


Named = collections.namedtuple("Named", "a b")  # noqa: PYI024 - untyped ones are logged too
UTC = dt.timezone.utc


class Zone(dt.tzinfo):
    """A time zone written in Python."""

    def utcoffset(self, when):
        return dt.timedelta(hours=2)


class RaisingZone(dt.tzinfo):
    """A time zone that raises."""

    def utcoffset(self, when):
        raise ZeroDivisionError


class OwnDate(dt.datetime):
    """A datetime that words itself with what is no Unicode."""

    def isoformat(self):
        return OwnText("\ud800")


class OwnDecimal(decimal.Decimal):
    """A Decimal that words itself with what is no Unicode."""

    def __str__(self):
        return "\ud800"


class OwnPath:
    """A path whose text is not Unicode."""

    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return self.path


KEPT = [
    (None, None),
    (True, True),
    (0, 0),
    (1.5, 1.5),
    ("é\n\u2028", "é\n\u2028"),
    (2**64 - 1, 2**64 - 1),
    (2**64, 2**64),
    (-(2**63), -(2**63)),
    (-(2**63) - 1, -(2**63) - 1),
    (-(10**3_000), -(10**3_000)),
    (HUGE, hex(HUGE)),
    (-HUGE, hex(-HUGE)),
    (OwnInt(7), 7),
    (OwnInt(2**70), 2**70),
    (math.nan, None),
    (math.inf, None),
    (-math.inf, None),
    (OwnFloat(1.5), 1.5),
    (OwnFloat(math.nan), None),
    ("\ud800x\udfff", "\\ud800x\\udfff"),
    ("\ud83d\ude00", "\\ud83d\\ude00"),
    (OwnText("x\ud800"), "x\\ud800"),
    (b"caf\xc3\xa9 \xff", "café \\xff"),
    (bytearray(b"\xff"), "\\xff"),
    (memoryview(b"ab"), "ab"),
    (memoryview(b"abcd")[::2], "ac"),
    ([1, [2, (3,)]], [1, [2, [3]]]),
    (OwnList([1, OwnList()]), [1, []]),
    (OwnTuple((1, OwnTuple())), [1, []]),
    (Named(1, {2}), [1, [2]]),
    ({3}, [3]),
    ({"b", "a", "c"}, ["a", "b", "c"]),
    ({10, 9.5, 1 << 70}, [10, 1 << 70, 9.5]),
    ({"b", 2, None, (1, 2)}, ["b", 2, [1, 2], None]),
    (frozenset([3]), [3]),
    (OwnSet([3]), [3]),
    (collections.deque([1, {2}], 5), [1, [2]]),
    (EndlessDeque([1, 2]), [1, 2]),
    ({"a": {"b": ()}}, {"a": {"b": []}}),
    (OwnDict(a=OwnDict(b=1)), {"a": {"b": 1}}),
    (collections.OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
    (collections.defaultdict(list, a=[1]), {"a": [1]}),
    (collections.Counter("aab"), {"a": 2, "b": 1}),
    (types.MappingProxyType({"a": b"x"}), {"a": "x"}),
    (collections.ChainMap({"a": 1}, {"b": 2}), {"a": 1, "b": 2}),
    (collections.UserDict(a=1), {"a": 1}),
    ({"a": 1}.keys(), ["a"]),
    ({"a": 1}.values(), [1]),
    ({"a": 1}.items(), [["a", 1]]),
    (Colour.RED, 1),
    (Colour.DAY, "2020-01-02"),
    (Colour.PAIR, [1, "x"]),
    (Number.ONE, 1),
    (Text.A, "a"),
    (Bits.A | Bits.B, 3),
    (RaisingMember.A, 1),
    (dt.datetime(2020, 1, 2, 3, 4, 5, 6, tzinfo=UTC), "2020-01-02T03:04:05.000006+00:00"),
    (dt.datetime(2020, 1, 2, 3, tzinfo=Zone()), "2020-01-02T03:00:00+02:00"),
    (dt.datetime(2020, 1, 2), "2020-01-02T00:00:00"),  # noqa: DTZ001 - naive ones are logged too
    (OwnDate(2020, 1, 2), "\\ud800"),
    (dt.date(2020, 1, 2), "2020-01-02"),
    (dt.time(1, 2, 3), "01:02:03"),
    (dt.time(1, 2, tzinfo=Zone()), "01:02:00+02:00"),
    (dt.timedelta(days=1, microseconds=1), 86400.000001),
    (decimal.Decimal("1.10"), "1.10"),
    (decimal.Decimal("sNaN"), "sNaN"),
    (OwnDecimal(1), "\\ud800"),
    (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    (pathlib.PurePosixPath("/a/é"), "/a/é"),
    (OwnPath(b"/\xff"), "/\\xff"),
    (OwnPath("/\udcff"), "/\\udcff"),
    (OwnPath(OwnText("/x")), "/x"),
    (ValueError("bad"), "ValueError('bad')"),
    (int, "<class 'int'>"),
    (list[int], "list[int]"),
    (range(3), "range(0, 3)"),
    (..., "Ellipsis"),
    (1j, "1j"),
    (Point(1, [{2}]), {"x": 1, "y": [[2]]}),
    (Attrs(1), {"x": 1}),
    (Model(x=1, more=b"x"), {"x": 1, "token": "SecretStr('**********')", "more": "x"}),
    (RaisingField(), {"x": 1, "y": "<unrenderable value: ZeroDivisionError>"}),
    (Point.__new__(Point), {}),
    (Attrs.__new__(Attrs), {}),
    (Model.__new__(Model), {}),
    (Structlogged({"a": {1}}), {"a": [1]}),
    (Structlogged(Structlogged(1)), 1),
    (np.int64(3), 3),
    (np.float32(1.5), 1.5),
    (np.float64("nan"), None),
    (np.bool_(True), True),
    (np.str_("x"), "x"),
    (np.bytes_(b"x"), "x"),
    (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
    (np.array([{1}, None], dtype=object), [[1], None]),
    (np.datetime64("2020-01-02"), "2020-01-02"),
    (np.array([1.5, np.inf]), [1.5, None]),
    (np.ma.masked_array([1, 2], [False, True]), [1, None]),
    (np.longdouble(1), repr(np.longdouble(1))),
    (orjson.Fragment(b'{"a":123456789012345678901234567890}'), {"a": 123456789012345678901234567890}),
    (orjson.Fragment('{\n "a":\r\n[1]}'), {"a": [1]}),
    (orjson.Fragment(b"not {json\n"), "not {json\n"),
    (orjson.Fragment(b"\xff"), "\\xff"),
    (orjson.Fragment(b""), ""),
    (orjson.Fragment(b"1,2"), "1,2"),
    (orjson.Fragment(b"NaN"), "NaN"),
]


@pytest.mark.parametrize(("value", "shown"), KEPT, ids=[f"{n}-{type(v).__name__}" for n, (v, _) in enumerate(KEPT)])
def test_a_value_is_kept_in_the_form_documented_for_its_kind(value, shown):
    """Each kind of value has its JSON, on one line, alone and nested."""
    line = orjson.dumps(plain(value))
    assert b"\n" not in line
    assert b"\r" not in line
    assert json.loads(line) == shown
    assert through_json([(value, {"k": value})]) == [[shown, {"k": shown}]]


MARKED = [
    (Raising, "<unrenderable Raising: ZeroDivisionError>"),
    (RaisingClass, "<unrenderable RaisingClass: ZeroDivisionError>"),
    (RaisingRepr, "<unrenderable RaisingRepr: __repr__ raised ZeroDivisionError>"),
    (lambda: Meta("M", (), {}), "<unrenderable Meta: __repr__ raised ZeroDivisionError>"),
    (lambda: ValueError(Raising()), "<unrenderable ValueError: __repr__ raised ZeroDivisionError>"),
    (lambda: Structlogged(ValueError()), "<unrenderable Structlogged: ValueError>"),
    (lambda: Structlogged(GeneratorExit()), "<unrenderable Structlogged: GeneratorExit>"),
    (lambda: dt.datetime(2020, 1, 2, tzinfo=RaisingZone()), "<unrenderable datetime: ZeroDivisionError>"),
    (lambda: object.__new__(Colour), "<unrenderable Colour: AttributeError>"),
    (lambda: uuid.UUID.__new__(uuid.UUID), "<unrenderable UUID: AttributeError>"),
    (lambda: OwnPath(5), "<unrenderable OwnPath: TypeError>"),
    (lambda: orjson.Fragment("\ud800"), "<unrenderable Fragment: TypeError>"),
    (lambda: orjson.Fragment(5), "<unrenderable Fragment: TypeError>"),
]


@pytest.mark.parametrize(("make", "marker"), MARKED)
def test_a_value_that_cannot_be_kept_is_marked_and_costs_no_other(make, marker):
    """The marker names the type and what was raised."""
    assert through_json({"before": 1, "v": make(), "after": [make(), 2]}) == {
        "before": 1,
        "v": marker,
        "after": [marker, 2],
    }


def released():
    """Return a memoryview that can no longer be read."""
    view = memoryview(b"x")
    view.release()
    return view


def test_a_released_memoryview_is_marked():
    """A buffer that is gone is said to be."""
    assert through_json(released()) == "<unrenderable memoryview: ValueError>"


@pytest.mark.parametrize(
    "kind", [dict, list, tuple, str, int, float, bytes, set, Colour, type, dt.datetime, ValueError]
)
def test_a_proxy_is_shown_by_its_repr_whatever_it_says_it_is(kind):
    """A proxy lies in its __class__; taken at its word it could not be read at all."""
    assert through_json({"p": Lying(kind)}) == {"p": "a proxy"}


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("nest", [lambda v: v, lambda v: [v], lambda v: {"k": (v,)}])
def test_an_interrupt_passes_through(interrupt, nest):
    """Ctrl-C in the middle of a value is still Ctrl-C."""
    with pytest.raises(interrupt):
        plain(nest(Structlogged(interrupt())))


@pytest.mark.parametrize(
    "make", [Endless, lambda: iter(Endless()), lambda: map(str, Endless()), lambda: (x for x in Endless())]
)
def test_what_iterates_is_never_consumed(make):
    """Generators and iterables of one's own are shown by their repr."""
    value = make()
    assert through_json([value]) == [repr(value)]


def test_a_generator_can_still_be_read_afterwards():
    """Logging a generator takes nothing from it."""
    generator = (number for number in range(3))
    plain({"g": generator})
    assert list(generator) == [0, 1, 2]


def test_an_endless_mapping_or_set_is_read_to_a_limit():
    """A mapping may make its keys up; a value it cannot give is marked."""
    shown = plain(EndlessMapping())
    assert len(shown) == 100_000
    assert (shown["0"], shown["1"]) == (0, "<unrenderable value: ZeroDivisionError>")
    assert len(plain(EndlessSet())) == 100_000


def test_an_interrupt_in_a_foreign_mapping_passes_through():
    """A mapping that is interrupted says nothing about its values."""

    class Interrupted(EndlessMapping):
        def __getitem__(self, key):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plain(Interrupted())


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("a", "a"),
        ("", ""),
        ("\ud800", "\\ud800"),
        (None, "null"),
        (True, "true"),
        (1, "1"),
        (2**70, str(2**70)),
        (1.5, "1.5"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (math.nan, "nan"),
        (b"\xff", "\\xff"),
        (Colour.RED, "1"),
        (Colour.DAY, "2020-01-02"),
        (Text.A, "a"),
        (dt.date(2020, 1, 2), "2020-01-02"),
        (uuid.UUID(int=0), "00000000-0000-0000-0000-000000000000"),
        (decimal.Decimal("1.0"), "1.0"),
        (np.int64(3), "3"),
        ((1, "a"), "(1, 'a')"),
        (frozenset(), "frozenset()"),
        (int, "<class 'int'>"),
        (len, "<built-in function len>"),
    ],
)
def test_a_key_of_any_kind_has_a_text(key, text):
    """JSON has texts as keys, so each kind of key has one."""
    assert plain_key(key) == text
    assert through_json({key: 1}) == {text: 1}


def test_a_key_that_raises_is_marked_and_its_value_kept():
    """A hostile key costs no value, its own included."""

    class HostileKey(Raising):
        def __hash__(self):
            return 1

    marker = "<unrenderable HostileKey: ZeroDivisionError>"
    assert through_json({HostileKey(): "kept", "a": 1}) == {marker: "kept", "a": 1}


def test_a_huge_integer_as_a_key_is_hexadecimal():
    """Python refuses to write it in decimal."""
    assert plain_key(HUGE) == hex(HUGE)


def test_keys_with_one_text_are_all_kept():
    """The later ones get a number, past names that are taken."""
    assert list(through_json({1: "a", "1#2": "b", "1": "c", 1.5: "d", "1.5": "e", None: "f", "null": "g"}).items()) == [
        ("1", "a"),
        ("1#2", "b"),
        ("1#3", "c"),
        ("1.5", "d"),
        ("1.5#2", "e"),
        ("null", "f"),
        ("null#2", "g"),
    ]


def test_thousands_of_keys_with_one_text_are_all_kept():
    """Numbering does not begin anew for each."""

    class Same:
        def __repr__(self):
            return "same"

    shown = plain({Same(): number for number in range(5_000)})
    assert list(shown.values()) == list(range(5_000))
    assert list(shown)[-1] == "same#5000"


def test_a_cycle_is_marked_where_it_closes():
    """What holds itself is shown once, by way of whatever containers."""
    a_list, a_dict, a_deque = [1], {"k": 1}, collections.deque([1])
    a_list.append(({"again": a_list},))
    a_dict["me"] = a_dict
    a_deque.append(a_deque)
    point = Point(1)
    point.y = [point]
    array = np.empty(1, dtype=object)
    array[0] = array
    assert through_json(a_list) == [1, [{"again": "<cycle: list>"}]]
    assert through_json(a_dict) == {"k": 1, "me": "<cycle: dict>"}
    assert through_json(a_deque) == [1, "<cycle: deque>"]
    assert through_json(point) == {"x": 1, "y": ["<cycle: Point>"]}
    assert through_json(array) == ["<cycle: ndarray>"]
    looped = Structlogged(None)
    looped.shown = looped
    assert through_json(looped) == "<cycle: Structlogged>"


def test_what_stands_in_several_places_is_no_cycle():
    """Only an ancestor makes one."""
    shared = [1]
    assert through_json([shared, {"k": shared}, (shared,)]) == [[1], {"k": [1]}, [[1]]]


def test_an_object_that_makes_new_ones_of_itself_for_ever_comes_to_an_end():
    """No identity repeats, so the depth ends it."""

    class Fresh:
        def __structlog__(self):
            return [Fresh()]

    assert b"<nested too deep: " in orjson.dumps(plain(Fresh()))


@pytest.mark.parametrize("nest", [lambda v: [v], lambda v: {"k": v}, lambda v: (v,), Structlogged])
def test_a_deep_nest_is_kept_to_the_limit_and_marked_there(nest):
    """10 000 levels neither overflow the stack nor lose what is above the limit."""
    value = "bottom"
    for _ in range(10_000):
        value = nest(value)
    line = orjson.dumps(plain({"deep": value, "after": 1}))
    assert json.loads(line)["after"] == 1
    assert b"<nested too deep: " in line
    # As many containers as the limit says, less what an object without a container of its own takes.
    assert line.count(b"[") + line.count(b"{") >= (MAX_DEPTH - 1 if b"Structlogged" not in line else 1)


def test_a_nest_within_the_limit_is_kept_whole():
    """The limit is where it is documented."""
    value = "bottom"
    for _ in range(MAX_DEPTH):
        value = [value]
    assert b"bottom" in orjson.dumps(plain(value))
    assert b"<nested too deep: list>" in orjson.dumps(plain([[value]]))


def test_ready_json_nested_deeper_than_readers_take_is_cut_as_well():
    """A fragment is no way round the limit."""
    line = orjson.dumps(plain({"f": orjson.Fragment(b"[" * 900 + b"]" * 900)}))
    assert b"<nested too deep: list>" in line
    json.loads(line)


def test_digits_that_python_may_not_write_are_hexadecimal():
    """A process may allow fewer digits than Python does by default."""
    allowed = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(640)
    try:
        shown = plain({"n": 10**700, "after": 1})
    finally:
        sys.set_int_max_str_digits(allowed)
    assert shown == {"n": hex(10**700), "after": 1}


def test_a_class_without_a_module_is_no_harm():
    """Some classes say they come from nowhere."""
    odd = type("Odd", (), {"__module__": None, "__repr__": lambda self: "odd"})
    assert plain([odd()]) == ["odd"]


def test_a_dead_proxy_costs_one_field():
    """A weak reference to what is gone raises at everything."""

    class Target:
        pass

    proxy = weakref.proxy(Target())
    shown = through_json({"p": proxy, "after": 1})
    assert shown["after"] == 1
    assert isinstance(shown["p"], str)


def test_bound_loggers_and_locals_of_structlog_are_shown():
    """A logger that slipped into an event is a text."""
    assert isinstance(plain(structlog.get_logger()), str)


def test_nothing_plain_shares_a_container_with_the_original():
    """What is changed afterwards is not seen in it."""
    value = {"l": [1], "d": {"k": [2]}}
    shown = plain(value)
    value["l"].append(3)
    value["d"]["k"].append(4)
    assert shown == {"l": [1], "d": {"k": [2]}}


def test_the_fields_of_a_whole_know_the_whole():
    """A copy's items that lead back to the original close a cycle."""
    whole = {"a": 1}
    whole["me"] = whole
    assert plain_fields(list(whole.items()), whole) == {"a": 1, "me": "<cycle: dict>"}


def test_the_items_of_a_mapping_are_taken_without_its_keys_methods():
    """A key that can no longer be hashed is no obstacle."""

    class Key:
        armed = False

        def __hash__(self):
            assert not self.armed
            return 1

        def __eq__(self, other):
            raise AssertionError

    key = Key()
    source = {key: 1, "a": 2}
    Key.armed = True
    assert items_of(source) == [(key, 1), ("a", 2)]
    assert items_of(OwnDict(a=1)) == [("a", 1)]
