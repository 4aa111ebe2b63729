"""An input for the Forward protocol, written from its specification alone."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import socket
import threading

import msgpack

from tests.sinks._processes import until


class Forward:
    """A server that keeps entries, and acknowledges each chunk as it is told to.

    Args:
        key: The shared key; None for an input without a login.
        users: Passwords by name.
        context: For TLS.
        path: Of a Unix socket; None for TCP.
    """

    def __init__(self, key=None, users=None, context=None, path=None) -> None:
        self.socket = socket.socket(socket.AF_INET if path is None else socket.AF_UNIX)
        if path is None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(("127.0.0.1", 0) if path is None else str(path))
        self.socket.listen(16)
        self.target = self.socket.getsockname() if path is None else (str(path), None)
        self.key, self.users, self.context = key, users, context
        #: (tag, time, record) of each entry; chunks as they were named; how many connections there were.
        self.entries = []
        self.chunks = []
        self.modes = []
        self.connections = 0
        #: What is done before a chunk is acknowledged, by its number: a function of the connection that returns True
        #: to acknowledge it.
        self.before_answer = lambda number, sock: True
        #: False: one message a connection.
        self.keepalive = True
        self._open = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                made, _ = self.socket.accept()
                threading.Thread(target=self._serve, args=(made,), daemon=True).start()

    def _serve(self, sock):
        with contextlib.suppress(OSError):
            if self.context is not None:
                sock = self.context.wrap_socket(sock, server_side=True)
            self.connections += 1
            self._open.append(sock)
            unpacker = msgpack.Unpacker(raw=False, max_buffer_size=1 << 26)
            if self.key is not None and not self._log_in(sock, unpacker):
                sock.close()
                return
            while data := sock.recv(65_536):
                unpacker.feed(data)
                for message in unpacker:
                    self._take(sock, message)
                    if not self.keepalive:
                        sock.close()
        sock.close()

    def _log_in(self, sock, unpacker):
        nonce, salt = os.urandom(16), os.urandom(16)
        auth = salt if self.users else ""
        sock.sendall(msgpack.packb(["HELO", {"nonce": nonce, "auth": auth, "keepalive": True}]))
        while True:
            data = sock.recv(65_536)
            if not data:
                return False
            unpacker.feed(data)
            for word, *told in unpacker:
                if word != "PING":
                    return False
                host, key_salt, digest, user, password = told
                reason = ""
                expected = hashlib.sha512(key_salt.encode() + host.encode() + nonce + self.key.encode()).hexdigest()
                if digest != expected:
                    reason = "shared key mismatch"
                elif self.users:
                    known = hashlib.sha512(salt + user.encode() + self.users.get(user, "").encode()).hexdigest()
                    if user not in self.users or known != password:
                        reason = "username/password mismatch"
                mine = hashlib.sha512(key_salt.encode() + b"server" + nonce + self.key.encode()).hexdigest()
                sock.sendall(msgpack.packb(["PONG", not reason, reason, "server", mine]))
                return not reason

    def _take(self, sock, message):
        tag, entries, option = message
        self.modes.append("packed" if isinstance(entries, bytes) else "forward")
        if isinstance(entries, bytes):
            entries = list(msgpack.Unpacker(io.BytesIO(entries), raw=False))
        assert option["size"] == len(entries)
        self.chunks.append(option["chunk"])
        for when, record in entries:
            self.entries.append((tag, when, record))
        if self.before_answer(len(self.chunks), sock):
            sock.sendall(msgpack.packb({"ack": option["chunk"]}))

    def wait(self, number):
        """Wait until so many entries have come, and return their records."""
        until(lambda: len(self.entries) >= number)
        return [record for _, _, record in self.entries]

    def hang_up(self):
        """Close all connections and go on listening."""
        while self._open:
            sock = self._open.pop()
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def close(self):
        """Close everything."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self.hang_up()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
