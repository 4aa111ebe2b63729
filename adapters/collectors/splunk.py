"""Splunk: events for the HTTP Event Collector."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import orjson

from outfall.adapters.collectors.factory import shipped, with_path
from outfall.adapters.collectors.fields import dump, found_at, nanoseconds, paths_of, text_of
from outfall.sinks.errors import PausedDeliveryError
from outfall.sinks.http.bodies import BodyFormat

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from typing_extensions import Unpack

    from outfall.adapters.collectors.factory import SinkOptions
    from outfall.sinks.core.item import Encoded
    from outfall.sinks.core.sink import Sink
    from outfall.sinks.errors import DeliveryError

_BAD_REQUEST = 400

#: Answers with status 400 that have nothing to do with the events: the index, the channel or the way of the token is
#: wrong, and every event would meet them.
_SETTINGS = {
    7: "incorrect index",
    10: "data channel is missing",
    11: "invalid data channel",
    14: "indexer acknowledgement is disabled",
    16: "query string authorization is not enabled",
}


class SplunkEvents(BodyFormat):
    """Events for Splunk's HTTP Event Collector (HEC): ``time``, ``event``, ``fields`` and where they come from.

    ``event`` is the event as JSON; ``time`` has its time in seconds, with microseconds.

    Args:
        host: Default none: Splunk says who connected.
        source: Default none: that of the token.
        sourcetype: Default ``"_json"``, whose fields Splunk finds by itself.
        index: Default none: that of the token.
        indexed_fields: Fields that are indexed too (``fields``): their names, which are the same there. A dot leads
            into a nested one. Default ``("trace_id", "span_id")``.
        channel: A GUID for ``X-Splunk-Request-Channel``, which tokens with indexer acknowledgement want.
            Acknowledgements are not asked for. Default none.

    Raises:
        TypeError: If *indexed_fields* is one text.

    Answers that say that index, channel or token are set up wrong (codes 7, 10, 11, 14, 16) pause the delivery and keep
    the events, though their status is 400. Other answers with 400 say that an event is wrong; the number of the first
    is told, but not what became of those before it, so that these may come twice.

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
        #: The members of each event that are the same for all, with their commas.
        self._constants = b"," + dump(constants)[1:-1] if constants else b""

    def encode(self, batch: Sequence[Encoded]) -> bytes:
        """Return *batch* as objects of JSON, each in a line."""
        return b"\n".join(map(self._event, batch))

    def _event(self, item: Encoded) -> bytes:
        event = item.event
        seconds, rest = divmod(nanoseconds(item, event) // 1_000, 1_000_000)
        fields = {
            name: text_of(found) for name, path in self._indexed.items() if (found := found_at(event, path)) is not None
        }
        data = dump(event) if event else b'"{}"'  # HEC takes no empty one
        made = b'{"time":%d.%06d,"event":%b%b' % (seconds, rest, data, self._constants)
        return made + (b',"fields":%b}' % dump(fields) if fields else b"}")

    def refusal(
        self,
        response_status: int,
        response_headers: Mapping[str, str],
        response_body: bytes,
    ) -> DeliveryError | None:
        """Return a pause for codes that blame the set-up; None for all others, whose status says enough."""
        if response_status != _BAD_REQUEST:
            return None
        try:
            code = orjson.loads(response_body)["code"]
        except (ValueError, TypeError, KeyError):
            return None
        told = _SETTINGS.get(code) if isinstance(code, int) else None
        return None if told is None else PausedDeliveryError(f"Splunk's event collector: {told} (code {code})")


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
) -> Sink:
    """Return a sink that sends events to Splunk's HTTP Event Collector in the background.

    Args:
        url: The collector's, such as ``"https://splunk.example.org:8088"``; ``/services/collector/event`` is added
            unless it is there.
        token: The collector's token, or a callable that returns it.
        host: See `SplunkEvents`, as for the next five. Default here: this machine's name.
        source: Where the events come from.
        sourcetype: Of what kind they are.
        index: Where they go.
        indexed_fields: The fields that are indexed.
        channel: A GUID, for tokens with indexer acknowledgement.
        spool: A directory where events wait, on disk, in a `SpoolSink`. Default None: in memory, in a `BackgroundSink`.
        options: Whatever `HTTPSink` takes, and `BackgroundSink` or `SpoolSink`; see `SinkOptions`.

    Raises:
        ValueError: What the sinks refuse.
        TypeError: The same, and what `SplunkEvents` refuses.
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
    target = with_path(url, "/services/collector/event")
    return shipped(target, body, {**options, "token": token}, spool=spool, token_scheme="Splunk")
