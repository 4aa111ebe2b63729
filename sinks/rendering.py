"""Events as lines of JSON: `OrjsonRenderer`."""

from __future__ import annotations

import sys
import traceback
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import orjson
from orjson import dumps

from outfall.sinks.event import METADATA, copy_event
from outfall.sinks.plain import plain, plain_key

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

ExcInfo = tuple[type[BaseException], BaseException, "TracebackType | None"]

# Whatever makes orjson run Python code while it walks a container that another thread may be changing is passed by:
# it was seen to crash the process (orjson 3.13, a tzinfo written in Python). Those values take the slow path.
OPTIONS = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS


class OrjsonRenderer:
    """Render *any* event dict as one line of UTF-8 JSON, as bytes; never fails.

    A structlog processor to put last, for sinks and for `structlog.BytesLogger` alike. The usual event costs one
    ``orjson.dumps``. What that refuses (objects, sets, keys that are not text, huge integers, lone surrogates, cycles,
    nests deeper than 254 …) takes a slower way that keeps every field it can and marks, in angle brackets, the one it
    could not; the rules are those of `outfall.sinks.plain.plain`. NaN and the infinities become null.

    The event is never changed. Metadata keys (``_record``, ``_logger``, ``_name``, ``_from_structlog``) are left out.
    An ``exc_info`` that nobody rendered becomes ``exception``: True stands for the exception being handled in the
    calling thread. Line breaks inside values are escaped, so the result is always one line, without a final newline.

    Args:
        tracebacks: ``"text"`` (default) for the interpreter's own format, ``"dict"`` for structlog's dict tracebacks
            without local variables, or a callable that gets an ``(type, value, traceback)`` tuple, such as a
            `structlog.tracebacks.ExceptionDictTransformer`.
        sort_keys: Sort the keys, nested ones too. Default False: the event's own order.
        key_order: Keys to put first, in this order, where present; for example ``("event", "level", "timestamp")``.
            Default none.
        snapshot: Copy all containers before rendering. Needed only where another thread changes a container that holds
            `enum.Enum` members while it is being logged: orjson reads their value by Python code, and can crash the
            process then. Default False.

    Raises:
        ValueError: If *tracebacks* is neither of these, or *key_order* comes with *sort_keys*.
        TypeError: If *key_order* is one text or holds something else than text.

    Safe from any thread; holds no lock and no state.

    Source: https://github.com/ijl/orjson and `structlog.processors.JSONRenderer`.
    """

    __slots__ = ("_format", "_key_order", "_line", "_options", "_snapshot", "_sort_keys", "_tracebacks")

    def __init__(
        self,
        *,
        tracebacks: Literal["text", "dict"] | Callable[[ExcInfo], Any] = "text",
        sort_keys: bool = False,
        key_order: Sequence[str] = (),
        snapshot: bool = False,
    ) -> None:
        if tracebacks == "text":
            self._format: Callable[[ExcInfo], Any] = _traceback_text
        elif tracebacks == "dict":
            from structlog.tracebacks import ExceptionDictTransformer  # noqa: PLC0415 - seldom used

            self._format = ExceptionDictTransformer(show_locals=False)
        elif callable(tracebacks):
            self._format = tracebacks
        else:
            msg = f"tracebacks={tracebacks!r} is not 'text', 'dict' or a callable"
            raise ValueError(msg)
        if isinstance(key_order, str) or not all(isinstance(key, str) for key in key_order):
            msg = f"key_order={key_order!r} is not a sequence of texts"
            raise TypeError(msg)
        if sort_keys and key_order:
            msg = f"key_order={key_order!r} has no meaning with sort_keys=True"
            raise ValueError(msg)
        self._tracebacks = tracebacks
        self._sort_keys = bool(sort_keys)
        self._key_order = tuple(key_order)
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

    def __call__(self, logger: object, name: str | None, event_dict: Mapping[str, Any]) -> bytes:  # noqa: ARG002
        """Return *event_dict* as one line of JSON; *logger* and *name* are not looked at."""
        return self.render(event_dict)

    def render(self, event: Mapping[str, Any], option: int = 0) -> bytes:
        """Return *event* as one line of JSON, with more of orjson's option bits, such as ``OPT_APPEND_NEWLINE``."""
        option |= self._options
        try:
            if (
                type(event) is not dict
                or "exc_info" in event
                or "_record" in event
                or "_logger" in event
                or "_name" in event
                or "_from_structlog" in event
                or self._key_order
                or self._snapshot
            ):
                event = self._prepared(event)
                if self._snapshot:
                    event = copy_event(event)
            return dumps(event, None, option)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # noqa: BLE001 - orjson's errors; those of a key's __eq__; a stack nearly used up
            return self._render_slowly(event, option)

    def _prepared(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Return a shallow copy without metadata, with the exception rendered, in the order asked for."""
        # dict.copy is one step for other threads, and runs none of a subclass's code.
        source = dict.copy(event) if isinstance(event, dict) else dict(event)
        made = {key: source[key] for key in self._key_order if key in source}
        for key, value in source.items():
            if key == "exc_info":
                rendered = self._exception(value)
                if rendered is not None:
                    made["exc_info" if "exception" in source else "exception"] = rendered
            elif type(key) is not str or key not in METADATA:
                made[key] = value
        return made

    def _exception(self, exc_info: object) -> Any:  # noqa: ANN401 - text, or whatever the traceback callable makes
        """Return *exc_info* rendered, or None if it stands for no exception."""
        if exc_info is None or exc_info is False:
            return None
        triple: Any
        if isinstance(exc_info, BaseException):
            triple = (type(exc_info), exc_info, exc_info.__traceback__)
        elif isinstance(exc_info, tuple) and len(exc_info) == 3:  # noqa: PLR2004 - as sys.exc_info() returns it
            triple = exc_info
        elif type(exc_info) in (bool, int):
            triple = sys.exc_info() if exc_info else (None, None, None)
        else:
            return exc_info  # no exception in it, but somebody's field
        if not isinstance(triple[1], BaseException):
            return None
        try:
            return self._format(triple)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - the exception's own methods run here
            return f"<unrenderable traceback of {type(triple[1]).__name__}: {type(error).__name__}>"

    def _render_slowly(self, event: Mapping[str, Any], option: int) -> bytes:
        try:
            made: Any = plain(self._prepared(event))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - keys whose __eq__ raises, a stack nearly used up
            made = self._salvaged(event, error)
        try:
            return dumps(made, None, option)
        except Exception as error:  # noqa: BLE001 - not known to happen; a line that says so beats an exception
            return dumps({"event": "<unrenderable event>", "error": type(error).__name__}, None, option)

    def _salvaged(self, event: Mapping[str, Any], error: BaseException) -> dict[str, Any]:
        """Return what can be kept, field by field, of an event that could not even be copied."""
        made: dict[str, Any] = {}
        try:
            # Over the items, without a lookup: a hostile key's __eq__ or __hash__ is not asked.
            items = list(dict.items(event)) if isinstance(event, dict) else list(event.items())
            for key, value in items:
                name = plain_key(key)
                if name == "exc_info":
                    name, value = "exception", self._exception(value)  # noqa: PLW2901
                if name not in METADATA:
                    made[name] = plain(value)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as second:  # noqa: BLE001
            error = second
            made["unrenderable"] = type(error).__name__
        return made or {"event": "<unrenderable event>", "error": type(error).__name__}


def _traceback_text(exc_info: ExcInfo) -> str:
    return "".join(traceback.format_exception(*exc_info)).rstrip("\n")
