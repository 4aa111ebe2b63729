"""The cost of a thread in front of a sink: CPU of the process, CPU of the caller, rates, and the slowest calls.

The load is sustained, with default settings: a loop logs as fast as it can, more events than fit into a batch, and the
targets do real work. `BEHIND` is the CPU time of the whole process, caller and worker, until the last event is
delivered. `CALLER` is that of the calling thread. `RATE` is the rate of eight threads. `TAIL` is the slowest call of
`handle` among a thousand.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from queue import SimpleQueue
from threading import Thread
from time import perf_counter, thread_time
from typing import TYPE_CHECKING, Any

import orjson

from benchmarks.events import drive
from benchmarks.groups import floors
from benchmarks.groups.stdlib import drive_handler
from benchmarks.groups.wire import peer
from benchmarks.harness import Group, Row, every_line_written, nothing_written
from outfall import (
    BackgroundSink,
    FanoutSink,
    FileSink,
    NullSink,
    RotatingFileSink,
    Sink,
    SinkHandler,
    SocketSink,
    SysLogSink,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from benchmarks.harness import Run, SetUp
    from outfall import Encoded

    #: Makes a sink for a row with this directory; the stack closes what the sink needs.
    Make = Callable[[ExitStack, Path], Sink]

THREADS = 8
#: The number of events in a round, all of which may wait in the worker.
EVENTS = 20_000


# -- targets


def _null(_stack: ExitStack, _directory: Path) -> Sink:
    return NullSink()


def _file(_stack: ExitStack, directory: Path) -> Sink:
    return FileSink(directory / "events.jsonl", on_error="raise")


def _rotating(_stack: ExitStack, directory: Path) -> Sink:
    return RotatingFileSink(directory / "events.jsonl", max_bytes=1 << 30, backup_count=1, on_error="raise")


def _socket(stack: ExitStack, directory: Path) -> Sink:
    return SocketSink(*stack.enter_context(peer(directory, "SOCK_STREAM")), timeout=30, on_error="raise")


def _syslog_tcp(stack: ExitStack, directory: Path) -> Sink:
    import socket

    address = stack.enter_context(peer(directory, "SOCK_STREAM"))
    return SysLogSink(address, socktype=socket.SOCK_STREAM, timeout=30, on_error="raise")


def _syslog_udp(stack: ExitStack, directory: Path) -> Sink:
    return SysLogSink(stack.enter_context(peer(directory, "SOCK_DGRAM")), on_error="raise")


def _files(number: int) -> Make:
    def make(_stack: ExitStack, directory: Path) -> Sink:
        files = [FileSink(directory / f"events-{each}.jsonl", on_error="raise") for each in range(number)]
        return FanoutSink(*files, on_error="raise")

    return make


def _behind(make: Make, **arguments: Any) -> Make:
    """Return a function that puts a BackgroundSink in front of the sink that *make* makes."""

    def made(stack: ExitStack, directory: Path) -> Sink:
        return BackgroundSink(make(stack, directory), on_error="raise", **arguments)

    return made


def each_file_has(files: int) -> Callable[[Path, int], None]:
    """Return a proof that each of *files* files has every event."""

    def proof(directory: Path, events: int) -> None:
        every_line_written(directory, events * files)

    return proof


def forgotten(directory: Path, _events: int) -> None:
    """Empty the file that a peer has written; the ledger says that all events were sent."""
    (directory / "received").open("wb").close()


# -- ways to measure


def _sustained(make: Make) -> SetUp:
    """Measure until the last event is delivered."""

    @contextmanager
    def setup(directory: Path) -> Iterator[Run]:
        with ExitStack() as stack:
            sink = stack.enter_context(make(stack, directory))

            def flush() -> None:
                assert sink.flush(60), sink.stats()

            yield drive(sink.handle, flush)

    return setup


def _called(make: Make) -> SetUp:
    """Measure the caller's CPU time alone, while the worker runs."""

    @contextmanager
    def setup(directory: Path) -> Iterator[Run]:
        with ExitStack() as stack:
            sink = stack.enter_context(make(stack, directory))
            log = drive(sink.handle)

            def run(events: int) -> float:
                begin = thread_time()
                log(events)
                end = thread_time()
                assert sink.flush(60), sink.stats()
                return end - begin

            yield run

    return setup


def _by_threads(make: Make) -> SetUp:
    """Measure wall time until the last event of `THREADS` threads is delivered."""

    @contextmanager
    def setup(directory: Path) -> Iterator[Run]:
        with ExitStack() as stack:
            sink = stack.enter_context(make(stack, directory))
            log = drive(sink.handle)

            def run(events: int) -> None:
                threads = [Thread(target=log, args=(events // THREADS,)) for _ in range(THREADS)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                assert sink.flush(60), sink.stats()

            yield run

    return setup


def _longest(make: Make, threads: int) -> SetUp:
    """Measure the time within which 999 of 1 000 calls of handle return."""

    @contextmanager
    def setup(directory: Path) -> Iterator[Run]:
        with ExitStack() as stack:
            sink = stack.enter_context(make(stack, directory))

            def run(events: int) -> float:
                taken: list[float] = []

                def handle(event: dict[str, Any]) -> None:
                    begin = perf_counter()
                    sink.handle(event)
                    taken.append(perf_counter() - begin)

                log = drive(handle)
                callers = [Thread(target=log, args=(events // threads,)) for _ in range(threads)]
                for caller in callers:
                    caller.start()
                for caller in callers:
                    caller.join()
                assert sink.flush(60), sink.stats()
                taken.sort()
                return taken[-max(1, len(taken) // 1000)]

            yield run

    return setup


# -- floors


@contextmanager
def _queued(_directory: Path) -> Iterator[Run]:
    """One ``orjson.dumps`` and one ``SimpleQueue.put`` for each event; the queue is emptied afterwards."""
    queue: SimpleQueue[bytes] = SimpleQueue()
    put, dumps = queue.put, orjson.dumps
    log = drive(lambda event: put(dumps(event)))

    def run(events: int) -> float:
        begin = thread_time()
        log(events)
        end = thread_time()
        assert floors.emptied(queue.get_nowait) == events
        return end - begin

    yield run


def _written_to(files: int) -> SetUp:
    """One ``orjson.dumps`` and *files* calls of ``os.write`` for each event."""

    @contextmanager
    def setup(directory: Path) -> Iterator[Run]:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        descriptors = [os.open(directory / f"events-{each}.jsonl", flags) for each in range(files)]
        write, dumps, option = os.write, orjson.dumps, orjson.OPT_APPEND_NEWLINE

        def put(event: dict[str, Any]) -> None:
            data = dumps(event, None, option)
            for descriptor in descriptors:
                write(descriptor, data)

        try:
            yield drive(put)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    return setup


# -- peers


@contextmanager
def _queue_listener(directory: Path) -> Iterator[Run]:
    """The standard library's queue and listener, which writes JSON to a file."""
    import logging
    import logging.handlers

    from pythonjsonlogger.orjson import OrjsonFormatter

    target = logging.FileHandler(directory / "events.jsonl")
    target.setFormatter(OrjsonFormatter(("message", "levelname", "name"), timestamp=True))
    queue: SimpleQueue[Any] = SimpleQueue()
    with drive_handler(logging.handlers.QueueHandler(queue)) as log:

        def run(events: int) -> None:
            listener = logging.handlers.QueueListener(queue, target)
            listener.start()
            log(events)
            listener.stop()

        try:
            yield run
        finally:
            target.close()


@contextmanager
def _sink_handler(directory: Path) -> Iterator[Run]:
    sink = BackgroundSink(FileSink(directory / "events.jsonl", on_error="raise"), on_error="raise")
    with sink, drive_handler(SinkHandler(sink, callsite=False)) as log:

        def run(events: int) -> None:
            log(events)
            assert sink.flush(60), sink.stats()

        yield run


class _Counting(Sink):
    """A target that only counts events."""

    taken = 0

    def emit_batch(self, batch: Sequence[Encoded]) -> None:
        self.taken += len(batch)


def _counting(_stack: ExitStack, _directory: Path) -> Sink:
    return _Counting()


_TWO, _FIVE = "floor: one dumps, two writes", "floor: one dumps, five writes"

BEHIND = Group(
    "behind",
    "CPU of the whole process, caller and worker, until the last event is delivered; default settings",
    (
        Row("FileSink", _sustained(_file)),
        Row("BackgroundSink(FileSink)", _sustained(_behind(_file)), floor="FileSink", budget=0.7),
        Row("BackgroundSink(RotatingFileSink)", _sustained(_behind(_rotating)), floor="FileSink"),
        Row("SinkHandler → BackgroundSink(FileSink)", _sink_handler, floor="FileSink"),
        Row("QueueHandler, QueueListener → FileHandler + json", _queue_listener, floor="FileSink"),
        Row("SocketSink", _sustained(_socket), proof=forgotten),
        Row(
            "BackgroundSink(SocketSink)",
            _sustained(_behind(_socket)),
            floor="SocketSink",
            budget=0.5,
            proof=forgotten,
        ),
        Row("SysLogSink, TCP", _sustained(_syslog_tcp), proof=forgotten),
        Row(
            "BackgroundSink(SysLogSink, TCP)",
            _sustained(_behind(_syslog_tcp)),
            floor="SysLogSink, TCP",
            budget=0.5,
            proof=forgotten,
        ),
        Row("SysLogSink, UDP", _sustained(_syslog_udp), proof=forgotten),
        Row(
            "BackgroundSink(SysLogSink, UDP)",
            _sustained(_behind(_syslog_udp)),
            floor="SysLogSink, UDP",
            proof=forgotten,
        ),
        Row(_TWO, _written_to(2), proof=each_file_has(2)),
        Row("FanoutSink(two FileSinks)", _sustained(_files(2)), floor=_TWO, budget=1.35, proof=each_file_has(2)),
        Row(
            "BackgroundSink(FanoutSink(two FileSinks))",
            _sustained(_behind(_files(2))),
            floor=_TWO,
            proof=each_file_has(2),
        ),
        Row(_FIVE, _written_to(5), proof=each_file_has(5)),
        Row("FanoutSink(five FileSinks)", _sustained(_files(5)), floor=_FIVE, budget=1.35, proof=each_file_has(5)),
    ),
    rounds=10,
    events=EVENTS,
    clock="process",
)

_QUEUED = "floor Q, sustained: SimpleQueue.put(orjson.dumps)"


def _caller(name: str, make: Make, budget: float | None, proof: Callable[[Path, int], None] = nothing_written) -> Row:
    return Row(name, _called(_behind(make)), floor=_QUEUED, budget=budget, proof=proof)


CALLER = Group(
    "behind-caller",
    "the CPU of the thread that logs, sustained, while the worker delivers; default settings",
    (
        Row(_QUEUED, _queued, proof=nothing_written),
        _caller("BackgroundSink(NullSink)", _null, 1.7),
        _caller("BackgroundSink, a target that counts", _counting, 1.7),
        _caller("BackgroundSink(FileSink), caller", _file, 1.7, every_line_written),
        _caller("BackgroundSink(FanoutSink(two FileSinks)), caller", _files(2), 1.7, each_file_has(2)),
        _caller("BackgroundSink(SysLogSink, UDP), caller", _syslog_udp, 2.1, forgotten),
    ),
    rounds=10,
    events=EVENTS,
    clock="thread",
)

RATE = Group(
    "behind-rate",
    f"{THREADS} threads at once, until the last event is delivered",
    (
        Row(f"FileSink, {THREADS} threads", _by_threads(_file)),
        # At least 1.5 times its events per second.
        Row(
            f"BackgroundSink(FileSink), {THREADS} threads",
            _by_threads(_behind(_file)),
            floor=f"FileSink, {THREADS} threads",
            budget=0.67,
        ),
        Row("FanoutSink(two FileSinks), 1 thread", _sustained(_files(2)), proof=each_file_has(2)),
        # At least 0.7 times the events per second of one thread.
        Row(
            f"FanoutSink(two FileSinks), {THREADS} threads",
            _by_threads(_files(2)),
            floor="FanoutSink(two FileSinks), 1 thread",
            budget=1.43,
            proof=each_file_has(2),
        ),
    ),
    rounds=8,
    events=40_000,
)

TAIL = Group(
    "behind-tail",
    "how long the slowest of 1 000 calls of handle takes (p99.9)",
    tuple(
        Row(f"{name}, {threads} thread{'s' if threads > 1 else ''}", _longest(make, threads), budget=budget)
        for threads in (1, THREADS)
        for name, make, budget in (
            ("FileSink, p99.9", _file, None),
            ("BackgroundSink(FileSink), p99.9", _behind(_file), 100.0),
        )
    ),
    rounds=8,
    events=40_000,
    per_event=False,
)

GROUPS = (BEHIND, CALLER, RATE, TAIL)
