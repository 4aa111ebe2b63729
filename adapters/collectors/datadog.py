"""Datadog: `DatadogLogs`, the format of its logs API, version 2, and `datadog_sink`."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, overload

from outfall.adapters.collectors.answers import CollectorFormat
from outfall.adapters.collectors.factory import shipped, with_path
from outfall.adapters.collectors.fields import (
    SPAN_DIGITS,
    TRACE_DIGITS,
    dump,
    hex_id,
    take_exception,
    take_level,
    take_message,
    take_utc_text,
    text_of,
)
from outfall.adapters.collectors.placement import Placement
from outfall.sinks.errors import OversizeDeliveryError
from outfall.sinks.event.fit import shortened

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from typing_extensions import Unpack

    from outfall.adapters.collectors.factory import SinkOptions
    from outfall.sinks.core.item import Encoded
    from outfall.sinks.delivery.background import BackgroundSink
    from outfall.sinks.spool.sink import SpoolSink

#: The largest number of logs in a request.
MAX_ITEMS = 1_000
#: The largest body of a request in bytes, before compression.
MAX_BODY_BYTES = 5_000_000
#: The largest log in bytes. Datadog would truncate the JSON of a larger one.
MAX_ITEM_BYTES = 1_000_000

#: Attributes that Datadog reserves and that an event may set.
_OWN = ("service", "hostname", "ddsource", "ddtags")

_SPAN_IDS = 2**64


class DatadogLogs(CollectorFormat):
    """Encode events as logs for Datadog's API, version 2: an array of objects.

    ==========================  =====================================================================================
    ``event``                   ``message``; an event without ``event`` may have its own ``message``
    level                       ``status``
    ``timestamp``               ``timestamp``, as UTC text
    ``logger``                  ``logger.name``
    ``trace_id``, ``span_id``   ``dd.trace_id`` and ``dd.span_id``, as decimal numbers of 64 bits, if they are such ids;
                                the fields stay too
    ``exception``               ``error.stack``, ``error.kind``, ``error.message``
    all others                  attributes of the same name; ``_`` is added to a name that is one of these, or that has
                                other names below it
    ==========================  =====================================================================================

    Args:
        service: The name of the service. Default: none.
        source: The kind of source (``ddsource``), by which Datadog chooses the pipeline. Default ``"python"``.
        hostname: The name of the host. Default: none.
        tags: Tags (``ddtags``), ``{"env": "prod"}`` or ``["env:prod"]``. Default: none. An event's own ``service``,
            ``ddsource``, ``hostname`` or ``ddtags`` overrides these arguments.

    Raises:
        TypeError: If *tags* is a single text.

    A batch of more than 1000 events is halved. An event of more than 1 MB is shortened, so that it stays valid JSON,
    and marked ``"truncated": true``. A request may have 5 MB before compression.

    Source: https://docs.datadoghq.com/api/latest/logs/#send-logs and
    https://docs.datadoghq.com/logs/log_configuration/attributes_naming_convention/
    """

    content_type = "application/json"

    def __init__(
        self,
        *,
        service: str | None = None,
        source: str = "python",
        hostname: str | None = None,
        tags: Mapping[str, str] | Iterable[str] = (),
    ) -> None:
        super().__init__()
        if isinstance(tags, str):
            msg = f"tags={tags!r} is a single text: pass a mapping or a sequence"
            raise TypeError(msg)
        pairs = [f"{name}:{value}" for name, value in tags.items()] if isinstance(tags, Mapping) else list(tags)
        given = {"ddsource": source, "ddtags": ",".join(pairs), "hostname": hostname, "service": service}
        self._constants = {name: value for name, value in given.items() if value}

    def encode(self, batch: Sequence[Encoded]) -> bytes:
        """Return *batch* as an array.

        Raises:
            OversizeDeliveryError: If it has more than 1000 items.
        """
        if len(batch) > MAX_ITEMS:
            msg = f"{len(batch)} logs are more than the {MAX_ITEMS} that the intake takes at once"
            raise OversizeDeliveryError(msg)
        return b"[" + b",".join(map(self._log, batch)) + b"]"

    def _log(self, item: Encoded) -> bytes:
        data = self._encoded(item, item.event)
        if len(data) <= MAX_ITEM_BYTES:
            return data
        return shortened(item.event, lambda event: self._encoded(item, dict(event)), MAX_ITEM_BYTES) or data

    def _encoded(self, item: Encoded, event: dict[str, Any]) -> bytes:
        made: dict[str, Any] = dict(self._constants)
        for name in _OWN:
            if (value := event.pop(name, None)) is not None:
                made[name] = text_of(value)
        message = take_message(event)
        if message is not None:
            made["message"] = message
        elif "message" in event:  # None, but Datadog requires text
            del event["message"]
        made["timestamp"] = take_utc_text(item, event)
        made["status"] = take_level(item, event) or "notice"
        logger = event.pop("logger", None)
        if logger is not None:
            made["logger"] = {"name": text_of(logger)}
        if error := take_exception(event, stack="stack", kind="kind", message="message"):
            made["error"] = error
        ids = {
            name: str(int(identity, 16) % _SPAN_IDS)
            for name, digits in (("trace_id", TRACE_DIGITS), ("span_id", SPAN_DIGITS))
            if (identity := hex_id(event.get(name), digits)) is not None
        }
        if ids:
            made["dd"] = ids
        return dump(_placement.beside(made, event))


#: Datadog too takes dots in names for nesting. The names here have others below them.
_placement = Placement(objects=("error", "logger", "dd"))


@overload
def datadog_sink(
    api_key: str | None = ...,
    *,
    site: str | None = ...,
    service: str | None = ...,
    source: str = ...,
    hostname: str | None = ...,
    tags: Mapping[str, str] | Iterable[str] | None = ...,
    url: str | None = ...,
    spool: None = None,
    **options: Unpack[SinkOptions],
) -> BackgroundSink: ...
@overload
def datadog_sink(
    api_key: str | None = ...,
    *,
    site: str | None = ...,
    service: str | None = ...,
    source: str = ...,
    hostname: str | None = ...,
    tags: Mapping[str, str] | Iterable[str] | None = ...,
    url: str | None = ...,
    spool: str | os.PathLike[str],
    **options: Unpack[SinkOptions],
) -> SpoolSink: ...
def datadog_sink(
    api_key: str | None = None,
    *,
    site: str | None = None,
    service: str | None = None,
    source: str = "python",
    hostname: str | None = None,
    tags: Mapping[str, str] | Iterable[str] | None = None,
    url: str | None = None,
    spool: str | os.PathLike[str] | None = None,
    **options: Unpack[SinkOptions],
) -> BackgroundSink | SpoolSink:
    """Return a sink that sends events to Datadog in the background, compressed.

    Args:
        api_key: The API key. Default: that of ``DD_API_KEY``.
        site: Such as ``"datadoghq.eu"``. Default: that of ``DD_SITE``, or ``"datadoghq.com"``.
        service: The name of the service. Default: that of ``DD_SERVICE``.
        source: The kind of source, by which Datadog chooses the pipeline. Default ``"python"``.
        hostname: The name of the host. Default None: this machine's name.
        tags: Tags, ``{"env": "prod"}`` or ``["env:prod"]``. Default None: ``env`` and ``version``, from ``DD_ENV`` and
            ``DD_VERSION``.
        url: A URL to use instead of *site*, such as that of a proxy. ``/api/v2/logs`` is added unless it is there.
            Default None.
        spool: The directory of a `SpoolSink`, where events wait. Default None: a `BackgroundSink`, in memory.
        options: Arguments of `HTTPSink`, and of `BackgroundSink` or `SpoolSink`; see `SinkOptions`.

    Raises:
        ValueError: If there is no API key, ``batch_size`` is above 1000, or a sink refuses an argument.
        TypeError: If an argument is unknown or has the wrong type.

    Source: https://docs.datadoghq.com/api/latest/logs/#send-logs and
    https://docs.datadoghq.com/getting_started/tagging/unified_service_tagging/
    """
    environ = os.environ
    key = api_key or environ.get("DD_API_KEY")
    if not key:
        msg = "api_key=None: an API key is needed, here or as DD_API_KEY"
        raise ValueError(msg)
    batch_size = options.setdefault("batch_size", MAX_ITEMS)
    if batch_size > MAX_ITEMS:
        msg = f"batch_size={batch_size!r}: the intake takes {MAX_ITEMS} logs at once"
        raise ValueError(msg)
    if tags is None:
        found = {"env": environ.get("DD_ENV"), "version": environ.get("DD_VERSION")}
        tags = {name: value for name, value in found.items() if value}
    body = DatadogLogs(
        service=service or environ.get("DD_SERVICE"),
        source=source,
        hostname=hostname or socket.gethostname(),
        tags=tags,
    )
    where = url or f"https://http-intake.logs.{site or environ.get('DD_SITE') or 'datadoghq.com'}"
    options.setdefault("name", "datadog")
    options.setdefault("compression", "gzip")
    options.setdefault("max_body_bytes", MAX_BODY_BYTES)
    target = with_path(where, "/api/v2/logs", also=("/v1/input",), others=("/api/v2/series", "/api/v1/series"))
    return shipped(datadog_sink, target, body, options, spool=spool, headers={"DD-API-KEY": key})
