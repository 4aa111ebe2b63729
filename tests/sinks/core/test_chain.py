"""Text for people in front of a sink that keeps or sends it."""

from __future__ import annotations

import io
import logging

import pytest
import structlog

import outfall
from outfall import CaptureSink, FanoutSink, FileSink, MemorySink, SinkHandler, SinkLoggerFactory, StreamSink
from outfall.sinks.core.chain import for_people

pytestmark = pytest.mark.usefixtures("own_logging")

CONSOLE = structlog.dev.ConsoleRenderer()
PLAIN = structlog.dev.ConsoleRenderer(colors=False)
LOGFMT = structlog.processors.LogfmtRenderer()


NAMES = (
    "file",
    "memory",
    "loki",
    "a file beside a console",
    "a console",
    "consoles",
    "a console behind a thread",
)


def kinds(path, failures):
    """Give sinks, and whether each keeps or sends what it gets."""
    kept = {"level": "info", "on_error": failures.append}
    made = (
        (FileSink(path / "a.jsonl", **kept), True),
        (MemorySink(5, target=FileSink(path / "b.jsonl"), **kept), True),
        (outfall.loki_sink("http://127.0.0.1:9", {"app": "shop"}, **kept), True),
        (FanoutSink(StreamSink(io.StringIO()), FileSink(path / "c.jsonl"), **kept), True),
        (StreamSink(io.StringIO(), **kept), False),
        (FanoutSink(StreamSink(io.StringIO()), CaptureSink(), **kept), False),
        (outfall.BackgroundSink(StreamSink(io.StringIO()), **kept), False),
    )
    return dict(zip(NAMES, made, strict=True))


@pytest.mark.parametrize("way", ["factory", "processor", "formatter"])
@pytest.mark.parametrize("renderer", [CONSOLE, PLAIN, LOGFMT], ids=["coloured", "plain", "logfmt"])
@pytest.mark.parametrize("name", NAMES)
def test_text_for_people_is_told_once_with_what_to_write(name, renderer, way, tmp_path):
    """In front of what ships or stores; logfmt is no such text, and a console is right for it."""
    failures = []
    sink, keeps = kinds(tmp_path, failures)[name]
    for _ in range(3):
        if way == "formatter":
            handler = SinkHandler(sink)
            handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=renderer))
            handler.handle(logging.makeLogRecord({"msg": "stock is low", "levelno": 30, "levelname": "WARNING"}))
        else:
            last = [sink] if way == "processor" else []
            factory = None if way == "processor" else SinkLoggerFactory(sink)
            structlog.configure(
                processors=[structlog.processors.add_log_level, renderer, *last], logger_factory=factory
            )
            structlog.get_logger().warning("stock is low")
    told = [str(failure.error) for failure in failures if "text for people" in str(failure.error)]
    assert len(told) == (keeps and renderer is not LOGFMT)
    if told:
        assert "outfall.configure(sink)" in told[0]
    sink.close(0)


def test_a_router_is_for_people_if_all_behind_it_is(tmp_path):
    """However deep."""
    file = FileSink(tmp_path / "a.jsonl")
    assert for_people(FanoutSink(CaptureSink(), FanoutSink(CaptureSink())))
    assert not for_people(FanoutSink(CaptureSink(), FanoutSink(outfall.BackgroundSink(file))))
