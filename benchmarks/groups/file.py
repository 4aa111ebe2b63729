"""`FileSink`, called with ready event dicts."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from orjson import dumps

from benchmarks.events import drive
from benchmarks.groups import floors
from benchmarks.harness import Group, Row, nothing_written
from outfall import ChainedRenderer, FileSink, Throttle

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from benchmarks.harness import Run, SetUp


def _sink(**arguments: Any) -> SetUp:
    @contextmanager
    def setup(directory: Path) -> Iterator[Run]:
        with FileSink(directory / "events.jsonl", on_error="raise", **arguments) as sink:
            yield drive(sink.handle, sink.flush if sink.buffer_bytes else None)

    def made(directory: Path) -> AbstractContextManager[Run]:
        return setup(directory)

    return made


def _same(_logger: object, _name: str, event: dict[str, Any]) -> dict[str, Any]:
    """Return *event*: a processor that does nothing."""
    return event


def _rendered(_logger: object, _name: str, event: dict[str, Any]) -> bytes:
    """Return *event* as JSON: a custom renderer."""
    return dumps(event)


#: Its window is never full.
_PASSING = Throttle(10**12, "1 day")


@contextmanager
def _storm(directory: Path) -> Iterator[Run]:
    """Log one message repeatedly; a throttle passes the first and suppresses the others."""
    path = directory / "events.jsonl"
    with FileSink(path, on_error="raise", processors=[Throttle(1, "1 day")]) as sink:
        yield drive(sink.handle)
        assert sink.stats().filtered
    assert path.read_bytes().count(b"\n") == 2  # the first event, and the number of suppressed ones


@contextmanager
def _sealed(directory: Path) -> Iterator[Run]:
    with FileSink(directory / "events.jsonl", renderer=ChainedRenderer(b"k" * 32), on_error="raise") as sink:
        yield drive(sink.handle)


GROUP = Group(
    "file",
    "event dicts to FileSink.handle",
    (
        floors.WRITTEN,
        Row("FileSink", _sink(), floor=floors.WRITTEN.name, budget=1.25),
        Row("FileSink, level set", _sink(level="info"), floor=floors.WRITTEN.name, budget=1.35),
        Row("FileSink, a processor", _sink(processors=[_same]), floor=floors.WRITTEN.name, budget=1.7),
        Row("FileSink, throttled, none held back", _sink(processors=[_PASSING]), floor=floors.WRITTEN.name, budget=1.7),
        Row(
            "FileSink, a storm of one message, throttled",
            _storm,
            floor=floors.WRITTEN.name,
            budget=0.6,
            proof=nothing_written,
        ),
        Row("FileSink, a renderer", _sink(renderer=_rendered), floor=floors.WRITTEN.name, budget=1.6),
        Row("FileSink, a ChainedRenderer", _sealed, floor=floors.WRITTEN.name),
        floors.BUFFERED,
        Row(
            "FileSink, buffer_bytes=64 KiB",
            _sink(buffer_bytes=floors.BUFFER_BYTES),
            floor=floors.BUFFERED.name,
            budget=1.5,
        ),
    ),
    rounds=200,
)
