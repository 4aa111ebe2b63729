"""The drop-in handlers, each next to its original: the same records, formatters and peers."""

from __future__ import annotations

import logging
import logging.handlers
import queue
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from benchmarks.collector import Collector, collector
from benchmarks.groups import syslog, wire
from benchmarks.groups.stdlib import drive_handler
from benchmarks.harness import Group, Row
from outfall.adapters import handlers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from benchmarks.harness import Run, SetUp

_FORMAT = (
    "%(asctime)s %(levelname)s %(name)s %(message)s %(request_id)s %(method)s %(path)s %(status)s %(duration_ms)s "
    "%(client)s %(order_id)s"
)

#: The number of records that each row has delivered, by its directory.
_counts: dict[Path, list[int]] = {}
_collectors: dict[Path, Collector] = {}


class _Counter(logging.Handler):
    """A handler that only counts records."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._count = _counts.setdefault(directory, [0])

    def handle(self, record: logging.LogRecord) -> bool:
        self._count[0] += 1
        return True


def _counted(directory: Path, events: int) -> None:
    count = _counts[directory]
    assert count[0] == events, f"{count[0]} records for {events} events"
    count[0] = 0


def _posted(directory: Path, events: int) -> None:
    found = _collectors[directory].counts(forget=True)[0]
    assert found == events, f"{found} records for {events} events"


def _over(kind: str, name: str) -> Callable[[Any], SetUp]:
    return lambda module: wire.logged(kind, lambda address: getattr(module, name)(*address))


def _syslog(module: Any) -> SetUp:
    @contextmanager
    def setup(directory: Path) -> Iterator[Run]:
        with syslog.listening(directory) as address:
            handler = module.SysLogHandler(address, "local0")
            handler.setFormatter(logging.Formatter(_FORMAT))
            with drive_handler(handler) as run:
                yield run

    return setup


def _memory(module: Any) -> SetUp:
    @contextmanager
    def setup(directory: Path) -> Iterator[Run]:
        handler = module.MemoryHandler(100, target=_Counter(directory))
        with drive_handler(handler) as run:

            def all_of(events: int) -> None:
                run(events)
                handler.flush()

            yield all_of

    return setup


def _queue(module: Any) -> SetUp:
    @contextmanager
    def setup(directory: Path) -> Iterator[Run]:
        records: queue.SimpleQueue[Any] = queue.SimpleQueue()
        count = _counts.setdefault(directory, [0])
        with drive_handler(module.QueueHandler(records)) as run:

            def all_of(events: int) -> None:
                for start in range(0, events, 1000):
                    run(min(1000, events - start))
                    while not records.empty():
                        records.get_nowait()
                        count[0] += 1

            yield all_of

    return setup


def _listener(module: Any) -> SetUp:
    @contextmanager
    def setup(directory: Path) -> Iterator[Run]:
        records: queue.SimpleQueue[Any] = queue.SimpleQueue()
        listener = module.QueueListener(records, _Counter(directory))
        record = logging.makeLogRecord({"msg": "request finished"})

        def run(events: int) -> None:
            for _ in range(events):
                records.put(record)
            listener.start()
            listener.stop()

        yield run

    return setup


class _Tidy(logging.handlers.HTTPHandler):
    """The original handler, with the connections closed that it leaves open."""

    _last: Any = None

    def getConnection(self, host: str, secure: bool) -> Any:  # noqa: N802 - the original's
        self.tidy()
        self._last = super().getConnection(host, secure)
        return self._last

    def tidy(self) -> None:
        """Close the last connection."""
        if self._last is not None:
            self._last.close()

    def close(self) -> None:
        self.tidy()
        super().close()


def _http(module: Any) -> SetUp:
    kind = _Tidy if module is logging.handlers else module.HTTPHandler

    @contextmanager
    def setup(directory: Path) -> Iterator[Run]:
        with collector() as made:
            _collectors[directory] = made
            with drive_handler(kind(f"127.0.0.1:{made.port}", "/logs", "POST")) as run:
                yield run
        del _collectors[directory]

    return setup


def _pair(name: str, setup: Callable[[Any], SetUp], proof: Callable[[Path, int], None]) -> tuple[Row, Row]:
    original = Row(f"logging's {name}", setup(logging.handlers), proof=proof)
    return original, Row(name, setup(handlers), peer=original.name, proof=proof)


GROUP = Group(
    "handlers",
    "the drop-in handlers beside their originals",
    (
        *_pair("SocketHandler", _over("SOCK_STREAM", "SocketHandler"), wire.every_frame_received),
        *_pair("DatagramHandler", _over("SOCK_DGRAM", "DatagramHandler"), wire.some_datagrams_received),
        *_pair("SysLogHandler", _syslog, syslog.arrived),
        *_pair("MemoryHandler", _memory, _counted),
        *_pair("QueueHandler", _queue, _counted),
        *_pair("QueueListener", _listener, _counted),
    ),
    rounds=30,
    events=1_000,
)

HTTP_GROUP = Group(
    "handlers-http",
    "the drop-in handler for web servers beside its original",
    _pair("HTTPHandler", _http, _posted),
    rounds=20,
    events=200,
)
