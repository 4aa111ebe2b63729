"""The base class of sinks that write bytes: `ByteSink`."""

# `type(renderer) is OrjsonRenderer` does not narrow a callable for pyright.
# pyright: reportFunctionMemberAccess=false

from __future__ import annotations

import codecs
import sys
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

import orjson

from outfall.sinks.core.arguments import checked_function
from outfall.sinks.core.forwarding import reads_data_alone
from outfall.sinks.core.item import BatchResult, Encoded, data_of
from outfall.sinks.core.reporting import report
from outfall.sinks.core.sink import OnError, Sink
from outfall.sinks.event.event import TextEvent, without_metadata
from outfall.sinks.event.json import OrjsonRenderer
from outfall.sinks.event.levels import NOTSET, Level, level_name, level_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


class RenderOptions(TypedDict, total=False):
    """Arguments that subclasses of `ByteSink` pass on to it; its docstring describes them."""

    renderer: Callable[[Any, str, Any], str | bytes] | None
    level: Level
    processors: Iterable[Callable[[Any, str, Any], Any]]
    on_error: OnError
    name: str | None


class ByteSink(Sink):
    """Render each event and write its bytes: the base class of sinks that implement `write`.

    Args:
        renderer: Any structlog renderer ``(logger, name, event_dict) -> str | bytes``; it gets a copy of the event.
            Default ``OrjsonRenderer()``. Settable.
        encoding: The encoding of rendered text; rendered bytes are written as they are. Default UTF-8.
        errors: How to treat characters that *encoding* does not have, as in `str.encode`. Default
            ``"backslashreplace"``, which loses nothing.
        terminator: The text after each rendered event. Default "".
        level: The lowest level to accept: a name in any case, or a number. Default NOTSET: all.
        processors: structlog processors, applied in order to a copy of each event. Default: none.
        on_error: Called with a `SinkFailure` for each failure, or ``"raise"``. Default `report`, which writes to
            stderr.
        name: The name of the sink in reports and stats. Default: the name of its class.

    Raises:
        ValueError: If *encoding* or *errors* is unknown.
        TypeError: If *renderer* is not callable or *terminator* is not text.
    """

    _inside = frozenset({"render", "write"})

    def __init__(
        self,
        *,
        renderer: Callable[[Any, str, Any], str | bytes] | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        terminator: str = "",
        level: Level = NOTSET,
        processors: Iterable[Callable[[Any, str, Any], Any]] = (),
        on_error: OnError = report,
        name: str | None = None,
    ) -> None:
        self._encoding = "utf-8" if encoding is None else encoding
        self._errors = "backslashreplace" if errors is None else errors
        #: The encoding without byte order mark, which belongs at the start of a file and not before each event.
        self._bare_encoding, self._byte_order_mark = _split_byte_order_mark(self._encoding, self._errors)
        self._renderer: Callable[[Any, str, Any], str | bytes] = OrjsonRenderer()
        self._terminator = ""
        super().__init__(level=level, processors=processors, on_error=on_error, name=name)
        self.terminator = terminator
        if renderer is not None:
            self.renderer = renderer

    @property
    def encoding(self) -> str:
        """The encoding of rendered text."""
        return self._encoding

    @property
    def errors(self) -> str:
        """The error handler for characters that the encoding does not have."""
        return self._errors

    @property
    def terminator(self) -> str:
        """The text after each rendered event; settable."""
        return self._terminator

    @terminator.setter
    def terminator(self, terminator: str) -> None:
        if not isinstance(terminator, str):
            msg = f"terminator={terminator!r} is not text"
            raise TypeError(msg)
        self._terminator = terminator
        self._changed()

    def _changed(self) -> None:
        self._item_end = self._end_of_items()
        super()._changed()

    def _end_of_items(self) -> bytes:
        """Return the bytes that `emit_batch` writes after each item's data."""
        # An overridden `render` adds the terminator itself. If the terminators of JSON and of text differ (an encoding
        # such as UTF-16), an item keeps the terminator that it was rendered with.
        usual = type(self).render is ByteSink.render
        end = self._terminator_bytes
        return end if usual and end == self._terminator.encode(self._bare_encoding, self._errors) else b""

    @property
    def renderer(self) -> Callable[[Any, str, Any], str | bytes]:
        """The renderer of events; settable."""
        return self._renderer

    @renderer.setter
    def renderer(self, renderer: Callable[[Any, str, Any], str | bytes]) -> None:
        checked_function(renderer, "renderer", "a renderer of structlog")
        self._take_sealer(renderer if callable(getattr(renderer, "seal", None)) else None)
        self._renderer = renderer
        self._changed()

    def _take_sealer(self, renderer: Any) -> None:
        """Use *renderer* to seal each line right before it is written; None: lines are not sealed.

        Raises:
            ValueError: If this sink cannot do that.
        """
        if renderer is not None:
            msg = f"renderer={renderer!r} numbers the lines of a file: use FileSink, not {type(self).__name__}"
            raise ValueError(msg)

    def render(self, event: dict[str, Any]) -> bytes:
        """Return the bytes to write for *event*, including the terminator."""
        if isinstance(event, TextEvent):
            rendered = event.rendered()
        else:
            renderer = self._renderer
            if type(renderer) is OrjsonRenderer:
                if self._terminator == "\n":
                    return renderer.render(event, orjson.OPT_APPEND_NEWLINE)
                return renderer.render(event) + self._terminator_bytes
            name = event.get("_name") or level_name(level_of(event))
            # A copy, since many renderers remove the fields that they have written.
            rendered = renderer(event.get("_logger"), name, without_metadata(event))
        return self._ended(rendered)

    def _ended(self, rendered: Any) -> bytes:
        """Return the bytes to write for *rendered*, a renderer's result, including the terminator."""
        if isinstance(rendered, str):
            return (rendered + self._terminator).encode(self._bare_encoding, self._errors)
        if isinstance(rendered, (bytes, bytearray, memoryview)):
            return bytes(rendered) + self._terminator_bytes
        msg = f"the renderer returned {type(rendered).__name__}, not str or bytes"
        raise TypeError(msg)

    def _reads_metadata(self) -> bool:
        return bool(self._processors)

    def _prepare_reads_metadata(self) -> bool:
        own = type(self)
        usual = own.encode is own._usual_encode and own.make_item is Sink.make_item
        return not usual or bool(self._processors)

    def write(self, data: bytes) -> None:
        """Write *data*, one rendered event, and raise if that fails. Called under the sink's lock."""
        msg = f"{type(self).__name__} has to implement write(data)"
        raise TypeError(msg)

    def emit(self, event: dict[str, Any]) -> None:
        """Render and write one event."""
        self.write(self.render(event))

    @reads_data_alone()
    def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
        """Write each item's data, with the terminator."""
        end = self._item_end
        return self._emit_each(batch, lambda item: self.write(item.data + end))

    def encode(self, event: dict[str, Any]) -> Encoded:
        """Return an item with *event*, rendered by this sink's renderer."""
        data, end = self.render(event), self._item_end
        return self._encoded(event, data[: -len(end)] if end else data)

    def _joined(self, batch: Sequence[Encoded]) -> bytes:
        """Return the data of all items, each followed by the terminator."""
        return self._item_end.join((*data_of(batch), b""))

    @property
    def plain(self) -> bool:
        """True if the renderer is a plain `OrjsonRenderer` and nothing changes its result; see `Forwarding.plain`."""
        own, renderer = type(self), self._renderer
        return (
            own.encode is own._usual_encode
            and own.render is ByteSink.render
            and own.make_item is Sink.make_item
            and type(renderer) is OrjsonRenderer
            and renderer.is_plain
            and len(self._terminator_bytes) == len(self._item_end)
            and not self._processors
        )

    #: The `encode` whose result for a plain event is that of the renderer.
    _usual_encode: ClassVar[Any] = encode

    def _put(self, event: dict[str, Any]) -> Exception | None:
        if type(self).emit is not ByteSink.emit:
            return super()._put(event)
        data = self.render(event)
        delivered = False
        try:
            with self._lock:
                self._check_open()
                try:
                    self.write(data)
                except Exception as error:
                    if not self._has_taken_part():
                        raise
                    return error
                self._ledger.delivered += 1
                delivered = True
        except BaseException:
            if delivered:  # interrupted after the write, and counted as interrupted
                self._ledger.delivered -= 1
            raise
        return None

    def _has_taken_part(self) -> bool:
        """Return True if the write that just failed has written a part of the event, which then counts as pending."""
        return False

    @property
    def _terminator_bytes(self) -> bytes:
        """The terminator in bytes; after JSON it is UTF-8, whatever *encoding* is."""
        if type(self._renderer) is OrjsonRenderer:
            return self._terminator.encode()
        return self._terminator.encode(self._bare_encoding, self._errors)


def _split_byte_order_mark(encoding: str, errors: str) -> tuple[str, bytes]:
    """Return *encoding* without its byte order mark, and the mark.

    Raises:
        ValueError: If *encoding* or *errors* is unknown.
    """
    try:
        mark = "".encode(encoding)
        canonical = codecs.lookup(encoding).name
    except (LookupError, TypeError):
        msg = f"encoding={encoding!r} is not a known text encoding"
        raise ValueError(msg) from None
    try:
        codecs.lookup_error(errors)
    except (LookupError, TypeError):
        msg = f"errors={errors!r} is not a known error handler, such as 'strict' or 'backslashreplace'"
        raise ValueError(msg) from None
    order = "le" if sys.byteorder == "little" else "be"
    bare = {"utf-8-sig": "utf-8", "utf-16": f"utf-16-{order}", "utf-32": f"utf-32-{order}"}
    return bare.get(canonical, encoding), mark
