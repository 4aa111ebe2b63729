"""Events kept on disk until they are delivered."""

from __future__ import annotations

import errno
import gc
import json
import logging.handlers
import os
import queue
import shutil
import signal
import sys
import tempfile
import threading
import time
import tracemalloc
from collections import deque
from pathlib import Path

import pytest
import structlog

from outfall import (
    BackgroundSink,
    BatchResult,
    CaptureSink,
    FallbackSink,
    FanoutSink,
    FileSink,
    HandlerSink,
    MemorySink,
    PermanentDeliveryError,
    QueueSink,
    RetryPolicy,
    Sink,
    SpoolSink,
    TemporaryDeliveryError,
    loki_sink,
)
from outfall.sinks.spool import segments, stores, worker
from outfall.sinks.spool import sink as spools
from outfall.sinks.spool.store import stores_in
from outfall.sinks.testing import SinkContract, assert_balanced
from tests.sinks._processes import PATIENCE_SECONDS, check, events_of, in_fork, run, until

STAMP = "2026-11-22T14:16:24.327371Z"
TIME = 1795356984.327371
AT_ONCE = RetryPolicy(start_seconds=0)
SOON = RetryPolicy(start_seconds=0.01, max_seconds=0.01)


class Target(Sink):
    """Takes batches and remembers them, or does what it is told with them, one answer for each.

    An answer is None, a `BatchResult`, an exception, or an event to wait for.
    """

    def __init__(self, *answers, default=None, **options):
        self.answers = deque(answers)
        self.default = default
        #: The key and the events of each attempt.
        self.attempts = []
        #: Those of the attempts that were taken.
        self.taken = []
        self.items = []
        super().__init__(**options)

    def emit_batch(self, batch):
        events = [item.event for item in batch]
        self.attempts.append((batch.key, events))
        answer = self.answers.popleft() if self.answers else self.default
        while isinstance(answer, threading.Event):
            assert answer.wait(PATIENCE_SECONDS)
            answer = None
        if isinstance(answer, BaseException):
            raise answer
        left = () if answer is None else {*answer.retry, *answer.rejected}
        self.taken += [event for index, event in enumerate(events) if index not in left]
        self.items += batch
        return answer

    @property
    def numbers(self):
        return [event["n"] for event in self.taken]


def event(number, **fields):
    """Return an event of the usual kind."""
    return {"event": "e", "level": "info", "timestamp": STAMP, "n": number, **fields}


@pytest.fixture
def spool(tmp_path):
    """Make spools in one directory, closed at the end."""
    made = []

    def make(target=None, directory=None, **options):
        options = {"linger": 0, "retry": SOON, **options}
        sink = SpoolSink(Target() if target is None else target, directory or tmp_path / "spool", **options)
        made.append(sink)
        return sink

    yield make
    for sink in made:
        if isinstance(sink.target, Target):
            sink.target.default = None
        sink.close(0)


def lines_in(directory):
    """Return all lines of all segments, oldest first."""
    return [
        line
        for store in stores_in(str(directory))
        for path in sorted(Path(store).glob("*.ndjson"))
        for line in _lines(path)
    ]


def _lines(path):
    return path.read_bytes().splitlines()


class TestSpoolSink(SinkContract):
    """Files in between."""

    @pytest.fixture(autouse=True)
    def _directory(self, tmp_path):
        self.directory = tmp_path

    def make_sink(self, **options):
        directory = tempfile.mkdtemp(dir=self.directory)
        return SpoolSink(CaptureSink(), directory, linger=0.01, **options)

    def received(self, sink):
        assert isinstance(sink.target, CaptureSink)
        return sink.target.events


class TestSpoolSinkBeforeBytes(SinkContract):
    """Files before a sink that writes bytes."""

    @pytest.fixture(autouse=True)
    def _directory(self, tmp_path):
        self.directory = tmp_path

    def make_sink(self, **options):
        directory = Path(tempfile.mkdtemp(dir=self.directory))
        return SpoolSink(FileSink(directory / "out.jsonl"), directory / "spool", linger=0.01, **options)

    def received(self, sink):
        path = Path(sink.target.base_filename)
        return [json.loads(line) for line in _lines(path)] if path.exists() else []


# -- on disk when handle returns


def test_an_event_is_in_a_file_when_handle_returns(spool, tmp_path):
    """As its own JSON, by the short way and by the long one."""
    sink = spool(Target(default=threading.Event()))
    for number in range(20):
        sink.handle(event(number))
    assert [json.loads(line) for line in lines_in(tmp_path / "spool")] == [event(number) for number in range(20)]
    assert sink.stats().spooled == 20
    assert sink.stats().pending == 0
    sink.target.default.set()


@pytest.mark.parametrize(
    "given",
    [
        event(1),
        event(1, timestamp=1795356984.5),
        event(1, timestamp=1795356984),
        event(1, timestamp="2026-11-22T14:16:24+05:30"),
        event(1, timestamp="yesterday"),
        event(1, timestamp=float("nan")),
        event(1, timestamp=1e300),
        event(1, timestamp=True),
        event(1, timestamp=None),
        {"event": "no timestamp", "n": 1},
        event(1, level="nonsense"),
        event(1, level_number=35),
        event(1, level=30),
        event(1, level=None),
        event(1, **{"$outfall": 1}),
        event(1, large=2**70, odd={1, 2}),
        event(1, exc_info=ValueError("x")),
    ],
    ids=str,
)
def test_time_and_level_survive_the_disk(spool, given):
    """What the target gets is what it would have got at once: the same bytes, level and time."""
    before = time.time()
    target = Target()
    expected = target.make_item(given)
    sink = spool(target)
    sink.handle(event(0))
    assert sink.flush(PATIENCE_SECONDS)
    sink.handle(given)
    assert sink.flush(PATIENCE_SECONDS)
    item = target.items[1]
    assert (item.data, item.level) == (expected.data, expected.level)
    assert item.time == expected.time or before <= item.time <= time.time()
    if "timestamp" in given and isinstance(given["timestamp"], (str, float)) and "2026" in str(given["timestamp"]):
        assert item.time == expected.time


def test_an_event_without_a_time_keeps_the_time_it_came(spool, tmp_path, monkeypatch):
    """The stamp is that of handle, however long the event waits."""
    monkeypatch.setattr("outfall.sinks.core.sink.time.time", lambda: 1000.5)
    first = spool(Target(default=TemporaryDeliveryError("away")))
    first.handle({"event": "x", "n": 1})
    first.close(0)
    monkeypatch.undo()
    target = Target()
    spool(target).start()
    until(lambda: target.items)
    assert target.items[0].time == 1000.5


def test_each_line_is_readable_by_jq(spool, tmp_path):
    """Text, bytes and what a byte sink renders are JSON objects on disk, too."""
    for target in (Target(default=threading.Event()), FileSink(tmp_path / "out")):
        sink = spool(target, tmp_path / type(target).__name__, linger=60)
        sink.handle(event(1))
        sink.handle("some text")
        sink.handle(b"\xff\xfe")
        sink.handle({"event": "x"})
        lines = lines_in(tmp_path / type(target).__name__)
        assert len(lines) == 4
        assert all(isinstance(json.loads(line), dict) for line in lines)


def test_what_a_processor_removes_is_not_on_disk(spool, tmp_path):
    """The sink's own processors and its target's run before anything is written."""

    def without(*keys):
        return lambda _logger, _name, event: {key: value for key, value in event.items() if key not in keys}

    sink = spool(Target(default=threading.Event(), processors=[without("token")]), processors=[without("password")])
    sink.handle(event(1, password="hunter2", token="tok-123"))
    [line] = lines_in(tmp_path / "spool")
    assert json.loads(line) == event(1)
    sink.target.default.set()


def test_levels_of_sink_and_target_filter_before_the_disk(spool, tmp_path):
    """Both levels keep events out, also when they are set later, and such events count as filtered."""
    sink = spool(Target(level="info"), level="debug")
    sink.handle(event(1, level="debug"))
    sink.handle(event(2))
    sink.level = "warning"
    sink.handle(event(3))
    sink.handle(event(4, level="error"))
    sink.level = "debug"
    sink.target.level = "critical"
    sink.handle(event(5))
    assert sink.flush(PATIENCE_SECONDS)
    assert sink.target.numbers == [2, 4]
    assert (sink.stats().accepted, sink.stats().filtered) == (2, 3)


def test_the_short_way_heeds_the_level(spool):
    """Below it an event is filtered, at it taken."""
    sink = spool(level="info")
    assert sink._option is not None
    sink.handle(event(0))
    for number, level in enumerate(("debug", "info", "error", "nonsense"), 1):
        sink.handle(event(number, level=level))
    sink.handle(event(5, level="error", level_number=10))
    assert sink.flush(PATIENCE_SECONDS)
    assert sink.target.numbers == [0, 2, 3, 4]
    assert sink.stats().filtered == 2


def test_the_event_is_a_snapshot(spool):
    """What the caller changes later is not seen."""
    sink = spool(linger=60)
    given = event(1, nested={"a": 1})
    sink.handle(given)
    given["nested"]["a"] = 2
    assert sink.flush(PATIENCE_SECONDS)
    assert sink.target.taken == [event(1, nested={"a": 1})]


# -- delivered


def test_events_come_in_order_and_in_batches(spool):
    """Batches have the size asked for, each with a key of its own."""
    release = threading.Event()
    sink = spool(Target(release), batch_size=10)
    for number in range(35):
        sink.handle(event(number))
    release.set()
    assert sink.flush(PATIENCE_SECONDS)
    assert sink.target.numbers == list(range(35))
    assert max(len(events) for _, events in sink.target.attempts) == 10
    keys = [key for key, _ in sink.target.attempts]
    assert len(set(keys)) == len(keys)
    assert all(key.isascii() and key.isprintable() and " " not in key for key in keys)


def test_a_few_events_wait_for_more(spool):
    """Within linger they become one batch; flush does not wait for it."""
    sink = spool(linger=60)
    for number in range(3):
        sink.handle(event(number))
    assert sink.target.attempts == []
    assert sink.flush(PATIENCE_SECONDS)
    assert [len(events) for _, events in sink.target.attempts] == [3]


def test_a_full_batch_does_not_wait(spool):
    """As soon as there are enough events they are delivered, at the latest when linger is over."""
    sink = spool(linger=0.05, batch_size=3)
    for number in range(7):
        sink.handle(event(number))
    until(lambda: sink.stats().delivered == 7)
    assert sink.target.numbers == list(range(7))


def test_the_thread_sleeps_and_is_woken(spool):
    """When all is delivered the next event wakes it, again and again."""
    sink = spool()
    for number in range(20):
        until(lambda: not sink._depot.awake)
        sink.handle(event(number))
        until(lambda number=number: sink.stats().delivered == number + 1)
    assert sink.stats().spooled == 0


def test_temporary_failures_are_retried_under_the_same_key(spool):
    """The same batch again, until it is taken; nothing overtakes it."""
    sink = spool(Target(*[TemporaryDeliveryError("away")] * 3), linger=60, batch_size=2)
    for number in range(4):
        sink.handle(event(number))
    assert sink.flush(PATIENCE_SECONDS)
    assert sink.target.numbers == [0, 1, 2, 3]
    assert len({key for key, _ in sink.target.attempts[:4]}) == 1
    assert sink.stats().retried == 3


def test_a_refused_event_goes_to_the_dead_letters(spool):
    """The one event that is to blame is set aside; the ledger balances."""
    letters = CaptureSink()

    class Fussy(Target):
        def emit_batch(self, batch):
            if any(item.event["n"] == 3 for item in batch):
                raise PermanentDeliveryError("not a three")
            return super().emit_batch(batch)

    sink = spool(Fussy(), linger=60, dead_letter=letters, on_error=lambda _failure: None)
    for number in range(6):
        sink.handle(event(number))
    assert sink.flush(PATIENCE_SECONDS)
    assert sink.target.numbers == [0, 1, 2, 4, 5]
    assert letters.events == [event(3)]
    stats = sink.stats()
    assert (stats.delivered, stats.dead_lettered, stats.spooled) == (5, 1, 0)
    assert_balanced(stats)


def test_without_dead_letters_a_refused_event_is_dropped_and_told(spool):
    """It is counted as rejected; the others go on."""
    failures = []
    sink = spool(Target(BatchResult(rejected={1: "no"})), linger=60, on_error=failures.append)
    for number in range(3):
        sink.handle(event(number))
    assert sink.flush(PATIENCE_SECONDS)
    assert sink.target.numbers == [0, 2]
    assert sink.stats().dropped == {"rejected": 1}
    assert [failure.events for failure in failures] == [1]
    assert_balanced(sink.stats())


def test_a_part_that_is_wanted_again_is_sent_again(spool):
    """What the target has taken already is not repeated."""
    sink = spool(Target(BatchResult(retry=[1])), linger=60)
    for number in range(3):
        sink.handle(event(number))
    assert sink.flush(PATIENCE_SECONDS)
    assert sink.target.numbers == [0, 2, 1]
    assert sink.stats().delivered == 3


def test_a_target_that_ends_the_thread_does_not(spool):
    """SystemExit from a target is told, and the batch comes again."""
    failures = []
    sink = spool(Target(SystemExit(3)), on_error=failures.append)
    sink.handle(event(1))
    until(lambda: sink.stats().delivered == 1, 2 * PATIENCE_SECONDS)
    assert "SystemExit" in str(failures[0].error)
    (first, _), (second, _) = sink.target.attempts
    assert first == second


def test_what_the_target_logs_does_not_feed_the_spool(spool):
    """Events of the delivering thread are dropped as reentrant, by the short way too."""
    sinks = []

    class Chatty(Target):
        def emit_batch(self, batch):
            sinks[0].handle(event(100))
            return super().emit_batch(batch)

    sinks.append(spool(Chatty()))
    sinks[0].handle(event(1))
    assert sinks[0].flush(PATIENCE_SECONDS)
    assert sinks[0].target.numbers == [1]
    assert sinks[0].stats().dropped == {"reentrant": 1}
    assert_balanced(sinks[0].stats())


def test_what_on_error_logs_from_the_thread_other_sinks_take(spool):
    """The report of a failed attempt is no event of the delivery."""
    other = BackgroundSink(CaptureSink())
    sink = spool(Target(TemporaryDeliveryError("away")), on_error=lambda failure: other.handle(str(failure.error)))
    sink.handle(event(1))
    assert sink.flush(PATIENCE_SECONDS)
    assert other.close()
    assert other.target.events == [{"event": "away"}]


def test_with_raise_the_threads_failures_are_reported(spool, capfd):
    """There is nobody to raise them to; what the caller can know is raised."""
    sink = spool(Target(TemporaryDeliveryError("away")), on_error="raise", name="audit")
    sink.handle(event(1))
    assert sink.flush(PATIENCE_SECONDS)
    assert "to Target had a failure: TemporaryDeliveryError: away" in capfd.readouterr().err
    with pytest.raises(TemporaryDeliveryError, match="more than max_bytes"):
        spool(directory=sink.directory + "2", max_bytes=10, on_error="raise").handle(event(1))


def test_routers_may_be_targets(spool):
    """Each child gets its events, and one that fails is tried again alone."""
    first, second = Target(), Target(TemporaryDeliveryError("away"))
    sink = spool(FanoutSink(first, second))
    for number in range(3):
        sink.handle(event(number))
    assert sink.flush(PATIENCE_SECONDS)
    sink.close()
    assert sorted(first.numbers) == sorted(second.numbers) == [0, 1, 2]


class _Wrapper(Sink):
    """A wrapper of somebody else's, which hands on."""

    def __init__(self, target):
        super().__init__()
        self.target = target


@pytest.mark.parametrize(
    "keeper",
    [
        lambda _: BackgroundSink(Target()),
        lambda _: loki_sink("http://127.0.0.1:9", {"app": "shop"}),
        lambda _: MemorySink(10, target=Target()),
        lambda _: QueueSink(queue.SimpleQueue()),
        lambda _: FanoutSink(Target(), BackgroundSink(Target())),
        lambda _: FallbackSink(FanoutSink(Target(), MemorySink(10)), Target()),
        lambda _: HandlerSink(logging.handlers.MemoryHandler(10)),
        lambda _: HandlerSink(logging.handlers.QueueHandler(queue.SimpleQueue())),
        lambda _: _Wrapper(BackgroundSink(Target())),
        lambda path: SpoolSink(Target(), path),
        lambda path: FanoutSink(Target(), SpoolSink(Target(), path)),
    ],
    ids=[
        "background", "loki", "memory", "queue", "fanout", "routers", "memory handler", "queue handler", "wrapper",
        "spool", "fanout to a spool",
    ],
)  # fmt: skip
def test_a_target_that_only_keeps_events_is_refused(tmp_path, keeper):
    """What it has taken would count as delivered, and be forgotten; the error says what to write."""
    target = keeper(tmp_path / "inner")
    with pytest.raises(ValueError, match="put the spool around"):
        SpoolSink(target, tmp_path / "spool")
    assert not (tmp_path / "spool").exists()
    target.close(0)


def test_it_may_stand_behind_a_router(spool, tmp_path):
    """A fanout to two spools stores each event twice; a background sink before a spool hands over batches."""
    one, two = spool(directory=tmp_path / "1"), spool(directory=tmp_path / "2")
    with BackgroundSink(FanoutSink(one, two)) as sink:
        for number in range(3):
            sink.handle(event(number))
        assert sink.flush(PATIENCE_SECONDS)
    assert one.target.numbers == two.target.numbers == [0, 1, 2]


@pytest.mark.usefixtures("own_logging")
def test_structlog_ends_in_it(spool):
    """A chain may end in a spool."""
    sink = spool()
    structlog.configure(processors=[structlog.processors.TimeStamper(fmt="iso"), sink])
    structlog.get_logger().info("hello", n=1)
    assert sink.flush(PATIENCE_SECONDS)
    assert sink.target.numbers == [1]


# -- full


def _full(sink):
    """Handle events until one is dropped; return how many were stored."""
    number = 0
    while not sink.stats().dropped:
        sink.handle(event(number))
        number += 1
    return number - 1


def test_when_full_the_newest_is_dropped(spool):
    """Under that policy at once, counted and told; delivered is what came before."""
    failures = []
    release = threading.Event()
    sink = spool(Target(default=release), max_bytes=2000, on_full="drop_newest", on_error=failures.append)
    stored = _full(sink)
    assert sink.stats().dropped == {"overflow": 1}
    assert sink.stats().spooled == stored
    assert "is full: 2000 bytes" in str(failures[0].error)
    assert failures[0].events == 1
    release.set()
    assert sink.flush(PATIENCE_SECONDS)
    sink.handle(event(1000))
    assert sink.flush(PATIENCE_SECONDS)
    assert sink.target.numbers == [*range(stored), 1000]
    assert_balanced(sink.stats())


def test_when_full_the_oldest_are_dropped(spool):
    """Under that policy whole segments go, counted and told, and the newest events stay."""
    failures = []
    release = threading.Event()
    sink = spool(Target(default=release), max_bytes=2000, on_full="drop_oldest", on_error=failures.append, batch_size=1)
    for number in range(200):
        sink.handle(event(number))
    assert sink.stats().accepted == 200
    assert sum(path.stat().st_size for path in Path(sink.directory).rglob("*.ndjson")) <= 2000
    release.set()
    assert sink.flush(PATIENCE_SECONDS)
    stats = sink.stats()
    assert sink.target.numbers[-1] == 199
    assert sink.target.numbers == sorted(sink.target.numbers)
    assert stats.dropped == {"overflow": 200 - len(sink.target.numbers)}
    assert sum(failure.events for failure in failures) == stats.dropped["overflow"]
    assert_balanced(stats)


def test_when_full_handle_waits_for_room(spool):
    """It returns as soon as something was delivered, with the event stored."""
    release = threading.Event()
    sink = spool(Target(default=release), max_bytes=2000, block_timeout=PATIENCE_SECONDS)
    threads = [
        threading.Thread(target=lambda start=start: [sink.handle(event(start + n)) for n in range(30)])
        for start in (0, 100)
    ]
    for thread in threads:
        thread.start()
    until(lambda: len(sink._worker.bells))
    release.set()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert sink.flush(PATIENCE_SECONDS)
    assert sorted(sink.target.numbers) == [*range(30), *range(100, 130)]
    assert sink.stats().dropped == {}


def test_waiting_in_vain_is_done_once(spool):
    """After block_timeout events are dropped at once, until there is room again."""
    release = threading.Event()
    sink = spool(Target(default=release), max_bytes=2000, block_timeout=0.2, on_error=lambda _failure: None)
    stored = _full(sink)
    started = time.monotonic()
    for number in range(300):
        sink.handle(event(number))
    assert time.monotonic() - started < 30, "each of them has waited"
    assert sink.stats().dropped == {"overflow": 301}
    release.set()
    assert sink.flush(PATIENCE_SECONDS)
    sink.handle(event(1000))
    assert not sink._impatient
    assert sink.flush(PATIENCE_SECONDS)
    assert sink.target.numbers == [*range(stored), 1000]


def test_an_event_that_never_fits_is_dropped_at_once(spool, tmp_path):
    """Larger than max_bytes alone: it waits for nothing and gives up nothing."""
    for policy in ("block", "drop_newest", "drop_oldest"):
        sink = spool(
            directory=tmp_path / policy,
            max_bytes=1000,
            on_full=policy,
            block_timeout=600,
            on_error=lambda _: None,
            linger=60,
        )
        sink.handle(event(1))
        sink.handle(event(2, text="x" * 1000))
        assert sink.stats().dropped == {"overflow": 1}
        assert sink.stats().spooled == 1


def _no_room(monkeypatch):
    """Let the disk be full: no new file, and no byte more."""

    def fail(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", fail)
    monkeypatch.setattr(spools, "_os_write", fail)


@pytest.mark.parametrize("policy", ["block", "drop_newest"])
def test_a_full_disk_and_back(spool, tmp_path, monkeypatch, policy):
    """What there is no room for is dropped and told; afterwards it goes on by itself, no line torn."""
    failures = []
    sink = spool(linger=60, on_full=policy, block_timeout=0.05, on_error=failures.append)
    sink.handle(event(0))
    with monkeypatch.context() as patch:
        _no_room(patch)
        for number in range(1, 4):
            sink.handle(event(number))
    sink.handle(event(4))
    assert [json.loads(line)["n"] for line in lines_in(tmp_path / "spool")] == [0, 4]
    assert sink.stats().dropped == {"error": 3}
    assert [failure.error.errno for failure in failures] == [errno.ENOSPC] * 3
    assert sink.flush(PATIENCE_SECONDS)
    assert sink.target.numbers == [0, 4]
    assert_balanced(sink.stats())


def test_half_a_line_on_a_full_disk_is_undone_by_the_short_way(spool, tmp_path, monkeypatch):
    """A short write leaves nothing that the next event would be glued to."""
    sink = spool(linger=60, block_timeout=0, on_error=lambda _failure: None)
    sink.handle(event(0))
    real = os.write
    with monkeypatch.context() as patch:
        calls = []

        def short(descriptor, data):
            calls.append(data)
            if len(calls) % 2:
                return real(descriptor, bytes(data)[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(os, "write", short)
        patch.setattr(spools, "_os_write", short)
        sink.handle(event(1))
    assert calls
    sink.handle(event(2))
    assert [json.loads(line)["n"] for line in lines_in(tmp_path / "spool")] == [0, 2]


def test_on_a_full_disk_the_oldest_make_room(spool, tmp_path, monkeypatch):
    """Under that policy segments are given up for what the disk refuses."""
    sink = spool(linger=60, on_full="drop_oldest", segment_bytes=200, on_error=lambda _failure: None)
    for number in range(10):
        sink.handle(event(number))
    before = len(lines_in(tmp_path / "spool"))
    real = os.write

    def full(descriptor, data):
        if len(lines_in(tmp_path / "spool")) > 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    monkeypatch.setattr(spools, "_os_write", full)
    sink.handle(event(10))
    monkeypatch.undo()
    assert before == 10
    numbers = [json.loads(line)["n"] for line in lines_in(tmp_path / "spool")]
    assert numbers == list(range(11 - len(numbers), 11))
    assert sink.stats().dropped == {"overflow": 11 - len(numbers)}


def test_a_full_disk_does_not_stop_the_delivery(spool, monkeypatch):
    """The cursor is written over where no new file can be made: what is delivered makes room."""
    sink = spool(linger=60)
    for number in range(4):
        sink.handle(event(number))
    assert sink.flush(PATIENCE_SECONDS)
    for number in range(4, 8):
        sink.handle(event(number))
    real = os.open

    def full(path, flags, *mode, **options):
        if flags & os.O_CREAT:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        return real(path, flags, *mode, **options)

    monkeypatch.setattr(os, "open", full)
    assert sink.flush(PATIENCE_SECONDS)
    assert sink.target.numbers == list(range(8))


@pytest.mark.parametrize("policy", ["block", "drop_newest", "drop_oldest"])
def test_a_file_system_that_is_really_full_and_has_room_again(small_disk, policy):
    """What is stored is delivered, what is not is told; delivery makes the room itself, and nothing is torn."""
    failures = []
    target = Target(default=threading.Event())
    options = {"on_full": policy, "block_timeout": 0.01, "segment_bytes": 8000, "on_error": failures.append}
    with SpoolSink(target, small_disk / "spool", **options) as sink:
        for number in range(3000):
            sink.handle(event(number))
        lost = sum(sink.stats().dropped.values())
        assert 1000 < lost < 3000
        assert sink.stats().accepted == 3000
        if policy != "drop_oldest":
            assert {failure.error.errno for failure in failures} == {errno.ENOSPC}
            assert sum(failure.events for failure in failures) == lost
        target.default.set()
        assert sink.flush(PATIENCE_SECONDS), sink.stats()
        for number in range(3000, 3100):
            sink.handle(event(number))
        assert sink.flush(PATIENCE_SECONDS), sink.stats()
    assert sum(sink.stats().dropped.values()) == lost
    assert len(target.numbers) == 3100 - lost
    assert sorted(set(target.numbers)) == target.numbers
    assert target.numbers[-100:] == list(range(3000, 3100))
    if policy == "drop_oldest":
        assert 2999 in target.numbers
    assert_balanced(sink.stats())


# -- the disk fails otherwise


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_directory_cannot_be_written_to(tmp_path):
    """As any other user finds it; root, who runs the tests in containers, is told by a file in its place."""
    directory = tmp_path / "spool"
    directory.mkdir()
    directory.chmod(0o500)
    failures = []
    sink = SpoolSink(Target(), directory, on_error=failures.append)
    sink.handle(event(1))
    assert [failure.error.errno for failure in failures] == [errno.EACCES]
    directory.chmod(0o700)
    sink.handle(event(2))
    assert sink.flush(PATIENCE_SECONDS)
    assert sink.target.numbers == [2]
    sink.close()


def test_a_directory_that_cannot_be_made_is_told_and_tried_again(spool, tmp_path):
    """At construction and with each event, which is counted as dropped; then it goes on by itself."""
    (tmp_path / "taken").touch()
    failures = []
    sink = spool(directory=tmp_path / "taken" / "spool", on_error=failures.append)
    assert [type(failure.error) for failure in failures] == [NotADirectoryError]
    sink.handle(event(1))
    assert sink.stats().dropped == {"error": 1}
    assert len(failures) == 2
    (tmp_path / "taken").unlink()
    sink.handle(event(2))
    assert sink.flush(PATIENCE_SECONDS)
    assert sink.target.numbers == [2]
    assert_balanced(sink.stats())


def test_it_becomes_read_only_while_in_use(spool, tmp_path, monkeypatch):
    """Events go on into the open file; nothing is sent that could not be recorded, and all is sent afterwards."""
    failures = []
    sink = spool(linger=0, on_error=failures.append)
    sink.handle(event(0))
    assert sink.flush(PATIENCE_SECONDS)
    real = os.open

    def read_only(path, flags, *mode, **options):
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return real(path, flags, *mode, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", read_only)
        patch.setattr(os, "pwrite", lambda *_: read_only("cursor.json", os.O_RDWR))
        for number in range(1, 4):
            sink.handle(event(number))
        until(lambda: failures)
        assert sink.target.numbers == [0]
        assert sink.stats().spooled == 3
    assert sink.flush(PATIENCE_SECONDS)
    assert sink.target.numbers == [0, 1, 2, 3]
    assert {failure.error.errno for failure in failures} == {errno.EROFS}
    assert sum(failure.events for failure in failures) == 0


def test_a_deleted_directory_is_noticed_and_made_anew(spool, tmp_path):
    """While the target is away, too: within a second or so, and what was written meanwhile is there as well."""
    sink = spool(Target(default=TemporaryDeliveryError("away")), on_error=lambda _failure: None)
    sink.handle(event(0))
    until(lambda: sink.target.attempts)
    shutil.rmtree(tmp_path / "spool")
    sink.handle(event(1))
    until(lambda: lines_in(tmp_path / "spool"))
    sink.handle(event(2))
    assert [json.loads(line)["n"] for line in lines_in(tmp_path / "spool")] == [0, 1, 2]
    sink.target.default = None
    assert sink.flush(PATIENCE_SECONDS)
    assert sink.target.numbers == [0, 1, 2]
    assert_balanced(sink.stats())


def test_a_corrupt_line_is_counted_and_told(spool, tmp_path):
    """In what a dead process left; the other events are delivered."""
    first = spool(Target(default=TemporaryDeliveryError("away")), on_error=lambda _failure: None)
    for number in range(3):
        first.handle(event(number))
    first.close(0)
    [path] = (tmp_path / "spool").rglob("*.ndjson")
    lines = _lines(path)
    # The batch on its way is not what it was any more.
    (path.parent / "cursor.json").unlink(missing_ok=True)
    path.write_bytes(b"\n".join([lines[0], lines[1][:-5] + b"\xff", lines[2], b'{"half']))
    failures = []
    sink = spool(on_error=failures.append)
    sink.start()
    until(lambda: sink.stats().delivered == 2)
    assert sink.flush(PATIENCE_SECONDS)
    assert sink.target.numbers == [0, 2]
    stats = sink.stats()
    assert (stats.accepted, stats.adopted, stats.dropped) == (0, 4, {"corrupt": 2})
    assert [(failure.events, "no events" in str(failure.error)) for failure in failures] == [(2, True)]
    assert_balanced(stats)


def test_nothing_but_corrupt_lines_is_no_batch(spool, tmp_path):
    """The target is not asked, and the store is removed."""
    first = spool(Target(default=TemporaryDeliveryError("away")), on_error=lambda _failure: None)
    first.handle(event(0))
    first.close(0)
    [path] = (tmp_path / "spool").rglob("*.ndjson")
    (path.parent / "cursor.json").unlink(missing_ok=True)
    path.write_bytes(b"garbage\n")
    sink = spool(on_error=lambda _failure: None)
    sink.start()
    until(lambda: sink.stats().dropped == {"corrupt": 1})
    assert sink.flush(PATIENCE_SECONDS)
    assert sink.target.attempts == []


def test_a_clock_set_back_changes_nothing(spool, monkeypatch):
    """Order and waits do not go by the wall clock."""
    times = iter(range(10**6, 0, -1))
    monkeypatch.setattr(time, "time", lambda: float(next(times)))
    monkeypatch.setattr(time, "time_ns", lambda: next(times) * 10**9)
    sink = spool(Target(TemporaryDeliveryError("away")), segment_bytes=200)
    for number in range(20):
        sink.handle({"event": "e", "n": number})
    assert sink.flush(PATIENCE_SECONDS)
    assert sink.target.numbers == list(range(20))


# -- dead processes, and others that live


def _die_with(directory, numbers, **options):
    """Have a process store these events and be killed."""

    def live_and_die():
        sink = SpoolSink(Target(default=TemporaryDeliveryError("away")), directory, on_error=lambda _: None, **options)
        for number in numbers:
            sink.handle(event(number))
        os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid == 0:
        try:
            live_and_die()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_what_a_killed_process_left_is_adopted(spool, tmp_path):
    """At the start of the next, counted as adopted and delivered in order."""
    _die_with(tmp_path / "spool", range(10), segment_bytes=300)
    sink = spool()
    sink.handle(event(100))
    assert sink.flush(PATIENCE_SECONDS)
    assert sorted(sink.target.numbers) == [*range(10), 100]
    assert [number for number in sink.target.numbers if number < 100] == list(range(10))
    stats = sink.stats()
    assert (stats.accepted, stats.adopted, stats.delivered, stats.spooled) == (1, 10, 11, 0)
    assert_balanced(stats)


def _threads():
    return {thread for thread in threading.enumerate() if thread.name.startswith("outfall SpoolSink")}


def test_what_was_left_is_delivered_without_an_event(spool, tmp_path):
    """A process that logs nothing delivers its predecessor's last words; flush says so when that is done."""
    _die_with(tmp_path / "spool", range(10))
    release = threading.Event()
    sink = spool(Target(release))
    assert not sink.flush(0.05)
    until(lambda: sink.target.attempts)
    release.set()
    assert sink.flush(PATIENCE_SECONDS)
    assert sink.target.numbers == list(range(10))
    assert stores_in(sink.directory) == []
    assert (sink.stats().accepted, sink.stats().adopted) == (0, 10)


def test_where_there_is_nothing_to_adopt_no_thread_is_started(spool, tmp_path):
    """Neither for an empty directory nor for what a running process has there; flush is done at once."""
    before = _threads()
    sink = spool()
    assert sink.flush(0)
    assert _threads() == before
    sink.handle(event(1))
    started = _threads()
    assert len(started - before) == 1
    second = spool()
    assert second.flush(0)
    assert _threads() == started
    assert sink.flush(PATIENCE_SECONDS)


@pytest.mark.parametrize("has_logged", [False, True])
def test_flush_says_the_truth_of_what_died_since(spool, tmp_path, has_logged):
    """A process that dies after this one has looked is noticed by flush, and what it left is delivered by it."""
    sink = spool()
    if has_logged:
        sink.handle(event(0))
        assert sink.flush(PATIENCE_SECONDS)
    _die_with(tmp_path / "spool", [1, 2])
    assert sink.flush(PATIENCE_SECONDS)
    assert sink.target.numbers == [*([0] if has_logged else []), 1, 2]


def test_flush_waits_for_all_that_was_left_however_much_it_is(spool, tmp_path, monkeypatch):
    """Only so many stores are held at a time; the others follow as soon as there is room for them."""
    monkeypatch.setattr(stores, "_MOST_ADOPTED", 2)
    monkeypatch.setattr(worker, "_CHORE_SECONDS", 0.01)
    for number in range(5):
        _die_with(tmp_path / "spool", [number])
    sink = spool()
    assert sink.flush(PATIENCE_SECONDS)
    assert sorted(sink.target.numbers) == [0, 1, 2, 3, 4]


def test_what_a_later_version_has_left_is_told_and_not_waited_for(spool, tmp_path):
    """It is nothing to adopt."""
    _die_with(tmp_path / "spool", [1])
    [store] = stores_in(str(tmp_path / "spool"))
    Path(store, "00000007.v99.ndjson").touch()
    failures = []
    sink = spool(on_error=failures.append)
    assert sink.flush(PATIENCE_SECONDS)
    assert [type(failure.error).__name__ for failure in failures] == ["NewerFormatError"]
    assert sink.flush(0)


def test_a_flush_waits_for_a_report_that_the_thread_makes(spool, tmp_path):
    """Also if that takes longer than all the rest."""
    _die_with(tmp_path / "spool", [1])
    [store] = stores_in(str(tmp_path / "spool"))
    Path(store, "00000007.v99.ndjson").touch()
    failures = []

    def report_slowly(failure):
        time.sleep(0.3)
        failures.append(failure)

    sink = spool(on_error=report_slowly)
    assert sink.flush(PATIENCE_SECONDS)
    assert len(failures) == 1


def test_a_running_process_adopts_as_well(spool, tmp_path, monkeypatch):
    """It looks again after a while, without an event."""
    monkeypatch.setattr(worker, "_ADOPT_SECONDS", 0.05)
    sink = spool()
    sink.handle(event(0))
    assert sink.flush(PATIENCE_SECONDS)
    _die_with(tmp_path / "spool", [1, 2])
    until(lambda: sink.target.numbers == [0, 1, 2])


def test_a_living_processs_events_are_its_own(spool, tmp_path):
    """Two sinks on one directory deliver each what it has stored."""
    one, two = spool(), spool()
    for number in range(10):
        one.handle(event(number))
        two.handle(event(100 + number))
    assert one.flush(PATIENCE_SECONDS)
    assert two.flush(PATIENCE_SECONDS)
    assert one.target.numbers == list(range(10))
    assert two.target.numbers == list(range(100, 110))


def test_backlog_and_new_events_take_turns(spool, tmp_path):
    """Neither starves the other, whichever there is more of."""
    _die_with(tmp_path / "spool", range(100, 200))
    release = threading.Event()
    sink = spool(Target(release), batch_size=10)
    for number in range(100):
        sink.handle(event(number))
    release.set()
    assert sink.flush(PATIENCE_SECONDS)
    kinds = [events[0]["n"] >= 100 for _, events in sink.target.attempts]
    # In the first half of the deliveries, a quarter or more of each.
    half = kinds[: len(kinds) // 2]
    assert len(half) / 4 <= sum(half) <= len(half) * 3 / 4


def test_the_bound_holds_for_what_was_adopted_too(spool, tmp_path):
    """A process that crashes again and again during an outage does not fill the disk."""
    for round_ in range(5):
        sink = spool(
            Target(default=TemporaryDeliveryError("away")),
            max_bytes=2000,
            on_full="drop_oldest",
            on_error=lambda _: None,
        )
        left = stores_in(sink.directory)
        sink.start()
        until(lambda sink=sink, left=left: len(sink._depot.adopted) == len(left))
        for number in range(15):
            sink.handle(event(100 * round_ + number))
        sink.close(0)
        assert sum(path.stat().st_size for path in (tmp_path / "spool").rglob("*.ndjson")) <= 2000


def test_the_same_batch_comes_first_after_a_kill(spool, tmp_path):
    """With the same events and the same key."""
    reader, writer = os.pipe()

    class Telling(Target):
        def emit_batch(self, batch):
            os.write(writer, json.dumps([batch.key, [item.event["n"] for item in batch]]).encode())
            os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid == 0:
        try:
            sink = SpoolSink(Telling(), tmp_path / "spool", batch_size=3, linger=60)
            for number in range(10):
                sink.handle(event(number))
            sink.flush(60)
        finally:
            os._exit(1)
    os.waitpid(pid, 0)
    key, numbers = json.loads(os.read(reader, 1000))
    os.close(reader)
    os.close(writer)
    sink = spool(batch_size=50)
    sink.start()
    until(lambda: sink.stats().delivered == 10)
    assert (sink.target.attempts[0][0], [each["n"] for each in sink.target.attempts[0][1]]) == (key, numbers)
    assert sink.target.numbers == list(range(10))


# -- flush, close, exit, fork


def test_close_leaves_on_disk_what_it_could_not_deliver(spool, tmp_path):
    """It returns True, since that is safe, and in time; the next sink delivers it."""
    first = spool(Target(default=TemporaryDeliveryError("away")), on_error=lambda _failure: None)
    for number in range(5):
        first.handle(event(number))
    started = time.monotonic()
    assert first.close(0.2) is True
    assert time.monotonic() - started < PATIENCE_SECONDS / 2
    stats = first.stats()
    assert (stats.accepted, stats.delivered, stats.spooled) == (5, 0, 5)
    assert_balanced(stats)
    second = spool()
    second.start()
    until(lambda: second.stats().delivered == 5)
    assert second.target.numbers == list(range(5))


def test_close_does_not_wait_for_a_target_that_hangs(spool):
    """It is done soon after its timeout; what the target answers later changes nothing."""
    release = threading.Event()
    sink = spool(Target(default=release))
    sink.handle(event(1))
    until(lambda: sink.target.attempts)
    started = time.monotonic()
    assert sink.flush(0.1) is False
    assert sink.close(0.1) is True
    assert time.monotonic() - started < PATIENCE_SECONDS / 2
    before = sink.stats()
    assert (before.spooled, before.delivered) == (1, 0)
    second = spool()
    second.start()
    until(lambda: second.target.numbers == [1])
    release.set()
    sink._worker.thread.join(PATIENCE_SECONDS)
    assert not sink._worker.thread.is_alive()
    after = sink.stats()
    assert (after.spooled, after.delivered) == (1, 0)


def test_files_that_a_slow_disk_kept_open_are_closed_later(spool, monkeypatch):
    """Close does not wait for the disk; when the disk has answered, another sink may take over what is there."""
    first = spool(Target(default=TemporaryDeliveryError("away")), on_error=lambda _failure: None)
    first.handle(event(1))
    until(lambda: first.target.attempts)
    waits, answers = threading.Event(), threading.Event()

    def check():
        waits.set()
        assert answers.wait(PATIENCE_SECONDS)

    monkeypatch.setattr(first._depot, "check", check)
    first._worker._chores_due = 0.0
    assert waits.wait(PATIENCE_SECONDS)
    assert first.close(0) is True
    answers.set()
    first._worker.thread.join(PATIENCE_SECONDS)
    second = spool()
    second.start()
    until(lambda: second.target.numbers == [1])


def test_close_raises_nothing_after_other_code_has_closed_the_descriptors(tmp_path):
    """A process that becomes a daemon closes all it has; what is on disk stays there for the next sink."""
    script = """
        import os, sys
        from outfall import FileSink, HTTPSink, SpoolSink
        failures = []
        sink = SpoolSink(HTTPSink("http://127.0.0.1:1/"), sys.argv[1] + "/spool", on_error=failures.append)
        sink.handle({"event": "1", "level": "info"})
        os.closerange(3, 100)
        sink.handle({"event": "2", "level": "info"})
        assert sink.close(0.1)
        stats = sink.stats()
        assert (stats.spooled, stats.dropped, stats.pending) == (1, {"error": 1}, 0), stats
        with SpoolSink(FileSink(sys.argv[1] + "/app"), sys.argv[1] + "/spool") as second:
            assert second.flush(60)
        assert failures
        """
    check(script, tmp_path)
    assert [json.loads(line)["event"] for line in (tmp_path / "app").read_bytes().splitlines()] == ["1"]


def test_close_delivers_what_it_can(spool, tmp_path):
    """And then nothing is left on disk."""
    sink = spool(linger=60)
    for number in range(5):
        sink.handle(event(number))
    assert sink.close()
    assert sink.target.numbers == list(range(5))
    assert stores_in(str(tmp_path / "spool")) == []


def test_close_closes_the_target(spool):
    """It is owned."""
    sink = spool()
    sink.handle(event(1))
    assert sink.close()
    assert sink.target.closed


def test_close_without_an_event_leaves_nothing(spool, tmp_path):
    """Neither a file nor a thread."""
    sink = spool()
    assert sink.flush()
    assert sink.close()
    sink.start()
    assert sink._worker.thread is None
    assert stores_in(str(tmp_path / "spool")) == []


def test_close_and_flush_by_the_target_do_not_wait_for_themselves(spool):
    """Called in the delivering thread they return at once."""
    sinks, results = [], []

    class Closing(Target):
        def emit_batch(self, batch):
            results.append(sinks[0].flush(60))
            results.append(sinks[0].close(60))
            return super().emit_batch(batch)

    sinks.append(spool(Closing()))
    sinks[0].handle(event(1))
    until(lambda: len(results) == 2)
    assert results == [False, True]
    assert sinks[0].stats().spooled == 1


def test_close_ends_a_flush_that_waits(spool):
    """Another thread's flush has nothing to wait for any more; what is on disk is not delivered."""
    sink = spool(Target(default=TemporaryDeliveryError("away")))
    sink.handle(event(1))
    results = []
    flushing = threading.Thread(target=lambda: results.append(sink.flush(600)))
    flushing.start()
    until(lambda: len(sink._worker.bells))
    assert sink.close(0.1)
    flushing.join(PATIENCE_SECONDS)
    assert results == [False]


def test_after_flush_a_kill_repeats_nothing(spool, tmp_path):
    """What flush has seen delivered is recorded when it returns."""

    def live_and_die():
        sink = SpoolSink(Target(), tmp_path / "spool", linger=60)
        for number in range(5):
            sink.handle(event(number))
        assert sink.flush(60)
        os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid == 0:
        try:
            live_and_die()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    sink = spool()
    sink.handle(event(100))
    assert sink.flush(PATIENCE_SECONDS)
    assert sink.target.numbers == [100]


def test_flush_tries_at_once(spool):
    """It does not sit out a long wait between two attempts."""
    sink = spool(
        Target(TemporaryDeliveryError("away")), retry=RetryPolicy(start_seconds=600, max_seconds=600, jitter=False)
    )
    sink.handle(event(1))
    until(lambda: sink.target.attempts)
    assert sink.flush(PATIENCE_SECONDS)
    assert sink.target.numbers == [1]


def test_at_exit_it_delivers_and_leaves_nothing(tmp_path):
    """A program that just ends has its events delivered, within the deadline of all sinks."""
    check(
        """
        import sys
        from outfall import FileSink, SpoolSink
        sink = SpoolSink(FileSink(sys.argv[1] + "/out"), sys.argv[1] + "/spool", linger=60)
        for number in range(5):
            sink.handle({"event": "e", "n": number})
        """,
        tmp_path,
    )
    assert [each["n"] for each in events_of(tmp_path / "out")] == list(range(5))
    assert stores_in(str(tmp_path / "spool")) == []


def test_what_is_logged_after_the_exit_hook_is_stored(tmp_path):
    """Hooks that run later still log: their events are delivered, or found by the next process."""
    check(
        """
        import atexit, sys
        sinks = []
        atexit.register(lambda: sinks[0].handle({"event": "late", "n": 2}))
        from outfall import FileSink, SpoolSink
        sinks.append(SpoolSink(FileSink(sys.argv[1] + "/out"), sys.argv[1] + "/spool"))
        sinks[0].handle({"event": "e", "n": 1})
        """,
        tmp_path,
    )
    left = [json.loads(line)["event"]["n"] for line in lines_in(tmp_path / "spool")]
    assert {1, 2} == {*left, *(each["n"] for each in events_of(tmp_path / "out"))}


def test_a_child_of_multiprocessing_delivers_at_its_end(tmp_path):
    """Python runs no atexit there."""
    check(
        """
        import multiprocessing, sys
        from outfall import FileSink, SpoolSink
        def child(sink):
            sink.handle({"event": "child"})
        if __name__ == "__main__":
            sink = SpoolSink(FileSink(sys.argv[1] + "/out"), sys.argv[1] + "/spool", linger=60)
            sink.handle({"event": "parent"})
            process = multiprocessing.get_context("fork").Process(target=child, args=(sink,))
            process.start()
            process.join()
            assert process.exitcode == 0
        """,
        tmp_path,
    )
    assert sorted(each["event"] for each in events_of(tmp_path / "out")) == ["child", "parent"]


def test_a_forked_child_has_files_of_its_own(spool, tmp_path):
    """The parent's are neither delivered nor removed by it, and not kept locked."""
    release = threading.Event()
    sink = spool(Target(default=release))
    for number in range(3):
        sink.handle(event(number))
    until(lambda: sink.target.attempts)

    def child():
        sink.target.default = None
        sink.target.attempts.clear()
        assert sink.stats().spooled == 0
        sink.handle(event(100))
        assert sink.flush(60)
        assert sink.target.numbers == [100], sink.target.numbers
        assert sink.close(60)
        assert sink.stats().delivered == 1

    in_fork(child)
    release.set()
    assert sink.flush(PATIENCE_SECONDS)
    assert sink.target.numbers == [0, 1, 2]


def test_a_child_that_lives_on_does_not_keep_the_dead_parents_files(spool, tmp_path):
    """They are adopted though the child has been forked while they were open."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            sink = SpoolSink(
                Target(default=TemporaryDeliveryError("away")), tmp_path / "spool", on_error=lambda _: None
            )
            sink.handle(event(1))
            until(lambda: sink.target.attempts)
            if os.fork() == 0:
                os.close(writer)
                os.read(reader, 1)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    os.close(reader)
    os.waitpid(pid, 0)
    sink = spool()

    def adopted():
        # The child may be slow to let go of what it has inherited: then the next look finds it.
        sink._worker.adopt_due = 0
        sink.start()
        return sink.target.numbers == [1]

    until(adopted)
    os.close(writer)


def test_forks_among_logging_threads_do_not_deadlock(spool, tmp_path):
    """Children of a process whose threads never pause log and end."""
    sink = spool(max_bytes=10**8)
    stop = threading.Event()

    def log():
        while not stop.is_set():
            sink.handle(event(0))

    def child():
        sink.handle(event(1))
        assert sink.close(30)

    threads = [threading.Thread(target=log) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            in_fork(child)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _cannot_start(_thread):
    raise RuntimeError("can't start new thread")


def test_without_a_thread_flush_delivers_itself(spool, monkeypatch):
    """Where none can be started any more, events are stored and delivered by the thread that flushes."""
    sink = spool()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", _cannot_start)
        for number in range(3):
            sink.handle(event(number))
        assert sink.target.attempts == []
        assert sink.flush(PATIENCE_SECONDS)
        assert sink.target.numbers == [0, 1, 2]
        sink.handle(event(3))
    sink.handle(event(4))
    until(lambda: sink.stats().delivered == 5)
    assert sink.target.numbers == [0, 1, 2, 3, 4]


def test_without_a_thread_flush_gives_up_in_time(spool, monkeypatch):
    """What the target does not take stays on disk, and the next flush delivers it."""
    sink = spool(Target(default=TemporaryDeliveryError("away")), on_error=lambda _failure: None)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", _cannot_start)
        sink.handle(event(0))
        assert sink.flush(0.05) is False
        assert (sink.stats().spooled, bool(sink.target.attempts)) == (1, True)
        sink.target.default = None
        assert sink.flush(PATIENCE_SECONDS)
    assert sink.target.numbers == [0]


def test_without_a_thread_an_interrupt_of_flush_comes_through(spool, monkeypatch):
    """The batch that the target was given is put back, and delivered by the next flush."""
    sink = spool(Target(KeyboardInterrupt()))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", _cannot_start)
        sink.handle(event(0))
        with pytest.raises(KeyboardInterrupt):
            sink.flush(PATIENCE_SECONDS)
        assert sink.flush(PATIENCE_SECONDS)
    assert sink.target.numbers == [0]
    assert len({key for key, _ in sink.target.attempts}) == 1


def test_a_thread_that_cannot_be_started_to_sync_is_told_of(spool, monkeypatch):
    """Events are delivered nevertheless; that they are not synced is no secret."""
    failures = []
    sink = spool(fsync="interval", on_error=failures.append)
    start = threading.Thread.start
    monkeypatch.setattr(
        threading.Thread,
        "start",
        lambda thread: _cannot_start(thread) if thread.name.endswith("fsync") else start(thread),
    )
    sink.handle(event(0))
    assert sink.flush(PATIENCE_SECONDS)
    assert [str(failure.error) for failure in failures] == ["can't start new thread"]
    assert sink.target.numbers == [0]


# -- interrupts and signal handlers


@pytest.mark.parametrize("looked_after", [False, True])
def test_an_interrupt_after_the_write_counts_the_event_once(spool, monkeypatch, looked_after):
    """It is on disk, so it is accepted and delivered, and not counted as interrupted, whichever thread finds it."""
    sink = spool(linger=60)
    interrupted = sink._interrupted
    if looked_after:
        monkeypatch.setattr(sink, "_interrupted", lambda: (sink._depot.check(), interrupted()))
    sink.handle(event(0))
    real = os.write

    def write(descriptor, data):
        real(descriptor, data)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(spools, "_os_write", write)
        with pytest.raises(KeyboardInterrupt):
            sink.handle(event(1))
    sink.handle(event(2))
    assert sink.flush(PATIENCE_SECONDS)
    assert sink.target.numbers == [0, 1, 2]
    assert (sink.stats().accepted, sink.stats().dropped) == (3, {})


def test_an_interrupt_before_the_write_is_counted(spool, monkeypatch):
    """Nothing was stored then."""
    sink = spool(linger=60)
    sink.handle(event(0))

    def write(_descriptor, _data):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(spools, "_os_write", write)
        with pytest.raises(KeyboardInterrupt):
            sink.handle(event(1))
    sink.handle(event(2))
    assert sink.flush(PATIENCE_SECONDS)
    assert sink.target.numbers == [0, 2]
    assert (sink.stats().accepted, sink.stats().dropped) == (3, {"interrupted": 1})
    assert_balanced(sink.stats())


def _interrupting(real):
    def interrupted(*arguments):
        real(*arguments)
        raise KeyboardInterrupt

    return interrupted


@pytest.mark.parametrize(
    ("place", "name"), [(segments.Appender, "append"), (stores.Depot, "set_limit"), (worker.SpoolWorker, "wake")]
)
def test_an_interrupt_on_the_long_way_counts_the_event_once(spool, monkeypatch, place, name):
    """It is on disk when a segment has to be begun, or the thread to be started, as well."""
    sink = spool()
    with monkeypatch.context() as patch:
        patch.setattr(place, name, _interrupting(getattr(place, name)))
        with pytest.raises(KeyboardInterrupt):
            sink.handle(event(0))
    sink.handle(event(1))
    assert sink.flush(PATIENCE_SECONDS)
    assert sink.target.numbers == [0, 1]
    assert (sink.stats().accepted, sink.stats().dropped) == (2, {})


def test_a_signal_handler_may_log_in_the_midst_of_handle(spool, monkeypatch):
    """Within the short way's own write: both events are stored whole."""
    sink = spool(linger=60)
    sink.handle(event(0))
    real = os.write
    nested = []

    def write(descriptor, data):
        written = real(descriptor, data)
        if not nested:
            nested.append(1)
            sink.handle(event(100))
        return written

    with monkeypatch.context() as patch:
        patch.setattr(spools, "_os_write", write)
        sink.handle(event(1))
    sink.handle(event(2))
    assert sink.flush(PATIENCE_SECONDS)
    assert sorted(sink.target.numbers) == [0, 1, 2, 100]
    assert sink.stats().accepted == 4


@pytest.mark.skipif(sys.gettrace() is not None, reason="under a tracer interrupts come faster than events get through")
def test_interrupts_at_random_instants_lose_nothing_that_was_stored(tmp_path):
    """A timer interrupts the main thread thousands of times: what handle returned for is delivered, once."""
    result = run(
        """
        import signal, sys
        from outfall import CaptureSink, SpoolSink

        class Alarm(BaseException):
            pass

        armed = False

        def alarm(*_):
            global armed
            if armed:
                armed = False
                raise Alarm

        sink = SpoolSink(CaptureSink(), sys.argv[1], linger=0.01, segment_bytes=2000)
        signal.signal(signal.SIGALRM, alarm)
        signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
        stored, tried = [], []
        while len(tried) - len(stored) < 300 and len(tried) < 200_000:
            number = len(tried)
            tried.append(number)
            event = {"event": "e", "timestamp": "2026-11-22T14:16:24Z", "n": number}
            try:
                armed = True
                sink.handle(event)
                armed = False
            except Alarm:
                pass
            else:
                stored.append(number)
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert sink.flush(60), sink.stats()
        got = [each["n"] for each in sink.target.events]
        assert len(set(got)) == len(got), "twice"
        assert set(stored) <= set(got) <= set(tried), set(stored) - set(got)
        assert got == sorted(got)
        stats = sink.stats()
        assert stats.accepted == stats.delivered + sum(stats.dropped.values()), stats
        """,
        tmp_path / "spool",
    )
    assert result.returncode == 0, result.stderr


def test_many_threads_lose_nothing(spool):
    """Each thread's events come in its order, and all of them."""
    sink = spool(segment_bytes=20_000, batch_size=50)

    def log(thread):
        for number in range(500):
            sink.handle(event(number, thread=thread))

    threads = [threading.Thread(target=log, args=(thread,)) for thread in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sink.flush(PATIENCE_SECONDS)
    for thread in range(6):
        assert [each["n"] for each in sink.target.taken if each["thread"] == thread] == list(range(500))
    assert sink.stats().delivered == 3000
    assert_balanced(sink.stats())


# -- the medium


def _synced(monkeypatch):
    synced = []
    real = os.fsync

    def fsync(descriptor):
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return synced


def test_never_means_never(spool, monkeypatch):
    """By default nothing is forced to the medium."""
    synced = _synced(monkeypatch)
    sink = spool(segment_bytes=200)
    for number in range(10):
        sink.handle(event(number))
    assert sink.close()
    assert synced == []


def test_always_means_before_handle_returns(spool, monkeypatch):
    """Each event, and the cursor before a batch is sent."""
    synced = _synced(monkeypatch)
    sink = spool(fsync="always", linger=60)
    for number in range(3):
        sink.handle(event(number))
        assert synced[-1] == "00000001.v1.ndjson"
        assert synced.count("00000001.v1.ndjson") == number + 1
    seen = []
    sink.target.emit_batch = lambda _batch: seen.extend(synced)
    assert sink.flush(PATIENCE_SECONDS)
    assert "cursor.json" in seen


def test_interval_means_every_so_often(spool, monkeypatch):
    """By a thread, also while the target hangs; not while nothing happens; it ends with the sink."""
    synced = _synced(monkeypatch)
    release = threading.Event()
    sink = spool(Target(default=release), fsync="interval", fsync_interval=0.02)
    sink.handle(event(1))
    until(lambda: synced.count("00000001.v1.ndjson") == 1 and "cursor.json" in synced)
    sink.handle(event(2))
    until(lambda: synced.count("00000001.v1.ndjson") == 2)
    [thread] = [thread for thread in threading.enumerate() if thread.name == "outfall SpoolSink fsync"]
    release.set()
    assert sink.close()
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()


def test_a_sync_that_fails_is_told(spool, monkeypatch):
    """It costs no event, and is tried again."""
    failures = []

    def fail(_descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    sink = spool(fsync="interval", fsync_interval=0.02, on_error=failures.append)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        sink.handle(event(1))
        until(lambda: failures)
    assert (failures[0].error.errno, failures[0].events) == (errno.EIO, 0)


# -- much


def test_memory_stays_flat_with_a_large_backlog(spool, tmp_path):
    """What is on disk is not in memory: 20 000 events are stored and delivered in a few megabytes."""
    numbers = []

    class Counting(Target):
        def emit_batch(self, batch):
            if self.default is not None:
                raise self.default
            numbers.extend(json.loads(data)["n"] for data in batch.data)

    sink = spool(Counting(default=TemporaryDeliveryError("away")), on_error=lambda _failure: None)
    sink.handle(event(0))
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(1, 20_000):
            sink.handle(event(number, pad="x" * 1000))
        assert sink.stats().spooled == 20_000
        sink.target.default = None
        assert sink.flush(PATIENCE_SECONDS)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert numbers == list(range(20_000))
    # What is read ahead and one batch; all of it would be more than 20 MB.
    assert peak < 8 * 2**20


def test_an_outage_does_not_reach_the_application(spool):
    """While the target is away and its attempts hang, events are stored by the short way, none waits."""
    sink = spool(Target(default=threading.Event()))
    sink.handle(event(0))
    until(lambda: sink.target.attempts)
    calls = []
    sink._take, take = (lambda item: calls.append(item) or take(item)), sink._take
    for number in range(1, 2000):
        sink.handle(event(number))
    assert sink.stats().spooled == 2000
    assert len(calls) < 20, "the long way was taken"
    del sink._take
    sink.target.default.set()
    assert sink.flush(PATIENCE_SECONDS)
    assert sink.target.numbers == list(range(2000))


# -- arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_bytes": 0}, "max_bytes=0"),
        ({"max_bytes": 1.5}, "max_bytes=1.5"),
        ({"on_full": "wait"}, "on_full='wait' is none of 'block', 'drop_newest', 'drop_oldest'"),
        ({"block_timeout": -1}, "block_timeout=-1"),
        ({"fsync": True}, "fsync=True is none of 'never', 'interval', 'always'"),
        ({"fsync_interval": "x"}, "fsync_interval='x'"),
        ({"segment_bytes": 0}, "segment_bytes=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"linger": -1}, "linger=-1"),
    ],
)
def test_bad_arguments_raise_at_construction(tmp_path, options, message):
    """Each names the argument and the value."""
    with pytest.raises(ValueError, match=message):
        SpoolSink(CaptureSink(), tmp_path, **options)


def test_bad_sinks_and_paths_raise_at_construction(tmp_path):
    """So do what is no sink, no path or no policy."""
    with pytest.raises(TypeError, match="target='x' is not a Sink"):
        SpoolSink("x", tmp_path)
    with pytest.raises(TypeError):
        SpoolSink(CaptureSink(), 7)
    with pytest.raises(TypeError, match="retry=7"):
        SpoolSink(CaptureSink(), tmp_path, retry=7)
    with pytest.raises(TypeError, match="dead_letter='x'"):
        SpoolSink(CaptureSink(), tmp_path, dead_letter="x")


def test_a_platform_without_flock_is_refused(tmp_path, monkeypatch):
    """It could not tell the living from the dead."""
    monkeypatch.setattr(spools.flock, "AVAILABLE", False)
    with pytest.raises(ValueError, match=r"this platform has no flock\(\)"):
        SpoolSink(CaptureSink(), tmp_path)


def test_the_path_is_frozen(spool, tmp_path, monkeypatch):
    """A later chdir does not move the spool."""
    monkeypatch.chdir(tmp_path)
    sink = spool(directory="relative")
    monkeypatch.chdir("/")
    sink.handle(event(1))
    assert sink.directory == str(tmp_path / "relative")
    assert (tmp_path / "relative").is_dir()
    assert str(tmp_path / "relative") in repr(sink)
    assert "Target" in repr(sink)


def test_default_segments_are_an_eighth(tmp_path):
    """Of max_bytes, 16 MiB at most."""
    assert SpoolSink(CaptureSink(), tmp_path)._segment_bytes == 16 * 2**20
    assert SpoolSink(CaptureSink(), tmp_path, max_bytes=80_000)._segment_bytes == 10_000


def test_a_file_is_no_directory(tmp_path):
    """It is said when the sink is made, with the argument."""
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"directory=.*file.* is a file; a spool is a directory"):
        SpoolSink(Target(), tmp_path / "file")


def test_a_spools_waits_end_where_the_clock_stands_still(tmp_path, monkeypatch):
    """Tests freeze time; flush and close of a spool whose target is away keep theirs all the same."""
    sink = SpoolSink(Target(default=TemporaryDeliveryError("away")), tmp_path, linger=0, on_error=lambda _: None)
    sink.handle({"event": "x", "level": "info"})
    instant = time.monotonic()
    for name, module in list(sys.modules.items()):
        if name.startswith("outfall") and getattr(module, "monotonic", None) is time.monotonic:
            monkeypatch.setattr(module, "monotonic", lambda: instant)
    monkeypatch.setattr(time, "monotonic", lambda: instant)
    results = []
    work = threading.Thread(target=lambda: results.extend((sink.flush(0.05), sink.close(0.05))), daemon=True)
    work.start()
    work.join(PATIENCE_SECONDS)
    assert results == [False, True]
    assert sink.stats().spooled == 1
