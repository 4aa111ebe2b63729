"""A real ClickHouse on loopback, with a configuration and data of its own."""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.parse
import urllib.request

from tests.sinks._processes import until
from tests.sinks._wire import free_port

CONFIGURATION = """<?xml version="1.0"?>
<yandex>
  <logger><level>warning</level><console>1</console></logger>
  <http_port>{port}</http_port>
  <listen_host>127.0.0.1</listen_host>
  <path>{directory}/data/</path>
  <tmp_path>{directory}/tmp/</tmp_path>
  <users_config>users.xml</users_config>
  <default_profile>default</default_profile>
  <default_database>default</default_database>
  <mark_cache_size>5000000</mark_cache_size>
</yandex>
"""

USERS = """<?xml version="1.0"?>
<yandex>
  <profiles><default></default></profiles>
  <users>
    <default>
      <password>sesame</password>
      <networks><ip>127.0.0.1</ip></networks>
      <profile>default</profile>
      <quota>default</quota>
    </default>
  </users>
  <quotas><default></default></quotas>
</yandex>
"""


class ClickHouse:
    """One clickhouse-server, started in the foreground and ended by its own process id."""

    auth = ("default", "sesame")

    def __init__(self, program, directory) -> None:
        self.program = program
        self.directory = directory
        self.port = free_port()
        (directory / "config.xml").write_text(CONFIGURATION.format(port=self.port, directory=directory))
        (directory / "users.xml").write_text(USERS)
        self.start()

    @property
    def url(self):
        """The root's URL."""
        return f"http://127.0.0.1:{self.port}/"

    def insert(self, table, **settings):
        """Return the URL that rows of JSON are posted to."""
        query = {"query": f"INSERT INTO {table} FORMAT JSONEachRow", **settings}
        return f"{self.url}?{urllib.parse.urlencode(query)}"

    def start(self):
        """Start it, and return when it answers."""
        command = [self.program, f"--config-file={self.directory}/config.xml"]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            until(self._answers)
        except BaseException:
            self.stop()
            raise

    def _answers(self):
        assert self.process.poll() is None, (self.directory / "log").read_text()
        try:
            return self.ask("SELECT 1") == [{"1": 1}]
        except OSError:
            return False

    def stop(self):
        """Kill it: asked to end, it first waits for clients that keep their connections."""
        self.process.kill()
        self.process.wait()

    def ask(self, query):
        """Return the rows that *query* gives."""
        user, password = self.auth
        request = urllib.request.Request(
            self.url, query.encode(), {"X-ClickHouse-User": user, "X-ClickHouse-Key": password}
        )
        request.full_url += "?output_format_json_quote_64bit_integers=0&default_format=JSONEachRow"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=30) as answer:
                return [json.loads(line) for line in answer.read().splitlines()]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
