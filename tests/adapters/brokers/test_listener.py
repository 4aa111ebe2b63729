"""What the listeners of all brokers have in common, shown with a broker that is a list in this process."""

from __future__ import annotations

import threading
import time

import pytest

from outfall import (
    BackgroundSink,
    BatchResult,
    CaptureSink,
    FanoutSink,
    FileSink,
    MemorySink,
    NullSink,
    PausedDeliveryError,
    RetryPolicy,
    SpoolSink,
    TemporaryDeliveryError,
)
from outfall.adapters.brokers.listener import BrokerListener, Reading
from tests.sinks._processes import in_fork, until


class Broker:
    """What waits, what was given and not acknowledged, and what was refused."""

    def __init__(self, *bodies) -> None:
        self.waiting = list(bodies)
        self.given = {}
        self.acknowledged = []
        self.failing = []
        self.number = 0
        self.lock = threading.Lock()


class Listener(BrokerListener):
    """A listener of such a broker."""

    def __init__(self, broker, *sinks, **options) -> None:
        self.broker = broker
        self.disconnected = 0
        super().__init__(*sinks, timeout=5, **{"on_error": lambda failure: None, **options})

    def _read(self, number, seconds):
        with self.broker.lock:
            if self.broker.failing:
                raise self.broker.failing.pop()
            taken, self.broker.waiting = self.broker.waiting[:number], self.broker.waiting[number:]
            first, self.broker.number = self.broker.number + 1, self.broker.number + len(taken)
            self.broker.given |= enumerate(taken, first)
        if not taken and seconds:
            time.sleep(0.001)
        whole = [body if isinstance(body, tuple) else (body, None, None) for body in taken]
        levels = {place: level for place, (_, level, _) in enumerate(whole) if level is not None}
        tokens = list(range(first, first + len(taken)))
        return Reading(tokens, [body for body, _, _ in whole], levels, lambda place: whole[place][2])

    def _acknowledge(self, tokens):
        with self.broker.lock:
            self.broker.acknowledged += [self.broker.given.pop(token) for token in tokens]

    def _disconnect(self, seconds):
        self.disconnected += 1
        self.broker.waiting = [*self.broker.given.values(), *self.broker.waiting]
        self.broker.given.clear()

    def _failure(self, error):
        return TemporaryDeliveryError(type(error).__name__)

    def _describe(self):
        return "a list"


class Gate(CaptureSink):
    """A sink that takes nothing before it is told to."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.gate, self.entered = threading.Event(), threading.Event()

    def emit_batch(self, batch):
        self.entered.set()
        self.gate.wait(30)
        return super().emit_batch(batch)


def _bodies(number, start=0):
    return [b'{"event":"e","n":%d,"timestamp":1}' % n for n in range(start, start + number)]


def test_a_message_is_acknowledged_once_each_sink_has_settled_it():
    """While one of two sinks has not taken a batch, the broker keeps it, though the other one has it."""
    broker, quick, slow = Broker(*_bodies(3)), CaptureSink(), Gate()
    with Listener(broker, quick, slow) as listener:
        until(lambda: len(quick.events) == 3 and slow.entered.is_set())
        assert broker.acknowledged == []
        assert listener.stats().pending == 3
        slow.gate.set()
        assert listener.flush(30)
        assert broker.acknowledged == _bodies(3)
    stats = listener.stats()
    assert (stats.accepted, stats.delivered, stats.pending) == (3, 3, 0)
    assert [target.delivered for target in stats.targets] == [3, 3]
    assert listener.disconnected == 1


def test_two_batches_are_read_ahead_and_no_more():
    """What a busy process has not read is left to others."""
    broker, slow = Broker(*_bodies(50)), Gate()
    with Listener(broker, slow, batch_size=10) as listener:
        until(lambda: len(broker.given) == 20)
        listener._run.wake()
        assert len(broker.waiting) == 30
        slow.gate.set()
        assert listener.flush(30)
    assert broker.acknowledged == _bodies(50)
    assert [event["n"] for event in slow.events] == list(range(50))


def test_what_is_not_settled_at_the_stop_stays_with_the_broker():
    """stop() gives up in time, says so, and nothing of it is acknowledged or counted as lost."""
    broker, slow, told = Broker(*_bodies(3)), Gate(), []
    listener = Listener(broker, slow, on_error=told.append).start()
    assert slow.entered.wait(30)
    begin = time.monotonic()
    assert listener.stop(0.05) is False
    assert time.monotonic() - begin < 5
    assert broker.acknowledged == []
    assert broker.waiting == _bodies(3)
    assert "the broker keeps 3 events" in str(told[-1].error)
    stats = listener.stats()
    assert (stats.accepted, stats.pending, stats.dropped) == (0, 0, {})
    slow.gate.set()
    with listener:
        assert listener.flush(30)
    assert broker.acknowledged == _bodies(3)


def test_start_and_stop_may_be_called_again():
    """They do nothing where there is nothing to do, and a stopped listener starts anew."""
    broker, sink = Broker(*_bodies(1)), CaptureSink()
    listener = Listener(broker, sink)
    assert not listener.running
    assert listener.stop()
    assert listener.flush()
    assert listener.start() is listener.start()
    assert listener.running
    assert listener.flush(30)
    assert listener.stop()
    assert listener.close()
    broker.waiting += _bodies(1, 1)
    with listener:
        assert listener.flush(30)
    assert listener.stats().delivered == 2
    assert "stopped" in repr(listener)


@pytest.mark.parametrize("body", [b"garbage", b"[1]", b'"text"', b"\xff{}", b"{", b"", b"[" * 100_000])
def test_poison_goes_to_the_dead_letters_and_blocks_nothing(body):
    """A message that is no JSON object is settled, and what comes after it arrives."""
    broker, sink, dead = Broker(body, *_bodies(1)), CaptureSink(), CaptureSink()
    with Listener(broker, sink, dead_letter=dead) as listener:
        assert listener.flush(30)
    assert [event["n"] for event in sink.events] == [0]
    assert [event["event"] for event in dead.events] == [body.decode("utf-8", "backslashreplace")]
    stats = listener.stats()
    assert (stats.accepted, stats.delivered, stats.dead_lettered) == (2, 1, 1)
    assert len(broker.acknowledged) == 2


def test_poison_without_dead_letters_is_counted_and_told():
    """It is dropped as garbage, and no report holds it."""
    broker, told = Broker(b"secret garbage"), []
    with Listener(broker, NullSink(), on_error=told.append) as listener:
        assert listener.flush(30)
    assert listener.stats().dropped == {"garbage": 1}
    assert [failure.events for failure in told] == [1]
    assert "secret" not in repr(told)


def test_what_a_sink_refuses_goes_to_the_dead_letters():
    """The one event that is to blame is found, the others are delivered, all are acknowledged."""

    class Picky(CaptureSink):
        def emit_batch(self, batch):
            bad = {at: "odd" for at, item in enumerate(batch) if item.event["n"] == 1}
            super().emit_batch([item for at, item in enumerate(batch) if at not in bad])
            return BatchResult(rejected=bad) if bad else None

    broker, sink, dead = Broker(*_bodies(3)), Picky(), CaptureSink()
    with Listener(broker, sink, dead_letter=dead) as listener:
        assert listener.flush(30)
    assert [event["n"] for event in sink.events] == [0, 2]
    assert [event["n"] for event in dead.events] == [1]
    assert listener.stats().targets[0].dead_lettered == 1
    assert len(broker.acknowledged) == 3


def test_a_sink_that_fails_for_a_while_is_tried_again():
    """Nothing is acknowledged before it has taken the batch."""

    class Ill(CaptureSink):
        attempts = 0

        def emit_batch(self, batch):
            self.attempts += 1
            if self.attempts < 3:
                raise TemporaryDeliveryError("not now")
            return super().emit_batch(batch)

    broker, sink = Broker(*_bodies(2)), Ill()
    with Listener(broker, sink, retry=RetryPolicy(start_seconds=0.001)) as listener:
        assert listener.flush(30)
    assert len(sink.events) == 2
    assert listener.stats().targets[0].retried == 2


def test_a_broker_that_fails_is_asked_again():
    """A failure to read is told, without events, and reading goes on."""
    broker, sink, told = Broker(*_bodies(1)), CaptureSink(), []
    broker.failing = [PausedDeliveryError("login"), OSError("gone")]
    policy = RetryPolicy(start_seconds=0.001, pause_start_seconds=0.001)
    with Listener(broker, sink, retry=policy, on_error=told.append) as listener:
        until(lambda: len(sink.events) == 1)
        assert listener.flush(30)
    assert [(str(failure.error), failure.events) for failure in told] == [("OSError", 0), ("login", 0)]


def test_the_level_of_a_sink_applies_if_asked_for():
    """Without respect_sink_level what is in the broker has passed a level already."""
    bodies = [b'{"event":"d","level":"debug"}', b'{"event":"e","level":"error"}', b'{"event":"n"}']
    plain, strict = NullSink(level="warning"), CaptureSink(level="warning")
    with Listener(Broker(*bodies), strict) as listener:
        assert listener.flush(30)
    assert len(strict.events) == 3
    with Listener(Broker(*bodies), plain, strict, respect_sink_level=True) as listener:
        assert listener.flush(30)
    assert [(target.delivered, target.filtered) for target in listener.stats().targets] == [(1, 2), (1, 2)]


def test_processors_of_a_sink_always_apply():
    """A secret that a sink's chain takes out does not reach it."""
    sink = CaptureSink(processors=[lambda logger, name, event: {**event, "token": "***"}])
    with Listener(Broker(b'{"event":"e","token":"s3cret"}'), sink) as listener:
        assert listener.flush(30)
    assert sink.events[0]["token"] == "***"


def test_a_file_gets_a_line_for_each_message_however_it_was_written(tmp_path):
    """Messages go as they are, but for line breaks between their fields and metadata keys of structlog."""
    path = tmp_path / "out.jsonl"
    bodies = [b'{"event":"a", "n":18446744073709551617}', b'{\n "event": "b"\r\n}', b'{"event":"c","_record":1}']
    with FileSink(path) as sink, Listener(Broker(*bodies), sink) as listener:
        assert listener.flush(30)
    assert path.read_bytes().splitlines()[1:] == [b'{"event":"b"}', b'{"event":"c"}']
    assert b"18446744073709551617" in path.read_bytes()


def test_level_and_time_beside_the_body_are_the_events():
    """What the JSON lacks is taken from what came with it."""
    seen = []

    class Looker(CaptureSink):
        def emit_batch(self, batch):
            seen.extend((item.level, item.time) for item in batch)

    with Listener(Broker((b'{"event":"e"}', 40.0, 5.0), (b'{"event":"e","timestamp":9}', None, 5.0)), Looker()) as it:
        assert it.flush(30)
    assert seen == [(40.0, 5.0), (20, 9.0)]


def test_a_closed_sink_does_not_block_the_others():
    """Its events are dropped as closed, and the messages are acknowledged."""
    broker, closed, sink = Broker(*_bodies(2)), CaptureSink(), CaptureSink()
    closed.close()
    with Listener(broker, closed, sink) as listener:
        assert listener.flush(30)
    assert [target.dropped for target in listener.stats().targets] == [{"closed": 2}, {}]
    assert len(broker.acknowledged) == 2


def test_a_forked_child_has_a_listener_that_is_not_started():
    """What was read is the parent's."""
    broker, sink = Broker(*_bodies(1)), CaptureSink()
    with Listener(broker, sink) as listener:
        assert listener.flush(30)

        def child():
            assert not listener.running
            assert listener.stats().accepted == 0
            assert listener.stop()

        in_fork(child)
        assert listener.running


def test_wrong_arguments_are_refused_at_construction():
    """Each names itself."""
    with pytest.raises(TypeError, match="sinks"):
        Listener(Broker(), "file")
    with pytest.raises(ValueError, match="batch_size"):
        Listener(Broker(), batch_size=0)
    with pytest.raises(TypeError, match="on_error"):
        Listener(Broker(), on_error=1)
    with pytest.raises(TypeError, match="retry"):
        Listener(Broker(), NullSink(), retry=3)
    with pytest.raises(TypeError, match="dead_letter"):
        Listener(Broker(), NullSink(), dead_letter="x")


def test_a_sink_that_only_keeps_events_is_refused(tmp_path):
    """What it has taken would be acknowledged to the broker, and a kill would lose it."""
    with BackgroundSink(NullSink()) as keeper, pytest.raises(ValueError, match=r"in memory.*sink\.target.*spool="):
        Listener(Broker(), NullSink(), keeper)
    with FanoutSink(MemorySink(9)) as keeper, pytest.raises(ValueError, match="in memory"):
        Listener(Broker(), keeper)
    with SpoolSink(NullSink(), tmp_path) as sink, Listener(Broker(), sink):
        pass
