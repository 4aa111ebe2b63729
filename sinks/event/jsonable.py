"""Any Python value made plain: dicts with text keys, lists, text, numbers, booleans and None, as JSON has them."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import math
import os
import uuid
from collections import deque
from collections.abc import Mapping, ValuesView
from collections.abc import Set as AbstractSet
from itertools import islice
from typing import Any

import orjson

from outfall.sinks.event.depth import MAX_LEVELS, too_deep

#: Containers nested deeper than this are replaced by a marker; an event is one itself.
MAX_DEPTH = MAX_LEVELS - 2

_INT64_MIN, _UINT64_MAX = -(2**63), 2**64 - 1

#: Of a mapping or set that is not a built-in one, at most this many items are read: it may be endless.
_MAX_FOREIGN_ITEMS = 100_000

#: JSON with no more opening brackets cannot be nested too deep.
_MAX_FRAGMENT_BRACKETS = 50


def plain(value: Any) -> Any:
    """Return *value* made of plain built-in values that orjson takes, sharing no container with it.

    Args:
        value: Anything.

    Never raises but for KeyboardInterrupt and SystemExit. What can be kept is kept; what cannot (a value whose
    ``__repr__`` raises, a cycle, a nest too deep) is replaced by a text in angle brackets that says so.

    - integers beyond 64 bits stay numbers, digit for digit; beyond some 3 900 digits they are hexadecimal text;
    - lone surrogates and bytes that are not UTF-8 are written as backslash escapes;
    - sets, deques, named tuples and numpy arrays are lists; NaN and the infinities are null, as orjson has it;
    - dataclasses, attrs and pydantic objects and foreign mappings are dicts, without the fields that their class keeps
      out of the ``repr`` or, with pydantic, excludes: those are the ones that hold passwords;
    - enum members stand for their value, Decimals, UUIDs and paths for their text, dates and times for ISO 8601 text,
      timedeltas for seconds; an object with ``__structlog__`` for what that returns; an `orjson.Fragment` for its
      JSON on one line, or its text if it is no JSON;
    - everything else, exceptions, classes, functions, generators (never consumed), for its ``repr``.
    """
    return _plain(value, 0, set())


def cut(event: dict[str, Any]) -> dict[str, Any]:
    """Return *event*, which somebody else's JSON was decoded to, without what is nested too deep for orjson."""
    return plain(event) if too_deep(event) else event


def plain_fields(items: list[tuple[Any, Any]], whole: object) -> dict[str, Any]:
    """Return *items*, keys and values of *whole* or of a copy of it, as `plain` makes a dict of them."""
    return _mapping(items, 0, {id(whole)})


def items_of(value: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    """Return the items of any mapping; a value that cannot be got is a marker. No key is hashed or compared."""
    if issubclass(type(value), dict):
        return _items_of_dict(value)  # type: ignore[arg-type]
    items = []
    for key in islice(value, _MAX_FOREIGN_ITEMS):
        try:
            item = value[key]
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            item = f"<unrenderable value: {type_name(error)}>"
        items.append((key, item))
    return items


def _items_of_dict(value: dict[Any, Any]) -> list[tuple[Any, Any]]:
    # Either is one step for other threads, which iterating over the original is not. dict.copy is so whatever the
    # garbage collector runs meanwhile, but goes by the keys() of a subclass that has an __iter__ of its own.
    return list(dict.copy(value).items() if type(value) is dict else dict.items(value))


def plain_key(key: Any) -> str:
    """Return the text that a dict key has in JSON; ``None``, booleans and numbers as `json` writes them."""
    if type(key) is str:
        return _text(key)
    if key is None or type(key) is bool:
        return orjson.dumps(key).decode()
    # Far enough from the limit for an enum member whose value is a date, not for a whole nest in a key.
    value = _guarded(key, MAX_DEPTH - 2, set())
    if isinstance(value, str):
        return value
    if value is None and issubclass(type(key), float):
        return float.__repr__(key)  # NaN and the infinities, which are no JSON but may be text
    if value is None or isinstance(value, (bool, int, float)):
        return orjson.dumps(value).decode()
    return _represent(key)


def _plain(value: Any, depth: int, parents: set[int]) -> Any:
    kind = type(value)
    if kind is str:
        return _text(value)
    if kind is int:
        return _integer(value)
    if value is None or kind is bool:
        return value
    if kind is float:
        return value if math.isfinite(value) else None
    return _guarded(value, depth, parents)


def _guarded(value: Any, depth: int, parents: set[int]) -> Any:
    identity = id(value)
    if identity in parents:
        return f"<cycle: {type_name(value)}>"
    if depth > MAX_DEPTH:
        return f"<nested too deep: {type_name(value)}>"
    parents.add(identity)
    try:
        # These two are taken here, not in _convert, to spare a frame a level: the interpreter allows a thousand.
        # By the type and not isinstance, here and below: that asks __class__, which a proxy lies in and may raise in.
        if issubclass(type(value), dict):
            return _mapping(_items_of_dict(value), depth, parents)
        if issubclass(type(value), list):
            return [_plain(item, depth + 1, parents) for item in list.copy(value)]
        return _convert(value, depth, parents)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        return f"<unrenderable {type_name(value)}: {type_name(error)}>"
    finally:
        parents.discard(identity)


def _convert(value: Any, depth: int, parents: set[int]) -> Any:
    # The built-in types by their own methods: a subclass cannot run code of its own here.
    kind = type(value)
    if issubclass(kind, enum.Enum):
        # Not .value, which a member may have made a property that raises.
        return _plain(value._value_, depth + 1, parents)
    if issubclass(kind, tuple):
        return [_plain(item, depth + 1, parents) for item in tuple.__iter__(value)]
    if issubclass(kind, (set, frozenset)):
        return _in_order([_plain(item, depth + 1, parents) for item in set(value)])
    if issubclass(kind, str):
        return _text(str.__str__(value))
    if issubclass(kind, int):
        return _integer(int.__index__(value))
    if issubclass(kind, float):
        number = float.__float__(value)
        return number if math.isfinite(number) else None
    if issubclass(kind, (bytes, bytearray, memoryview)):
        return _decoded(memoryview(value))
    if kind is orjson.Fragment:
        return _fragment(value)
    if issubclass(kind, (dt.datetime, dt.date, dt.time)):
        return _text(str.__str__(value.isoformat()))
    if issubclass(kind, dt.timedelta):
        return dt.timedelta.total_seconds(value)
    if issubclass(kind, (decimal.Decimal, uuid.UUID)):
        return _text(str.__str__(str(value)))
    if isinstance(value, os.PathLike):
        path = os.fspath(value)
        return _text(str.__str__(path)) if isinstance(path, str) else _decoded(memoryview(path))
    if issubclass(kind, (type, BaseException)):
        return _represent(value)
    if issubclass(kind, deque):
        return [_plain(item, depth + 1, parents) for item in list(deque.__iter__(value))]
    fields = _fields(value)
    if fields is not None:
        return _mapping(fields, depth, parents)
    if issubclass(kind, Mapping):
        return _mapping(items_of(value), depth, parents)
    if issubclass(kind, (AbstractSet, ValuesView)):
        return [_plain(item, depth + 1, parents) for item in list(islice(value, _MAX_FOREIGN_ITEMS))]
    if str(kind.__module__).partition(".")[0] == "numpy" and callable(getattr(value, "tolist", None)):
        listed = value.tolist()
        return _represent(value) if type(listed) is kind else _plain(listed, depth + 1, parents)
    hook = getattr(kind, "__structlog__", None)
    if callable(hook):
        return _plain(value.__structlog__(), depth + 1, parents)
    return _represent(value)


def _in_order(members: list[Any]) -> list[Any]:
    """Return the members of a set in an order that is the same in every process; that of a set is not."""
    try:
        members.sort()
    except TypeError:  # of several types
        members.sort(key=orjson.dumps)
    return members


def _mapping(items: list[tuple[Any, Any]], depth: int, parents: set[int]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    numbers: dict[str, int] = {}
    for key, item in items:
        name = plain_key(key)
        if name in made:
            # Two keys with one text, such as 1 and "1": both are kept, the later one under a name of its own.
            number = numbers.get(name, 2)
            while f"{name}#{number}" in made:
                number += 1
            numbers[name] = number + 1
            name = f"{name}#{number}"
        made[name] = _plain(item, depth + 1, parents)
    return made


def _fields(value: Any) -> list[tuple[str, Any]] | None:
    """Return the fields of a dataclass, attrs or pydantic object, or None if it is none of them.

    A field that is not there (an object made half) is left out, and so is one that the class keeps out of its repr, as
    it does with passwords; one that raises is marked.
    """
    kind = type(value)
    names: list[str]
    if dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind) if field.repr]
    elif hasattr(kind, "__attrs_attrs__"):
        # repr may also be a function that masks the value: what it hides is not shown here either.
        names = [field.name for field in kind.__attrs_attrs__ if field.repr is True]
    elif hasattr(kind, "model_fields") and hasattr(kind, "model_dump"):  # pydantic 2
        names = [name for name, field in kind.model_fields.items() if field.repr and not field.exclude]
        names += getattr(value, "__pydantic_extra__", None) or ()
    elif hasattr(kind, "__fields__") and hasattr(kind, "__get_validators__"):  # pydantic 1
        names = list(kind.__fields__)
    else:
        return None
    fields: list[tuple[str, Any]] = []
    for name in names:
        try:
            fields.append((name, getattr(value, name)))
        except AttributeError:
            continue
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            fields.append((name, f"<unrenderable value: {type_name(error)}>"))
    return fields


def _text(value: str) -> str:
    if value.isascii():
        return value
    return value.encode("utf-8", "backslashreplace").decode("utf-8")


def _decoded(value: memoryview) -> str:
    return bytes(value).decode("utf-8", "backslashreplace")


def _integer(value: int) -> Any:
    if _INT64_MIN <= value <= _UINT64_MAX:
        return value
    # Python reads at most 4 300 digits by default, and takes quadratic time to write them.
    if value.bit_length() < 13_000:
        try:
            return orjson.Fragment(str(value))
        except ValueError:
            pass  # sys.set_int_max_str_digits allows fewer
    return hex(value)


def _fragment(value: orjson.Fragment) -> Any:
    # Somebody's ready JSON: taken as JSON only if it is that.
    text = orjson.dumps(value)
    try:
        parsed = orjson.loads(text)
    except ValueError:
        return text.decode("utf-8", "backslashreplace")
    if text.count(b"[") + text.count(b"{") > _MAX_FRAGMENT_BRACKETS:
        return plain(parsed)  # may be nested deeper than readers take
    # As it is, which keeps digits that parsing loses. Line breaks in JSON stand between its tokens, never in a text.
    return orjson.Fragment(text.replace(b"\r", b" ").replace(b"\n", b" "))


def _represent(value: Any) -> str:
    try:
        return _text(str.__str__(repr(value)))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        return f"<unrenderable {type_name(value)}: __repr__ raised {type_name(error)}>"


def type_name(value: object) -> str:
    """Return the name of *value*'s class, whatever that says of itself."""
    return _text(str.__str__(type.__dict__["__name__"].__get__(type(value))))
