"""A real redis-server on loopback, with a directory of its own."""

from __future__ import annotations

import signal
import subprocess
from typing import Any

from tests.sinks._processes import PATIENCE_SECONDS, signalled, until
from tests.sinks._rsyslogd import _connects
from tests.sinks._wire import free_port


class RedisProcess:
    """A server, ended by its own process id.

    Args:
        program: The path of redis-server.
        directory: For what it keeps.
        *options: More arguments of its command line.
        sentinel: The configuration of a sentinel, to be one.
        tls: A directory with ``key.pem``, ``cert.pem`` and ``ca.pem``, to take TLS at `tls_port` too.
    """

    def __init__(self, program, directory, *options, sentinel=None, tls=None) -> None:
        import redis

        self.program, self.directory, self.options = program, directory, options
        self.tls_port = 0 if tls is None else free_port()
        self.first = () if sentinel is None else (str(sentinel), "--sentinel")
        if tls is not None:
            files = (f"--tls-{name}-file {tls}/{name}.pem" for name in ("key", "cert"))
            self.options += (*" ".join(files).split(), "--tls-ca-cert-file", f"{tls}/ca.pem")
            self.options += ("--tls-port", str(self.tls_port), "--tls-auth-clients", "no")
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self.client: Any = redis.Redis(port=self.port, protocol=2)
        self.start()

    def start(self):
        """Start it, and return when it answers."""
        import redis

        command = [
            self.program,
            *self.first,
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(self.directory),
        ]
        command += [*([] if self.first else ["--save", ""]), *self.options]
        with (self.directory / "redis.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

        def answers():
            assert self.process.poll() is None, (self.directory / "redis.log").read_text()
            try:
                return self.client.ping()
            except redis.AuthenticationError:
                return True
            except redis.RedisError:
                return False

        try:
            until(lambda: self._takes() and answers())
        except BaseException:
            self.stop(signal.SIGKILL)
            raise

    def _takes(self):
        import socket

        return _connects(socket.AF_INET, ("127.0.0.1", self.port))

    def send(self, number):
        """Send it a signal."""
        signalled(self.process, number)

    def stop(self, by=signal.SIGKILL):
        """End it, and return when it has ended."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(by)
            try:
                self.process.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def events(self, key):
        """Return the bodies in a stream."""
        return [fields[b"event"] for _, fields in self.client.xrange(key)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
        self.client.close()
