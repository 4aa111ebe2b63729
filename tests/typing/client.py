"""A program that uses Outfall, for type checkers only: against the checkout and the installed wheel."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import structlog
from typing_extensions import assert_type, override

import outfall
from outfall import (
    BackgroundSink,
    ByteSink,
    CaptureSink,
    FanoutSink,
    FileSink,
    HandlerSink,
    HTTPSink,
    NullSink,
    OrjsonRenderer,
    Sink,
    SinkClosedError,
    SinkError,
    SinkFailure,
    SinkHandler,
    SinkLoggerFactory,
    SpoolSink,
    StreamSink,
    SysLogSink,
    TimedRotatingFileSink,
    datadog_sink,
    elasticsearch_sink,
    gelf_sink,
    loki_sink,
    otlp_sink,
    report,
    splunk_sink,
    tee,
)
from outfall.adapters.handlers import FileHandler, RotatingFileHandler, TimedRotatingFileHandler

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from outfall import BatchResult, Encoded, Level


class Table(Sink):
    """A sink of one's own."""

    def __init__(self, *, level: Level = "info") -> None:
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


def collect(token: str) -> list[Sink]:
    """Send events to collectors; what a factory passes on to other sinks has types as well."""
    gelf_sink("http://localhost:12201", capcity=1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    assert_type(gelf_sink("http://localhost:12201", bulk=True, token=None), BackgroundSink)
    assert_type(loki_sink("http://localhost:3100", spool="spool"), SpoolSink)
    return [
        otlp_sink("http://localhost:4318", resource={"service.name": "shop"}, level="info", timeout=(1, 5)),
        loki_sink("http://localhost:3100", {"app": "shop"}, label_fields=["level"], auth=("user", token)),
        elasticsearch_sink("https://localhost:9200", "logs-shop-default", api_key=lambda: token, batch_size=1_000),
        splunk_sink("https://localhost:8088", token, spool="spool", max_bytes=2**30, fsync="always"),
        datadog_sink(token, tags={"env": "prod"}, dead_letter=Table()),
    ]


def configure(directory: Path) -> None:
    """Lead events in by every way there is."""
    file = FileSink(directory / "app.jsonl", level="warning", processors=[redact], buffer_bytes="64 KiB", timeout="2s")
    console = StreamSink(renderer=structlog.dev.ConsoleRenderer(), on_error="raise")
    nightly = TimedRotatingFileSink(directory / "day.jsonl", max_age="30 days", max_total_bytes="2 GB")
    everywhere = FanoutSink(file, nightly, console, Table(), Pipe(renderer=OrjsonRenderer()), NullSink())
    structlog.configure(processors=[structlog.processors.add_log_level, tee(console), everywhere])
    structlog.configure(logger_factory=SinkLoggerFactory(everywhere))
    logging.getLogger().addHandler(SinkHandler(file, level=logging.INFO))
    HandlerSink(logging.StreamHandler()).handle({"event": "out again"})


class Nightly(TimedRotatingFileHandler):
    """A subclass as one of `logging.handlers` would be."""

    @override
    def shouldRollover(self, record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR and super().shouldRollover(record)


def replace(directory: Path) -> list[logging.Handler]:
    """Put the drop-in handlers where those of `logging` are expected."""
    by_size = RotatingFileHandler(directory / "app.log", maxBytes=1_000_000, backupCount=5, encoding="utf-8")
    by_size.namer = lambda name: f"{name}.old"
    plain: logging.FileHandler = FileHandler(directory / "plain.log", delay=True)
    return [by_size, plain, Nightly(directory / "nightly.log", when="midnight")]


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
    Sink(level="waring")  # type: ignore[arg-type]
    Sink(lvel="info")  # type: ignore[arg-type]
    FileSink("app.jsonl", mode="r")  # type: ignore[arg-type]
    TimedRotatingFileSink("app.jsonl", when="weekly")  # type: ignore[arg-type]
    HTTPSink("https://logs.example.org", method="FETCH")  # type: ignore[arg-type]
    SysLogSink(facility="local9")  # type: ignore[arg-type]
    SinkHandler(NullSink(), callsite=["funcName"])  # type: ignore[list-item]
    NullSink().handle(1)  # type: ignore[arg-type]
