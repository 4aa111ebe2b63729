"""Peers for the tests of sockets: real ones, on loopback."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import threading
from pathlib import Path

from tests.sinks._processes import PATIENCE_SECONDS, until


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Receiver:
    """A stream server that keeps the frames of each connection."""

    def __init__(self, family=socket.AF_INET, address=("127.0.0.1", 0), context=None) -> None:
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        if family != socket.AF_UNIX:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(address)
        self.socket.listen(64)
        self.address = self.socket.getsockname()
        self.context = context
        self.connections = []
        self.payloads = []
        self.certificates = []
        #: How each connection ended: b"" in order, or the error.
        self.endings = []
        self._closing = False
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def target(self):
        """What a sink is given: host and port, or path and None."""
        return (self.address, None) if isinstance(self.address, str) else self.address[:2]

    def wait(self, frames):
        """Wait until so many have come, and return them."""
        until(lambda: len(self.payloads) >= frames)
        return list(self.payloads)

    def _accept(self):
        while True:
            try:
                made, _ = self.socket.accept()
            except OSError:
                return
            if self._closing:
                made.close()
                return
            threading.Thread(target=self._read, args=(made,), daemon=True).start()

    def _read(self, made):
        try:
            if self.context is not None:
                made = self.context.wrap_socket(made, server_side=True, do_handshake_on_connect=False)
                self._shake_hands(made)
                self.certificates.append(made.getpeercert())
            self.connections.append(made)
            with made.makefile("rb") as stream:
                while True:
                    head = stream.read(4)
                    if len(head) < 4:
                        self.endings.append(head)
                        return
                    (length,) = struct.unpack(">L", head)
                    payload = stream.read(length)
                    if len(payload) < length:
                        self.endings.append(head + payload)
                        return
                    self.payloads.append(payload)
        except OSError as error:
            self.endings.append(error)
        finally:
            made.close()

    def _shake_hands(self, made):
        try:
            made.do_handshake()
        except OSError:
            # A reset, as for data that nobody has read, may overtake the alert.
            made.shutdown(socket.SHUT_WR)
            while made.recv(65_536):
                pass
            raise

    def hang_up(self):
        """Close all connections and go on listening."""
        while self.connections:
            made = self.connections.pop()
            with contextlib.suppress(OSError):
                made.shutdown(socket.SHUT_RDWR)
            made.close()

    def close(self):
        """Close everything; the address is free again."""
        self._closing = True
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self._thread.join(PATIENCE_SECONDS)
        self.hang_up()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Datagrams:
    """A datagram socket, and what came to it."""

    def __init__(self, address=("127.0.0.1", 0), family=socket.AF_INET) -> None:
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.settimeout(PATIENCE_SECONDS)
        self.address = self.socket.getsockname()

    def next(self):
        return self.socket.recv(70_000)

    def so_far(self):
        """Return all that has come, without waiting."""
        found = []
        self.socket.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(self.socket.recv(70_000))
        self.socket.settimeout(PATIENCE_SECONDS)
        return found

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()


class Stream:
    """A stream server, and the bytes of all its connections."""

    def __init__(self, address=("127.0.0.1", 0), family=socket.AF_INET) -> None:
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        if family == socket.AF_INET:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(address)
        self.socket.listen(16)
        self.address = self.socket.getsockname()
        self.connections = []
        self.data = []
        self.ended = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                made, _ = self.socket.accept()
                self.connections.append(made)
                self.data.append(bytearray())
                threading.Thread(target=self._read, args=(made, self.data[-1]), daemon=True).start()

    def _read(self, made, data):
        with contextlib.suppress(OSError):
            while chunk := made.recv(65_536):
                data += chunk
        made.close()
        self.ended += 1

    def whole(self, connections=1):
        """Return what came, when so many connections have ended."""
        until(lambda: self.ended >= connections)
        return b"".join(self.data)

    def hang_up(self):
        for made in self.connections:
            with contextlib.suppress(OSError):
                made.shutdown(socket.SHUT_RDWR)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self.hang_up()


# Below what systems give to who asks for any port, so that nobody gets one between the look and the use. Each process
# of tests has ports of its own, for the same reason. By the system's random numbers: pytest-randomly gives the same
# ones to each process of tests.
_PROCESSES = 16
_PORTS = range(10_000 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % _PROCESSES, 32_000, _PROCESSES)
_KINDS = (socket.SOCK_STREAM, socket.SOCK_DGRAM)
_given: set[int] = set()


def free_port():
    """Return a port of loopback that nobody uses, for TCP and UDP; this process is not given it again."""
    while True:
        port = random.SystemRandom().choice(_PORTS)
        if port not in _given and not any(_is_taken(kind, port) for kind in _KINDS):
            _given.add(port)
            return port


def _is_taken(kind, port):
    with socket.socket(socket.AF_INET, kind) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def takes_datagrams(port):
    """Return True once somebody has bound the port for UDP; to bind it as a trial might be in a daemon's way."""
    bound = [line.split()[1] for line in Path("/proc/net/udp").read_text(encoding="ascii").splitlines()[1:]]
    return any(address.endswith(f":{port:04X}") for address in bound)


def has_ipv6():
    """Return True if there is an IPv6 loopback."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True
