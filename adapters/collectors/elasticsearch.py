"""Elasticsearch and OpenSearch: `ElasticsearchBulk`, the format of the bulk API, and the factories of sinks."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, overload
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import orjson

from outfall.adapters.collectors.answers import Answer, CollectorFormat, not_the_collector, parsed
from outfall.adapters.collectors.factory import shipped, with_path, with_query
from outfall.adapters.collectors.fields import (
    dump,
    exact_time,
    nanoseconds,
    take_exception,
    take_ids,
    take_level,
    take_message,
    take_utc_text,
    text_of,
    utc_text,
)
from outfall.adapters.collectors.placement import Placement
from outfall.sinks.core.item import Batch, BatchResult
from outfall.sinks.errors import PausedDeliveryError, TemporaryDeliveryError
from outfall.sinks.http.endpoint import with_socket_as_host

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    from typing_extensions import Unpack

    from outfall.adapters.collectors.factory import TokenOptions
    from outfall.sinks.core.item import Encoded
    from outfall.sinks.delivery.background import BackgroundSink
    from outfall.sinks.errors import DeliveryError
    from outfall.sinks.spool.sink import SpoolSink

_ECS_VERSION = "8.11.0"
_CREATED, _REFUSED, _CONFLICT, _TOO_MANY, _SERVER_ERROR = range(200, 300), 400, 409, 429, 500

#: Statuses that are about the document: it is malformed, or too large. All other statuses (403 of a full disk, 404 of a
#: missing index, 429 …) are about the cluster.
_OF_A_DOCUMENT = frozenset({_REFUSED, 413})

#: Types of errors that are about the cluster, whatever the status.
_OF_THE_CLUSTER = frozenset(
    {
        "cluster_block_exception",
        "index_closed_exception",
        "index_not_found_exception",
        "invalid_index_name_exception",
        "process_cluster_event_timeout_exception",
        "security_exception",
        "unavailable_shards_exception",
        "validation_exception",
    }
)

#: Types of errors that may be about the document or the index (too many fields, a missing pipeline).
_DOUBTFUL = frozenset({"illegal_argument_exception"})

_HINTS: dict[int | str, str] = {
    "cluster_block_exception": "its disk may be nearly full, or the index is set to read only",
    "index_closed_exception": "the index is closed",
    "index_not_found_exception": "the index is not there, and is not made by itself",
    "invalid_index_name_exception": "the name of the index cannot be one",
    "validation_exception": "the cluster may have as many shards as it is allowed",
    401: "the credentials are missing or wrong",
    403: "the credentials do not allow it",
    404: "the index is not there, and is not made by itself",
}

#: Names that the server reserves: it refuses a document with one of them.
_OWN_NAMES = frozenset(
    f"_{name}"
    for name in (
        *(
            "id",
            "index",
            "source",
            "type",
            "routing",
            "ignored",
            "ignored_source",
            "field_names",
            "nested_path",
            "seq_no",
        ),
        *("version", "primary_term", "doc_count", "tier", "feature", "size", "tsid", "data_stream_timestamp", "parent"),
        *("all", "timestamp", "ttl", "uid", "meta", "doc", "score"),
    )
)

#: Names of the Elastic Common Schema that have other names below them.
_OBJECTS = ("ecs", "error", "log", "span", "trace")

#: By default floats are stored in 32 bits.
_LARGEST_FLOAT = 3.4e38

#: A date in the server's default format, with a zone.
_STRICT_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d)", re.ASCII)

#: A number in milliseconds is a date too; this range is from the year 2001 to 2286.
_MILLISECONDS = range(10**12, 10**13)

#: Characters that names of indexes and data streams must not have.
_NOT_IN_A_NAME = frozenset('\\/*?"<>|,#: \t\n\r')
_MAX_NAME_BYTES = 255


class ElasticsearchBulk(CollectorFormat):
    """Encode events as documents for the bulk API of Elasticsearch and OpenSearch: two lines, the action and the event.

    The action is ``create``, the only one that data streams accept. The index or data stream is in the URL,
    ``…/logs-shop-default/_bulk``.

    ==========================  =====================================================================================
    ``event``                   ``message``; an event without ``event`` may have its own ``message``
    level                       ``log.level``
    ``timestamp``               ``@timestamp``, as UTC text
    ``logger``                  ``log.logger``
    ``trace_id``, ``span_id``   ``trace.id``, ``span.id``, if they are such ids
    ``exception``               ``error.stack_trace``, ``error.type``, ``error.message``
    ``@timestamp``              ``@timestamp``, if it is a date
    all others                  fields of the same name
    ==========================  =====================================================================================

    Args:
        ecs: True (default) for names of the Elastic Common Schema, as in the table. Other fields keep their names;
            ``_`` is added to a name that is one of these, or a part of one (``error``, ``log``, ``trace`` …). False
            leaves the event unchanged. In both cases ``@timestamp`` is the event's time in UTC, unless the event has a
            field of that name that is a date.
        document_ids: True (default) to give each document an id that is the same at every retry: a batch that is sent
            again after a lost response is in the index once. False lets the server choose ids, which is cheaper for it.

    The server takes dots in names for nesting, and refuses a document with names or values that contradict its mapping.
    So the names are changed as follows: ``_`` is added to a name that has other names below it and to a name that the
    server reserves (``_id``, ``_source`` …), and an empty part of a name becomes ``_``. Integers beyond 64 bits, values
    nested deeper than 20 levels, and lists that mix mappings with other values become text. No value is lost.

    Each document has its own status in the response. After 400 and 413 it is rejected. After an error about the
    cluster, such as ``index_closed_exception``, and after any other status (403 of a full disk, 404 of a missing index,
    429, 5xx …) it is tried again. A document whose id exists already (409) was delivered before.

    Source: https://www.elastic.co/docs/api/doc/elasticsearch/operation/operation-bulk,
    https://docs.opensearch.org/latest/api-reference/document-apis/bulk/ and
    https://www.elastic.co/docs/reference/ecs/logging/intro
    """

    content_type = "application/x-ndjson"

    #: The response has some hundred bytes for each refused document.
    max_response_bytes = 16 * 2**20

    def __init__(self, *, ecs: bool = True, document_ids: bool = True) -> None:
        super().__init__()
        self._ecs = bool(ecs)
        self._document_ids = bool(document_ids)
        self._placement = Placement(own=_OWN_NAMES, objects=_OBJECTS if ecs else (), largest=_LARGEST_FLOAT)

    def encode(self, batch: Sequence[Encoded]) -> bytes:
        """Return *batch* as NDJSON, which ends with the required line break."""
        lines: list[bytes] = []
        keys = batch.item_keys if self._document_ids and isinstance(batch, Batch) else None
        for index, item in enumerate(batch):
            lines.append(b'{"create":{}}' if keys is None else b'{"create":{"_id":%b}}' % orjson.dumps(keys[index]))
            lines.append(self._document(item))
        lines.append(b"")
        return b"\n".join(lines)

    def _document(self, item: Encoded) -> bytes:
        usual = self._placement.usual(item.data)
        if usual is not None and self._ecs and b"\\" not in item.data:
            written = _written_document(item, usual)
            if written is not None:
                return written
        event = item.event if usual is None else usual
        own = _date(event) if "@timestamp" in event else None
        document: dict[str, Any] = {"@timestamp": own}
        if self._ecs:
            when = take_utc_text(item, event)
            _put_common(document, item, event)
        else:
            when = utc_text(nanoseconds(item, event))
        if own is None:
            document["@timestamp"] = when
        # All other names of the document contain dots; those of a usual event do not.
        if usual is None or "@timestamp" in event or ("message" in event and "message" in document):
            return dump(self._placement.beside(document, event))
        document.update(event)
        return orjson.dumps(document)

    def _outcome(self, answer: Answer, batch: Sequence[Encoded]) -> BatchResult | None:
        """Return the documents to try again, and the refused ones.

        Raises:
            PausedDeliveryError: If all documents are refused because of the cluster, or the response is not one of the
                bulk API.
            TemporaryDeliveryError: If all documents have to be tried again.
        """
        said = parsed(answer.body)
        statuses: list[tuple[int, str]] = []
        try:
            statuses = [_status(item) for item in said["items"]] if said["errors"] else []
            known = len(statuses) >= len(batch) or not said["errors"]
        except (ValueError, TypeError, KeyError, AttributeError):
            known = False
        if not known:
            # Unknown which documents are in the index.
            raise not_the_collector(answer.status)
        retry: list[int] = []
        rejected: dict[int, str] = {}
        # A doubtful error is about the index if every document gets it.
        common = len(batch) > 1 and set(statuses) <= {(_REFUSED, kind) for kind in _DOUBTFUL}
        for index, (status, kind) in enumerate(statuses[: len(batch)]):
            if status in _CREATED or status == _CONFLICT:
                continue
            if common or status not in _OF_A_DOCUMENT or kind in _OF_THE_CLUSTER:
                retry.append(index)
            else:
                # Without the server's reason, which repeats values of the event.
                rejected[index] = f"the server refused the document: {status} {kind}".rstrip()
        if len(retry) == len(batch):
            raise _of_all(*statuses[0])
        return BatchResult(retry=retry, rejected=rejected) if retry or rejected else None

    def refusal(
        self,
        response_status: int,
        response_headers: Mapping[str, str],
        response_body: bytes,
    ) -> DeliveryError | None:
        """Return the error for a request that was refused as a whole because of the cluster or the index."""
        if response_status != _REFUSED:
            return None
        try:
            kind = parsed(response_body)["error"]["type"]
        except (TypeError, KeyError):
            return None
        return _of_all(response_status, kind) if kind in _OF_THE_CLUSTER or kind in _DOUBTFUL else None


def _status(item: Mapping[str, Any]) -> tuple[int, str]:
    [result] = item.values()
    error = result.get("error")
    kind = error.get("type") if isinstance(error, dict) else None
    return int(result["status"]), kind if isinstance(kind, str) and kind.isidentifier() else ""


def _of_all(status: int, kind: str) -> TemporaryDeliveryError:
    """Return the error for a request if no document was taken."""
    message = f"the server takes no document at present: {status} {kind}".rstrip()
    if (status == _TOO_MANY or status >= _SERVER_ERROR) and kind not in _OF_THE_CLUSTER:
        return TemporaryDeliveryError(message)
    hint = _HINTS.get(kind) or _HINTS.get(status, "look at the index, and what the credentials allow")
    return PausedDeliveryError(f"{message}; {hint}")


def _date(event: dict[str, Any]) -> str | int | None:
    """Remove the event's own ``@timestamp`` and return it, if the server accepts it as a date; else return None."""
    own = event.get("@timestamp")
    if own is None:
        event.pop("@timestamp", None)
        return None
    if type(own) is int and own in _MILLISECONDS:
        return int(event.pop("@timestamp"))
    exact = exact_time({"timestamp": own})
    if exact is None:
        return None
    del event["@timestamp"]
    return own if isinstance(own, str) and _STRICT_DATE.fullmatch(own) else utc_text(exact)


def _written_document(item: Encoded, event: dict[str, Any]) -> bytes | None:
    """Return the document for a usual event, whose text needs no escapes; None if it has one of the `_RARE` fields."""
    message, level, logger = event.get("event"), event.get("level"), event.get("logger")
    if type(message) is not str or type(level) is not str or type(logger) is not str or not _RARE.isdisjoint(event):
        return None
    when = take_utc_text(item, event)
    del event["event"], event["level"], event["logger"]
    rest = orjson.dumps(event)
    return (
        f'{{"@timestamp":"{when}","log.level":"{level}","message":"{message}","ecs.version":"{_ECS_VERSION}",'
        f'"log.logger":"{logger}"{"," if event else ""}'
    ).encode() + rest[1:]


#: Fields that `_written_document` does not support.
_RARE = frozenset({"@timestamp", "exception", "level_number", "message", "span_id", "trace_id"})


def _put_common(made: dict[str, Any], item: Encoded, event: dict[str, Any]) -> None:
    """Move the fields of *event* that have names in the Elastic Common Schema to *made*."""
    level = take_level(item, event)
    if level is not None:
        made["log.level"] = level
    message = take_message(event)
    if message is not None:
        made["message"] = message
    made["ecs.version"] = _ECS_VERSION
    logger = event.pop("logger", None)
    if logger is not None:
        made["log.logger"] = text_of(logger)
    if "exception" in event:
        made |= take_exception(event, kind="error.type", message="error.message", stack="error.stack_trace")
    if "trace_id" in event or "span_id" in event:
        made |= take_ids(event, "trace.id", "span.id")


@overload
def elasticsearch_sink(
    url: str,
    index: str,
    *,
    api_key: str | Callable[[], str] | None = ...,
    ecs: bool = ...,
    document_ids: bool = ...,
    spool: None = None,
    **options: Unpack[TokenOptions],
) -> BackgroundSink: ...
@overload
def elasticsearch_sink(
    url: str,
    index: str,
    *,
    api_key: str | Callable[[], str] | None = ...,
    ecs: bool = ...,
    document_ids: bool = ...,
    spool: str | os.PathLike[str],
    **options: Unpack[TokenOptions],
) -> SpoolSink: ...
def elasticsearch_sink(
    url: str,
    index: str,
    *,
    api_key: str | Callable[[], str] | None = None,
    ecs: bool = True,
    document_ids: bool = True,
    spool: str | os.PathLike[str] | None = None,
    **options: Unpack[TokenOptions],
) -> BackgroundSink | SpoolSink:
    """Return a sink that sends events to Elasticsearch in the background.

    Args:
        url: The cluster's URL, such as ``"https://es.example.org:9200"``. It may contain user name and password, which
            can also be given as ``auth=``.
        index: The data stream or index, such as ``"logs-shop-default"``.
        api_key: An API key in Elasticsearch's form "encoded", or a callable that returns one. Default None.
        ecs: True (default) for field names of the Elastic Common Schema; False leaves the names unchanged.
        document_ids: True (default) for an id that is the same at every retry; False lets the server choose ids.
        spool: The directory of a `SpoolSink`, where events wait. Default None: a `BackgroundSink`, in memory.
        options: Arguments of `HTTPSink`, and of `BackgroundSink` or `SpoolSink`; see `TokenOptions`.

    Raises:
        ValueError: If *index* is not a valid name, *api_key* is given with a ``token``, or a sink refuses an argument.

    Source: https://www.elastic.co/docs/deploy-manage/api-keys/elasticsearch-api-keys
    """
    if api_key is not None and options.get("token") is not None:
        msg = "api_key=…: there is a token too"
        raise ValueError(msg)
    scheme = "Bearer"
    if api_key is not None:
        scheme, options["token"] = "ApiKey", api_key
    options.setdefault("name", "elasticsearch")
    body = ElasticsearchBulk(ecs=ecs, document_ids=document_ids)
    return shipped(elasticsearch_sink, _bulk_url(url, index), body, options, spool=spool, token_scheme=scheme)


@overload
def opensearch_sink(
    url: str,
    index: str,
    *,
    ecs: bool = ...,
    document_ids: bool = ...,
    spool: None = None,
    **options: Unpack[TokenOptions],
) -> BackgroundSink: ...
@overload
def opensearch_sink(
    url: str,
    index: str,
    *,
    ecs: bool = ...,
    document_ids: bool = ...,
    spool: str | os.PathLike[str],
    **options: Unpack[TokenOptions],
) -> SpoolSink: ...
def opensearch_sink(
    url: str,
    index: str,
    *,
    ecs: bool = True,
    document_ids: bool = True,
    spool: str | os.PathLike[str] | None = None,
    **options: Unpack[TokenOptions],
) -> BackgroundSink | SpoolSink:
    """Return a sink that sends events to OpenSearch in the background.

    It is like `elasticsearch_sink`, but without API keys, which OpenSearch does not have. Use
    ``auth=(user, password)``, ``token=`` for JSON web tokens, or as ``auth=`` an object that signs requests, such as
    that of requests-aws4auth.

    Args:
        url: The cluster's URL.
        index: The data stream or index.
        ecs: True (default) for field names of the Elastic Common Schema; False leaves the names unchanged.
        document_ids: True (default) for an id that is the same at every retry; False lets the server choose ids.
        spool: The directory of a `SpoolSink`, where events wait. Default None: a `BackgroundSink`, in memory.
        options: Arguments of `HTTPSink`, and of `BackgroundSink` or `SpoolSink`; see `TokenOptions`.

    Raises:
        ValueError: If *index* is not a valid name, or a sink refuses an argument.
    """
    options.setdefault("name", "opensearch")
    body = ElasticsearchBulk(ecs=ecs, document_ids=document_ids)
    return shipped(opensearch_sink, _bulk_url(url, index), body, options, spool=spool)


def _bulk_url(url: str, index: str) -> str:
    _check_index(index)
    path = f"/{quote(index, safe='')}/_bulk"
    try:
        url = with_socket_as_host(url)
        own = urlsplit(url).path.rstrip("/")
    except (ValueError, AttributeError):
        own = ""
    if own.endswith("/_bulk") and not own.endswith(path):
        before, _, other = own.removesuffix("/_bulk").rpartition("/")
        if other and unquote(other) != index:
            msg = f"url: it has the path of the bulk API for another index than index={index!r}; leave the path out"
            raise ValueError(msg)
        url = urlunsplit(urlsplit(url)._replace(path=before))
    # The filter leaves out the reason of an error, which repeats values of the event.
    return with_query(with_path(url, path), "filter_path=errors,items.*.status,items.*.error.type")


def _check_index(index: Any) -> None:
    """Raise a ValueError if *index* is not a valid name; names such as ``<…{now/d}>`` are left to the cluster."""
    wrong = None
    if not isinstance(index, str) or not index.strip():
        wrong = "it is empty" if isinstance(index, str) else "it is not text"
    elif index.startswith("<") and index.endswith(">"):
        pass
    elif index != index.lower():
        wrong = f"it has capital letters; {index.lower()!r} has none"
    elif found := sorted(_NOT_IN_A_NAME.intersection(index)):
        wrong = f"it has {found[0]!r} in it"
    elif index[0] in "-_+" or index in {".", ".."} or index.startswith(".ds-"):
        wrong = "it begins with '-', '_', '+' or '.ds-', or is '.' or '..'"
    elif len(index.encode("utf-8", "replace")) > _MAX_NAME_BYTES:
        wrong = f"it has more than {_MAX_NAME_BYTES} bytes"
    if wrong is not None:
        msg = f"index={index!r} is not the name of an index: {wrong}"
        raise ValueError(msg)
