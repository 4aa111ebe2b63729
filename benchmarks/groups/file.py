"""`FileSink`, called with ready event dicts."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from orjson import dumps

from benchmarks.events import drive
from benchmarks.groups import floors
from benchmarks.harness import Group, Row
from outfall import FileSink

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
    """Be a processor that does nothing."""
    return event


def _rendered(_logger: object, _name: str, event: dict[str, Any]) -> bytes:
    """Be a renderer of one's own."""
    return dumps(event)


GROUP = Group(
    "file",
    "event dicts to FileSink.handle",
    (
        floors.WRITTEN,
        Row("FileSink", _sink(), floor=floors.WRITTEN.name, budget=1.25),
        Row("FileSink, level set", _sink(level="info"), floor=floors.WRITTEN.name, budget=1.35),
        Row("FileSink, a processor", _sink(processors=[_same]), floor=floors.WRITTEN.name, budget=1.7),
        Row("FileSink, a renderer", _sink(renderer=_rendered), floor=floors.WRITTEN.name, budget=1.6),
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
