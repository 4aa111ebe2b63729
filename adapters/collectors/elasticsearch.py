"""Elasticsearch and OpenSearch: documents for the bulk API."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, overload
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import orjson

from outfall.adapters.collectors.answers import CollectorFormat, not_the_collector, parsed
from outfall.adapters.collectors.factory import shipped, with_path, with_query
from outfall.adapters.collectors.fields import (
    SPAN_DIGITS,
    TRACE_DIGITS,
    dump,
    exact_time,
    nanoseconds,
    take_id,
    take_level,
    take_utc_text,
    text_of,
    utc_text,
)
from outfall.adapters.collectors.placement import Placement
from outfall.sinks.core.item import Batch, BatchResult
from outfall.sinks.errors import PausedDeliveryError, TemporaryDeliveryError
from outfall.sinks.event.event import message_key
from outfall.sinks.event.exceptions import take_failure
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

#: What a document is refused with for its own sake: it is malformed, or too large. All other statuses (403 of a full
#: disk, 404 of a missing index, 429 …) speak of the cluster.
_OF_A_DOCUMENT = frozenset({_REFUSED, 413})

#: Types of errors that speak of the cluster whatever the status.
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

#: Types that may speak of the document or of the index: its number of fields is used up, its pipeline is not there.
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

#: Names that the server has for itself: a document with one is refused.
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

#: Names of the Elastic Common Schema that have others below them.
_OBJECTS = ("ecs", "error", "log", "span", "trace")

#: Numbers with a fraction are of 32 bits where nobody has said otherwise.
_LARGEST_FLOAT = 3.4e38

#: A date as the server takes it by default, with a zone.
_STRICT_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d)", re.ASCII)

#: A number is one too, if it is of milliseconds: here from the year 2001 to 2286.
_MILLISECONDS = range(10**12, 10**13)

#: What the names of indexes and data streams cannot have.
_NOT_IN_A_NAME = frozenset('\\/*?"<>|,#: \t\n\r')
_MAX_NAME_BYTES = 255


class ElasticsearchBulk(CollectorFormat):
    """Events as documents of Elasticsearch's and OpenSearch's bulk API: a line with the action, a line with the event.

    The action is ``create``, the one that data streams take. The index or data stream stands in the URL,
    ``…/logs-shop-default/_bulk``.

    ==========================  =====================================================================================
    ``event``                   ``message``; an event without it may have a ``message``
    level                       ``log.level``
    ``timestamp``               ``@timestamp``, as UTC text
    ``logger``                  ``log.logger``
    ``trace_id``, ``span_id``   ``trace.id``, ``span.id``, if they are such ids
    ``exception``               ``error.stack_trace``, ``error.type``, ``error.message``
    ``@timestamp``              ``@timestamp``, if it is a date
    all others                  fields of the same name
    ==========================  =====================================================================================

    Args:
        ecs: True (default) for names of the Elastic Common Schema, as in the table. Other fields keep their names, with
            ``_`` at the end of one that is taken by these, or is a level of one (``error``, ``log``, ``trace`` …).
            False leaves the event as it is. Either way ``@timestamp`` is the event's time, in UTC, unless the event has
            a field of that name that is a date.
        document_ids: True (default) to give each document an id that is the same at every retry, so that a batch that
            is sent again, since the answer was lost, is in the index once. False lets the server choose, which costs it
            less.

    A name with dots is as many levels to the server, which refuses a document for any that it cannot take. So a field
    whose name is a level of another's gets ``_`` at its end, an empty part of a name is ``_``, a name of the server's
    own (``_id``, ``_source`` …) gets ``_`` at its end, integers beyond 64 bits and what is nested deeper than 20 levels
    are text, and so are lists of mappings and other values together. No value is lost.

    Each document has an answer of its own. 400 and 413 speak of the document, which is rejected; a type of error that
    speaks of the cluster, such as ``index_closed_exception``, and all other statuses (403 of a full disk, 404 of a
    missing index, 429, 5xx …) do not, and it is tried again. An id that is there already (409) was delivered before.

    Source: https://www.elastic.co/docs/api/doc/elasticsearch/operation/operation-bulk,
    https://docs.opensearch.org/latest/api-reference/document-apis/bulk/ and
    https://www.elastic.co/docs/reference/ecs/logging/intro
    """

    content_type = "application/x-ndjson"

    #: Some hundred bytes for each document that was refused.
    max_response_bytes = 16 * 2**20

    def __init__(self, *, ecs: bool = True, document_ids: bool = True) -> None:
        super().__init__()
        self._ecs = bool(ecs)
        self._document_ids = bool(document_ids)
        self._placement = Placement(own=_OWN_NAMES, objects=_OBJECTS if ecs else (), largest=_LARGEST_FLOAT)

    def encode(self, batch: Sequence[Encoded]) -> bytes:
        """Return *batch* as NDJSON, which ends in a line break as it must."""
        lines: list[bytes] = []
        keys = batch.item_keys if self._document_ids and isinstance(batch, Batch) else None
        for index, item in enumerate(batch):
            lines.append(b'{"create":{}}' if keys is None else b'{"create":{"_id":%b}}' % orjson.dumps(keys[index]))
            lines.append(self._document(item))
        lines.append(b"")
        return b"\n".join(lines)

    def _document(self, item: Encoded) -> bytes:
        usual = self._placement.usual(item.data)
        event = item.event if usual is None else usual
        own = _date(event) if "@timestamp" in event else None
        if self._ecs:
            when = take_utc_text(item, event)
            document: dict[str, Any] = {"@timestamp": own or when} | _common(item, event)
        else:
            document = {"@timestamp": own or utc_text(nanoseconds(item, event))}
        if usual is not None and document.keys().isdisjoint(event):
            document.update(event)
            return orjson.dumps(document)
        return dump(self._placement.beside(document, event))

    def read(
        self,
        response_status: int,
        response_headers: Mapping[str, str],
        response_body: bytes,
        batch: Sequence[Encoded],
    ) -> BatchResult | None:
        """Return which documents are to be tried again, and which were refused.

        Raises:
            PausedDeliveryError: If all documents are refused for a reason that is none of theirs, or the answer is none
                of the bulk API.
            TemporaryDeliveryError: If all are to be tried again.
        """
        super().read(response_status, response_headers, response_body, batch)
        answer = parsed(response_body)
        statuses: list[tuple[int, str]] = []
        try:
            statuses = [_status(item) for item in answer["items"]] if answer["errors"] else []
            known = len(statuses) >= len(batch) or not answer["errors"]
        except (ValueError, TypeError, KeyError, AttributeError):
            known = False
        if not known:
            # It is not known which documents are in the index.
            raise not_the_collector(response_status)
        retry: list[int] = []
        rejected: dict[int, str] = {}
        # A reason that every document meets is none of theirs, if it may be either.
        common = len(batch) > 1 and set(statuses) <= {(_REFUSED, kind) for kind in _DOUBTFUL}
        for index, (status, kind) in enumerate(statuses[: len(batch)]):
            if status in _CREATED or status == _CONFLICT:
                continue
            if common or status not in _OF_A_DOCUMENT or kind in _OF_THE_CLUSTER:
                retry.append(index)
            else:
                # The reason that comes with it has values of the event in it.
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
        """Return a pause for a request that is refused as a whole for a reason that is none of an event's."""
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
    """Return the failure of a request of which no document was taken."""
    told = f"the server takes no document at present: {status} {kind}".rstrip()
    if (status == _TOO_MANY or status >= _SERVER_ERROR) and kind not in _OF_THE_CLUSTER:
        return TemporaryDeliveryError(told)
    hint = _HINTS.get(kind) or _HINTS.get(status, "look at the index, and what the credentials allow")
    return PausedDeliveryError(f"{told}; {hint}")


def _date(event: dict[str, Any]) -> str | int | None:
    """Take the event's own ``@timestamp`` out of it, if it is a date that the server takes; else leave it there."""
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


def _common(item: Encoded, event: dict[str, Any]) -> dict[str, Any]:
    """Take out of *event* what has a name of its own in the Elastic Common Schema, and return it by that name."""
    made: dict[str, Any] = {}
    level = take_level(item, event)
    if level is not None:
        made["log.level"] = level
    message = event.pop(message_key(event), None)
    if message is not None:
        made["message"] = text_of(message)
    made["ecs.version"] = _ECS_VERSION
    logger = event.pop("logger", None)
    if logger is not None:
        made["log.logger"] = text_of(logger)
    if "exception" in event and (failure := take_failure(event)) is not None:
        told = {"error.type": failure.kind, "error.message": failure.message, "error.stack_trace": failure.stack}
        made.update((name, text) for name, text in told.items() if text is not None)
    for field, name, digits in _IDS:
        if field in event and (identity := take_id(event, field, digits)) is not None:
            made[name] = identity
    return made


_IDS = (("trace_id", "trace.id", TRACE_DIGITS), ("span_id", "span.id", SPAN_DIGITS))


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
        url: The cluster's, such as ``"https://es.example.org:9200"``; user name and password in it, or as ``auth=``,
            are sent as such.
        index: The data stream or index, such as ``"logs-shop-default"``.
        api_key: An API key as Elasticsearch gives it ("encoded"), or a callable that returns one. Default None.
        ecs: True (default) to name fields as the Elastic Common Schema does; False leaves them as they are.
        document_ids: True (default) for an id that is the same at every retry; False lets the server choose.
        spool: The directory of a `SpoolSink`, where events wait. Default None: a `BackgroundSink`, in memory.
        options: Arguments of `HTTPSink`, and of `BackgroundSink` or `SpoolSink`; see `TokenOptions`.

    Raises:
        ValueError: If *index* is empty, *api_key* comes with a ``token``, or what the sinks refuse.

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

    As `elasticsearch_sink`, but without API keys, which OpenSearch does not have: ``auth=(user, password)``, a
    ``token=`` for JSON web tokens, or an object that signs requests, such as requests-aws4auth's.

    Args:
        url: The cluster's.
        index: The data stream or index.
        ecs: True (default) to name fields as the Elastic Common Schema does; False leaves them as they are.
        document_ids: True (default) for an id that is the same at every retry; False lets the server choose.
        spool: The directory of a `SpoolSink`, where events wait. Default None: a `BackgroundSink`, in memory.
        options: Arguments of `HTTPSink`, and of `BackgroundSink` or `SpoolSink`; see `TokenOptions`.

    Raises:
        ValueError: If *index* is empty, or what the sinks refuse.
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
    # Without the reason of an error, which has values of the event in it.
    return with_query(with_path(url, path), "filter_path=errors,items.*.status,items.*.error.type")


def _check_index(index: Any) -> None:
    """Refuse the name of an index or a data stream that no cluster takes; it resolves ``<…{now/d}>`` by itself."""
    wrong = None
    if not isinstance(index, str) or not index.strip():
        wrong = "it is empty" if isinstance(index, str) else "it is no text"
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
