"""A program that uses Outfall, for type checkers only: against the checkout and the installed wheel."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import structlog
from typing_extensions import assert_type, override

import outfall
from outfall import (
    ByteSink,
    CaptureSink,
    FanoutSink,
    FileSink,
    HandlerSink,
    NullSink,
    OrjsonRenderer,
    Sink,
    SinkClosedError,
    SinkError,
    SinkFailure,
    SinkHandler,
    SinkLoggerFactory,
    StreamSink,
    report,
    tee,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from outfall import BatchResult, Encoded


class Table(Sink):
    """A sink of one's own."""

    def __init__(self, *, level: str | float = "info") -> None:
        super().__init__(level=level, on_error=count_failure)
        self.rows: list[dict[str, Any]] = []

    @override
    def emit(self, event: dict[str, Any]) -> None:
        self.rows.append(event)

    @override
    def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
        self.rows.extend(item.event for item in batch)
        return None


class Pipe(ByteSink):
    """A sink of one's own that writes bytes."""

    @override
    def write(self, data: bytes) -> None:
        assert_type(self.render({"event": "written"}), bytes)


def count_failure(failure: SinkFailure) -> None:
    """Take a failure and pass it on."""
    report(failure)


def redact(_logger: object, _name: str, event_dict: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Drop a secret."""
    event_dict.pop("password", None)
    return event_dict


def configure(directory: Path) -> None:
    """Lead events in by every way there is."""
    file = FileSink(directory / "app.jsonl", level="warning", processors=[redact], buffer_bytes=65_536)
    console = StreamSink(renderer=structlog.dev.ConsoleRenderer(), on_error="raise")
    everywhere = FanoutSink(file, console, Table(), Pipe(renderer=OrjsonRenderer()), NullSink())
    structlog.configure(processors=[structlog.processors.add_log_level, tee(console), everywhere])
    structlog.configure(logger_factory=SinkLoggerFactory(everywhere))
    logging.getLogger().addHandler(SinkHandler(file, level=logging.INFO))
    HandlerSink(logging.StreamHandler()).handle({"event": "out again"})


def read_back() -> int:
    """Read what a sink has to say for itself."""
    with CaptureSink() as sink:
        assert_type(sink, CaptureSink)
        sink.handle({"event": "hello", "level": "info"})
    assert_type(sink.events, list[dict[str, Any]])
    assert_type(sink.flush(1.0), bool)
    assert_type(sink.closed, bool)
    stats = sink.stats()
    assert_type(stats.dropped["error"], int)
    try:
        sink.deliver({"event": "too late"})
    except SinkClosedError as error:
        _: SinkError = error
    return stats.accepted + stats.delivered


def mistakes() -> None:
    """Name what must not pass: mypy reports an ignore that nothing needs."""
    _ = outfall.FileSnk  # type: ignore[attr-defined]
    FileSink()  # type: ignore[call-arg]
    FileSink("app.jsonl", max_bytes=1)  # type: ignore[call-arg]
    Sink(on_error="ignore")  # type: ignore[arg-type]
    NullSink().handle(1)  # type: ignore[arg-type]
