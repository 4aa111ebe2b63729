"""What the sinks of all brokers have in common."""

from __future__ import annotations

from outfall import (
    BatchResult,
    TemporaryDeliveryError,
)
from outfall.adapters.brokers.sink import BrokerSink, lacking
from outfall.sinks.core.item import Batch, Encoded
from tests.sinks._processes import in_fork


class Client:
    """Its client."""

    def __init__(self, sink) -> None:
        self.send = lambda batch, seconds: sink.send(batch)
        sink.clients += 1
        self.close = lambda seconds, number=sink.clients: sink.disconnected.append(number)


class Sender(BrokerSink):
    """A sink of such a broker."""

    def __init__(self, send=lambda batch: None, **options) -> None:
        self.send, self.clients, self.disconnected = send, 0, []
        super().__init__(lambda: Client(self), timeout=1, **{"on_error": lambda failure: None, **options})

    def _failure(self, error):
        return TemporaryDeliveryError(type(error).__name__)

    def _describe(self):
        return "to a list"


def test_the_client_is_made_at_construction_and_once():
    """A missing package is found out there, and nothing is imported in the thread that delivers."""
    sink = Sender()
    assert sink.clients == 1
    sink.handle({"event": "a"})
    sink.handle({"event": "b"})
    assert (sink.clients, sink.stats().delivered) == (1, 2)
    sink.close()
    assert sink.disconnected == [1]


def test_a_forked_child_makes_a_client_of_its_own():
    """And it leaves the parent's alone."""
    sink = Sender()

    def child():
        sink.handle({"event": "a"})
        assert (sink.clients, sink.stats().delivered) == (2, 1)
        sink.close()
        assert sink.disconnected == [2]

    in_fork(child)
    assert sink.clients == 1


def test_what_a_client_raises_is_replaced():
    """What reaches on_error holds neither the client's error nor what caused it."""

    def send(batch):
        raise OSError("s3cret")

    told = []
    sink = Sender(send, on_error=told.append)
    sink.handle({"event": "a"})
    error = told[0].error
    assert str(error) == "OSError"
    assert error.__cause__ is None
    assert error.__context__ is None


def test_what_is_refused_alone_raises_its_reason():
    """A single event has no retry of its own."""
    told = []
    sink = Sender(lambda batch: BatchResult(rejected={0: "odd"}), on_error=told.append)
    sink.handle({"event": "a"})
    sink.send = lambda batch: BatchResult(retry=[0])
    sink.handle({"event": "a"})
    assert [type(failure.error).__name__ for failure in told] == ["PermanentDeliveryError", "TemporaryDeliveryError"]


def test_level_and_time_are_told_where_the_json_lacks_them():
    """A key within a nested object does not count, nor does the text of a value."""
    stamped = b'{"event":"e","level":"info","timestamp":1}'
    nested = b'{"inner":{"level":"info","timestamp":1}}'
    quoted = b'{"event":"\\"level\\":\\"timestamp\\":"}'
    late = b'{"inner":{"level":1},"level":"info","timestamp":1}'
    items = [Encoded(data, 20.0, 3.0) for data in (stamped, nested, quoted, late)]
    whole = [(stamped, None, None), (nested, 20.0, 3.0), (quoted, 20.0, 3.0), (late, None, None)]
    assert list(lacking(items)) == whole
    assert list(lacking(Batch([stamped, (nested, 20.0, 3.0, False), (stamped, None, None, True)]))) == [
        (stamped, None, None),
        (nested, 20.0, 3.0),
        (stamped, None, None),
    ]
