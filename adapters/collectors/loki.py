"""Grafana Loki: streams of lines for its push API."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, overload

import orjson

from outfall.adapters.collectors.answers import CollectorFormat
from outfall.adapters.collectors.factory import shipped, with_path
from outfall.adapters.collectors.fields import found_at, item_nanoseconds, nanoseconds, paths_of, text_of
from outfall.sinks.core.item import data_of
from outfall.sinks.errors import PausedDeliveryError
from outfall.sinks.event.levels import level_name

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence

    from typing_extensions import Unpack

    from outfall.adapters.collectors.factory import TokenOptions
    from outfall.sinks.core.item import BatchResult, Encoded
    from outfall.sinks.delivery.background import BackgroundSink
    from outfall.sinks.spool.sink import SpoolSink

#: A time that has more digits than an item's, or is a number.
_EXACT_TIME = re.compile(rb'"timestamp":(?:"[^"]*[.,][0-9]{7}|[-0-9])')

_USUAL_TIME = re.compile(rb'"timestamp":"....-..-..T..:..:..\.......Z"')

_PLAIN = re.compile(r"[\w.\- ]+", re.ASCII)

_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")
_UNFIT = re.compile(r"[^a-zA-Z0-9_]")
#: Loki's own limit, as it is set where nobody changed it.
_MAX_LABEL_BYTES = 2048
#: Another path that takes the same, and such as take something else.
_PATHS = ("/api/prom/push",)
_OTHER_PATHS = tuple(f"/loki/api/v1/{each}" for each in ("query", "query_range", "labels", "series", "tail", "delete"))
#: With this status Loki refuses everything for a while, though it looks like success.
_BLOCKED = 260


class LokiStreams(CollectorFormat):
    """Events as lines of Loki's streams: each line is the event as JSON.

    A stream is what has the same labels. Loki keeps an index of streams, so labels are for what has few values, and
    which ones there are is your choice. Lines of a stream stay in their order.

    Args:
        labels: Labels that are the same for all events, such as ``{"service_name": "shop"}``. Default none.
        label_fields: Fields whose values are labels: their names, or a mapping of label names to fields. A dot leads
            into a nested one: ``{"shop": "order.shop"}``. ``level`` is the level's name, whatever the event has. An
            event without the field has no such label. Default ``("level",)``.
        structured_metadata: Fields that are sent beside the line, where they can be searched without being labels; as
            *label_fields*. Default ``("trace_id", "span_id")``. Loki before 3.0 may not take them: then ``()``.

    Raises:
        ValueError: If the name of a label is none, or the same label is in *labels* and *label_fields*.
        TypeError: If *labels* is no mapping of texts, or fields are given as one text.

    Values that are no text are sent as JSON; those of labels are cut to 2048 bytes. An event that has no label at all
    gets ``service_name="unknown_service"``, since Loki takes none without. Times have nanoseconds.

    When Loki refuses some lines of a batch (400) it may have taken the others. They are sent again in smaller batches:
    lines of a stream with the same time and text are one to Loki.

    Source: https://grafana.com/docs/loki/latest/reference/loki-http-api/#ingest-logs and
    https://grafana.com/docs/loki/latest/get-started/labels/structured-metadata/
    """

    content_type = "application/json"

    def __init__(
        self,
        labels: Mapping[str, str] | None = None,
        *,
        label_fields: Mapping[str, str] | Iterable[str] = ("level",),
        structured_metadata: Mapping[str, str] | Iterable[str] = ("trace_id", "span_id"),
    ) -> None:
        super().__init__()
        self._labels = _checked_labels({} if labels is None else labels)
        self._label_fields = paths_of(label_fields, "label_fields")
        for label in self._label_fields:
            if not _LABEL.fullmatch(label):
                msg = (
                    f"label_fields={label_fields!r}: {label!r} is not a label's name; give a mapping of names to fields"
                )
                raise ValueError(msg)
            if label in self._labels:
                msg = f"label_fields={label_fields!r}: {label!r} is among the labels too"
                raise ValueError(msg)
        paths = paths_of(structured_metadata, "structured_metadata")
        self._metadata: dict[str, tuple[str, ...]] = {}
        for name, path in paths.items():
            free = _UNFIT.sub("_", name)
            if not _LABEL.fullmatch(free):  # empty, begun with a digit, or Loki's own
                free = "_" + free.lstrip("_")
            while free in self._metadata:
                free += "_"
            self._metadata[free] = path
        needed = {*self._metadata.values(), *(path for path in self._label_fields.values() if path != ("level",))}
        #: What is in the data of an event that has one of the fields; empty for a name that JSON may write in two ways.
        self._names = {b'"%b' % path[0].encode() if _PLAIN.fullmatch(path[0]) else b"" for path in needed}

    def encode(self, batch: Sequence[Encoded]) -> bytes:
        """Return *batch* as the body of a push, its streams in the order in which they begin."""
        streams: dict[tuple[tuple[str, str], ...], list[list[object]]] = {}
        by_level: dict[float, list[list[object]]] = {}
        # Of usual events one look at all of them is enough.
        usual = not self._needs_event(b"\n".join(data_of(batch)))
        for item in batch:
            data = item.data
            line = data.decode("utf-8", "replace").rstrip("\r\n")
            if not usual and self._needs_event(data):
                event = item.event
                value: list[object] = [str(nanoseconds(item, event)), line]
                metadata = {
                    name: text_of(found)
                    for name, path in self._metadata.items()
                    if (found := found_at(event, path)) is not None
                }
                if metadata:
                    value.append(metadata)
                streams.setdefault(self._labels_of(item, event), []).append(value)
                continue
            values = by_level.get(item.level)
            if values is None:
                values = by_level[item.level] = streams.setdefault(self._labels_of(item, {}), [])
            values.append([str(item_nanoseconds(item)), line])
        return orjson.dumps(
            {
                "streams": [
                    {"stream": dict(labels) or {"service_name": "unknown_service"}, "values": values}
                    for labels, values in streams.items()
                ]
            }
        )

    def _needs_event(self, data: bytes) -> bool:
        """Return True if it takes more than the level and the time of an item to send it, or one of several."""
        for name in self._names:
            if name in data:
                return True
        # To count what is usual is cheaper than to look for what is not.
        return data.count(b'"timestamp":') != len(_USUAL_TIME.findall(data)) and _EXACT_TIME.search(data) is not None

    def _labels_of(self, item: Encoded, event: Mapping[str, object]) -> tuple[tuple[str, str], ...]:
        labels = self._labels | {
            label: text
            for label, path in self._label_fields.items()
            if (text := _label_value(level_name(item.level) if path == ("level",) else found_at(event, path)))
        }
        return tuple(labels.items())

    def read(
        self,
        response_status: int,
        response_headers: Mapping[str, str],
        response_body: bytes,
        batch: Sequence[Encoded],
    ) -> BatchResult | None:
        """Find out whether Loki is told to take nothing at present.

        Raises:
            PausedDeliveryError: If it is (``block_ingestion_until``), or the answer is a page of HTML.
        """
        if response_status == _BLOCKED:
            msg = f"Loki takes nothing at present (status {_BLOCKED}, block_ingestion_until)"
            raise PausedDeliveryError(msg)
        return super().read(response_status, response_headers, response_body, batch)


def _label_value(value: object) -> str:
    if value is None:
        return ""
    return text_of(value).encode("utf-8", "replace")[:_MAX_LABEL_BYTES].decode("utf-8", "ignore")


def _checked_labels(labels: Mapping[str, str]) -> dict[str, str]:
    if not isinstance(labels, Mapping):
        msg = f"labels={labels!r} is not a mapping of names to texts"
        raise TypeError(msg)
    for name, value in labels.items():
        if not isinstance(name, str) or not isinstance(value, str):
            msg = f"labels={labels!r}: {name!r} and its value have to be text"
            raise TypeError(msg)
        if not _LABEL.fullmatch(name):
            msg = (
                f"labels={labels!r}: {name!r} is not a label's name (letters, digits, _; two of these begin Loki's own)"
            )
            raise ValueError(msg)
    return {name: _label_value(value) for name, value in labels.items() if value}


@overload
def loki_sink(
    url: str,
    labels: Mapping[str, str] | None = ...,
    *,
    label_fields: Mapping[str, str] | Iterable[str] = ...,
    structured_metadata: Mapping[str, str] | Iterable[str] = ...,
    tenant: str | None = ...,
    spool: None = None,
    **options: Unpack[TokenOptions],
) -> BackgroundSink: ...
@overload
def loki_sink(
    url: str,
    labels: Mapping[str, str] | None = ...,
    *,
    label_fields: Mapping[str, str] | Iterable[str] = ...,
    structured_metadata: Mapping[str, str] | Iterable[str] = ...,
    tenant: str | None = ...,
    spool: str | os.PathLike[str],
    **options: Unpack[TokenOptions],
) -> SpoolSink: ...
def loki_sink(
    url: str,
    labels: Mapping[str, str] | None = None,
    *,
    label_fields: Mapping[str, str] | Iterable[str] = ("level",),
    structured_metadata: Mapping[str, str] | Iterable[str] = ("trace_id", "span_id"),
    tenant: str | None = None,
    spool: str | os.PathLike[str] | None = None,
    **options: Unpack[TokenOptions],
) -> BackgroundSink | SpoolSink:
    """Return a sink that sends events to Grafana Loki in the background.

    Args:
        url: Loki's, such as ``"http://localhost:3100"``; ``/loki/api/v1/push`` is added unless it is there.
        labels: Labels that are the same for all events, such as ``{"app": "shop"}``. Default none.
        label_fields: Fields whose values are labels, or a mapping of labels to fields. Default ``("level",)``.
        structured_metadata: Fields that are sent beside the line, to search by. Default ``("trace_id", "span_id")``.
        tenant: For a Loki with several tenants (``X-Scope-OrgID``). Default None.
        spool: The directory of a `SpoolSink`, where events wait. Default None: a `BackgroundSink`, in memory.
        options: Arguments of `HTTPSink`, and of `BackgroundSink` or `SpoolSink`; see `TokenOptions`. Grafana Cloud
            requires ``auth=(user, token)``.

    Raises:
        ValueError: What `LokiStreams` and the sinks refuse.
        TypeError: The same.

    Source: https://grafana.com/docs/loki/latest/operations/multi-tenancy/
    """
    body = LokiStreams(labels, label_fields=label_fields, structured_metadata=structured_metadata)
    options.setdefault("name", "loki")
    headers = {} if tenant is None else {"X-Scope-OrgID": tenant}
    target = with_path(url, "/loki/api/v1/push", also=_PATHS, others=_OTHER_PATHS)
    return shipped(loki_sink, target, body, options, spool=spool, headers=headers)
