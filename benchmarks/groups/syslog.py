"""Datagrams to a syslog daemon on loopback, next to `logging.handlers.SysLogHandler`.

The daemon is a UDP socket that is not read during a timed call: a reader would take CPU time from the writer. The
system discards datagrams that do not fit into the socket's buffer, for all rows alike.
"""

from __future__ import annotations

import logging.handlers
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import orjson

from benchmarks.events import PROOF, drive
from benchmarks.groups.stdlib import drive_handler
from benchmarks.harness import Group, Row
from outfall import SinkHandler, SysLogSink

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.harness import Run, SetUp

#: The daemons, by the row's directory.
_daemons: dict[Path, socket.socket] = {}


def arrived(directory: Path, events: int) -> None:
    """Assert that datagrams with the event came; discard them all."""
    daemon = _daemons[directory]
    # The first datagrams always fit into the buffer.
    for number in range(events):
        try:
            message = daemon.recv(65_536)
        except BlockingIOError:
            assert number >= min(events, 16), f"{number} datagrams of {events} events"
            return
        assert message.startswith(b"<134>"), message
        assert all(part in message for part in PROOF), message


@contextmanager
def listening(directory: Path) -> Iterator[tuple[str, int]]:
    """Yield the address of a daemon for the row with *directory*, whose proof is `arrived`."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as daemon:
        daemon.bind(("127.0.0.1", 0))
        daemon.settimeout(0)
        _daemons[directory] = daemon
        yield daemon.getsockname()
    del _daemons[directory]


@contextmanager
def _sent(directory: Path) -> Iterator[Run]:
    """One ``orjson.dumps`` and one system call for each event."""
    with listening(directory) as address, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect(address)
        send, dumps = sender.send, orjson.dumps
        yield drive(lambda event: send(b"<134>" + dumps(event)))


def _sink(**arguments: Any) -> SetUp:
    @contextmanager
    def setup(directory: Path) -> Iterator[Run]:
        with listening(directory) as address, SysLogSink(address, "local0", on_error="raise", **arguments) as sink:
            yield drive(sink.handle)

    return setup


@contextmanager
def _sink_handler(directory: Path) -> Iterator[Run]:
    with (
        listening(directory) as address,
        SysLogSink(address, "local0", on_error="raise") as sink,
        drive_handler(SinkHandler(sink, callsite=False)) as run,
    ):
        yield run


@contextmanager
def _handler(directory: Path) -> Iterator[Run]:
    from pythonjsonlogger.orjson import OrjsonFormatter

    with listening(directory) as address:
        handler = logging.handlers.SysLogHandler(address, "local0")
        handler.setFormatter(OrjsonFormatter(("message", "levelname", "name"), timestamp=True))
        with drive_handler(handler) as run:
            yield run


_FLOOR = "send(orjson.dumps)"
_PEER = "SysLogHandler + python-json-logger[orjson]"

GROUP = Group(
    "syslog",
    "datagrams to a syslog daemon",
    (
        Row(_FLOOR, _sent, proof=arrived),
        Row("SysLogSink, RFC 3164", _sink(), floor=_FLOOR, budget=1.25, proof=arrived),
        Row("SysLogSink, RFC 5424", _sink(format="rfc5424"), floor=_FLOOR, proof=arrived),
        Row(_PEER, _handler, floor=_FLOOR, proof=arrived),
        Row("SinkHandler → SysLogSink, RFC 3164", _sink_handler, floor=_FLOOR, peer=_PEER, proof=arrived),
    ),
    rounds=30,
    events=1_000,
)
