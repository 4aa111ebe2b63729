"""Splunk: `SplunkEvents`, the format of the HTTP Event Collector, and `splunk_sink`."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, overload

from outfall.adapters.collectors.answers import Answer, CollectorFormat, not_the_collector, parsed
from outfall.adapters.collectors.factory import shipped, with_path
from outfall.adapters.collectors.fields import dump, found_at, nanoseconds, paths_of, text_of
from outfall.sinks.errors import PausedDeliveryError, PermanentDeliveryError, TemporaryDeliveryError
from outfall.sinks.http.answers import title_of

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from typing_extensions import Unpack

    from outfall.adapters.collectors.factory import SinkOptions
    from outfall.sinks.core.item import Encoded
    from outfall.sinks.delivery.background import BackgroundSink
    from outfall.sinks.errors import DeliveryError
    from outfall.sinks.spool.sink import SpoolSink

_BAD_REQUEST = 400

#: Other paths that accept the same, and paths that accept something else.
_PATHS = ("/services/collector", "/services/collector/event/1.0")
_OTHER_PATHS = tuple(
    f"/services/collector/{each}"
    for each in ("raw", "raw/1.0", "mint", "mint/1.0", "ack", "health", "health/1.0", "s2s", "validate")
)

_SUCCESS = 0

#: Codes that are about an event.
_OF_AN_EVENT = {
    6: "invalid data format",
    12: "the event field is required",
    13: "the event field is blank",
    15: "the indexed fields cannot be taken",
}

#: Codes that are about the index, the channel or the token, and so concern every event.
_OF_THE_SET_UP = {
    1: "token disabled",
    2: "token is required",
    3: "invalid authorization",
    4: "invalid token",
    5: "no data",
    7: "incorrect index",
    10: "data channel is missing",
    11: "invalid data channel",
    14: "indexer acknowledgement is disabled",
    16: "query string authorization is not enabled",
}

#: Codes of a temporary state.
_OF_A_MOMENT = {8: "internal server error", 9: "server is busy", 23: "server is shutting down"}


class SplunkEvents(CollectorFormat):
    """Encode events for Splunk's HTTP Event Collector (HEC): ``time``, ``event``, ``fields``, ``host`` and so on.

    ``event`` is the event as JSON; ``time`` is its time in seconds, with microseconds.

    Args:
        host: The host of the events. Default None: Splunk uses the address of the connection.
        source: The source of the events. Default None: that of the token.
        sourcetype: The source type. Default ``"_json"``, whose fields Splunk finds by itself.
        index: The index. Default None: that of the token.
        indexed_fields: The names of fields that are indexed too (``fields``), under the same names. A dot leads to a
            nested field. Default ``("trace_id", "span_id")``.
        channel: A GUID for ``X-Splunk-Request-Channel``, which tokens with indexer acknowledgement require.
            Acknowledgements are not requested. Default None.

    Raises:
        TypeError: If *indexed_fields* is a single text.

    Code 0 means success. Codes for an invalid event (6, 12, 13, 15) refuse the event, which is found by dividing the
    batch. Splunk does not say whether it has taken the events before that one, so these may arrive twice. All other
    codes, 400 without a code, and 2xx without code 0 pause the delivery and keep the events.

    Source: https://help.splunk.com/splunk-enterprise/get-data-in/collect-http-event-data/format-events-for-http-event-collector
    and https://docs.splunk.com/Documentation/Splunk/9.1.1/Data/TroubleshootHTTPEventCollector
    """

    content_type = "application/json"

    def __init__(
        self,
        *,
        host: str | None = None,
        source: str | None = None,
        sourcetype: str | None = "_json",
        index: str | None = None,
        indexed_fields: Iterable[str] = ("trace_id", "span_id"),
        channel: str | None = None,
    ) -> None:
        super().__init__()
        self._indexed = paths_of(indexed_fields, "indexed_fields")
        self.headers: Mapping[str, str] = {} if channel is None else {"X-Splunk-Request-Channel": channel}
        given = {"host": host, "source": source, "sourcetype": sourcetype, "index": index}
        constants = {name: value for name, value in given.items() if value is not None}
        #: The constant members of each event, with their commas.
        self._constants = b"," + dump(constants)[1:-1] if constants else b""

    def encode(self, batch: Sequence[Encoded]) -> bytes:
        """Return *batch* as JSON objects, one a line."""
        return b"\n".join(map(self._event, batch))

    def _event(self, item: Encoded) -> bytes:
        event = item.event
        seconds, rest = divmod(nanoseconds(item, event) // 1_000, 1_000_000)
        fields = {
            name: text_of(found) for name, path in self._indexed.items() if (found := found_at(event, path)) is not None
        }
        data = dump(event) if event else b'"{}"'  # HEC refuses an empty event
        made = b'{"time":%d.%06d,"event":%b%b' % (seconds, rest, data, self._constants)
        return made + (b',"fields":%b}' % dump(fields) if fields else b"}")

    def _outcome(self, answer: Answer, batch: Sequence[Encoded]) -> None:
        code = _code(answer.body)
        if code != _SUCCESS:
            raise not_the_collector(answer.status) if code is None else _failure(code)

    def refusal(
        self,
        response_status: int,
        response_headers: Mapping[str, str],
        response_body: bytes,
    ) -> DeliveryError | None:
        """Return the error for the code of a response with status 400; None for any other status."""
        if response_status != _BAD_REQUEST:
            return None
        code = _code(response_body)
        return not_the_collector(_BAD_REQUEST, title_of(response_body)) if code is None else _failure(code)


def _code(body: bytes) -> int | None:
    answer = parsed(body)
    code = answer.get("code") if isinstance(answer, dict) else None
    return code if isinstance(code, int) else None


def _failure(code: int) -> DeliveryError:
    message = f"Splunk's event collector: {{}} (code {code})"
    if code in _OF_AN_EVENT:
        return PermanentDeliveryError(message.format(_OF_AN_EVENT[code]))
    if code in _OF_A_MOMENT:
        return TemporaryDeliveryError(message.format(_OF_A_MOMENT[code]))
    return PausedDeliveryError(message.format(_OF_THE_SET_UP.get(code, "it takes nothing")))


@overload
def splunk_sink(
    url: str,
    token: str | Callable[[], str],
    *,
    host: str | None = ...,
    source: str | None = ...,
    sourcetype: str | None = ...,
    index: str | None = ...,
    indexed_fields: Iterable[str] = ...,
    channel: str | None = ...,
    spool: None = None,
    **options: Unpack[SinkOptions],
) -> BackgroundSink: ...
@overload
def splunk_sink(
    url: str,
    token: str | Callable[[], str],
    *,
    host: str | None = ...,
    source: str | None = ...,
    sourcetype: str | None = ...,
    index: str | None = ...,
    indexed_fields: Iterable[str] = ...,
    channel: str | None = ...,
    spool: str | os.PathLike[str],
    **options: Unpack[SinkOptions],
) -> SpoolSink: ...
def splunk_sink(
    url: str,
    token: str | Callable[[], str],
    *,
    host: str | None = None,
    source: str | None = None,
    sourcetype: str | None = "_json",
    index: str | None = None,
    indexed_fields: Iterable[str] = ("trace_id", "span_id"),
    channel: str | None = None,
    spool: str | os.PathLike[str] | None = None,
    **options: Unpack[SinkOptions],
) -> BackgroundSink | SpoolSink:
    """Return a sink that sends events to Splunk's HTTP Event Collector in the background.

    Args:
        url: The collector's URL, such as ``"https://splunk.example.org:8088"``; ``/services/collector/event`` is added
            unless it is there.
        token: The collector's token, or a callable that returns it.
        host: The host of the events. Default None: this machine's name.
        source: The program or file that the events come from. Default None: that of the token.
        sourcetype: The source type. Default ``"_json"``, whose fields Splunk finds by itself.
        index: The index. Default None: that of the token.
        indexed_fields: Fields that are indexed too; a dot leads to a nested field. Default ``("trace_id", "span_id")``.
        channel: A GUID, for tokens with indexer acknowledgement. Default None.
        spool: The directory of a `SpoolSink`, where events wait. Default None: a `BackgroundSink`, in memory.
        options: Arguments of `HTTPSink`, and of `BackgroundSink` or `SpoolSink`; see `SinkOptions`.

    Raises:
        ValueError: If a sink refuses an argument.
        TypeError: If an argument is unknown or has the wrong type.
    """
    body = SplunkEvents(
        host=host or socket.gethostname() or None,
        source=source,
        sourcetype=sourcetype,
        index=index,
        indexed_fields=indexed_fields,
        channel=channel,
    )
    options.setdefault("name", "splunk")
    if token is None:  # pyright: ignore[reportUnnecessaryComparison]
        msg = "token=None: the collector takes nothing without a token"
        raise TypeError(msg)
    target = with_path(url, "/services/collector/event", also=_PATHS, others=_OTHER_PATHS)
    return shipped(splunk_sink, target, body, {**options, "token": token}, spool=spool, token_scheme="Splunk")
