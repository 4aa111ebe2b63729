"""``outfall replay``: sends the events in files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from outfall.adapters.commandline import redelivery
from outfall.adapters.commandline.arguments import EXIT_CODES, add_command, unusable
from outfall.adapters.commandline.reading import open_events
from outfall.adapters.commandline.sending import add_delivery, conclude, guard
from outfall.sinks.errors import MissingDependencyError

if TYPE_CHECKING:
    import argparse

    from outfall.adapters.commandline.arguments import Commands


def add(commands: Commands) -> None:
    """Add ``replay`` to the *commands*."""
    replay = add_command(
        commands,
        "replay",
        about="send the events in files: dead letters, or any NDJSON",
        description=(
            "Send the events in files of JSON lines, such as those of a dead letter sink. The files are not changed. "
            "A second replay sends the events again, with the same Idempotency-Key, by which a server can skip them."
        ),
        example="outfall replay dead-letters.jsonl --to https://logs.example.org/in",
        epilog=EXIT_CODES,
    )
    replay.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="JSON lines, plain or compressed by gzip or zstd; - for stdin",
    )
    replay.add_argument(
        "--text", action="store_true", help="send a line that is not a JSON object as an event's text; else skip it"
    )
    add_delivery(replay)
    replay.set_defaults(run=_replay)


def _replay(options: argparse.Namespace) -> int:
    for name in options.files:
        if name != "-":
            try:
                with open_events(name):
                    pass
            except (OSError, MissingDependencyError) as error:
                unusable(f"{name!r} cannot be read: {getattr(error, 'strerror', None) or error}")
    with guard(options) as target:
        account = redelivery.replay(
            target,
            options.files,
            batch_size=options.batch_size,
            patience=options.patience,
            text=options.text,
            quiet=options.quiet,
        )
    return conclude(account, options)
