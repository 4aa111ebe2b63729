"""Any Python value made plain: dicts with text keys, lists, text, numbers, booleans and None, as JSON has them."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import math
import os
import uuid
from collections import ChainMap, deque
from collections.abc import Mapping, ValuesView
from collections.abc import Set as AbstractSet
from typing import Any

import orjson

#: Containers nested deeper than this are replaced by a marker. orjson itself refuses more than 254 levels.
MAX_DEPTH = 200

_INT64_MIN, _UINT64_MAX = -(2**63), 2**64 - 1

#: Of a mapping or set that is not a built-in one, at most this many items are read: it may be endless.
_MAX_FOREIGN_ITEMS = 100_000


def plain(value: Any) -> Any:  # noqa: ANN401 - this is about any value
    """Return *value* made of plain built-in values that orjson takes, sharing no container with it.

    Never raises but for KeyboardInterrupt and SystemExit. What can be kept is kept; what cannot (a value whose
    ``__repr__`` raises, a cycle, a nest too deep) is replaced by a text in angle brackets that says so.

    - integers beyond 64 bits stay numbers, digit for digit; beyond 4 000 digits they are hexadecimal text;
    - lone surrogates and bytes that are not UTF-8 are written as backslash escapes;
    - sets, deques, named tuples and numpy arrays are lists; NaN and the infinities are null, as orjson has it;
    - dataclasses, attrs and pydantic objects and foreign mappings are dicts;
    - enum members stand for their value, Decimals, UUIDs and paths for their text, dates and times for ISO 8601 text,
      timedeltas for seconds; an object with ``__structlog__`` for what that returns;
    - everything else, exceptions, classes, functions, generators (never consumed), for its ``repr``.
    """
    return _plain(value, 0, set())


def plain_key(key: Any) -> str:  # noqa: ANN401 - any hashable may be a key
    """Return the text that a dict key has in JSON; ``None``, booleans and numbers as `json` writes them."""
    if type(key) is str:
        return _text(key)
    value = _guarded(key, MAX_DEPTH, set())
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, (bool, int, float)):
        return orjson.dumps(value).decode()
    return _represent(key)


def _plain(value: Any, depth: int, parents: set[int]) -> Any:  # noqa: ANN401
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


def _guarded(value: Any, depth: int, parents: set[int]) -> Any:  # noqa: ANN401
    identity = id(value)
    if identity in parents:
        return f"<cycle: {_type_name(value)}>"
    if depth > MAX_DEPTH:
        return f"<nested too deep: {_type_name(value)}>"
    parents.add(identity)
    try:
        # dict.copy and list.copy are one step for other threads; iterating over the original is not. These two are
        # taken here, not in _convert, to spare a frame a level: the interpreter allows a thousand by default.
        if isinstance(value, dict):
            return _mapping(list(dict.copy(value).items()), depth, parents)
        if isinstance(value, list):
            return [_plain(item, depth + 1, parents) for item in list.copy(value)]
        return _convert(value, depth, parents)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - its methods may raise anything, BaseExceptions of their own too
        return f"<unrenderable {_type_name(value)}: {_type_name(error)}>"
    finally:
        parents.discard(identity)


def _convert(value: Any, depth: int, parents: set[int]) -> Any:  # noqa: ANN401, C901, PLR0911, PLR0912
    # By isinstance on the built-in types, and by their own methods: a subclass cannot run code of its own here.
    if isinstance(value, enum.Enum):
        # Not .value, which a member may have made a property that raises.
        return _plain(value._value_, depth + 1, parents)  # noqa: SLF001
    if isinstance(value, tuple):
        return [_plain(item, depth + 1, parents) for item in tuple.__iter__(value)]
    if isinstance(value, (set, frozenset)):
        return [_plain(item, depth + 1, parents) for item in set(value)]
    if isinstance(value, str):
        return _text(str.__str__(value))
    if isinstance(value, int):
        return _integer(int.__index__(value))
    if isinstance(value, float):
        number = float.__float__(value)
        return number if math.isfinite(number) else None
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).decode("utf-8", "backslashreplace")
    if isinstance(value, orjson.Fragment):
        return _fragment(value)
    if isinstance(value, (dt.datetime, dt.date, dt.time)):
        return str(value.isoformat())
    if isinstance(value, dt.timedelta):
        return value.total_seconds()
    if isinstance(value, (decimal.Decimal, uuid.UUID)):
        return str(value)
    if isinstance(value, os.PathLike):
        path = os.fspath(value)
        return _text(path) if isinstance(path, str) else path.decode("utf-8", "backslashreplace")
    if isinstance(value, (type, BaseException)):
        return _represent(value)
    if isinstance(value, deque):
        return [_plain(item, depth + 1, parents) for item in deque.copy(value)]
    fields = _fields(value)
    if fields is not None:
        return _mapping(fields, depth, parents)
    if isinstance(value, Mapping):
        return _foreign_mapping(value, depth, parents)
    if isinstance(value, (AbstractSet, ValuesView)):
        return [_plain(item, depth + 1, parents) for item, _ in zip(value, range(_MAX_FOREIGN_ITEMS), strict=False)]
    if type(value).__module__.partition(".")[0] == "numpy" and callable(getattr(value, "tolist", None)):
        listed = value.tolist()
        return _represent(value) if type(listed) is type(value) else _plain(listed, depth + 1, parents)
    hook = getattr(type(value), "__structlog__", None)
    if callable(hook):
        return _plain(value.__structlog__(), depth + 1, parents)
    return _represent(value)


def _mapping(items: list[tuple[Any, Any]], depth: int, parents: set[int]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, item in items:
        name = plain_key(key)
        if name in made:
            # Two keys with one text, such as 1 and "1": both are kept, the later one under a name of its own.
            number = 2
            while f"{name}#{number}" in made:
                number += 1
            name = f"{name}#{number}"
        made[name] = _plain(item, depth + 1, parents)
    return made


def _foreign_mapping(value: Mapping[Any, Any], depth: int, parents: set[int]) -> dict[str, Any]:
    if isinstance(value, ChainMap):
        value = dict(value)
    items = []
    for key, _ in zip(value, range(_MAX_FOREIGN_ITEMS), strict=False):
        try:
            item = value[key]
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001
            item = f"<unrenderable value: {_type_name(error)}>"
        items.append((key, item))
    return _mapping(items, depth, parents)


def _fields(value: Any) -> list[tuple[str, Any]] | None:  # noqa: ANN401
    """Return the fields of a dataclass, attrs or pydantic object, or None if it is none of them.

    A field that is not there (an object made half) is left out; one that raises is marked.
    """
    kind = type(value)
    names: list[str]
    if dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind)]
    elif hasattr(kind, "__attrs_attrs__"):
        names = [field.name for field in kind.__attrs_attrs__]
    elif hasattr(kind, "model_fields") and hasattr(kind, "model_dump"):  # pydantic 2
        names = [*kind.model_fields, *(getattr(value, "__pydantic_extra__", None) or ())]
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
        except BaseException as error:  # noqa: BLE001
            fields.append((name, f"<unrenderable value: {_type_name(error)}>"))
    return fields


def _text(value: str) -> str:
    if value.isascii():
        return value
    return value.encode("utf-8", "backslashreplace").decode("utf-8")


def _integer(value: int) -> Any:  # noqa: ANN401
    if _INT64_MIN <= value <= _UINT64_MAX:
        return value
    # Python reads at most 4 300 digits by default, and takes quadratic time to write them.
    return orjson.Fragment(str(value)) if value.bit_length() < 13_000 else hex(value)  # noqa: PLR2004


def _fragment(value: orjson.Fragment) -> Any:  # noqa: ANN401
    # Somebody's ready JSON: taken only if it is JSON, and without line breaks of its own.
    contents = value.contents  # type: ignore[attr-defined]
    text = contents if isinstance(contents, bytes) else contents.encode()
    return orjson.loads(text)


def _represent(value: Any) -> str:  # noqa: ANN401
    try:
        return _text(str.__str__(repr(value)))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001
        return f"<unrenderable {_type_name(value)}: __repr__ raised {_type_name(error)}>"


def _type_name(value: object) -> str:
    return _text(str.__str__(type.__dict__["__name__"].__get__(type(value))))
