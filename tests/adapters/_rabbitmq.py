"""A real RabbitMQ on loopback, with a name, directories and an epmd of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from pathlib import Path

import pika

from tests.sinks._processes import PATIENCE_SECONDS, signalled, until
from tests.sinks._wire import free_port

CONFIGURATION = """
listeners.tcp.1 = 127.0.0.1:{port}
listeners.ssl.1 = 127.0.0.1:{tls_port}
ssl_options.cacertfile = {directory}/authority.pem
ssl_options.certfile = {directory}/server.pem
ssl_options.keyfile = {directory}/server.key
ssl_options.verify = verify_none
log.console = false
disk_free_limit.absolute = 1MB
"""

#: The server's own script: the program on the PATH changes the user.
_SCRIPTS = "/usr/lib/rabbitmq/lib"


class RabbitMQ:
    """A broker, ended by its own process id, and so is its epmd.

    Args:
        directory: For all that it writes.
        certificate: A `trustme.LeafCert` for 127.0.0.1.
        authority: The `trustme.CA` that has issued it.
    """

    def __init__(self, directory, certificate, authority) -> None:
        self.directory = directory
        self.port, self.tls_port, names, distribution = free_port(), free_port(), free_port(), free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}"
        authority.cert_pem.write_to_path(directory / "authority.pem")
        certificate.private_key_pem.write_to_path(directory / "server.key")
        for blob in certificate.cert_chain_pems:
            blob.write_to_path(directory / "server.pem", append=True)
        configuration = CONFIGURATION.format(directory=directory, port=self.port, tls_port=self.tls_port)
        (directory / "rabbitmq.conf").write_text(configuration)
        (directory / "plugins").write_text("[].\n")
        self._script = next(Path(_SCRIPTS).glob("*/sbin/rabbitmq-server"))
        self._environment = {
            **os.environ,
            "HOME": str(directory),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(names),
            "RABBITMQ_ALLOW_INPUT": "1",  # the script becomes the server, which has the same process id then
            "RABBITMQ_CONFIG_FILE": f"{directory}/rabbitmq.conf",
            "RABBITMQ_CONF_ENV_FILE": f"{directory}/none",
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{directory}/plugins",
            "RABBITMQ_LOG_BASE": f"{directory}/log",
            "RABBITMQ_MNESIA_BASE": f"{directory}/mnesia",
            "RABBITMQ_NODENAME": f"outfall{self.port}@localhost",
            "RABBITMQ_PID_FILE": f"{directory}/pid",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "-noinput -kernel inet_dist_use_interface {127,0,0,1} +S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none"
            ),
        }
        self._output = (directory / "output").open("ab")
        self._names = subprocess.Popen(["epmd", "-address", "127.0.0.1", "-port", str(names)], **self._streams())
        self.process = None

    def _streams(self):
        return {"stdin": subprocess.DEVNULL, "stdout": self._output, "stderr": self._output}

    def start(self):
        """Start it, and return when it takes connections."""
        self.process = subprocess.Popen([self._script], env=self._environment, cwd=self.directory, **self._streams())
        until(self._answers)

    def _answers(self):
        assert self.process.poll() is None, (self.directory / "output").read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 5) as made:
            # It refuses this version of the protocol, once it has begun to listen to any.
            made.settimeout(5)
            made.sendall(b"AMQP\x00\x00\x00\x00")
            return bool(made.recv(1))
        return False

    def send(self, number):
        """Send it a signal."""
        signalled(self.process, number)

    def kill(self):
        """End it at once, stopped or not."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(PATIENCE_SECONDS)

    @contextlib.contextmanager
    def stopped(self):
        """Let it do nothing for a while."""
        self.send(signal.SIGSTOP)
        try:
            yield
        finally:
            self.send(signal.SIGCONT)

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.kill()
        self._names.kill()
        self._names.wait(PATIENCE_SECONDS)
        self._output.close()

    @contextlib.contextmanager
    def channel(self):
        """Give a channel of pika's own, for what a test does itself."""
        connection = pika.BlockingConnection(pika.URLParameters(self.url))
        try:
            yield connection.channel()
        finally:
            connection.close()

    def declare(self, queue, **arguments):
        """Make a durable queue; underscores of *arguments* are hyphens."""
        with self.channel() as channel:
            given = {name.replace("_", "-"): value for name, value in arguments.items()}
            channel.queue_declare(queue, durable=True, arguments=given)

    def take(self, queue):
        """Take all that is ready in a queue; return bodies and properties."""
        taken = []
        with self.channel() as channel:
            if ready := channel.queue_declare(queue, passive=True).method.message_count:
                for _method, properties, body in channel.consume(queue, auto_ack=True):
                    taken.append((body, properties))
                    if len(taken) == ready:
                        break
                channel.cancel()
        return taken
