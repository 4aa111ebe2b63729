"""The worker's cost of encoding ready items as the body of a request: the formats of collectors."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from benchmarks.events import REQUEST_ID, TIMESTAMP
from benchmarks.harness import Group, Row, nothing_written
from outfall import NDJSON, DatadogLogs, ElasticsearchBulk, HTTPSink, LokiStreams, OTLPLogs, SplunkEvents
from outfall.sinks.core.item import Batch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from benchmarks.harness import Run, SetUp
    from outfall import BodyFormat

BATCH = 500


def _body(make: Callable[[], BodyFormat]) -> SetUp:
    @contextmanager
    def setup(_directory: Path) -> Iterator[Run]:
        body = make()
        with HTTPSink("http://127.0.0.1:9/logs", body=body) as sink:
            items = [sink.encode(_event(number)) for number in range(BATCH)]

            def run(events: int) -> None:
                for _ in range(max(1, events // BATCH)):
                    made = body.encode(Batch(items))
                    assert made.count(REQUEST_ID.encode()) == BATCH

            yield run

    return setup


def _event(number: int) -> dict[str, Any]:
    return {
        "timestamp": TIMESTAMP,
        "level": "info",
        "logger": "shop.orders",
        "event": "request finished",
        "request_id": REQUEST_ID,
        "method": "GET",
        "path": "/api/v1/orders",
        "status": 200,
        "duration_ms": 12.345,
        "order_id": number,
    }


def _row(name: str, make: Callable[[], BodyFormat], budget: float | None = None) -> Row:
    return Row(name, _body(make), budget=budget, proof=nothing_written)


GROUP = Group(
    "bodies",
    "the body of a request for 500 events of ten fields, for each event; CPU of the worker",
    (
        _row("HTTPSink, NDJSON", NDJSON),
        _row("HTTPSink, LokiStreams", lambda: LokiStreams(labels={"app": "shop"}), 2.0),
        _row("HTTPSink, ElasticsearchBulk", ElasticsearchBulk, 4.0),
        _row("HTTPSink, OTLPLogs", lambda: OTLPLogs(resource={"service.name": "shop"}), 6.0),
        _row("HTTPSink, OTLPLogs, Protocol Buffers", lambda: OTLPLogs({"service.name": "shop"}, encoding="protobuf")),
        _row("HTTPSink, SplunkEvents", SplunkEvents),
        _row("HTTPSink, DatadogLogs", DatadogLogs),
    ),
    rounds=20,
    events=5_000,
    clock="thread",
)
