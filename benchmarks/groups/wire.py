"""`SocketSink` and `DatagramSink`, next to a bare socket and the standard library's handlers.

The peer is another process, which only reads, and writes what it gets to a file.
"""

from __future__ import annotations

import logging
import logging.handlers
import socket
import struct
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import orjson

from benchmarks.events import REQUEST_ID, TIMESTAMP, drive
from benchmarks.groups.stdlib import drive_handler
from benchmarks.harness import Group, Row
from outfall import DatagramSink, PickleFrames, SinkHandler, SocketSink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from benchmarks.harness import Run, SetUp

#: How long the peer may take to write everything, before it counts as a failure.
PATIENCE_SECONDS = 30.0

_PEER = """
import os, socket, sys

kind = getattr(socket, sys.argv[1])
listener = socket.socket(socket.AF_INET, kind)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
listener.bind(("127.0.0.1", 0))
if kind == socket.SOCK_STREAM:
    listener.listen()
file = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
print(listener.getsockname()[1], flush=True)
connection = listener if kind == socket.SOCK_DGRAM else listener.accept()[0]
room = bytearray(1 << 20)
view = memoryview(room)
while True:
    size = connection.recv_into(room)
    if not size:
        break
    if kind == socket.SOCK_DGRAM:
        os.write(file, size.to_bytes(4, "big") + view[:size])
    else:
        os.write(file, view[:size])
"""


@contextmanager
def peer(directory: Path, kind: str) -> Iterator[tuple[str, int]]:
    """Yield the address of a process that writes what it gets to a file, each datagram after its length."""
    command = [sys.executable, "-c", _PEER, kind, str(directory / "received")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield "127.0.0.1", int(process.stdout.readline())
        finally:
            process.kill()


def _frames(directory: Path) -> list[bytes]:
    """Return the frames in the file, without their lengths."""
    content = (directory / "received").read_bytes()
    frames, at = [], 0
    while at < len(content):
        (length,) = struct.unpack_from(">L", content, at)
        frames.append(content[at + 4 : at + 4 + length])
        at += 4 + length
    return frames


def every_frame_received(directory: Path, events: int) -> None:
    """Assert that the peer has one whole frame for each event, and empty its file."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(frames := _frames(directory)) < events:
        assert time.monotonic() < deadline, f"{len(frames)} frames for {events} events"
        time.sleep(0.002)
    _look_at(directory, frames, events)


def some_datagrams_received(directory: Path, events: int) -> None:
    """Assert that the peer has got datagrams, some of which the system may drop, and empty its file."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    before, frames = -1, _frames(directory)
    while not frames or len(frames) not in (before, events):
        assert time.monotonic() < deadline, "no datagram has come"
        time.sleep(0.005)
        before, frames = len(frames), _frames(directory)
    _look_at(directory, frames, len(frames))


def _look_at(directory: Path, frames: list[bytes], events: int) -> None:
    assert len(frames) == events, f"{len(frames)} frames for {events} events"
    # A pickle has its own form for numbers.
    assert b"request finished" in frames[-1], frames[-1]
    assert REQUEST_ID.encode() in frames[-1], frames[-1]
    (directory / "received").open("wb").close()


@contextmanager
def _sendall(directory: Path) -> Iterator[Run]:
    """One ``orjson.dumps`` and one ``sendall`` for each event."""
    with peer(directory, "SOCK_STREAM") as address, socket.create_connection(address) as connection:
        send, dumps, pack = connection.sendall, orjson.dumps, struct.Struct(">L").pack

        def run(events: int) -> None:
            for number in range(events):
                data = dumps(
                    {
                        "timestamp": TIMESTAMP,
                        "level": "info",
                        "logger": "shop.orders",
                        "event": "request finished",
                        "request_id": REQUEST_ID,
                        "method": "GET",
                        "path": "/api/v1/orders",
                        "status": 200,
                        "duration_ms": 12.345,
                        "client": "203.0.113.7",
                        "order_id": number,
                    }
                )
                send(pack(len(data)) + data)

        yield run


@contextmanager
def _sendto(directory: Path) -> Iterator[Run]:
    """One ``orjson.dumps`` and one ``sendto`` for each event."""
    with peer(directory, "SOCK_DGRAM") as address, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        send, dumps = sender.sendto, orjson.dumps

        def run(events: int) -> None:
            for number in range(events):
                send(
                    dumps(
                        {
                            "timestamp": TIMESTAMP,
                            "level": "info",
                            "logger": "shop.orders",
                            "event": "request finished",
                            "request_id": REQUEST_ID,
                            "method": "GET",
                            "path": "/api/v1/orders",
                            "status": 200,
                            "duration_ms": 12.345,
                            "client": "203.0.113.7",
                            "order_id": number,
                        }
                    ),
                    address,
                )

        yield run


def _sink(kind: str, made: type[SocketSink], **arguments: Any) -> SetUp:
    @contextmanager
    def setup(directory: Path) -> Iterator[Run]:
        with peer(directory, kind) as address, made(*address, on_error="raise", timeout=30, **arguments) as sink:
            yield drive(sink.handle)

    return setup


def logged(kind: str, made: Callable[[tuple[str, int]], logging.Handler]) -> SetUp:
    """Return a set-up that logs to the handler that *made* makes for the address of a peer with sockets of *kind*."""

    @contextmanager
    def setup(directory: Path) -> Iterator[Run]:
        with peer(directory, kind) as address, drive_handler(made(address)) as run:
            yield run

    return setup


def _socket_handler(address: tuple[str, int]) -> logging.Handler:
    return logging.handlers.SocketHandler(*address)


def _datagram_handler(address: tuple[str, int]) -> logging.Handler:
    return logging.handlers.DatagramHandler(*address)


def _sink_handler(address: tuple[str, int]) -> logging.Handler:
    return SinkHandler(SocketSink(*address, on_error="raise", timeout=30))


_TCP = Row("floor: sendall(orjson.dumps)", _sendall, proof=every_frame_received)
_UDP = Row("floor: sendto(orjson.dumps)", _sendto, proof=some_datagrams_received)

GROUP = Group(
    "wire",
    "event dicts over TCP and UDP to another process; the handlers are given records, and pickle them",
    (
        _TCP,
        Row("SocketSink", _sink("SOCK_STREAM", SocketSink), floor=_TCP.name, budget=1.3, proof=every_frame_received),
        Row(
            "SocketSink, PickleFrames",
            _sink("SOCK_STREAM", SocketSink, codec=PickleFrames()),
            floor=_TCP.name,
            proof=every_frame_received,
        ),
        Row(
            "SinkHandler → SocketSink",
            logged("SOCK_STREAM", _sink_handler),
            floor=_TCP.name,
            proof=every_frame_received,
        ),
        Row("SocketHandler", logged("SOCK_STREAM", _socket_handler), floor=_TCP.name, proof=every_frame_received),
        _UDP,
        Row(
            "DatagramSink",
            _sink("SOCK_DGRAM", DatagramSink),
            floor=_UDP.name,
            budget=1.15,
            proof=some_datagrams_received,
        ),
        Row(
            "DatagramHandler",
            logged("SOCK_DGRAM", _datagram_handler),
            floor=_UDP.name,
            proof=some_datagrams_received,
        ),
    ),
    rounds=60,
    events=1_000,
)
