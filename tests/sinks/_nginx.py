"""A real nginx on loopback, with a configuration and files of its own, in front of another server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess

from tests.sinks._processes import PATIENCE_SECONDS, until
from tests.sinks._wire import free_port

CONFIGURATION = """
{user} daemon off; master_process on; worker_processes 1;
pid {directory}/nginx.pid; error_log {directory}/error.log;
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {certificate}; ssl_certificate_key {certificate}; ssl_client_certificate {authority};
    {settings}
    location / {{ proxy_pass {behind}; }}
  }}
}}
"""


class Nginx:
    """One nginx with TLS, started in the foreground and ended by its own process id.

    Args:
        program: Its path.
        directory: Where its files are.
        certificate: The path of its certificate and key.
        authority: The path of the authority that clients' certificates are of.
        behind: The URL of the server that it passes requests on to.
        settings: More of its configuration.
    """

    def __init__(self, program, directory, *, certificate, authority, behind, settings="") -> None:
        self.directory = directory
        self.port = free_port()
        self._fixed = {"certificate": certificate, "authority": authority, "behind": behind}
        self._write(settings)
        self._process = subprocess.Popen(
            [program, "-c", str(directory / "nginx.conf"), "-e", str(directory / "error.log")],
            stderr=subprocess.PIPE,
        )

    def _write(self, settings) -> None:
        # A worker of another user could not write into the test's directory.
        user = "user root;" if os.geteuid() == 0 else ""
        text = CONFIGURATION.format(
            user=user, directory=self.directory, port=self.port, settings=settings, **self._fixed
        )
        (self.directory / "nginx.conf").write_text(text)

    def __enter__(self):
        until(self._answers)
        return self

    def __exit__(self, *_):
        self._process.terminate()
        self._process.communicate(timeout=PATIENCE_SECONDS)

    def _answers(self):
        assert self._process.poll() is None, self._process.stderr.read()
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    def change(self, settings) -> None:
        """Take up other settings; connections that are there keep the old ones until they end."""
        self._write(settings)
        os.kill(self._process.pid, signal.SIGHUP)
