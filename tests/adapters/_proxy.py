"""A network that can be made to hang: a proxy on loopback."""

from __future__ import annotations

import contextlib
import socket
import threading


class Proxy:
    """Forwards connections to a port until `hang` is called; then it takes everything and passes nothing on.

    Args:
        port: Where it forwards to, on loopback.
    """

    def __init__(self, port) -> None:
        self._target = port
        self._open = threading.Event()
        self._open.set()
        self._ended = False
        self._end, self._pause = threading.Event(), 0.0
        self._sockets = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self):
        while True:
            try:
                near, _ = self._listening.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            self._sockets += [near, far]
            for source, target, answers in ((near, far, False), (far, near, True)):
                thread = threading.Thread(target=self._pass_on, args=(source, target, answers), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _pass_on(self, source, target, answers):
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                self._open.wait()
                if self._ended:
                    return
                pause = self._pause if answers else 0.0
                for place in range(0, len(data), 1 if pause else len(data)):
                    target.sendall(data[place : place + 1] if pause else data)
                    if pause and self._end.wait(pause):
                        return
            target.shutdown(socket.SHUT_WR)

    def hang(self):
        """Pass nothing on from now on."""
        self._open.clear()

    def drip(self, seconds):
        """Pass on answers byte by byte, with a pause of so many seconds after each."""
        self._pause = seconds

    def go_on(self):
        """Pass on what waits, and what comes."""
        self._open.set()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._ended = True
        self._end.set()
        self._open.set()
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for each in list(self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join()
        for each in self._sockets:
            each.close()
