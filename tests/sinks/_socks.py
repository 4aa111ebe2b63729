"""A SOCKS 5 proxy on loopback (RFC 1928), without authentication or with a user and a password (RFC 1929)."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

from tests.sinks._http import _pump


class SOCKSProxy:
    """A proxy with a thread for each connection, until the ``with`` block ends.

    Args:
        user: User name and password that it wants, or None.
        silent: True to take connections and say nothing.
    """

    def __init__(self, user=None, *, silent=False) -> None:
        self.user = user
        self.silent = silent
        #: Where clients wanted to go, as host and port.
        self.asked = []
        self._threads = []
        self._open = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._begin(self._accept)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "the proxy hangs"

    def _begin(self, function, *args):
        thread = threading.Thread(target=function, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(client)
            if not self.silent:
                self._begin(self._serve, client)

    def _serve(self, client):
        with contextlib.suppress(OSError), client.makefile("rb") as stream:
            _, methods = stream.read(2)
            stream.read(methods)
            client.sendall(b"\x05\x02" if self.user else b"\x05\x00")
            if self.user:
                stream.read(1)
                given = tuple(stream.read(stream.read(1)[0]).decode() for _ in range(2))
                client.sendall(b"\x01\x00" if given == self.user else b"\x01\x01")
                if given != self.user:
                    return
            kind = stream.read(4)[3]
            host = socket.inet_ntoa(stream.read(4)) if kind == 1 else stream.read(stream.read(1)[0]).decode()
            (port,) = struct.unpack(">H", stream.read(2))
            self.asked.append((host, port))
            with socket.create_connection((host, port)) as far:
                self._open.append(far)
                client.sendall(b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x00")
                back = threading.Thread(target=_pump, args=(far, client), daemon=True)
                back.start()
                _pump(client, far)
                back.join(60)
        client.close()
