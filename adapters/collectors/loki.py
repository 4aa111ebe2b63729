"""Grafana Loki: `LokiStreams`, the format of its push API, and `loki_sink`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, overload

import orjson

from outfall.adapters.collectors.answers import Answer, CollectorFormat
from outfall.adapters.collectors.factory import shipped, with_path
from outfall.adapters.collectors.fields import found_at, item_nanoseconds, nanoseconds, paths_of, text_of
from outfall.sinks.core.item import data_of
from outfall.sinks.errors import PausedDeliveryError, PermanentDeliveryError
from outfall.sinks.event.levels import level_name

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence

    from typing_extensions import Unpack

    from outfall.adapters.collectors.factory import TokenOptions
    from outfall.sinks.core.item import Encoded
    from outfall.sinks.delivery.background import BackgroundSink
    from outfall.sinks.errors import DeliveryError
    from outfall.sinks.spool.sink import SpoolSink

#: A timestamp with more digits than an item's time has, or a number.
_EXACT_TIME = re.compile(rb'"timestamp":(?:"[^"]*[.,][0-9]{7}|[-0-9])')

_USUAL_TIME = re.compile(rb'"timestamp":"....-..-..T..:..:..\.......Z"')

_PLAIN = re.compile(r"[\w.\- ]+", re.ASCII)

_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")
_UNFIT = re.compile(r"[^a-zA-Z0-9_]")
#: Loki's default limit.
_MAX_LABEL_BYTES = 2048
#: Another path that accepts the same, and paths that accept something else.
_PATHS = ("/api/prom/push",)
_OTHER_PATHS = tuple(f"/loki/api/v1/{each}" for each in ("query", "query_range", "labels", "series", "tail", "delete"))
#: A status of 2xx by which Loki refuses everything for a time.
_BLOCKED = 260

_BAD_REQUEST = 400
#: Loki's messages for lines that it never accepts; without those for times in the future, which become valid later, and
#: for labels, which the set-up chooses.
_NEVER = re.compile(rb"timestamp too old|too far behind|out of order|max entry size")


class LokiStreams(CollectorFormat):
    """Encode events as lines of Loki's streams; each line is the event as JSON.

    A stream consists of the lines with the same labels. Loki indexes streams, so use labels only for fields with few
    different values. Lines of a stream keep their order.

    Args:
        labels: Labels that are the same for all events, such as ``{"service_name": "shop"}``. Default: none.
        label_fields: Fields whose values become labels: their names, or a mapping of label names to fields. A dot leads
            to a nested field: ``{"shop": "order.shop"}``. ``level`` is the name of the event's level, even if the event
            has no such field. An event without a field does not get its label. Default ``("level",)``.
        structured_metadata: Fields that are sent next to the line, where they can be searched without being labels;
            given as *label_fields*. Default ``("trace_id", "span_id")``. Use ``()`` for Loki before 3.0, which may not
            accept them.

    Raises:
        ValueError: If the name of a label is invalid, or a label is in both *labels* and *label_fields*.
        TypeError: If *labels* is not a mapping of texts, or fields are given as a single text.

    Values that are not text are sent as JSON. Values of labels are truncated to 2048 bytes. An event without any label
    gets ``service_name="unknown_service"``, since Loki requires one. Times have nanoseconds.

    If Loki refuses some lines of a batch (400), it may have accepted the others. All are sent again in smaller batches:
    Loki stores lines of a stream with the same time and text once. A line that is too old, too far behind the others of
    its stream, or too long is refused permanently, even if Loki accepts no other.

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
            if not _LABEL.fullmatch(free):  # empty, begins with a digit, or reserved by Loki
                free = "_" + free.lstrip("_")
            while free in self._metadata:
                free += "_"
            self._metadata[free] = path
        needed = {*self._metadata.values(), *(path for path in self._label_fields.values() if path != ("level",))}
        #: Bytes that occur in the data of every event with one of the fields; empty for names that JSON may escape.
        self._names = {b'"%b' % path[0].encode() if _PLAIN.fullmatch(path[0]) else b"" for path in needed}

    def encode(self, batch: Sequence[Encoded]) -> bytes:
        """Return *batch* as the body of a push request, with streams in the order of their first events."""
        streams: dict[tuple[tuple[str, str], ...], list[list[object]]] = {}
        by_level: dict[float, list[list[object]]] = {}
        # Usually one check of all events together is enough.
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
        """Return True if *data*, of one or more events, has to be decoded: the items' level and time do not suffice."""
        for name in self._names:
            if name in data:
                return True
        # Counting usual timestamps is cheaper than searching for unusual ones.
        return data.count(b'"timestamp":') != len(_USUAL_TIME.findall(data)) and _EXACT_TIME.search(data) is not None

    def _labels_of(self, item: Encoded, event: Mapping[str, object]) -> tuple[tuple[str, str], ...]:
        labels = self._labels | {
            label: text
            for label, path in self._label_fields.items()
            if (text := _label_value(level_name(item.level) if path == ("level",) else found_at(event, path)))
        }
        return tuple(labels.items())

    def _outcome(self, answer: Answer, batch: Sequence[Encoded]) -> None:
        if answer.status == _BLOCKED:
            msg = f"Loki takes nothing at present (status {_BLOCKED}, block_ingestion_until)"
            raise PausedDeliveryError(msg)

    def refusal(
        self,
        response_status: int,
        response_headers: Mapping[str, str],
        response_body: bytes,
    ) -> DeliveryError | None:
        """Return the error for lines that Loki never accepts: too old, or too long; None for any other response."""
        found = _NEVER.search(response_body) if response_status == _BAD_REQUEST else None
        return None if found is None else PermanentDeliveryError(f"Loki refuses a line: {found[0].decode()}")


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
        url: Loki's URL, such as ``"http://localhost:3100"``; ``/loki/api/v1/push`` is added unless it is there.
        labels: Labels that are the same for all events, such as ``{"app": "shop"}``. Default: none.
        label_fields: Fields whose values become labels, or a mapping of labels to fields. Default ``("level",)``.
        structured_metadata: Fields that are sent next to the line, for searches. Default ``("trace_id", "span_id")``.
        tenant: The tenant (``X-Scope-OrgID``), for a Loki with several. Default None.
        spool: The directory of a `SpoolSink`, where events wait. Default None: a `BackgroundSink`, in memory.
        options: Arguments of `HTTPSink`, and of `BackgroundSink` or `SpoolSink`; see `TokenOptions`. Grafana Cloud
            requires ``auth=(user, token)``.

    Raises:
        ValueError: If `LokiStreams` or a sink refuses an argument.
        TypeError: If an argument is unknown or has the wrong type.

    Source: https://grafana.com/docs/loki/latest/operations/multi-tenancy/
    """
    body = LokiStreams(labels, label_fields=label_fields, structured_metadata=structured_metadata)
    options.setdefault("name", "loki")
    headers = {} if tenant is None else {"X-Scope-OrgID": tenant}
    target = with_path(url, "/loki/api/v1/push", also=_PATHS, others=_OTHER_PATHS)
    return shipped(loki_sink, target, body, options, spool=spool, headers=headers)
