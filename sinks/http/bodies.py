"""Formats of HTTP bodies: `BodyFormat`, and the general ones. Adapters have those of collectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import orjson

from outfall.sinks.core.forwarding import reads_data_alone
from outfall.sinks.core.item import data_of
from outfall.sinks.event.json import OrjsonRenderer
from outfall.sinks.event.jsonable import plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from outfall.sinks.core.item import BatchResult, Encoded
    from outfall.sinks.errors import DeliveryError


class BodyFormat:
    """Encode a batch of events as the body of a request, and interpret the response.

    Subclass it for a collector of your own; only `encode` has to be implemented. Several sinks and threads may use one
    format, so it must not have any state besides its arguments.

    Args:
        content_type: The ``Content-Type`` to send. Default None: that of the class.
    """

    #: The ``Content-Type`` header.
    content_type: str = "application/json"

    #: True if a request holds one event; a batch is sent as several requests.
    single: bool = False

    #: True if `encode` uses bytes, NaN and the infinities: then an item's ``event`` has them while it waits in memory.
    #: With False they are text and null.
    keeps_types: bool = False

    #: Further headers; headers of the sink override them.
    headers: Mapping[str, str] = {}

    #: The largest response that `read` gets, in bytes. With a larger response the batch counts as not delivered.
    max_response_bytes: int = 4_194_304

    def __init__(self, *, content_type: str | None = None) -> None:
        if content_type is not None:
            if not isinstance(content_type, str) or not content_type.isprintable() or not content_type.isascii():
                msg = f"content_type={content_type!r} is not the value of a header"
                raise ValueError(msg)
            self.content_type = content_type

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def prepare(self, event: dict[str, Any]) -> dict[str, Any]:
        """Return the dict to render as the item's ``data``, from which `encode` makes the body later.

        Called in the thread that logs, after the sink's ``fields`` and ``map_event``. Must not change *event*. The
        default returns *event*.
        """
        return event

    def encode(self, batch: Sequence[Encoded]) -> bytes:
        """Return the body of a request for *batch*, which has at least one event, and exactly one if `single` is set.

        Each item's ``data`` is the event as a JSON object without a line break. ``level`` and ``time`` are those of the
        event, even if it has no such fields. ``event`` decodes the data.
        """
        msg = f"{type(self).__name__} has to implement encode(batch)"
        raise TypeError(msg)

    def read(
        self,
        response_status: int,
        response_headers: Mapping[str, str],
        response_body: bytes,
        batch: Sequence[Encoded],
    ) -> BatchResult | None:
        """Return the result of *batch* if a response of 2xx states one; None if all events were taken.

        The default returns None; then the response need not even be complete.

        Args:
            response_status: The status, 200 to 299.
            response_headers: The headers, with names in any case.
            response_body: The body, decompressed.
            batch: The events that were sent.

        Raises:
            DeliveryError: If no event was taken.
        """
        return None

    def refusal(
        self,
        response_status: int,
        response_headers: Mapping[str, str],
        response_body: bytes,
    ) -> DeliveryError | None:
        """Return the error for a response other than 2xx, if the collector has its own error codes.

        The default returns None: the status determines the error. The error's text is cleaned of values of the events,
        which *response_body* may repeat.

        Args:
            response_status: The status, not 200 to 299.
            response_headers: The headers, with names in any case.
            response_body: The body, decompressed.
        """
        return None


class JSONObject(BodyFormat):
    """Send one event in each request, as a JSON object, ``application/json``."""

    single: bool = True

    @reads_data_alone()
    def encode(self, batch: Sequence[Encoded]) -> bytes:
        """Return the event."""
        return data_of(batch)[0]


class JSONArray(BodyFormat):
    """Send events as a JSON array, ``application/json``."""

    @reads_data_alone()
    def encode(self, batch: Sequence[Encoded]) -> bytes:
        """Return ``[event,event…]``."""
        return b"[" + b",".join(data_of(batch)) + b"]"


class NDJSON(BodyFormat):
    """Send events as lines of JSON, ``application/x-ndjson``; each line ends with a line feed."""

    content_type: str = "application/x-ndjson"

    @reads_data_alone()
    def encode(self, batch: Sequence[Encoded]) -> bytes:
        """Return ``event\\nevent\\n…``."""  # noqa: D301 - two characters each
        return b"\n".join([*data_of(batch), b""])


class FormURLEncoded(BodyFormat):
    """Send one event in each request, as a form, ``application/x-www-form-urlencoded``.

    Each field is the ``str`` of its value, as ``logging.handlers.HTTPHandler`` sends records. With the method GET the
    form is the URL's query. A form cannot represent lists and nested values: override ``map_event`` to convert them.
    """

    content_type: str = "application/x-www-form-urlencoded"
    single: bool = True

    def prepare(self, event: dict[str, Any]) -> dict[str, Any]:
        """Convert values to text that JSON would not restore unchanged, such as lists, tuples and objects."""
        try:
            prepared = _renderer._prepared(event)
            return {name: value if type(value) in _KEPT else _text(value) for name, value in prepared.items()}
        except Exception:
            plainly: dict[str, Any] = orjson.loads(_renderer.render(event))
            return {name: value if type(value) in _KEPT else str(value) for name, value in plainly.items()}

    @reads_data_alone()
    def encode(self, batch: Sequence[Encoded]) -> bytes:
        """Return ``name=value&name=value…``."""
        return urlencode(batch[0].event).encode("ascii")


#: The types that JSON restores unchanged. Not float, which may be a NaN.
_KEPT: frozenset[type] = frozenset({str, int, bool, type(None)})


def _text(value: Any) -> str:
    try:
        return value.decode() if isinstance(value, bytes) else str(value)
    except Exception:
        return str(plain(value))


_renderer = OrjsonRenderer()
