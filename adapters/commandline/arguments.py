"""Code that the commands share: exit codes, types of arguments, and errors of usage."""

from __future__ import annotations

import argparse
import contextlib
import signal
import threading
from typing import TYPE_CHECKING, NoReturn

from outfall.sinks.core.arguments import checked_seconds, checked_size

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    #: The type of the object that each command's module adds its parser to.
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

#: Exit codes. argparse uses 2 for arguments that it cannot parse.
DONE, NOT_ALL_DELIVERED, UNUSABLE = 0, 1, 2

EXIT_CODES = (
    "exit codes: 0 all is done; 1 something was left or refused; 2 the arguments cannot be used; 130, 143 interrupted"
)


class UsageError(Exception):
    """The arguments cannot be used; the message says what to do."""


def unusable(message: str) -> NoReturn:
    """End the command with *message*."""
    raise UsageError(message) from None


def add_command(
    commands: Commands, name: str, *, about: str, example: str, epilog: str = "", **more: Any
) -> argparse.ArgumentParser:
    """Add the command *name*, and return its parser.

    Args:
        commands: The parsers of the commands, or of the actions of a command.
        name: The name of the command.
        about: One line, for the list of commands.
        example: Lines that show how to use it.
        epilog: Text after the example. Default "": none.
        **more: Further arguments for the parser.
    """
    shown = "".join(f"\n  {line.strip()}" for line in example.strip().splitlines())
    more.setdefault("description", f"{about[:1].upper()}{about[1:]}.")
    return commands.add_parser(
        name,
        help=about,
        epilog=f"example:{shown}" + (f"\n\n{epilog}" if epilog else ""),
        formatter_class=Help,
        **more,
    )


class Help(argparse.HelpFormatter):
    """Wraps paragraphs, and leaves those with indented lines as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = text.split("\n\n")
        return "\n\n".join(
            part if "\n " in part else super(Help, self)._fill_text(part, width, indent) for part in parts
        )


@contextlib.contextmanager
def handled(handler: Callable[[int, Any], object], *names: str) -> Generator[None]:
    """Let *handler* handle the signals of these *names*, if they exist; do nothing outside of the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for name in names if (number := getattr(signal, name, None))}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def count(text: str) -> int:
    """Parse *text* as a whole number from 1 up."""
    try:
        number = checked_size(int(text), "number", "events")
    except ValueError:
        number = 0
    if number == 0:
        msg = f"{text!r} is not a whole number from 1 up"
        raise argparse.ArgumentTypeError(msg)
    return number


def seconds(text: str) -> float:
    """Parse *text*, a number of seconds or a span such as ``1h30m``; return seconds."""
    try:
        return checked_seconds(text, "")
    except ValueError:
        msg = f"{text!r} is not a number of seconds from 0 up, nor a span such as 1h30m"
        raise argparse.ArgumentTypeError(msg) from None
