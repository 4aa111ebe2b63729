"""What the tests that need other processes share."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

#: Long enough for any machine; nothing here waits that long unless it is broken.
PATIENCE_SECONDS = 60.0

ROOT = Path(__file__).resolve().parents[2]


def start(script: str, *args: object, **options: Any) -> subprocess.Popen[bytes]:
    """Start *script*, dedented, as a Python program of its own with *args* in ``sys.argv[1:]``."""
    environment = {**os.environ, **options.pop("env", {})}
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, args)]
    return subprocess.Popen(command, env=environment, **options)


def run(script: str, *args: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run *script* as a program of its own; return its result, whatever its exit status."""
    child = start(script, *args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    try:
        out, err = child.communicate(timeout=PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        out, err = child.communicate()
        raise AssertionError(f"hangs; it wrote {out.decode()!r} and {err.decode()!r}") from None
    return subprocess.CompletedProcess(child.args, child.returncode, out.decode(), err.decode())


def check(script: str, *args: object, **options: Any) -> str:
    """Run *script* and return what it wrote to stdout; its failure is the test's."""
    result = run(script, *args, **options)
    assert result.returncode == 0, result.stderr
    return result.stdout


def in_fork(function: Callable[[], object], patience: float = PATIENCE_SECONDS) -> None:
    """Call *function* in a forked child, and fail if it raises or hangs there."""
    # The child tells what it raised through a pipe: its stderr may be what is under test.
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reader)
            function()
            status = 0
        except BaseException as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(status)
    os.close(writer)
    try:
        readable, _, _ = select.select([reader], [], [], patience)
        told = os.read(reader, 65_536) if readable else b"hangs"
    finally:
        os.close(reader)
        if not readable:
            os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
    assert (status, told) == (0, b""), told.decode()


def events_of(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the events in the file; a torn or half line is an assertion error."""
    data = Path(path).read_bytes()
    assert not data or data.endswith(b"\n"), f"half a line at the end: {data[-200:]!r}"
    events = []
    for line in data.splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:
            raise AssertionError(f"a torn line: {line[:200]!r}") from None
    return events


def until(condition: Callable[[], object], patience: float = PATIENCE_SECONDS) -> None:
    """Wait until *condition* holds, in steps too small to be noticed."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def signalled(process: subprocess.Popen[Any], number: int) -> None:
    """Send *process* a signal; return from SIGSTOP once none of its threads runs any more."""
    process.send_signal(number)
    tasks = Path(f"/proc/{process.pid}/task")
    if number == signal.SIGSTOP and tasks.is_dir():
        until(lambda: set(map(_state, tasks.iterdir())) <= {"T", "gone"})


def _state(task: Path) -> str:
    try:
        return (task / "stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return "gone"
