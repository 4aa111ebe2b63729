"""``outfall check``: tries a settings file for `configure_from`, and opens each of its sinks."""

from __future__ import annotations

import errno
import os
import socket
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from outfall.adapters import toml
from outfall.adapters.commandline.arguments import DONE, NOT_ALL_DELIVERED, add_command, seconds, unusable
from outfall.adapters.commandline.terminal import complain, table
from outfall.adapters.setup import checked_arguments
from outfall.adapters.urls.kinds import SCHEMES
from outfall.sinks.core.reporting import describe
from outfall.sinks.errors import SinkError
from outfall.sinks.event.levels import INFO, level_name
from outfall.sinks.event.record import utc_text

if TYPE_CHECKING:
    import argparse

    from outfall.adapters.commandline.arguments import Commands
    from outfall.adapters.urls import Described
    from outfall.sinks.core.reporting import SinkFailure
    from outfall.sinks.core.sink import Sink

#: The default ports of URLs, by the last part of the scheme.
_PORTS = {
    "http": 80,
    "https": 443,
    "smtp": 25,
    "smtps": 465,
    "redis": 6379,
    "rediss": 6379,
    "amqp": 5672,
    "amqps": 5671,
    "kafka": 9092,
}


def add(commands: Commands) -> None:
    """Add ``check`` to the *commands*."""
    parser = add_command(
        commands,
        "check",
        about="try a settings file for configure_from(): open each of its sinks",
        description=(
            "Read a settings file as configure_from() does. Open each of its sinks, connect to its server, "
            "and close it. No event is sent without --send."
        ),
        example="""
            outfall check logging.toml
            outfall check logging.toml --send
        """,
        epilog="exit codes: 0 each sink can be opened; 1 one cannot, or did not deliver; 2 the file cannot be used",
    )
    parser.add_argument("file", metavar="FILE.toml", help="the file")
    parser.add_argument(
        "--send", action="store_true", help="send one event to each sink, and wait until it is delivered"
    )
    parser.add_argument(
        "--timeout", type=seconds, default=5.0, metavar="SPAN", help="the time limit for each sink (default 5s)"
    )
    parser.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> int:
    try:
        settings = toml.read(options.file)
        checked_arguments(
            **{
                name: value
                for name, value in settings.arguments.items()
                if name in ("console", "console_level", "level", "levels")
            }
        )
    except OSError as error:
        unusable(f"{options.file!r} cannot be read: {error.strerror}")
    except (ValueError, TypeError, SinkError) as error:
        unusable(f"{error}" if f"{error}".startswith(options.file) else f"{options.file}: {error}")
    rows: list[tuple[str, str, str]] = []
    problems: list[str] = []
    for described in settings.sinks:
        shown, problem = _try(described, options.timeout, send=options.send)
        state = problem.partition(":")[0] or ("delivered an event" if options.send else "can be opened")
        rows.append((described.name, shown, state))
        if problem:
            problems.append(f"{options.file}: [sinks.{described.name}] {problem}")
    if rows:
        table(("NAME", "SINK", "STATE"), rows)
    else:
        complain(f"{options.file} describes no sink")
    for problem in problems:
        complain(problem)
    return NOT_ALL_DELIVERED if problems else DONE


def _try(described: Described, timeout: float, *, send: bool) -> tuple[str, str]:
    """Open the *described* sink and close it; return its repr, and its fault or ""."""
    failures: list[SinkFailure] = []
    built_in = described.url.partition(":")[0].lower() in SCHEMES
    try:
        sink = described.open(**({"on_error": failures.append} if built_in else {}))
    except (ValueError, OSError) as error:
        return "", f"{error}".removeprefix(f"{described.place}: ")
    try:
        if failures:
            return repr(sink), f"cannot be opened: {describe(failures[0].error)}"
        try:
            _reach(described.url, _innermost(sink), timeout)
        except (OSError, SinkError) as error:
            return repr(sink), f"cannot be reached: {describe(error)}"
        return repr(sink), _send(sink, timeout, failures) if send else ""
    finally:
        sink.close(timeout)


def _innermost(sink: Any) -> Any:
    while (inner := getattr(sink, "target", None)) is not None:
        sink = inner
    return sink


def _reach(url: str, sink: Any, timeout: float) -> None:
    """Connect to the server of *sink* and close the connection; for a file, check that it can be written.

    Raises:
        OSError: If that fails.
    """
    path = getattr(sink, "base_filename", None)
    if path is not None:
        _refuse_unwritable(path)
    elif hasattr(sink, "make_socket"):
        sink.make_socket(timeout).close()
    else:
        parts = urlsplit(url)
        last = parts.scheme.rpartition("+")[2]
        if last == "unix":
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(timeout)
                connection.connect(unquote(parts.path))
            return
        try:
            host, port = parts.hostname, parts.port or _PORTS.get(last)
        except ValueError:  # several hosts
            return
        if host and port and not (last.startswith("http") and _by_proxy(last, host)):
            socket.create_connection((host, port), timeout).close()


def _refuse_unwritable(path: str) -> None:
    """Raise an OSError if the file at *path*, which its sink opens at the first event, cannot be written."""
    if os.path.exists(path):
        if os.path.isdir(path) or not os.access(path, os.W_OK):
            # Opening it raises an error that says why.
            os.close(os.open(path, os.O_WRONLY | os.O_APPEND))
        return
    directory = os.path.dirname(path)
    os.stat(directory)  # raises an error if it does not exist
    if not os.access(directory, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), directory)


def _by_proxy(scheme: str, host: str) -> bool:
    from urllib.request import getproxies, proxy_bypass

    return scheme in getproxies() and not proxy_bypass(host)


def _send(sink: Sink, timeout: float, failures: list[SinkFailure]) -> str:
    event = {
        "event": "outfall check",
        "level": level_name(max(sink.level, INFO)),
        "logger": "outfall.check",
        "timestamp": utc_text(time.time()),
    }
    sink.handle(event)
    sink.flush(timeout)
    stats = sink.stats()
    if stats.delivered:
        return ""
    if failures:
        return f"did not deliver: {describe(failures[0].error)}"
    if stats.filtered:
        return "did not deliver: the sink's processors left the event out"
    return f"did not deliver within {timeout:g} s" + (f": {stats.last_error}" if stats.last_error else "")
