"""What a test may change in its process and has to put back.

It is looked at before and after each of thousands of tests, so what is usual is found out by one comparison.
"""

from __future__ import annotations

import _signal
import gc
import locale
import logging
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import structlog

try:
    import resource
except ImportError:
    resource = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Callable

_DESCRIPTORS = "/proc/self/fd"
#: How long a thread that has been asked to end, or a descriptor that such a thread closes, may take.
_PATIENCE_SECONDS = 60.0
_SIGNALS = [(each.name, int(each)) for each in signal.valid_signals() if isinstance(each, signal.Signals)]
_LIMITS = [(name, getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")]


def _handlers() -> dict[str, Any]:
    # signal.getsignal would look each answer up among the enumeration's members.
    found = {name: _signal.getsignal(number) for name, number in _SIGNALS}
    for name, handler in found.items():
        # pytest-timeout's goes early if the test fails.
        if callable(handler) and getattr(handler, "__module__", None) == "pytest_timeout":
            found[name] = _signal.SIG_DFL
    return found


def _of_multiprocessing() -> set[str]:
    """Return the descriptors of the two processes that multiprocessing starts once and keeps."""
    kept = {
        ("multiprocessing.resource_tracker", "_resource_tracker", "_fd"),
        ("multiprocessing.forkserver", "_forkserver", "_forkserver_alive_fd"),
    }
    return {
        str(getattr(getattr(sys.modules[module], name), attribute))
        for module, name, attribute in kept
        if module in sys.modules
    }


def _descriptors() -> dict[str, str]:
    found = {}
    if os.path.isdir(_DESCRIPTORS):
        for name in set(os.listdir(_DESCRIPTORS)) - _of_multiprocessing():
            try:
                found[name] = os.readlink(f"{_DESCRIPTORS}/{name}")
            except FileNotFoundError:  # that of the listing
                continue
    return found


def _environment() -> dict[bytes, bytes]:
    # As it is, since decoding it takes longer than all else that is looked at.
    environment: dict[bytes, bytes] = os.environ._data.copy()  # type: ignore[attr-defined]
    environment.pop(b"PYTEST_CURRENT_TEST", None)  # pytest's own: it names the test that runs
    return environment


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _loggers() -> list[logging.Logger]:
    root = logging.getLogger()
    return [root, *(each for each in root.manager.loggerDict.values() if isinstance(each, logging.Logger))]


def find_logging() -> dict[str, Any]:
    """Return how logging is set up; loggers that nobody has set up are left out."""
    of_all = {
        "disabled": logging.root.manager.disable,
        "raiseExceptions": logging.raiseExceptions,
        "captures warnings": logging._warnings_showwarning is not None,  # type: ignore[attr-defined]
        "class": logging.getLoggerClass(),
        "factory": logging.getLogRecordFactory(),
        "logger levels": (logging._levelToName.copy(), logging._nameToLevel.copy()),
    }
    of_each = {
        f"logger {each.name}": (each.handlers[:], each.filters[:], each.level, each.propagate, each.disabled)
        for each in _loggers()
        if each.handlers or each.filters or each.level or not each.propagate or each.disabled
    }
    return of_all | of_each


_UNTOUCHED = ([], [], logging.NOTSET, True, False)


def restore_logging(before: dict[str, Any]) -> None:
    """Put back what `find_logging` has returned, closing the handlers that came since; take structlog's set-up away."""
    for logger in _loggers():
        handlers, *others = before.get(f"logger {logger.name}", _UNTOUCHED)
        for handler in logger.handlers[:]:
            if handler not in handlers:
                logger.removeHandler(handler)
                handler.close()
        logger.handlers[:] = handlers
        logger.filters[:], level, logger.propagate, logger.disabled = others
        logger.setLevel(level)
    logging.root.manager.disable = before["disabled"]
    logging.raiseExceptions = before["raiseExceptions"]
    logging.captureWarnings(before["captures warnings"])
    logging.setLoggerClass(before["class"])
    logging.setLogRecordFactory(before["factory"])
    for names, were in zip((logging._levelToName, logging._nameToLevel), before["logger levels"], strict=True):
        names.clear()
        names.update(were)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def _structlog() -> dict[str, Any]:
    configuration: dict[str, Any] = {"configured": structlog.is_configured()}
    if configuration["configured"]:
        configuration |= structlog.get_config()
    return configuration | structlog.contextvars.get_contextvars()


def _limits() -> dict[str, Any]:
    return {name: resource.getrlimit(number) for name, number in _LIMITS}


def _interpreter() -> dict[str, Any]:
    return {
        "switch interval": sys.getswitchinterval(),
        "recursion limit": sys.getrecursionlimit(),
        "garbage collection": (gc.isenabled(), gc.get_threshold()),
        "sys.excepthook": sys.excepthook,
        "tracing": (sys.gettrace(), sys.getprofile()),
        "local time": time.tzname,
        "locale": locale.setlocale(locale.LC_ALL),
    }


#: What is looked at, by the name under which it is reported.
_PARTS: dict[str, Callable[[], dict[Any, Any]]] = {
    "signal handlers": _handlers,
    "signals blocked": lambda: {str(each): True for each in signal.pthread_sigmask(signal.SIG_BLOCK, ())},
    "environment": _environment,
    "working directory": lambda: {"": os.getcwd()},
    "umask": lambda: {"": oct(_umask())},
    "logging": find_logging,
    "structlog": _structlog,
    "limits": _limits,
    "interpreter": _interpreter,
}
#: The same for what may take a moment to end. What ends meanwhile that was there before is not the test's.
_ENDING: dict[str, Callable[[], dict[Any, Any]]] = {
    "threads": lambda: {f"{each.name}, {each.ident}": each for each in threading.enumerate()},
    "descriptors": _descriptors,
}


def _look(parts: dict[str, Callable[[], dict[Any, Any]]]) -> dict[str, dict[Any, Any]]:
    return {name: look() for name, look in parts.items()}


class State:
    """The state of this process, and of nothing that is on disk."""

    def __init__(self) -> None:
        self._parts = _look(_PARTS)
        self._ending = _look(_ENDING)

    def left(self, given: dict[str, Any]) -> list[str]:
        """Return what is not as it was, in words, and put it back; threads and descriptors get a while to end.

        Args:
            given: The fixtures of the test, which are dropped if they may hold something.
        """
        found = []
        if (parts := _look(_PARTS)) != self._parts:
            found = [
                f"{part} {key}: {before.get(key)!r} is now {now.get(key)!r}"
                for part, before, now in zip(_PARTS, self._parts.values(), parts.values(), strict=True)
                for key in before.keys() | now.keys()
                # Put back without a word are the names of levels, and other loggers than the root: dictConfig disables
                # all there are.
                if before.get(key) != now.get(key)
                and (part != "logging" or key[:7] != "logger " or key == "logger root")
            ]
        if still := self._still_there():
            given.clear()
            gc.collect()
            deadline = time.monotonic() + _PATIENCE_SECONDS
            while (still := self._still_there()) and time.monotonic() < deadline:
                time.sleep(0.001)
        if parts != self._parts:
            self.restore()
        return found + still

    def _still_there(self) -> list[str]:
        return [
            f"{part} {key}: {value!r}"
            for part, before in self._ending.items()
            for now in (_ENDING[part](),)
            if now != before
            for key, value in now.items()
            if before.get(key) != value
        ]

    def restore(self) -> None:
        """Put back what later tests would trip over."""
        before = self._parts
        now = _handlers()
        for name, handler in before["signal handlers"].items():
            if now[name] != handler:
                signal.signal(signal.Signals[name], handler)
        blocked = {each for each in signal.valid_signals() if str(each) in before["signals blocked"]}
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for name in _environment().keys() - before["environment"].keys():
            del os.environb[name]
        os.environb.update(before["environment"])
        os.chdir(before["working directory"][""])
        os.umask(int(before["umask"][""], 8))
        restore_logging(before["logging"])
