"""Processes that kill themselves, by SIGKILL, at a chosen call of the system."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

#: What a spool does to a disk.
CALLS = ("open", "pwrite", "write", "close", "replace", "unlink", "mkdir", "rmdir", "ftruncate", "fsync")


def in_killed_fork(function: Callable[[], object], call: int) -> bool:
    """Run *function* in a forked child, which kills itself just before its system call number *call*, from 0.

    Below 0 it does not. Return True if it did, False if it ended before; an exception in it is an assertion error.
    """
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            if call >= 0:
                arm(call)
            function()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, f"the child failed; it was to be killed at call {call}"
    return False


def arm(call: int, module: Any = None, name: str = "") -> None:
    """Have this process kill itself just before its system call number *call*, from 0; *module* has another *name*."""
    left = [call]

    def counting(real: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if left[0] <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return real(*args, **kwargs)

        return counted

    for function in CALLS:
        setattr(os, function, counting(getattr(os, function)))
    if module is not None:
        setattr(module, name, counting(getattr(module, name)))


class Journal:
    """A file that survives its writer: one line for each thing that was done."""

    def __init__(self, path: Any) -> None:
        self._path = str(path)
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        # As it was before anything was armed: to write here is no call that counts.
        self._write = os.write

    def note(self, text: str) -> None:
        """Write *text* down."""
        self._write(self._descriptor, text.encode() + b"\n")

    def lines(self) -> list[str]:
        """Return what was written down."""
        with open(self._path, encoding="utf-8") as file:
            return file.read().splitlines()

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)
