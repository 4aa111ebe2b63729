"""Converts any Python value to plain JSON types: dicts with text keys, lists, text, numbers, booleans and None."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import math
import os
import pathlib
import uuid
from collections import deque
from collections.abc import Mapping, ValuesView
from collections.abc import Set as AbstractSet
from itertools import islice
from typing import Any

import orjson

from outfall.sinks.event.depth import MAX_LEVELS, too_deep

#: Containers nested deeper than this in an event are replaced by a marker.
MAX_DEPTH = MAX_LEVELS - 2

_INT64_MIN, _UINT64_MAX = -(2**63), 2**64 - 1

#: The number of items read of mappings and sets that are not built-in types, which may be endless.
_MAX_FOREIGN_ITEMS = 100_000

#: JSON with at most this many opening brackets cannot be nested too deep.
_MAX_FRAGMENT_BRACKETS = 50


def plain(value: Any) -> Any:
    """Convert *value* to plain built-in values that orjson accepts, without sharing containers.

    Args:
        value: Any value.

    Raises only KeyboardInterrupt and SystemExit. A value that cannot be converted (its ``__repr__`` raises, it is part
    of a cycle or nested too deep) is replaced by a text in angle brackets that says so.

    - Integers beyond 64 bits stay numbers with all digits; beyond some 3 900 digits they become hexadecimal text.
    - Lone surrogates, and bytes that are not UTF-8, become backslash escapes.
    - Sets, deques, named tuples and numpy arrays become lists. NaN and the infinities become null, as with orjson.
    - Dataclasses, attrs and pydantic objects and other mappings become dicts. Fields that the class keeps out of its
      ``repr``, or that pydantic excludes, are left out: they may hold passwords.
    - Enum members become their value; Decimals, UUIDs and paths their text; dates and times ISO 8601 text; timedeltas
      seconds; an object with ``__structlog__`` the result of that method; an `orjson.Fragment` its JSON on one line, or
      its text if it is not JSON.
    - Everything else (exceptions, classes, functions, generators, which are never consumed) becomes its ``repr``.
    """
    return plain_value(value, 0, set())


def cut(event: dict[str, Any]) -> dict[str, Any]:
    """Return *event*, decoded from JSON, with values replaced that are nested too deep for orjson."""
    return plain(event) if too_deep(event) else event


def plain_fields(items: list[tuple[Any, Any]], whole: object) -> dict[str, Any]:
    """Return a dict of plain values for *items*, the keys and values of *whole* or of a copy of it."""
    return _mapping(items, 0, {id(whole)})


def items_of(value: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    """Return the items of any mapping, with a marker for a value that cannot be read; no key is hashed or compared."""
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
    # Both ways are atomic for other threads; iterating over the original is not. dict.copy is atomic even if the
    # garbage collector runs meanwhile, but it calls keys() of a subclass that overrides __iter__.
    return list(dict.copy(value).items() if type(value) is dict else dict.items(value))


def plain_key(key: Any) -> str:
    """Return the text of a dict key in JSON; ``None``, booleans and numbers are written as by `json`."""
    if type(key) is str:
        return _text(key)
    if key is None or type(key) is bool:
        return orjson.dumps(key).decode()
    # The depth allows an enum member whose value is a date, but no deep nesting in a key.
    value = _guarded(key, MAX_DEPTH - 2, set())
    if isinstance(value, str):
        return value
    if value is None and issubclass(type(key), float):
        return float.__repr__(key)  # NaN and the infinities
    if value is None or isinstance(value, (bool, int, float)):
        return orjson.dumps(value).decode()
    return _represent(key)


def plain_value(value: Any, depth: int, parents: set[int]) -> Any:
    """Return `plain` of *value*, which is *depth* levels deep in containers with the ids *parents*."""
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
        # These two are handled here and not in _convert: one frame less for each level of nesting.
        # Here and below by the type, since isinstance reads __class__, which may raise, or be wrong for a proxy.
        if issubclass(type(value), dict):
            return _mapping(_items_of_dict(value), depth, parents)
        if issubclass(type(value), list):
            return [plain_value(item, depth + 1, parents) for item in list.copy(value)]
        return _convert(value, depth, parents)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        return f"<unrenderable {type_name(value)}: {type_name(error)}>"
    finally:
        parents.discard(identity)


def _convert(value: Any, depth: int, parents: set[int]) -> Any:
    # Values of built-in types are read by these types' methods, so that no code of a subclass runs.
    kind = type(value)
    if issubclass(kind, enum.Enum):
        # Not .value, which may be a property that raises.
        return plain_value(value._value_, depth + 1, parents)
    if issubclass(kind, (dt.date, dt.time)):  # a datetime is a date
        return _text(str.__str__(value.isoformat()))
    if issubclass(kind, (decimal.Decimal, uuid.UUID, pathlib.PurePath)):
        return _text(str.__str__(str(value)))
    if issubclass(kind, dt.timedelta):
        return dt.timedelta.total_seconds(value)
    if issubclass(kind, tuple):
        return [plain_value(item, depth + 1, parents) for item in tuple.__iter__(value)]
    if issubclass(kind, (set, frozenset)):
        return _in_order([plain_value(item, depth + 1, parents) for item in set(value)])
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
    if isinstance(value, os.PathLike):
        path = os.fspath(value)
        return _text(str.__str__(path)) if isinstance(path, str) else _decoded(memoryview(path))
    if issubclass(kind, (type, BaseException)):
        return _represent(value)
    if issubclass(kind, deque):
        return [plain_value(item, depth + 1, parents) for item in list(deque.__iter__(value))]
    fields = _fields(value)
    if fields is not None:
        return _mapping(fields, depth, parents)
    if issubclass(kind, Mapping):
        return _mapping(items_of(value), depth, parents)
    if issubclass(kind, (AbstractSet, ValuesView)):
        return [plain_value(item, depth + 1, parents) for item in list(islice(value, _MAX_FOREIGN_ITEMS))]
    if str(kind.__module__).partition(".")[0] == "numpy" and callable(getattr(value, "tolist", None)):
        listed = value.tolist()
        return _represent(value) if type(listed) is kind else plain_value(listed, depth + 1, parents)
    hook = getattr(kind, "__structlog__", None)
    if callable(hook):
        return plain_value(value.__structlog__(), depth + 1, parents)
    return _represent(value)


def _in_order(members: list[Any]) -> list[Any]:
    """Return the members of a set in an order that is the same in every process."""
    try:
        members.sort()
    except TypeError:  # of several types
        members.sort(key=orjson.dumps)
    return members


def _mapping(items: list[tuple[Any, Any]], depth: int, parents: set[int]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    numbers: dict[str, int] = {}
    for key, item in items:
        name = key if type(key) is str and key.isascii() else plain_key(key)
        if name in made:
            # Two keys have the same text, such as 1 and "1": keep both, the later one with a number added.
            number = numbers.get(name, 2)
            while f"{name}#{number}" in made:
                number += 1
            numbers[name] = number + 1
            name = f"{name}#{number}"
        kind = type(item)
        usual = item is None or kind is bool or (kind is str and item.isascii())
        made[name] = item if usual else plain_value(item, depth + 1, parents)
    return made


def _fields(value: Any) -> list[tuple[str, Any]] | None:
    """Return the fields of a dataclass, attrs or pydantic object; None for other objects.

    Missing fields (of an object without full state) are left out, and so are fields that the class keeps out of its
    repr, such as passwords. A field that raises gets a marker as its value.
    """
    kind = type(value)
    names: list[str]
    if dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind) if field.repr]
    elif hasattr(kind, "__attrs_attrs__"):
        # repr may also be a function that masks the value; such a field is left out.
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
    # It may hold anything: use it as JSON only if it is valid.
    text = orjson.dumps(value)
    try:
        parsed = orjson.loads(text)
    except ValueError:
        return text.decode("utf-8", "backslashreplace")
    if text.count(b"[") + text.count(b"{") > _MAX_FRAGMENT_BRACKETS:
        return plain(parsed)  # may be nested deeper than readers take
    # Unparsed, which keeps all digits. Line breaks in JSON are between tokens, never within texts.
    return orjson.Fragment(text.replace(b"\r", b" ").replace(b"\n", b" "))


def _represent(value: Any) -> str:
    try:
        return _text(str.__str__(repr(value)))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        return f"<unrenderable {type_name(value)}: __repr__ raised {type_name(error)}>"


def type_name(value: object) -> str:
    """Return the name of *value*'s class, even if its metaclass overrides ``__name__``."""
    return _text(str.__str__(type.__dict__["__name__"].__get__(type(value))))
