"""Events as JSON and back: `OrjsonRenderer`, and what reads its lines without losing a digit."""

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
from outfall.sinks.event.jsonable import cut, items_of, plain_fields, type_name
from outfall.sinks.event.levels import NUMBERS

if TYPE_CHECKING:
    from collections.abc import Callable

# Whatever makes orjson run Python code while it walks a container that another thread may be changing is passed by:
# it was seen to crash the process (orjson 3.13, a tzinfo written in Python). Those values take the slow path.
OPTIONS = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS

#: With the line break that ends a line of JSON.
LINE = OPTIONS | orjson.OPT_APPEND_NEWLINE


def plain_line(event: Any, level: float, option: int = LINE) -> bytes | None:
    r"""Return *event* as a line of JSON if it is a plain event: what every short cut of a sink starts with.

    Plain is a dict without metadata keys, ``exc_info`` and ``exception``, nested no deeper than orjson bears. What a
    sink with a usual `OrjsonRenderer` makes of it is this line.

    Args:
        event: The event, or whatever a sink was given.
        level: The sink's level number. Where it is not 0, an event with a ``level_number`` is not plain.
        option: orjson's options. Default `LINE`, which ends the line with ``"\n"``.

    Returns:
        The line; ``b""`` if *level* keeps the event out; None if it is not plain and has to take the pipeline.

    Raises:
        Exception: If the event is not plain in another way (no known level, a value that orjson does not take). The
            pipeline is the way for it too.
    """
    if (
        event.__class__ is not dict
        or "exc_info" in event
        or "exception" in event  # whose parts go with it where it is sent: see line_to_send
        or "_record" in event
        or "_logger" in event
        or "_name" in event
        or "_from_structlog" in event
        or (is_tracked(event) and too_deep(event))
    ):
        return None
    if level:
        if "level_number" in event:  # it wins over the level, and may be anything
            return None
        if NUMBERS[event["level"]] < level:
            return b""
    return dumps(event, None, option)


def line_to_send(event: Mapping[str, Any]) -> bytes:
    """Return *event* as a line of JSON that leaves the process: with type and message of an exception it tells of."""
    parts = parts_of_text(event)
    return _renderer.render({**event, **parts} if parts else event)


class OrjsonRenderer:
    """Render *any* event dict as one line of UTF-8 JSON, as bytes; never fails.

    A structlog processor to put last, for sinks and for `structlog.BytesLogger` alike. The usual event costs one
    ``orjson.dumps``. What that refuses (objects, sets, keys that are not text, huge integers, lone surrogates, cycles,
    nests deeper than 64 …) takes a slower way that keeps every field it can and marks, in angle brackets, the one it
    could not; the rules are those of `plain`. NaN and the infinities become null.

    The event is never changed. Metadata keys (``_record``, ``_logger``, ``_name``, ``_from_structlog``) are left out.
    An ``exc_info`` that nobody rendered becomes ``exception_type``, ``exception_message`` and ``exception``, the
    traceback: True stands for the exception being handled in the calling thread. Line breaks
    inside values are escaped, so the result is always one line, without a final newline.

    Args:
        tracebacks: ``"text"`` (default) for the interpreter's own format, ``"dict"`` for structlog's dict tracebacks
            without local variables, or a callable that gets an ``(type, value, traceback)`` tuple, such as a
            `structlog.tracebacks.ExceptionDictTransformer`.
        sort_keys: Sort the keys, nested ones too. Default False: the event's own order.
        key_order: Keys to put first, in this order, where present; for example ``("event", "level", "timestamp")``.
            Default none.
        snapshot: Always take the slower way, which copies all containers and lets orjson see plain values alone.
            Default False, which trusts four kinds of value: `enum.Enum` members, whose value orjson reads by Python
            code, and which crash the process if that raises or if another thread changes the container they are in
            meanwhile; `uuid.UUID` objects made half, by ``UUID.__new__``, which crash it too; tuples in a cycle or a
            deep nest, for which orjson 3.12.0 and 3.13.0 have no limit and crash; and `orjson.Fragment`, which is
            written as it is, though it be no JSON or more than one line.

    Raises:
        ValueError: If *tracebacks* is neither of these, or *key_order* comes with *sort_keys*.
        TypeError: If *key_order* is one text, or anything else but some texts.

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
        """True if the usual event is exactly ``orjson.dumps(event, option=OPTIONS)``: what hot paths inline."""
        return not (self._sort_keys or self._key_order or self._snapshot) and type(self) is OrjsonRenderer

    def __call__(self, logger: object, name: str | None, event_dict: Mapping[str, Any]) -> bytes:
        """Return *event_dict* as one line of JSON; *logger* and *name* are not looked at."""
        return self.render(event_dict)

    def render(self, event: Mapping[str, Any], option: int = 0) -> bytes:
        """Return *event* as one line of JSON, with more of orjson's option bits, such as ``OPT_APPEND_NEWLINE``."""
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
        # Not within the except clause, where the exception that exc_info=True stands for is orjson's own.
        try:
            return self._render_slowly(event, prepared, option)
        except RecursionError:  # there was not even room for the call
            return dumps(_LOST, None, option)

    def _prepared(self, event: Mapping[Any, Any]) -> dict[Any, Any]:
        """Return a shallow copy without metadata, with the exception rendered, in the order asked for.

        Raises what the methods of hostile keys raise.
        """
        made: dict[Any, Any] = dict(items_of(event)) if issubclass(type(event), Mapping) else {"event": event}
        for key in METADATA:
            made.pop(key, None)
        if "exc_info" in made:
            try:
                exc_info = exc_info_of(made["exc_info"])
            except TypeError:
                pass  # somebody's own field
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
            with contextlib.suppress(Exception):  # a time that cannot be computed with
                if stamp.tzinfo is None:
                    # It is local time, and whoever reads text without a zone takes it for UTC.
                    made["timestamp"] = stamp.astimezone()
        if self._key_order:
            made = {key: made[key] for key in self._key_order if key in made} | made
        return made

    def _fields(self, event: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
        """Return the items of what `_prepared` returns, also where a key's own methods raise."""
        try:
            return list(self._prepared(event).items())
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:
            pass
        # Of the keys that are text only their content is asked, of the others nothing; those come last.
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
            # A text of another type may have its own idea of what it is equal to.
            kept = [(k, v) for k, v in fields if not issubclass(type(k), str) or str.__str__(k) not in METADATA]
            # What is no mapping has become a field, and holds it no more than that.
            whole = event if issubclass(type(event), Mapping) else kept
            return dumps(plain_fields(kept, whole), None, option)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as raised:
            error = raised
        # What can be kept without another call of a Python function, for which the stack may have no room.
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


#: orjson makes a float of an integer beyond 64 bits.
_LONG_NUMBER = re.compile(rb"[0-9]{19}")


#: What Python's own json writes for floats that JSON has no number for.
_NO_NUMBER = re.compile(rb"\b(?:NaN|Infinity)\b")


def loads(data: bytes) -> Any:
    """Return what the JSON in *data* stands for, integers of any length with all their digits, and NaN as json has it.

    Raises:
        ValueError: If *data* is no JSON.
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
    """Return the event in *data*; text that is no JSON object is ``{"event": text}``."""
    try:
        decoded = loads(data)
    except (ValueError, RecursionError):
        decoded = None
    if isinstance(decoded, dict):
        # Text that somebody else rendered may be nested deeper than anything here may encode again.
        return cut(decoded)
    return {"event": data.decode("utf-8", "backslashreplace").rstrip("\r\n")}


_SCALARS = frozenset({str, int, float, bool, type(None)})

_LOST = {"event": "<unrenderable event>", "unrenderable": "RecursionError"}

_renderer = OrjsonRenderer()
