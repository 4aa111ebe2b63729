"""An HTTP collector on loopback, in another process, that only counts the events it gets."""

from __future__ import annotations

import http.client
import math
import subprocess
import sys
import time
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING

from benchmarks.events import REQUEST_ID

if TYPE_CHECKING:
    from collections.abc import Iterator

# A thread for each connection, and blocking reads: this costs least for a few busy connections. An event is recognized
# by its request id, which no format encodes.
_PROGRAM = """
import socket, sys, threading

mark = sys.argv[1].encode()
counts = [0, 0, 0]  # events, requests, bytes
lock = threading.Lock()
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", 0))
listener.listen(64)
print(listener.getsockname()[1], flush=True)


def serve(connection):
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    data = bytearray()
    try:
        while True:
            while (end := data.find(b"\\r\\n\\r\\n")) < 0:
                more = connection.recv(1 << 20)
                if not more:
                    return
                data += more
            head = bytes(data[:end])
            lower = head.lower()
            at = lower.find(b"content-length:")
            length = int(lower[at + 15 :].split(b"\\r\\n", 1)[0]) if at >= 0 else 0
            end += 4
            while len(data) < end + length:
                more = connection.recv(1 << 20)
                if not more:
                    return
                data += more
            if head.startswith(b"GET /count"):
                with lock:
                    body = b" ".join(b"%d" % count for count in counts)
                    if head.startswith(b"GET /count-and-forget"):
                        counts[:] = 0, 0, 0
            else:
                body = b""
                events = data.count(mark, end, end + length)
                with lock:
                    counts[0] += events
                    counts[1] += 1
                    counts[2] += length
            del data[: end + length]
            connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body)
            if b"connection: close" in lower:
                return
    except OSError:
        pass
    finally:
        connection.close()


while True:
    threading.Thread(target=serve, args=listener.accept()[:1], daemon=True).start()
"""

#: How often the collector is asked for its counts, in seconds.
_INTERVAL = 0.002


class Collector:
    """A client of the collector.

    Args:
        port: The collector's port, on 127.0.0.1.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}/logs"
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def counts(self, *, forget: bool = False) -> tuple[int, int, int]:
        """Return the numbers of events, requests and bytes that have come; reset them with *forget*."""
        self._connection.request("GET", "/count-and-forget" if forget else "/count")
        events, requests, size = map(int, self._connection.getresponse().read().split())
        return events, requests, size

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def wait(self, events: int, patience_seconds: float, at_most_seconds: float = math.inf) -> tuple[int, float]:
        """Wait for *events* events, for as long as more come; return how many came, and when the last one was seen.

        The time is that of `time.perf_counter`.
        """
        end = perf_counter() + at_most_seconds
        found, last = self.counts()[0], perf_counter()
        while found < events and perf_counter() < min(end, last + patience_seconds):
            time.sleep(_INTERVAL)
            before, found = found, self.counts()[0]
            if found > before:
                last = perf_counter()
        return found, last


@contextmanager
def collector() -> Iterator[Collector]:
    """Start a collector and yield its client."""
    command = [sys.executable, "-c", _PROGRAM, REQUEST_ID]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            peer = Collector(int(process.stdout.readline()))
            try:
                yield peer
            finally:
                peer.close()
        finally:
            process.kill()
