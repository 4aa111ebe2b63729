"""The command line, ``outfall``: look into a spool, deliver what is in it, send files of events."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import threading
from importlib import metadata
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote

from outfall.adapters.commandline import redelivery
from outfall.adapters.commandline.terminal import complain, counted, moment, pretty, say, say_json, silence, size
from outfall.adapters.urls import open_sink
from outfall.sinks.core.arguments import checked_size
from outfall.sinks.core.item import item_of
from outfall.sinks.errors import SinkError
from outfall.sinks.event.json import OrjsonRenderer
from outfall.sinks.spool import status as spoolstatus
from outfall.sinks.spool.lines import raw_of
from outfall.sinks.spool.status import SpoolStatus, StoreStatus

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from outfall.adapters.commandline.redelivery import Account
    from outfall.sinks.core.item import Encoded
    from outfall.sinks.core.sink import Sink

#: Exit codes. 2 is argparse's, for what it cannot parse.
DONE, NOT_ALL_DELIVERED, UNUSABLE = 0, 1, 2

#: What a request may hold: for any server, and for a collector of that name, whose usual path is added to the URL.
_BODIES = ("ndjson", "array", "object")
_COLLECTORS = ("loki", "otlp", "elasticsearch", "opensearch", "splunk", "datadog", "gelf")

_EXIT_CODES = (
    "exit codes: 0 all is done; 1 something was left or refused; 2 the arguments cannot be used; 130, 143 interrupted"
)


class _UsageError(Exception):
    """What the user asked for cannot be done; the message says what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line with *arguments*, those of the process by default; return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        with _signals():
            code: int = options.run(options)
    except _UsageError as error:
        complain(f"{error}")
        return UNUSABLE
    except KeyboardInterrupt as interrupt:
        complain("interrupted; what was not delivered is where it was")
        return 128 + redelivery.number_of(interrupt)
    except BrokenPipeError:
        # Whoever read the output has seen enough.
        silence()
        return DONE
    except OSError as error:
        silence()
        complain(f"{error.filename!r}: {error.strerror}" if error.filename else error.strerror or f"{error}")
        return NOT_ALL_DELIVERED
    return code


@contextlib.contextmanager
def _signals() -> Generator[None]:
    """Have signals that ask a process to end raise `redelivery.Interrupted`, so that it says how far it came."""

    def end(number: int, _frame: object) -> NoReturn:
        raise redelivery.Interrupted(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, end) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_ENDING = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


# -- the arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="outfall",
        description="Look into the spools of Outfall's SpoolSink, deliver what is in them, and send files of events.",
        epilog=_EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"outfall {metadata.version('outfall')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    spool = commands.add_parser("spool", help="look into a spool, or deliver what is in it")
    actions = spool.add_subparsers(title="actions", metavar="ACTION", required=True)

    status = actions.add_parser(
        "status",
        help="how many events wait, of which process, and since when",
        description="Show what waits in the spool. Nothing is changed, and running processes are not disturbed.",
        epilog="exit codes: 0 it was read; 1 a part of it cannot be read; 2 there is no spool in that directory",
    )
    _add_directory(status)
    status.add_argument("--json", action="store_true", help="write one JSON object instead of text")
    status.set_defaults(run=_status)

    show = actions.add_parser(
        "show",
        help="print the events that wait",
        description="Print the events that wait in the spool, oldest first for each process. Nothing is changed.",
    )
    _add_directory(show)
    show.add_argument("-n", "--number", type=_count, metavar="N", help="print N events at most")
    show.add_argument("--json", action="store_true", help="print each as one line of JSON, for jq")
    show.set_defaults(run=_show)

    drain = actions.add_parser(
        "drain",
        help="deliver what processes that run no more have left",
        description=(
            "Deliver the events of processes that run no more, in order, and remove them once they are delivered. "
            "What running processes have is theirs to deliver, and left alone. An event that the server refuses stops "
            "it, unless it is said where such events go."
        ),
        epilog=_EXIT_CODES,
    )
    _add_directory(drain)
    _add_delivery(drain)
    drain.set_defaults(run=_drain)

    replay = commands.add_parser(
        "replay",
        help="send the events in files: dead letters, or any NDJSON",
        description=(
            "Send the events in files of JSON lines, such as a dead letter sink writes. The files are not changed: "
            "what is sent twice arrives twice, unless the server heeds the Idempotency-Key: it is the same each time."
        ),
        epilog=_EXIT_CODES,
    )
    replay.add_argument(
        "files", nargs="+", metavar="FILE", help="a file with one JSON object in each line; - for stdin"
    )
    replay.add_argument(
        "--text", action="store_true", help="send a line that is no JSON object as an event's text; else it is left out"
    )
    _add_delivery(replay)
    replay.set_defaults(run=_replay)
    return parser


def _add_directory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="the spool's directory")


def _add_delivery(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--to",
        required=True,
        metavar="URL",
        help="where to send the events: http:// or https://, loki+https:// and its like, or any URL of open_sink's",
    )
    parser.add_argument(
        "--body",
        choices=[*_BODIES, *_COLLECTORS],
        metavar="FORMAT",
        help=(
            f"what a request holds: {', '.join(_BODIES)} (lines of JSON, the default; an array; one object for each),"
            f" or what a collector takes, whose usual path is added to the URL: {', '.join(_COLLECTORS)}"
        ),
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="one of the collector's, such as labels.app=shop, index=logs, resource.service.name=shop; may be repeated",
    )
    parser.add_argument(
        "--header", action="append", default=[], metavar="'NAME: VALUE'", help="one more header; may be repeated"
    )
    parser.add_argument(
        "--token-env", metavar="VARIABLE", help="the environment variable that holds the token or API key to send"
    )
    parser.add_argument("--batch-size", type=_count, default=500, metavar="N", help="events in a request (default 500)")
    parser.add_argument(
        "--patience",
        type=_seconds,
        default=60.0,
        metavar="SECONDS",
        help="give up when nothing was delivered for so long (default 60)",
    )
    refused = parser.add_mutually_exclusive_group()
    refused.add_argument(
        "--dead-letters", metavar="FILE", help="append events that the server refuses to FILE, and go on"
    )
    refused.add_argument("--discard-refused", action="store_true", help="drop events that the server refuses; go on")
    parser.add_argument("--allow-insecure", action="store_true", help="send credentials over plain http:// too")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")


def _count(text: str) -> int:
    try:
        number = checked_size(int(text), "number", "events")
    except ValueError:
        number = 0
    if number == 0:
        msg = f"{text!r} is not a whole number from 1 up"
        raise argparse.ArgumentTypeError(msg)
    return number


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        msg = f"{text!r} is not a number of seconds from 0 up"
        raise argparse.ArgumentTypeError(msg)
    return seconds


# -- looking


def _read_status(directory: str) -> SpoolStatus:
    try:
        return SpoolStatus.read(directory)
    except FileNotFoundError:
        if os.path.isdir(directory):
            _unusable(f"there is no spool in {directory!r}; give the directory that SpoolSink was made with")
        _unusable(f"there is no directory {directory!r}; give the one that SpoolSink was made with")
    except OSError as error:
        _unusable(f"{directory!r} cannot be read: {error.strerror}")


def _unusable(message: str) -> NoReturn:
    raise _UsageError(message) from None


def _status(options: argparse.Namespace) -> int:
    status = _read_status(options.directory)
    if options.json:
        stores = [{name: getattr(store, name) for name in StoreStatus.__slots__} for store in status.stores]
        fields = {
            "directory": os.fsencode(status.directory).decode("utf-8", "replace"),
            "events": status.events,
            "bytes": status.bytes,
            "oldest": status.oldest,
            "stores": stores,
        }
        say_json(OrjsonRenderer().render(fields))
    else:
        _print_status(status)
    return NOT_ALL_DELIVERED if any(store.problem for store in status.stores) else DONE


def _print_status(status: SpoolStatus) -> None:
    since = "" if status.oldest is None else f", the oldest of {moment(status.oldest)}"
    say(f"{status.directory}: {counted(status.events, 'event')} in {size(status.bytes)} wait{since}")
    for store in status.stores:
        if store.problem is not None:
            say(f"  process {store.pid}: cannot be read: {store.problem}")
            continue
        state = (
            "a running process delivers them" if store.alive else "left, for `outfall spool drain` or the next start"
        )
        flight = f", {store.in_flight} of them being sent" if store.in_flight and store.alive else ""
        say(f"  process {store.pid}: {counted(store.events, 'event')}{flight}; {state}")
        if store.ledger is not None and store.alive:
            _print_ledger(store.ledger)


def _print_ledger(ledger: dict[str, Any]) -> None:
    dropped = ledger.get("dropped") or {}
    parts = [
        f"{ledger.get(name, 0)} {name.replace('_', ' ')}"
        for name in ("accepted", "adopted", "delivered", "dead_lettered")
    ]
    parts += [f"{events} dropped ({reason})" for reason, events in sorted(dropped.items())]
    say(f"    {', '.join(parts)}; at {moment(ledger.get('time', 0))}")
    if ledger.get("last_error"):
        say(f"    last error: {ledger['last_error']}")


def _show(options: argparse.Namespace) -> int:
    status = _read_status(options.directory)
    left = options.number
    corrupt = 0
    for store in status.stores:
        for item in _items_of(os.path.join(status.directory, store.name)):
            if item is None:
                corrupt += 1
                continue
            if left == 0:
                return DONE
            left = None if left is None else left - 1
            if options.json:
                say_json(redelivery.as_event(item).data)
            else:
                say(pretty(item))
    for store in status.stores:
        if store.problem is not None:
            complain(f"{store.name} cannot be read: {store.problem}")
    if corrupt:
        complain(f"{counted(corrupt, 'line')} cannot be read as an event")
    return NOT_ALL_DELIVERED if corrupt or any(store.problem for store in status.stores) else DONE


def _items_of(path: str) -> Iterator[Encoded | None]:
    try:
        files = spoolstatus.unsettled(path)
    except (OSError, SinkError):
        return  # told with the status
    for name, offset in files:
        with contextlib.suppress(FileNotFoundError), open(name, "rb") as file:
            file.seek(offset)
            for line in file:
                raw = raw_of(line.rstrip(b"\n"))
                yield None if raw is None else item_of(raw)


# -- delivering


def _target(options: argparse.Namespace) -> Sink:
    """Return the sink that sends: what *options* say of it."""
    headers: dict[str, str] = {}
    for header in options.header:
        name, colon, value = header.partition(":")
        if not colon or not name.strip():
            _unusable(f"--header {name!r} has no colon; it is 'NAME: VALUE'")
        headers[name.strip()] = value.strip()
    url, body, query = options.to, options.body, [option.partition("=") for option in options.option]
    if options.token_env is not None:
        if not os.environ.get(options.token_env):
            _unusable(f"--token-env {options.token_env}: there is no such environment variable, or it is empty")
        query.append(("token_env", "=", options.token_env))
    if body in _BODIES:
        query.append(("body", "=", body))
    elif body is not None and not url.startswith(f"{body}+"):
        url = f"{body}+{url}"
    for name, equals, value in query:
        if not equals:
            _unusable(f"--option {name!r} has no '='; it is NAME=VALUE")
        url += f"{'&' if '?' in url else '?'}{quote(name)}={quote(value)}"
    given: dict[str, Any] = {"headers": headers} if headers else {}
    if options.allow_insecure:
        given["allow_insecure"] = True
    try:
        return open_sink(url, background=False, **given)
    except (ValueError, TypeError, SinkError) as error:
        _unusable(f"--to: {error}")


@contextlib.contextmanager
def _guard(options: argparse.Namespace) -> Generator[redelivery.Guard]:
    """Give what sends, with what was said of refused events; the file for them is open before anything is sent."""
    target = _target(options)
    if options.dead_letters is None:
        yield redelivery.Guard(target, "discard" if options.discard_refused else "keep")
        return
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(options.dead_letters, "ab", buffering=0))
        except OSError as error:
            _unusable(f"--dead-letters {options.dead_letters!r} cannot be written: {error.strerror}")
        yield redelivery.Guard(target, file)


def _drain(options: argparse.Namespace) -> int:
    status = _read_status(options.directory)
    with _guard(options) as target:
        account = redelivery.drain(
            target,
            options.directory,
            waiting=sum(store.events for store in status.stores if not store.alive),
            batch_size=options.batch_size,
            patience=options.patience,
            quiet=options.quiet,
        )
    code = _conclude(account, options)
    running = sum(store.events for store in status.stores if store.alive)
    if running:
        say(f"{counted(running, 'event')} of running processes left to them")
    for store in status.stores:
        if store.problem is not None:
            complain(f"{store.name} was left alone: {store.problem}")
            code = NOT_ALL_DELIVERED
    return code


def _replay(options: argparse.Namespace) -> int:
    for name in options.files:
        if name != "-":
            try:
                with open(name, "rb"):
                    pass
            except OSError as error:
                _unusable(f"{name!r} cannot be read: {error.strerror}")
    with _guard(options) as target:
        account = redelivery.replay(
            target,
            options.files,
            batch_size=options.batch_size,
            patience=options.patience,
            text=options.text,
            quiet=options.quiet,
        )
    return _conclude(account, options)


def _conclude(account: Account, options: argparse.Namespace) -> int:
    """Say how far it came; return the exit code."""
    parts = [f"{counted(account.delivered, 'event')} delivered"]
    if account.refused:
        where = "discarded" if options.discard_refused else "written to the dead letters"
        parts.append(f"{account.refused:,} refused, and {where}")
    if account.left_out:
        parts.append(f"{counted(account.left_out, 'line')} left out")
    parts += [f"{events:,} lost ({reason})" for reason, events in sorted(account.dropped.items())]
    if account.left:
        parts.append(f"{account.left:,} left where they were")
    if account.place and (account.left or account.interrupted):
        parts.append(f"stopped at {account.place}")
    if account.interrupted:
        complain(f"interrupted: {', '.join(parts)}")
        return 128 + account.interrupted
    try:
        say(", ".join(parts))
    except OSError:
        silence()  # what it came to is the exit code all the same
    if account.left:
        complain(f"stopped: {account.last_error or 'nothing more was taken, and there was no answer'}")
    failed = account.refused or account.dropped or account.left or account.left_out
    return NOT_ALL_DELIVERED if failed else DONE
