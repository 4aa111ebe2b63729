"""The command ``outfall``. Each subcommand is a module with a function ``add``, which adds its parser."""

from __future__ import annotations

import argparse
from importlib import metadata
from typing import TYPE_CHECKING, NoReturn

from outfall.adapters.commandline import check, redelivery, relay, replay, sinks, spool, tail, verify
from outfall.adapters.commandline.arguments import DONE, EXIT_CODES, NOT_ALL_DELIVERED, UNUSABLE, UsageError, handled
from outfall.adapters.commandline.terminal import complain, silence

if TYPE_CHECKING:
    from collections.abc import Sequence

#: The modules of the commands, in the order of the help.
COMMANDS = (tail, sinks, check, spool, replay, relay, verify)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: The arguments after the program's name. Default None: those of the process.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if "run" not in options:
        parser.print_help()
        return DONE
    try:
        with handled(_end, "SIGTERM", "SIGHUP"):
            code: int = options.run(options)
    except UsageError as error:
        complain(f"{error}")
        return UNUSABLE
    except KeyboardInterrupt as interrupt:
        complain("interrupted; what was not delivered is where it was")
        return 128 + redelivery.number_of(interrupt)
    except BrokenPipeError:
        # The reader, such as `head`, has closed the pipe.
        silence()
        return DONE
    except OSError as error:
        silence()
        complain(f"{error.filename!r}: {error.strerror}" if error.filename else error.strerror or f"{error}")
        return NOT_ALL_DELIVERED
    return code


def _end(number: int, _frame: object) -> NoReturn:
    """Raise `redelivery.Interrupted`, so that the command prints how many events it has delivered."""
    raise redelivery.Interrupted(number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="outfall",
        description="Look at events and where they go: files, spools, sinks and their URLs.",
        epilog=EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"outfall {metadata.version('outfall')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for module in COMMANDS:
        module.add(commands)
    return parser
