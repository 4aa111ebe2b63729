"""structlog into a `FileSink`, by both adapters, next to structlog's own fastest logger.

All three have the processors of a usual configuration: contextvars, level and timestamp. As for a request, the logger
is bound once, its identifier comes from contextvars, and each call adds the fields of its event.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import orjson
import structlog

from benchmarks.events import REQUEST_ID
from benchmarks.groups import floors
from benchmarks.harness import Group, Row
from outfall import FileSink, SinkLoggerFactory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from benchmarks.harness import Run


@contextmanager
def _drive(factory: Callable[..., Any], *last: Callable[..., Any]) -> Iterator[Run]:
    """Log through the usual chain and the processors *last*, to the logger that *factory* makes."""
    processors: tuple[Any, ...] = (
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        *last,
    )
    # Not structlog.configure(): each row has a configuration of its own.
    wrapped = structlog.wrap_logger(
        factory(), processors=processors, wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG)
    )
    log = wrapped.bind(logger="shop.orders", client="203.0.113.7")

    def run(events: int) -> None:
        for number in range(events):
            log.info(
                "request finished",
                method="GET",
                path="/api/v1/orders",
                status=200,
                duration_ms=12.345,
                order_id=number,
            )

    with structlog.contextvars.bound_contextvars(request_id=REQUEST_ID):
        yield run


@contextmanager
def _bytes_logger(directory: Path) -> Iterator[Run]:
    renderer = structlog.processors.JSONRenderer(serializer=orjson.dumps)
    with (directory / "events.jsonl").open("ab") as file, _drive(structlog.BytesLoggerFactory(file), renderer) as run:
        yield run


@contextmanager
def _last_processor(directory: Path) -> Iterator[Run]:
    with FileSink(directory / "events.jsonl", on_error="raise") as sink, _drive(structlog.PrintLogger, sink) as run:
        yield run


@contextmanager
def _logger_factory(directory: Path) -> Iterator[Run]:
    with FileSink(directory / "events.jsonl", on_error="raise") as sink, _drive(SinkLoggerFactory(sink)) as run:
        yield run


_PEER = "structlog → BytesLogger"

GROUP = Group(
    "structlog",
    "bound loggers with contextvars, level and timestamp",
    (
        floors.WRITTEN,
        Row(_PEER, _bytes_logger, floor=floors.WRITTEN.name),
        Row(
            "structlog → FileSink, last processor",
            _last_processor,
            floor=floors.WRITTEN.name,
            peer=_PEER,
            budget=1.0,
        ),
        Row(
            "structlog → FileSink, SinkLoggerFactory",
            _logger_factory,
            floor=floors.WRITTEN.name,
            peer=_PEER,
            budget=1.0,
        ),
    ),
    rounds=100,
)
