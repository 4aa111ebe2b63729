"""Peers written in JavaScript, from packages of npm's."""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from tests.sinks._processes import PATIENCE_SECONDS
from tests.sinks._wire import free_port


class Node:
    """A program of Node's that says ``ready`` and then writes a line of JSON for each thing it has received.

    Skips the test where Node or the package is missing.

    Args:
        package: What the program needs. It is looked for in the directory ``OUTFALL_NODE_MODULES``.
        script: The program; its first argument is the port to listen on.
        arguments: More arguments.
    """

    def __init__(self, package: str, script: str, *arguments: object) -> None:
        program = shutil.which("node")
        modules = os.environ.get("OUTFALL_NODE_MODULES", "")
        if program is None:
            pytest.skip("node is not installed here")
        if not modules or not (Path(modules) / package).is_dir():
            pytest.skip(f"OUTFALL_NODE_MODULES names no directory with npm's {package}")
        self.port = free_port()
        self.received = []
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.process = subprocess.Popen(
            [program, "-e", script, "--", str(self.port), *map(str, arguments)],
            env={**os.environ, "NODE_PATH": modules},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        try:
            assert self._next() == "ready"
        except BaseException:
            self.close()
            raise

    def _read(self):
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put("")

    def _next(self):
        line = self._lines.get(timeout=PATIENCE_SECONDS)
        assert line, f"node has ended with {self.process.wait(PATIENCE_SECONDS)}"
        return line

    def wait(self, number):
        """Wait until so many things have been received in all, and return them."""
        while len(self.received) < number:
            self.received.append(json.loads(self._next()))
        return list(self.received)

    def close(self):
        """End it."""
        self.process.kill()
        self.process.wait()
        self._thread.join(PATIENCE_SECONDS)
        self.process.stdout.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
