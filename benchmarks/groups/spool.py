"""Events stored on disk until a collector has them: end to end, and the caller's cost."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from benchmarks.events import drive, drive_logging
from benchmarks.groups import floors
from benchmarks.groups.collectors import _setup as shipping
from benchmarks.groups.collectors import all_arrived, share_arrived
from benchmarks.harness import Group, Row, nothing_written
from benchmarks.shippers import FLOOR, Shipper
from outfall import NDJSON, HTTPSink, Sink, SpoolSink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from benchmarks.harness import Run, SetUp
    from benchmarks.shippers import Open
    from outfall import Encoded


def _spool(**arguments: Any) -> Callable[[str], AbstractContextManager[Open]]:
    @contextmanager
    def opened(url: str) -> Iterator[Open]:
        with (
            TemporaryDirectory() as directory,
            SpoolSink(HTTPSink(url, body=NDJSON()), directory, on_error="raise", **arguments) as sink,
        ):

            def flush() -> None:
                assert sink.flush(60), sink.stats()

            yield drive(sink.handle), flush

    return opened


@contextmanager
def _logstash(url: str) -> Iterator[Open]:
    """The handler with its queue in SQLite, set up as its documentation shows."""
    from logstash_async.handler import AsynchronousLogstashHandler
    from logstash_async.transport import HttpTransport

    parts = urlsplit(url)
    transport = HttpTransport(
        str(parts.hostname), int(parts.port or 0), ssl_enable=False, timeout=30, path=parts.path.strip("/")
    )
    with TemporaryDirectory() as directory:
        handler = AsynchronousLogstashHandler(
            parts.hostname, parts.port, database_path=str(Path(directory) / "events.db"), transport=transport
        )
        try:
            yield drive_logging(handler), handler.flush
        finally:
            handler.close()


_SPOOL = Shipper("SpoolSink(HTTPSink(NDJSON))", _spool(), whole=True)
_SYNCED = Shipper('SpoolSink(HTTPSink(NDJSON)), fsync="interval"', _spool(fsync="interval"), whole=True)
# It sends remaining events every ten seconds.
_SQLITE = Shipper("python-logstash-async: SQLite, HttpTransport", _logstash, part=20, patience_seconds=12.0)


def _row(shipper: Shipper, *, caller: bool = False, budget: float | None = None) -> Row:
    return Row(
        shipper.name,
        shipping(shipper, caller=caller),
        floor=None if shipper is FLOOR or caller else FLOOR.name,
        budget=budget,
        proof=all_arrived if shipper.whole else share_arrived,
    )


GROUP = Group(
    "spool",
    "a burst of events, kept on disk, to an HTTP collector in another process, until the last has arrived",
    # At least half of the floor's events per second.
    (_row(FLOOR), _row(_SPOOL, budget=2.0), _row(_SYNCED), _row(_SQLITE)),
    rounds=5,
    events=20_000,
)


class _Taking(Sink):
    """A target that does nothing."""

    def emit_batch(self, batch: Sequence[Encoded]) -> None:
        """Accept *batch*."""


class _Away(Sink):
    """A target that does not answer, so that events stay on disk."""

    def __init__(self) -> None:
        super().__init__()
        self.back = threading.Event()

    def emit_batch(self, batch: Sequence[Encoded]) -> None:
        """Block."""
        self.back.wait()


def _caller(make: Callable[[], Sink], **arguments: Any) -> SetUp:
    @contextmanager
    def setup(directory: Path) -> Iterator[Run]:
        target = make()
        sink = SpoolSink(target, directory / "spool", on_error="raise", **arguments)
        log = drive(sink.handle)
        logged = 0

        def run(events: int) -> float:
            nonlocal logged
            begin = perf_counter()
            log(events)
            end = perf_counter()
            logged += events
            assert sink.stats().accepted == logged, sink.stats()
            if isinstance(target, _Taking):
                assert sink.flush(60), sink.stats()
            else:
                assert sink.stats().spooled == logged, sink.stats()
            return end - begin

        try:
            yield run
        finally:
            if isinstance(target, _Away):
                target.back.set()
            sink.close()

    return setup


def _caller_row(name: str, setup: SetUp, budget: float | None = None) -> Row:
    return Row(name, setup, floor=floors.WRITTEN.name, budget=budget, proof=nothing_written)


CALLER_GROUP = Group(
    "spool-caller",
    "event dicts to a spool, until the last call has returned",
    (
        floors.WRITTEN,
        _caller_row("SpoolSink, collector away", _caller(_Away), 1.3),
        _caller_row("SpoolSink, level set, collector away", _caller(_Away, level="info")),
        _caller_row("SpoolSink, while it delivers", _caller(_Taking)),
    ),
    rounds=60,
    events=2_000,
)

SQLITE_GROUP = Group(
    "spool-sqlite",
    "the same for records to a handler that keeps them in SQLite",
    (_row(_SQLITE, caller=True),),
    rounds=5,
    events=20_000,
)
