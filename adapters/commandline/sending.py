"""Where `spool drain` and `replay` send to: the arguments they share, the sink made of them, what it came to."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from outfall.adapters.commandline import redelivery
from outfall.adapters.commandline.arguments import DONE, NOT_ALL_DELIVERED, count, seconds, unusable
from outfall.adapters.commandline.terminal import complain, counted, say, silence
from outfall.adapters.urls import open_sink
from outfall.sinks.errors import SinkError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Generator

    from outfall.adapters.commandline.redelivery import Account
    from outfall.sinks.core.sink import Sink

#: What a request may hold: for any server, and for a collector of that name, whose usual path is added to the URL.
_BODIES = ("ndjson", "json", "array", "form")
_COLLECTORS = ("loki", "otlp", "elasticsearch", "opensearch", "splunk", "datadog", "gelf")


def add_delivery(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say where to, and what of refused events."""
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
            f"what a request holds: {', '.join(_BODIES)} (lines of JSON, the default; one object;"
            " an array; a form),"
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
    parser.add_argument("--batch-size", type=count, default=500, metavar="N", help="events in a request (default 500)")
    parser.add_argument(
        "--patience",
        type=seconds,
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


def _target(options: argparse.Namespace) -> Sink:
    """Return the sink that sends: what *options* say of it."""
    headers: dict[str, str] = {}
    for header in options.header:
        name, colon, value = header.partition(":")
        if not colon or not name.strip():
            unusable(f"--header {name!r} has no colon; it is 'NAME: VALUE'")
        headers[name.strip()] = value.strip()
    url, body, query = options.to, options.body, [option.partition("=") for option in options.option]
    if options.token_env is not None:
        if not os.environ.get(options.token_env):
            unusable(f"--token-env {options.token_env}: there is no such environment variable, or it is empty")
        query.append(("token_env", "=", options.token_env))
    if body in _BODIES:
        query.append(("body", "=", body))
    elif body is not None and not url.startswith(f"{body}+"):
        url = f"{body}+{url}"
    for name, equals, value in query:
        if not equals:
            unusable(f"--option {name!r} has no '='; it is NAME=VALUE")
        url += f"{'&' if '?' in url else '?'}{quote(name)}={quote(value)}"
    given: dict[str, Any] = {"headers": headers} if headers else {}
    if options.allow_insecure:
        given["allow_insecure"] = True
    try:
        return open_sink(url, background=False, **given)
    except (ValueError, TypeError, SinkError) as error:
        unusable(f"--to: {error}")


@contextlib.contextmanager
def guard(options: argparse.Namespace) -> Generator[redelivery.Guard]:
    """Give what sends, with what was said of refused events; the file for them is open before anything is sent."""
    target = _target(options)
    if options.dead_letters is None:
        yield redelivery.Guard(target, "discard" if options.discard_refused else "keep")
        return
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(options.dead_letters, "ab", buffering=0))
        except OSError as error:
            unusable(f"--dead-letters {options.dead_letters!r} cannot be written: {error.strerror}")
        yield redelivery.Guard(target, file)


def conclude(account: Account, options: argparse.Namespace) -> int:
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
