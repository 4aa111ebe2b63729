"""Events of unusual shapes: more or fewer fields, nested ones, values that JSON does not have, and an exception."""

from __future__ import annotations

import datetime as dt
import os
from contextlib import contextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import orjson

from benchmarks.events import REQUEST_ID
from benchmarks.harness import Group, Row
from outfall import BackgroundSink, FileSink, Sink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from benchmarks.harness import Run, SetUp


def _error() -> ValueError:
    try:
        int("12.345 of 203.0.113.7")
    except ValueError as error:
        return error
    raise AssertionError


#: The fields from which events are made; they contain every text of `benchmarks.events.PROOF`.
_FIELDS: dict[str, Any] = {
    "level": "info",
    "event": "request finished",
    "request_id": REQUEST_ID,
    "path": "/api/v1/orders of 203.0.113.7",
    "status": "200 in 12.345 ms",
}
_SHAPES: dict[str, dict[str, Any]] = {
    "5 fields": _FIELDS,
    "20 fields": _FIELDS | {f"field_{number}": number for number in range(15)},
    "60 fields": _FIELDS | {f"field_{number}": f"value {number}" for number in range(55)},
    "nested": _FIELDS | {"order": {"lines": [{"item": "bolt M4", "left": 3}, {"item": "nut M4", "left": 0}]}},
    "a date, a Decimal": _FIELDS | {"paid": dt.datetime(2026, 3, 14, tzinfo=dt.timezone.utc), "sum": Decimal("9.95")},
}
_WITH_EXCEPTION = _FIELDS | {"exc_info": _error()}


def _loop(handle: Callable[[dict[str, Any]], object], shape: dict[str, Any], after: Callable[[], object] | None) -> Run:
    def run(events: int) -> None:
        for _ in range(events):
            handle(shape.copy())
        if after is not None:
            after()

    return run


def _floor(shape: dict[str, Any]) -> SetUp:
    """One ``orjson.dumps`` and one system call for each event."""

    @contextmanager
    def setup(directory: Path) -> Iterator[Run]:
        descriptor = os.open(directory / "events.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        write, dumps, option = os.write, orjson.dumps, orjson.OPT_APPEND_NEWLINE
        try:
            yield _loop(lambda event: write(descriptor, dumps(event, str, option)), shape, None)
        finally:
            os.close(descriptor)

    return setup


def _sink(shape: dict[str, Any], around: Callable[[Sink], Sink] | None = None) -> SetUp:
    @contextmanager
    def setup(directory: Path) -> Iterator[Run]:
        sink: Sink = FileSink(directory / "events.jsonl", on_error="raise")
        with around(sink) if around is not None else sink as made:
            yield _loop(made.handle, shape, None if around is None else lambda: made.flush(60))

    return setup


def _background(target: Sink) -> Sink:
    return BackgroundSink(target, on_error="raise")


def _rows() -> Iterator[Row]:
    for name, shape in _SHAPES.items():
        floor = f"floor F, {name}"
        yield Row(floor, _floor(shape))
        yield Row(f"FileSink, {name}", _sink(shape), floor=floor)
        yield Row(f"BackgroundSink(FileSink), {name}", _sink(shape, _background), floor=floor)
    yield Row("FileSink, an exception", _sink(_WITH_EXCEPTION))
    yield Row("BackgroundSink(FileSink), an exception", _sink(_WITH_EXCEPTION, _background))


GROUP = Group(
    "shapes",
    "events of other shapes into a file; CPU of the whole process",
    tuple(_rows()),
    rounds=10,
    events=2_000,
    clock="process",
)
