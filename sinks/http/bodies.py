"""What the body of an HTTP request is made of: `BodyFormat` and the general ones. Collectors' own are adapters."""

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
    """How a batch of events becomes the body of one request, and what the answer to it says.

    Subclass it for a collector of your own: `encode` is all that is needed. One format may serve several sinks and
    threads, so it holds nothing but its arguments.

    Args:
        content_type: The ``Content-Type`` to send. Default: the class's.
    """

    #: The ``Content-Type`` header.
    content_type: str = "application/json"

    #: True if a request holds one event. A batch is then sent one by one.
    single: bool = False

    #: True if `encode` can make something of bytes, NaN and the infinities: an item's ``event`` has them then, as long
    #: as it waits in memory. False: it has text and null.
    keeps_types: bool = False

    #: More headers, which those of the sink come before.
    headers: Mapping[str, str] = {}

    #: The longest answer that `read` gets, in bytes; with a longer one the batch counts as not taken.
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
        """Return what of *event* to render as JSON: `Encoded.data`, from which `encode` makes the body later.

        Called in the thread that logs, after the sink's ``fields`` and ``map_event``. Must not change *event*. The
        default returns it as it is.
        """
        return event

    def encode(self, batch: Sequence[Encoded]) -> bytes:
        """Return the body of a request for *batch*, which holds one event at least; one exactly where `single` is set.

        Each item's ``data`` is the event as a JSON object, without a line break; ``level`` and ``time`` are those of
        the event, whatever its fields are; ``event`` decodes the data.
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
        """Return what became of *batch* where an answer of 2xx tells more than that; None if all was taken.

        The default returns None, and such an answer need not be complete then.

        Args:
            response_status: 200 to 299.
            response_headers: The headers; names in any case.
            response_body: The body, decompressed.
            batch: What was sent.

        Raises:
            DeliveryError: If none was taken.
        """
        return None

    def refusal(
        self,
        response_status: int,
        response_headers: Mapping[str, str],
        response_body: bytes,
    ) -> DeliveryError | None:
        """Return what an answer other than 2xx means where a collector has codes of its own.

        The default returns None: it means what its status says. The error must not repeat what was sent, which
        *response_body* may.

        Args:
            response_status: Not 200 to 299.
            response_headers: The headers; names in any case.
            response_body: The body, decompressed.
        """
        return None


class JSONObject(BodyFormat):
    """One event as a JSON object, ``application/json``; a batch is as many requests."""

    single: bool = True

    @reads_data_alone()
    def encode(self, batch: Sequence[Encoded]) -> bytes:
        """Return the event."""
        return data_of(batch)[0]


class JSONArray(BodyFormat):
    """Events as a JSON array, ``application/json``."""

    @reads_data_alone()
    def encode(self, batch: Sequence[Encoded]) -> bytes:
        """Return ``[event,event…]``."""
        return b"[" + b",".join(data_of(batch)) + b"]"


class NDJSON(BodyFormat):
    """Events as lines of JSON, ``application/x-ndjson``; each line ends with a line feed."""

    content_type: str = "application/x-ndjson"

    @reads_data_alone()
    def encode(self, batch: Sequence[Encoded]) -> bytes:
        """Return ``event\\nevent\\n…``."""  # noqa: D301 - two characters each
        return b"\n".join([*data_of(batch), b""])


class FormURLEncoded(BodyFormat):
    """One event as a form, ``application/x-www-form-urlencoded``, as ``logging.handlers.HTTPHandler`` sends records.

    Each field is ``str`` of its value. With the method GET the form is the URL's query. Fields with several values or
    nested ones are for a ``map_event`` of your own to take apart: a form has no way to say them.
    """

    content_type: str = "application/x-www-form-urlencoded"
    single: bool = True

    def prepare(self, event: dict[str, Any]) -> dict[str, Any]:
        """Make text of what JSON would not bring back as it was, such as lists, tuples and objects."""
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


#: What JSON brings back as it was. A float may be a NaN.
_KEPT: frozenset[type] = frozenset({str, int, bool, type(None)})


def _text(value: Any) -> str:
    try:
        return value.decode() if isinstance(value, bytes) else str(value)
    except Exception:
        return str(plain(value))


_renderer = OrjsonRenderer()
