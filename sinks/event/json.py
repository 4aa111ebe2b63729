"""Events to JSON and back: `OrjsonRenderer`, and `loads`, which keeps every digit."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import orjson
from orjson import dumps

from outfall.sinks.event.depth import is_tracked, too_deep
from outfall.sinks.event.event import METADATA
from outfall.sinks.event.exceptions import ExcInfo, add_parts, exc_info_of, parts_of_text, traceback_text
from outfall.sinks.event.jsonable import cut, items_of, plain_fields, plain_value, type_name
from outfall.sinks.event.levels import NUMBERS

if TYPE_CHECKING:
    from collections.abc import Callable

# orjson must not run Python code while it iterates over a container that another thread may change: orjson 3.13 was
# seen to crash the process then (with a tzinfo written in Python). Values of these types take the slow path.
OPTIONS = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS

#: The same options, with a line break after the JSON.
LINE = OPTIONS | orjson.OPT_APPEND_NEWLINE


def plain_line(event: Any, level: float, option: int = LINE) -> bytes | None:
    r"""Return *event* as a line of JSON if it is a plain event; the shortcuts of all sinks call this.

    An event is plain if it is a dict without metadata keys, ``exc_info`` and ``exception``, and not nested too deep for
    orjson. A default `OrjsonRenderer` renders it as the same line.

    Args:
        event: What the sink was given.
        level: The sink's level number. If it is not 0, an event with a ``level_number`` is not plain.
        option: orjson's options. Default `LINE`, which ends the line with ``"\n"``.

    Returns:
        The line; ``b""`` if *level* filters the event; None if the event is not plain and has to take the pipeline.

    Raises:
        Exception: If the event is not plain for another reason (an unknown level, a value that orjson refuses). It has
            to take the pipeline then too.
    """
    if (
        event.__class__ is not dict
        or "exc_info" in event
        or "exception" in event  # its type and message may have to be added: see line_to_send
        or "_record" in event
        or "_logger" in event
        or "_name" in event
        or "_from_structlog" in event
        or (is_tracked(event) and too_deep(event))
    ):
        return None
    if level:
        if "level_number" in event:  # it wins over the level, and may have any type
            return None
        if NUMBERS[event["level"]] < level:
            return b""
    return dumps(event, None, option)


def line_to_send(event: Mapping[str, Any]) -> bytes:
    """Return *event* as JSON for another process: with type and message of the exception, if they can be known."""
    try:
        parts = parts_of_text(event) if "exception" in event else None
    except Exception:  # raised by a key
        parts = None
    return _renderer.render({**event, **parts} if parts else event)


class OrjsonRenderer:
    """Render *any* event dict as one line of UTF-8 JSON, as bytes; never fails.

    It is a last structlog processor, for sinks and for `structlog.BytesLogger`. The usual event costs one
    ``orjson.dumps``. If orjson refuses a value (objects, sets, keys that are not text, huge integers, lone surrogates,
    cycles, nesting deeper than 64 …), a slower conversion keeps every field that it can. It replaces a value that it
    cannot keep by a text in angle brackets; `plain` has the rules. NaN and the infinities become null.

    The event is never changed. Metadata keys (``_record``, ``_logger``, ``_name``, ``_from_structlog``) are left out.
    An unrendered ``exc_info`` becomes ``exception_type``, ``exception_message`` and ``exception``, the traceback; True
    stands for the exception that the calling thread is handling. Line breaks in values are escaped, so the result is
    always one line, without a final newline.

    Args:
        tracebacks: ``"text"`` (default) for the interpreter's own format, ``"dict"`` for structlog's dict tracebacks
            without local variables, or a callable that gets a tuple ``(type, value, traceback)``, such as a
            `structlog.tracebacks.ExceptionDictTransformer`.
        sort_keys: Sort the keys, also those of nested dicts. Default False: the event's own order.
        key_order: Keys to put first, in this order, if present; for example ``("event", "level", "timestamp")``.
            Default: none.
        snapshot: Always use the slower conversion, which copies all containers and passes only plain values to orjson.
            Default False: four kinds of values can do harm. `enum.Enum` members, whose value orjson reads by Python
            code, crash the process if that code raises, or if another thread changes their container meanwhile. A
            `uuid.UUID` without state, made by ``UUID.__new__``, crashes it too. Tuples in a cycle or in deep nesting
            crash orjson 3.12.0 and 3.13.0, which do not limit their depth. An `orjson.Fragment` is written as it is,
            even if it is not JSON or has several lines.

    Raises:
        ValueError: If *tracebacks* is none of these, or *key_order* is given with *sort_keys*.
        TypeError: If *key_order* is not a sequence of texts.

    Safe from any thread; holds no lock and no state.

    Source: https://github.com/ijl/orjson and `structlog.processors.JSONRenderer`.
    """

    __slots__ = ("_format", "_key_order", "_options", "_snapshot", "_sort_keys", "_tracebacks")

    def __init__(
        self,
        *,
        tracebacks: Literal["text", "dict"] | Callable[[ExcInfo], Any] = "text",
        sort_keys: bool = False,
        key_order: Iterable[str] = (),
        snapshot: bool = False,
    ) -> None:
        if tracebacks == "text":
            self._format: Callable[[ExcInfo], Any] = traceback_text
        elif tracebacks == "dict":
            from structlog.tracebacks import ExceptionDictTransformer

            self._format = ExceptionDictTransformer(show_locals=False)
        elif callable(tracebacks):
            self._format = tracebacks
        else:
            msg = f"tracebacks={tracebacks!r} is not 'text', 'dict' or a callable"
            raise ValueError(msg)
        keys = tuple(key_order) if isinstance(key_order, Iterable) and not isinstance(key_order, str) else (None,)
        if not all(isinstance(key, str) for key in keys):
            msg = f"key_order={key_order!r} is not a sequence of texts"
            raise TypeError(msg)
        if sort_keys and keys:
            msg = f"key_order={key_order!r} has no meaning with sort_keys=True"
            raise ValueError(msg)
        self._tracebacks = tracebacks
        self._sort_keys = bool(sort_keys)
        self._key_order = keys
        self._snapshot = bool(snapshot)
        self._options = OPTIONS | (orjson.OPT_SORT_KEYS if sort_keys else 0)

    def __repr__(self) -> str:
        return (
            f"OrjsonRenderer(tracebacks={self._tracebacks!r}, sort_keys={self._sort_keys!r}, "
            f"key_order={self._key_order!r}, snapshot={self._snapshot!r})"
        )

    @property
    def is_plain(self) -> bool:
        """True if plain events are rendered by ``orjson.dumps(event, option=OPTIONS)``, as by ``plain_line``."""
        return not (self._sort_keys or self._key_order or self._snapshot) and type(self) is OrjsonRenderer

    def __call__(self, logger: object, name: str | None, event_dict: Mapping[str, Any]) -> bytes:
        """Return *event_dict* as one line of JSON; *logger* and *name* are ignored."""
        return self.render(event_dict)

    def render(self, event: Mapping[str, Any], option: int = 0) -> bytes:
        """Return *event* as one line of JSON.

        Args:
            event: The event.
            option: Further options of orjson's, such as ``OPT_APPEND_NEWLINE``.
        """
        option |= self._options
        prepared = None
        try:
            if not (
                type(event) is not dict
                or "exc_info" in event
                or "_record" in event
                or "_logger" in event
                or "_name" in event
                or "_from_structlog" in event
                or self._key_order
                or self._snapshot
                or (is_tracked(event) and too_deep(event))
            ):
                return dumps(event, None, option)
            prepared = self._prepared(event)
            if not (self._snapshot or (is_tracked(prepared) and too_deep(prepared))):
                return dumps(prepared, None, option)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:
            pass
        # Outside of the except block: within it, exc_info=True would mean orjson's own exception.
        try:
            if prepared is None:
                prepared = self._prepared(event)
            # An event that is not a mapping has become a field, and is not the container of the items.
            parents = {id(event if issubclass(type(event), Mapping) else prepared)}
            made = {k: v if type(v) in _SCALARS else plain_value(v, 1, parents) for k, v in prepared.items()}
            return dumps(made, None, option)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:
            pass  # a number or text that orjson refuses, or a key that is not text
        try:
            return self._render_slowly(event, prepared, option)
        except RecursionError:  # the stack has no room even for this call
            return dumps(_LOST, None, option)

    def _prepared(self, event: Mapping[Any, Any]) -> dict[Any, Any]:
        """Return a shallow copy in the wanted order, without metadata and with the exception rendered.

        Raises:
            BaseException: The exceptions that methods of hostile keys raise.
        """
        made: dict[Any, Any]
        if type(event) is dict:
            made = event.copy()
        else:
            made = dict(items_of(event)) if issubclass(type(event), Mapping) else {"event": event}
        for key in METADATA:
            made.pop(key, None)
        if "exc_info" in made:
            try:
                exc_info = exc_info_of(made["exc_info"])
            except TypeError:
                pass  # a field of the application that has this name
            else:
                del made["exc_info"]
                if exc_info is not None:
                    shown = self._exception(exc_info)
                    if isinstance(shown, str):
                        add_parts(made, exc_info[1])
                    if shown is not None:
                        made["exc_info" if "exception" in made else "exception"] = shown
        stamp: Any = made.get("timestamp")
        if issubclass(type(stamp), dt.datetime):
            with contextlib.suppress(Exception):  # a time out of the platform's range
                if stamp.tzinfo is None:
                    # It is local time, but readers take text without a zone for UTC.
                    made["timestamp"] = stamp.astimezone()
        if self._key_order:
            made = {key: made[key] for key in self._key_order if key in made} | made
        return made

    def _fields(self, event: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
        """Return the items of `_prepared`, even if methods of a key raise."""
        try:
            return list(self._prepared(event).items())
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:
            pass
        # Use the plain text of text keys, and call no method of other keys, which come last.
        others: list[tuple[Any, Any]] = []
        texts: dict[str, Any] = {}
        for key, value in items_of(event):
            name = str.__str__(key) if issubclass(type(key), str) else None
            if name is None or name in texts:
                others.append((key, value))
            else:
                texts[name] = value
        return [*self._prepared(texts).items(), *others]

    def _exception(self, exc_info: ExcInfo) -> Any:
        """Return *exc_info* rendered."""
        try:
            return self._format(exc_info)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as raised:
            return f"<unrenderable traceback of {type_name(exc_info[1])}: {type_name(raised)}>"

    def _render_slowly(self, event: Mapping[Any, Any], prepared: dict[Any, Any] | None, option: int) -> bytes:
        error: BaseException
        try:
            fields = self._fields(event) if prepared is None else list(prepared.items())
            # As plain text, since a subclass of str may override __eq__.
            kept = [(k, v) for k, v in fields if not issubclass(type(k), str) or str.__str__(k) not in METADATA]
            # An event that is not a mapping has become a field, and is not the container of the items.
            whole = event if issubclass(type(event), Mapping) else kept
            return dumps(plain_fields(kept, whole), None, option)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as raised:
            error = raised
        # Keep what can be kept without calling Python functions, for which the stack may have no room.
        made: dict[str, Any] = {}
        source: Any = event if prepared is None else prepared
        items: Any = list(dict.items(source)) if issubclass(type(source), dict) else ()
        for key, value in items:
            if type(key) is str and type(value) in _SCALARS and key not in METADATA:
                try:
                    dumps({key: value})
                    made[key] = value
                except Exception:
                    continue
        made.setdefault("event", "<unrenderable event>")
        made["unrenderable"] = type(error).__name__
        return dumps(made, None, option)


#: Numbers that may have more than 64 bits, which orjson decodes as floats.
_LONG_NUMBER = re.compile(rb"[0-9]{19}")


#: The words of Python's json module for floats that JSON cannot represent.
_NO_NUMBER = re.compile(rb"\b(?:NaN|Infinity)\b")


def loads(data: bytes) -> Any:
    """Decode the JSON in *data*; integers of any length keep all digits, and NaN is accepted, as by `json`.

    Raises:
        ValueError: If *data* is not JSON.
        RecursionError: If it is nested too deep.
    """
    if _LONG_NUMBER.search(data):
        return json.loads(data)
    try:
        return orjson.loads(data)
    except ValueError:
        if not _NO_NUMBER.search(data):
            raise
        return json.loads(data)


def event_of(data: bytes) -> dict[str, Any]:
    """Return the event in *data*; text that is not a JSON object gives ``{"event": text}``."""
    try:
        decoded = loads(data)
    except (ValueError, RecursionError):
        decoded = None
    if isinstance(decoded, dict):
        # JSON from elsewhere may be nested too deep to be encoded again.
        return cut(decoded)
    return {"event": data.decode("utf-8", "backslashreplace").rstrip("\r\n")}


_SCALARS = frozenset({str, int, float, bool, type(None)})

_LOST = {"event": "<unrenderable event>", "unrenderable": "RecursionError"}

_renderer = OrjsonRenderer()
