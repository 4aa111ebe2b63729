"""Code that `spool drain` and `replay` share: the arguments, the sink that sends, and the summary."""

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

#: The formats of a request: those for any server, and those of collectors, whose usual path is added to the URL.
_BODIES = ("ndjson", "json", "array", "form")
_COLLECTORS = ("loki", "otlp", "elasticsearch", "opensearch", "splunk", "datadog", "gelf")


def add_delivery(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for the target, and for refused events."""
    parser.add_argument(
        "--to",
        required=True,
        metavar="URL",
        help="where to send the events: http://, https://, loki+https:// and so on, or any other URL for open_sink()",
    )
    parser.add_argument(
        "--body",
        choices=[*_BODIES, *_COLLECTORS],
        metavar="FORMAT",
        help=(
            f"the format of a request: {', '.join(_BODIES)} (lines of JSON, the default; one object;"
            " an array; a form),"
            f" or that of a collector, whose usual path is added to the URL: {', '.join(_COLLECTORS)}"
        ),
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the collector, such as labels.app=shop, index=logs, resource.service.name=shop; repeatable",
    )
    parser.add_argument(
        "--header", action="append", default=[], metavar="'NAME: VALUE'", help="a further header; repeatable"
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
        help="give up after this time without a delivered event (default 60)",
    )
    refused = parser.add_mutually_exclusive_group()
    refused.add_argument(
        "--dead-letters", metavar="FILE", help="append events that the server refuses to FILE, and continue"
    )
    refused.add_argument(
        "--discard-refused", action="store_true", help="drop events that the server refuses, and continue"
    )
    parser.add_argument("--allow-insecure", action="store_true", help="send credentials over plain http:// too")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")


def _target(options: argparse.Namespace) -> Sink:
    """Open the sink that *options* describe."""
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
    """Open the target, and the file for dead letters if there is one; yield the `redelivery.Guard` in front of it."""
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
    """Print a summary; return the exit code."""
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
        silence()  # the exit code still tells the outcome
    if account.left:
        complain(f"stopped: {account.last_error or 'no further event was delivered, and the server did not answer'}")
    failed = account.refused or account.dropped or account.left or account.left_out
    return NOT_ALL_DELIVERED if failed else DONE
