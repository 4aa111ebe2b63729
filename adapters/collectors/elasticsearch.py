"""Elasticsearch and OpenSearch: documents for the bulk API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import orjson

from outfall.adapters.collectors.factory import shipped, with_path, with_query
from outfall.adapters.collectors.fields import (
    SPAN_DIGITS,
    TRACE_DIGITS,
    beside,
    dump,
    nanoseconds,
    take_id,
    take_level,
    take_time,
    text_of,
    utc_text,
)
from outfall.sinks.core.item import Batch, BatchResult
from outfall.sinks.errors import TemporaryDeliveryError
from outfall.sinks.event.event import message_key
from outfall.sinks.event.exceptions import take_failure
from outfall.sinks.http.bodies import BodyFormat

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    from typing_extensions import Unpack

    from outfall.adapters.collectors.factory import TokenOptions
    from outfall.sinks.core.item import Encoded
    from outfall.sinks.core.sink import Sink

_ECS_VERSION = "8.11.0"
_CREATED, _CONFLICT, _TOO_MANY, _SERVER_ERROR = range(200, 300), 409, 429, 500


class ElasticsearchBulk(BodyFormat):
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
    all others                  fields of the same name
    ==========================  =====================================================================================

    Args:
        ecs: True (default) for names of the Elastic Common Schema, as in the table. Other fields keep their names, with
            ``_`` at the end of one that is taken by these. False leaves the event as it is. Either way ``@timestamp``
            is the event's time, in UTC, unless the event has a field of that name.
        document_ids: True (default) to give each document an id that is the same at every retry, so that a batch that
            is sent again, since the answer was lost, is in the index once. False lets the server choose, which costs it
            less.

    Each document has an answer of its own: refused with 429 or 5xx it is tried again, refused otherwise it is rejected,
    and an id that is there already (409) was delivered before.

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

    def encode(self, batch: Sequence[Encoded]) -> bytes:
        """Return *batch* as NDJSON, which ends in a line break as it must."""
        lines: list[bytes] = []
        keys = batch.item_keys if self._document_ids and isinstance(batch, Batch) else None
        for index, item in enumerate(batch):
            lines.append(b'{"create":{}}' if keys is None else b'{"create":{"_id":%b}}' % dump(keys[index]))
            lines.append(self._document(item))
        lines.append(b"")
        return b"\n".join(lines)

    def _document(self, item: Encoded) -> bytes:
        event = item.event
        own = event.pop("@timestamp", None)
        when = take_time(item, event) if self._ecs else nanoseconds(item, event)
        document: dict[str, Any] = {"@timestamp": own or utc_text(when)}
        if self._ecs:
            document |= _common(item, event)
        return dump(beside(document, event))

    def read(
        self,
        response_status: int,
        response_headers: Mapping[str, str],
        response_body: bytes,
        batch: Sequence[Encoded],
    ) -> BatchResult | None:
        """Return which documents are to be tried again, and which were refused.

        Raises:
            TemporaryDeliveryError: If the answer is none of the bulk API.
        """
        failure = None
        statuses: list[tuple[int, str]] = []
        try:
            answer = orjson.loads(response_body)
            statuses = [_status(item) for item in answer["items"]] if answer["errors"] else []
        except (ValueError, TypeError, KeyError, AttributeError):
            # A proxy's page, for one. It is not known which documents are in the index.
            failure = TemporaryDeliveryError(f"the answer, {response_status}, is none of the bulk API")
        if failure is not None:
            raise failure
        retry: list[int] = []
        rejected: dict[int, str] = {}
        for index, (status, kind) in enumerate(statuses[: len(batch)]):
            if status == _TOO_MANY or status >= _SERVER_ERROR:
                retry.append(index)
            elif status not in _CREATED and status != _CONFLICT:
                # The reason that comes with it has values of the event in it.
                rejected[index] = f"the server refused the document: {status} {kind}".rstrip()
        return BatchResult(retry=retry, rejected=rejected) if retry or rejected else None


def _status(item: Mapping[str, Any]) -> tuple[int, str]:
    [result] = item.values()
    error = result.get("error")
    kind = error.get("type") if isinstance(error, dict) else None
    return int(result["status"]), kind if isinstance(kind, str) else ""


def _common(item: Encoded, event: dict[str, Any]) -> dict[str, Any]:
    """Take out of *event* what has a name of its own in the Elastic Common Schema, and return it by that name."""
    made: dict[str, Any] = {"log.level": take_level(item, event)}
    message = event.pop(message_key(event), None)
    if message is not None:
        made["message"] = text_of(message)
    made["ecs.version"] = _ECS_VERSION
    logger = event.pop("logger", None)
    if logger is not None:
        made["log.logger"] = text_of(logger)
    failure = take_failure(event)
    if failure is not None:
        made |= {
            "error.type": failure.kind,
            "error.message": failure.message,
            "error.stack_trace": failure.stack,
        }
    made["trace.id"] = take_id(event, "trace_id", TRACE_DIGITS)
    made["span.id"] = take_id(event, "span_id", SPAN_DIGITS)
    return {name: value for name, value in made.items() if value is not None}


def elasticsearch_sink(
    url: str,
    index: str,
    *,
    api_key: str | Callable[[], str] | None = None,
    ecs: bool = True,
    document_ids: bool = True,
    spool: str | os.PathLike[str] | None = None,
    **options: Unpack[TokenOptions],
) -> Sink:
    """Return a sink that sends events to Elasticsearch in the background.

    Args:
        url: The cluster's, such as ``"https://es.example.org:9200"``; user name and password in it, or as ``auth=``,
            are sent as such.
        index: The data stream or index, such as ``"logs-shop-default"``.
        api_key: An API key as Elasticsearch gives it ("encoded"), or a callable that returns one. Default None.
        ecs: See `ElasticsearchBulk`.
        document_ids: See `ElasticsearchBulk`.
        spool: A directory where events wait, on disk, in a `SpoolSink`. Default None: in memory, in a `BackgroundSink`.
        options: Whatever `HTTPSink` takes, and `BackgroundSink` or `SpoolSink`; see `TokenOptions`.

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
    return shipped(_bulk_url(url, index), body, options, spool=spool, token_scheme=scheme)


def opensearch_sink(
    url: str,
    index: str,
    *,
    ecs: bool = True,
    document_ids: bool = True,
    spool: str | os.PathLike[str] | None = None,
    **options: Unpack[TokenOptions],
) -> Sink:
    """Return a sink that sends events to OpenSearch in the background.

    As `elasticsearch_sink`, but without API keys, which OpenSearch does not have: ``auth=(user, password)``, a
    ``token=`` for JSON web tokens, or an object that signs requests, such as requests-aws4auth's.

    Args:
        url: The cluster's.
        index: The data stream or index.
        ecs: See `ElasticsearchBulk`.
        document_ids: See `ElasticsearchBulk`.
        spool: A directory where events wait, on disk, in a `SpoolSink`. Default None: in memory, in a `BackgroundSink`.
        options: Whatever `HTTPSink` takes, and `BackgroundSink` or `SpoolSink`; see `TokenOptions`.

    Raises:
        ValueError: If *index* is empty, or what the sinks refuse.
    """
    options.setdefault("name", "opensearch")
    body = ElasticsearchBulk(ecs=ecs, document_ids=document_ids)
    return shipped(_bulk_url(url, index), body, options, spool=spool)


def _bulk_url(url: str, index: str) -> str:
    if not isinstance(index, str) or not index.strip():
        msg = f"index={index!r} is not the name of an index"
        raise ValueError(msg)
    # Without the reason of an error, which has values of the event in it.
    wanted = "filter_path=errors,items.*.status,items.*.error.type"
    return with_query(with_path(url, f"/{quote(index, safe='')}/_bulk"), wanted)
