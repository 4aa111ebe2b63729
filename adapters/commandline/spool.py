"""``outfall spool``: shows the events that wait in a spool, and delivers those of dead processes."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from outfall.adapters.commandline import redelivery
from outfall.adapters.commandline.arguments import (
    DONE,
    EXIT_CODES,
    NOT_ALL_DELIVERED,
    add_command,
    count,
    unusable,
)
from outfall.adapters.commandline.sending import add_delivery, conclude, guard
from outfall.adapters.commandline.terminal import complain, counted, moment, pretty, say, say_json, size
from outfall.sinks.core.item import item_of
from outfall.sinks.errors import SinkError
from outfall.sinks.event.json import OrjsonRenderer
from outfall.sinks.spool import status as spoolstatus
from outfall.sinks.spool.lines import raw_of
from outfall.sinks.spool.status import SpoolStatus, StoreStatus

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from outfall.adapters.commandline.arguments import Commands
    from outfall.sinks.core.item import Encoded


def add(commands: Commands) -> None:
    """Add ``spool`` to the *commands*."""
    spool = add_command(
        commands,
        "spool",
        about="look into a spool, or deliver its events",
        example="outfall spool status /var/spool/shop",
    )
    actions = spool.add_subparsers(title="actions", metavar="ACTION", required=True)

    status = add_command(
        actions,
        "status",
        about="show how many events wait, of which process, and since when",
        description=(
            "Show how many events wait in the spool. Nothing is changed, and running processes are not disturbed."
        ),
        example="outfall spool status /var/spool/shop",
        epilog="exit codes: 0 it was read; 1 a part of it cannot be read; 2 there is no spool in that directory",
    )
    _add_directory(status)
    status.add_argument("--json", action="store_true", help="write one JSON object instead of text")
    status.set_defaults(run=_status)

    show = add_command(
        actions,
        "show",
        about="print the events that wait",
        description="Print the events that wait in the spool, oldest first for each process. Nothing is changed.",
        example="outfall spool show --json /var/spool/shop | jq .event",
    )
    _add_directory(show)
    show.add_argument("-n", "--number", type=count, metavar="N", help="print N events at most")
    show.add_argument("--json", action="store_true", help="print each as one line of JSON, for jq")
    show.set_defaults(run=_show)

    drain = add_command(
        actions,
        "drain",
        about="deliver the events of processes that have ended",
        description=(
            "Deliver the events of processes that have ended, in order, and remove each once it is delivered. "
            "The events of running processes stay: those processes deliver them. An event that the server refuses "
            "stops the delivery, unless --dead-letters or --discard-refused is given."
        ),
        example="outfall spool drain /var/spool/shop --to 'loki+https://loki.example.org?labels.app=shop'",
        epilog=EXIT_CODES,
    )
    _add_directory(drain)
    add_delivery(drain)
    drain.set_defaults(run=_drain)


def _add_directory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="the spool's directory")


def _read_status(directory: str) -> SpoolStatus:
    try:
        return SpoolStatus.read(directory)
    except FileNotFoundError:
        if os.path.isdir(directory):
            unusable(f"there is no spool in {directory!r}; give the directory that SpoolSink was made with")
        unusable(f"there is no directory {directory!r}; give the one that SpoolSink was made with")
    except OSError as error:
        unusable(f"{directory!r} cannot be read: {error.strerror}")


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
        return  # `_show` reports the store's problem
    for name, offset in files:
        with contextlib.suppress(FileNotFoundError), open(name, "rb") as file:
            file.seek(offset)
            for line in file:
                raw = raw_of(line.rstrip(b"\n"))
                yield None if raw is None else item_of(raw)


def _drain(options: argparse.Namespace) -> int:
    status = _read_status(options.directory)
    with guard(options) as target:
        account = redelivery.drain(
            target,
            options.directory,
            waiting=sum(store.events for store in status.stores if not store.alive),
            batch_size=options.batch_size,
            patience=options.patience,
            quiet=options.quiet,
        )
    code = conclude(account, options)
    running = sum(store.events for store in status.stores if store.alive)
    if running:
        say(f"{counted(running, 'event')} of running processes left to them")
    for store in status.stores:
        if store.problem is not None:
            complain(f"{store.name} was left alone: {store.problem}")
            code = NOT_ALL_DELIVERED
    return code
