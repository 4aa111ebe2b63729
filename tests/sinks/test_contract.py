"""Every sink keeps the contract."""

from __future__ import annotations

import io
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest

from outfall import (
    NDJSON,
    BackgroundSink,
    BufferingSink,
    CaptureSink,
    FallbackSink,
    FanoutSink,
    FileSink,
    HandlerSink,
    HTTPSink,
    MemorySink,
    NullSink,
    RotatingFileSink,
    Sink,
    StreamSink,
    TemporaryDeliveryError,
    TimedRotatingFileSink,
)
from outfall.sinks.testing import FailingSink, SinkContract, StuckSink
from tests.sinks._http import Server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class TestCaptureSink(SinkContract):
    """The sink that keeps events for tests."""

    def make_sink(self, **options: Any) -> Sink:
        return CaptureSink(**options)

    def received(self, sink: Sink) -> list[dict[str, Any]]:
        assert isinstance(sink, CaptureSink)
        return sink.events


class TestNullSink(SinkContract):
    """The sink that goes nowhere."""

    def make_sink(self, **options: Any) -> Sink:
        return NullSink(**options)


class TestTextStreamSink(SinkContract):
    """A stream that takes text."""

    def make_sink(self, **options: Any) -> Sink:
        return StreamSink(io.StringIO(), **options)

    def received(self, sink: Sink) -> list[dict[str, Any]]:
        assert isinstance(sink, StreamSink)
        return [json.loads(line) for line in sink.stream.getvalue().splitlines()]


class TestBinaryStreamSink(TestTextStreamSink):
    """A stream that takes bytes."""

    def make_sink(self, **options: Any) -> Sink:
        return StreamSink(io.BytesIO(), **options)


class TestFileSink(SinkContract):
    """A file."""

    options: dict[str, Any] = {}  # noqa: RUF012 - replaced as a whole by subclasses

    @pytest.fixture(autouse=True)
    def _directory(self, tmp_path: Path) -> None:
        self.path = tmp_path / "events.jsonl"

    def make_sink(self, **options: Any) -> Sink:
        return FileSink(self.path, **self.options, **options)

    def received(self, sink: Sink) -> list[dict[str, Any]]:
        assert isinstance(sink, FileSink)
        return [json.loads(line) for line in self.path.read_text().splitlines()]


class TestBufferedFileSink(TestFileSink):
    """A file with a buffer."""

    options = {"buffer_bytes": 4096}  # noqa: RUF012


class _Emptying(BufferingSink):
    """Overrides flush, as whoever subclasses it does."""

    def __init__(self, **options: Any) -> None:
        super().__init__(7, **options)
        self.events: list[dict[str, Any]] = []

    def flush(self, timeout: float | None = None) -> bool:
        self._seconds(timeout)
        with self._ledger.lock:
            waiting, self.buffer = self.buffer, []  # type: ignore[assignment]
            self.events += waiting
        return True


class TestBufferingSink(SinkContract):
    """A subclass that does what BufferingSink is for."""

    def make_sink(self, **options: Any) -> Sink:
        return _Emptying(**options)

    def received(self, sink: Sink) -> list[dict[str, Any]]:
        assert isinstance(sink, _Emptying)
        return sink.events


class TestMemorySink(SinkContract):
    """A buffer before another sink."""

    options: dict[str, Any] = {}  # noqa: RUF012 - replaced as a whole by subclasses

    def make_sink(self, **options: Any) -> Sink:
        self.target = CaptureSink()
        return MemorySink(100, target=self.target, **self.options, **options)

    def received(self, sink: Sink) -> list[dict[str, Any]]:
        return self.target.events


class TestRingMemorySink(TestMemorySink):
    """The same, keeping the newest until an error comes."""

    options = {"ring": True, "flush_level": "critical"}  # noqa: RUF012


class TestFanoutSink(SinkContract):
    """Two sinks in one."""

    def make_sink(self, **options: Any) -> Sink:
        return FanoutSink(CaptureSink(), NullSink(), **options)

    def received(self, sink: Sink) -> list[dict[str, Any]]:
        assert isinstance(sink, FanoutSink)
        child = sink.sinks[0]
        assert isinstance(child, CaptureSink)
        return child.events


class TestFallbackSink(SinkContract):
    """A sink, and one for when it fails."""

    def make_sink(self, **options: Any) -> Sink:
        return FallbackSink(CaptureSink(), NullSink(), **options)

    def received(self, sink: Sink) -> list[dict[str, Any]]:
        assert isinstance(sink, FallbackSink)
        child = sink.sinks[0]
        assert isinstance(child, CaptureSink)
        return child.events


class TestRoutersInTheBackground(SinkContract):
    """Routers behind a sink that delivers in batches, where their items are what waits."""

    def make_sink(self, **options: Any) -> Sink:
        self.child = CaptureSink()
        failing = FallbackSink(FailingSink(TemporaryDeliveryError("away")), self.child, on_error=lambda failure: None)
        return BackgroundSink(FanoutSink(NullSink(), failing), linger=0, **options)

    def received(self, sink: Sink) -> list[dict[str, Any]]:
        return self.child.events


class _ListHandler(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class TestHandlerSink(SinkContract):
    """Any handler of the standard library."""

    def make_sink(self, **options: Any) -> Sink:
        return HandlerSink(_ListHandler(), **options)

    def received(self, sink: Sink) -> list[dict[str, Any]]:
        assert isinstance(sink, HandlerSink)
        assert isinstance(sink.handler, _ListHandler)
        return [{**record.__dict__, "event": record.getMessage()} for record in sink.handler.records]


class TestFailingSink(SinkContract):
    """The double that fails, once it has stopped failing."""

    def make_sink(self, **options: Any) -> Sink:
        return FailingSink(OSError("down"), times=0, **options)


def test_a_stuck_sink_hangs_until_it_is_released() -> None:
    """The double that hangs lets its event through when told to."""
    import threading

    sink = StuckSink()
    thread = threading.Thread(target=sink.handle, args=({"event": "slow"},))
    thread.start()
    assert sink.stuck.wait(60)
    assert not sink.flush(0)
    sink.release()
    thread.join(60)
    assert sink.events == [{"event": "slow"}]


class TestRotatingFileSink(TestFileSink):
    """A file that rolls over by size."""

    options = {"max_bytes": 100_000, "backup_count": 3}  # noqa: RUF012

    def make_sink(self, **options: Any) -> Sink:
        return RotatingFileSink(self.path, **self.options, **options)


class TestBufferedRotatingFileSink(TestRotatingFileSink):
    """The same with a buffer."""

    options = {"max_bytes": 100_000, "backup_count": 3, "buffer_bytes": 4096}  # noqa: RUF012


class TestSharedRotatingFileSink(TestRotatingFileSink):
    """The same for many processes."""

    options = {"max_bytes": 100_000, "backup_count": 3, "multiprocess": True}  # noqa: RUF012


class TestTimedRotatingFileSink(TestFileSink):
    """A file that rolls over by time."""

    options = {"when": "midnight"}  # noqa: RUF012

    def make_sink(self, **options: Any) -> Sink:
        return TimedRotatingFileSink(self.path, **self.options, **options)


class TestHTTPSink(SinkContract):
    """A server that takes one event a request."""

    @pytest.fixture(autouse=True)
    def _server(self) -> Iterator[None]:
        with Server() as self.server:
            yield

    def make_sink(self, **options: Any) -> Sink:
        return HTTPSink(self.server.url, **options)

    def received(self, sink: Sink) -> list[dict[str, Any]]:
        return [request.json for request in self.server.requests]


class TestHTTPSinkOfBatches(TestHTTPSink):
    """A server that takes many."""

    def make_sink(self, **options: Any) -> Sink:
        return HTTPSink(self.server.url, body=NDJSON(), **options)

    def received(self, sink: Sink) -> list[dict[str, Any]]:
        return [event for request in self.server.requests for event in request.lines]
