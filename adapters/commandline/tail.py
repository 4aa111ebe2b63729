"""``outfall tail``: shows the last events in files, and follows the files."""

from __future__ import annotations

import heapq
import os
import re
import sys
import time
from typing import TYPE_CHECKING, Any

import orjson

from outfall.adapters.commandline import where
from outfall.adapters.commandline.arguments import DONE, NOT_ALL_DELIVERED, add_command, unusable
from outfall.adapters.commandline.reading import Followed, Line, last_lines, lines_of
from outfall.adapters.commandline.redelivery import number_of
from outfall.adapters.commandline.terminal import complain, escaped, json_text, short
from outfall.sinks.core.arguments import checked_seconds
from outfall.sinks.errors import MissingDependencyError
from outfall.sinks.event.event import message_key, timestamp_of
from outfall.sinks.event.json import OrjsonRenderer
from outfall.sinks.event.levels import INFO, level_name, level_of, parse_level

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator

    from outfall.adapters.commandline.arguments import Commands

_LAST = 10

#: Seconds between two looks at the files.
_POLL_SECONDS = 0.2


def add(commands: Commands) -> None:
    """Add ``tail`` to the *commands*."""
    parser = add_command(
        commands,
        "tail",
        about="show the events in files, the last ones or as they come",
        description=(
            "Show the last events in files of JSON lines, ordered by time, for people: level in colour, fields side by "
            "side, exceptions below. Lines that are not JSON are shown as they are. Files may be compressed by gzip or "
            "zstd; - is stdin."
        ),
        example="""
            outfall tail -f app.jsonl
            outfall tail -n 100 --level warning app.jsonl app.jsonl.1.gz
            outfall tail --since 10m --where 'status>=500 and not user="bot"' web-1.jsonl web-2.jsonl
            outfall tail --since 2026-11-22T14:00 --json app.jsonl | jq .event
        """,
        epilog=where.GRAMMAR,
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="a file of JSON lines; - for stdin")
    parser.add_argument(
        "-f",
        "--follow",
        action="store_true",
        help="show new events as they are written, also when files roll over or are truncated",
    )
    parser.add_argument(
        "-n",
        "--number",
        metavar="N",
        help=f"show the last N events that match, or all (default {_LAST}; all with --since)",
    )
    parser.add_argument(
        "--level", metavar="LEVEL", help="leave out events below this level; one without a level counts as info"
    )
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="CONDITION",
        help="show only events that meet the condition, see below; repeat it for several, which all must hold",
    )
    parser.add_argument(
        "--since", metavar="WHEN", help="show only events since then: 10m, 2 days, or a time such as 2026-11-22T14:00"
    )
    parser.add_argument("--json", action="store_true", help="write events as lines of JSON")
    parser.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        help="use colours; auto (default): on a terminal unless NO_COLOR is set, and wherever FORCE_COLOR is set",
    )
    parser.set_defaults(run=_tail)


def _tail(options: argparse.Namespace) -> int:
    wanted = _Wanted(options)
    number = _number(options)
    show = _shown(options)
    if "-" in options.files and options.follow and len(options.files) > 1:
        unusable("stdin cannot be followed beside files")
    code = DONE
    followed: list[Followed] = []
    streams: list[Iterable[Line]] = []
    for name in options.files:
        try:
            if options.follow and name != "-" and not _is_compressed(name):
                file = Followed(name, at_end=number is not None)
                followed.append(file)
                if file.is_missing:
                    complain(f"{name!r} is not there yet")
                    continue
                if number is None:
                    streams.append(_kept(file.read(), wanted.copy()))
                else:
                    streams.append(last_lines(name, number, wanted.copy(), complain, file.position))
            elif number is None:
                streams.append(_kept(lines_of(name, complain), wanted.copy()))
            else:
                streams.append(last_lines(name, number, wanted.copy(), complain))
        except (OSError, MissingDependencyError) as error:
            complain(f"{name!r}: {getattr(error, 'strerror', None) or error}")
            code = NOT_ALL_DELIVERED
    try:
        merged = _by_time(streams)
        if number is None:
            for line in merged:
                show(line)
        else:
            everything = list(merged)
            for line in everything[-number:] if number else ():
                show(line)
        while followed:
            sys.stdout.flush()
            time.sleep(_POLL_SECONDS)
            for line in _by_time([_kept(file.read(), wanted) for file in followed]):
                show(line)
    except KeyboardInterrupt as interrupt:
        return 128 + number_of(interrupt)
    finally:
        for file in followed:
            file.close()
    sys.stdout.flush()
    return code


def _is_compressed(name: str) -> bool:
    return name.endswith((".gz", ".zst"))


def _number(options: argparse.Namespace) -> int | None:
    if options.number is None:
        return None if options.since else _LAST
    if options.number == "all":
        return None
    if not re.fullmatch("[0-9]+", options.number):
        unusable(f"-n {options.number!r} is neither a whole number from 0 up nor all")
    return int(options.number)


def _kept(lines: Iterable[Line], wanted: Callable[[Line], bool]) -> Iterator[Line]:
    return (line for line in lines if wanted(line))


def _by_time(streams: Iterable[Iterable[Line]]) -> Iterator[Line]:
    """Merge the lines of all streams by time; each stream keeps its order, and a line without a time its place."""

    def timed(lines: Iterable[Line]) -> Iterator[tuple[float, Line]]:
        latest = float("-inf")
        for line in lines:
            latest = max(latest, latest if line.time is None else line.time)
            yield latest, line

    return (line for _, line in heapq.merge(*map(timed, streams), key=lambda each: each[0]))


class _Wanted:
    """A predicate: whether a line matches the level, time and conditions of the command."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._level = float("-inf")
        self._since = float("-inf")
        try:
            if options.level is not None:
                self._level = parse_level(options.level, "--level")
            self._conditions = [where.parse(text) for text in options.where]
        except ValueError as error:
            unusable(f"{error}")
        if options.since is not None:
            self._since = _since(options.since)
        #: The time of the last line that had one; it stands for lines without.
        self._time = float("-inf")

    def copy(self) -> _Wanted:
        """Return a new predicate with the same options, for the lines of another file."""
        return _Wanted(self._options)

    def __call__(self, line: Line) -> bool:
        """Return whether *line* matches."""
        if line.time is not None:
            self._time = line.time
        if self._time < self._since:
            return False
        event = line.event
        if event is None:
            return self._level <= INFO and not self._conditions
        return level_of(event) >= self._level and all(condition(event) for condition in self._conditions)


def _since(text: str) -> float:
    try:
        return time.time() - checked_seconds(text, "--since")
    except ValueError:
        moment = timestamp_of({"timestamp": text}, "local")
        if moment is None:
            unusable(f"--since {text!r} is neither a span such as 10m nor a time such as 2026-11-22T14:00")
        return moment


# -- output


def _shown(options: argparse.Namespace) -> Callable[[Line], None]:
    if options.json:
        return _show_json
    forced = bool(os.environ.get("FORCE_COLOR"))
    auto = not os.environ.get("NO_COLOR") and (forced or sys.stdout.isatty())
    paint = _Paint(colored=options.color == "always" or (options.color == "auto" and auto))
    return lambda line: _write(paint.line(line))


def _show_json(line: Line) -> None:
    data = line.data if line.event is not None else _RENDERER.render({"event": line.data.decode("utf-8", "replace")})
    _write(json_text(data).strip())


_RENDERER = OrjsonRenderer()


def _write(text: str) -> None:
    sys.stdout.write(
        text.encode(sys.stdout.encoding or "utf-8", "backslashreplace").decode(sys.stdout.encoding or "utf-8")
    )
    sys.stdout.write("\n")


_RESET, _DIM, _BOLD = "\x1b[0m", "\x1b[2m", "\x1b[1m"
_COLORS = ((50, "\x1b[1;31m"), (40, "\x1b[31m"), (30, "\x1b[33m"), (20, "\x1b[32m"), (0, "\x1b[36m"))
_MESSAGE_WIDTH = 30


class _Paint:
    """Formats lines for people."""

    def __init__(self, *, colored: bool) -> None:
        self._colored = colored

    def line(self, line: Line) -> str:
        """Return *line* as text, with control characters escaped."""
        event = line.event
        if event is None:
            return _plain(line.data.decode("utf-8", "replace").rstrip("\r"))
        message = message_key(event)
        blocks = [key for key in _BLOCKS if event.get(key)]
        shown = {"timestamp", "level", "level_number", "logger", message, *blocks}
        if "exception" in blocks:  # its last line holds both
            shown |= {"exception_type", "exception_message"}
        number = level_of(event)
        level = level_name(number) if number < float("inf") else str(event.get("level"))
        text = escaped(str(event.get(message, "")))
        fields = [
            f"{self._paint(_DIM, escaped(key) + '=')}{escaped(short(value))}"
            for key, value in event.items()
            if key not in shown
        ]
        logger = event.get("logger")
        parts = [
            self._paint(_DIM, _moment(line.time)),
            self._paint(next((color for least, color in _COLORS if number >= least), ""), f"{escaped(level):<8}"),
            self._paint(_BOLD, f"{text:<{_MESSAGE_WIDTH}}" if fields or logger else text),
            *([self._paint(_DIM, f"[{escaped(str(logger))}]")] if logger else []),
            *fields,
        ]
        lines = [" ".join(parts).rstrip()]
        for key in blocks:
            lines += [f"    {_plain(each)}" for each in _lines_in(event[key])]
        return "\n".join(lines)

    def _paint(self, color: str, text: str) -> str:
        return f"{color}{text}{_RESET}" if self._colored and color and text.strip() else text


#: Fields that are shown on lines of their own.
_BLOCKS = ("stack", "stack_info", "exception")


def _plain(text: str) -> str:
    """Return *text* with control characters escaped, except tabs."""
    return "\t".join(map(escaped, text.split("\t")))


def _moment(seconds: float | None) -> str:
    if seconds is None:
        return " " * 24
    try:
        whole = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds // 1))
    except (OverflowError, ValueError, OSError):
        return " " * 24
    return f"{whole}.{int(seconds % 1 * 1_000):03}Z"


def _lines_in(value: Any) -> Iterator[str]:
    """Yield the lines of a traceback or stack: text, or one of structlog's dict tracebacks."""
    if isinstance(value, str):
        yield from value.rstrip("\n").split("\n")
    elif isinstance(value, list) and all(isinstance(each, dict) and "exc_type" in each for each in value):
        # structlog lists the exception raised last first; Python prints it last.
        for each in reversed(value):
            yield "Traceback (most recent call last):"
            for frame in each.get("frames") or ():
                if isinstance(frame, dict):
                    yield f'  File "{frame.get("filename")}", line {frame.get("lineno")}, in {frame.get("name")}'
                    if frame.get("line"):
                        yield f"    {frame['line']}"
            yield f"{each['exc_type']}: {each.get('exc_value', '')}"
    else:
        yield orjson.dumps(value).decode()
