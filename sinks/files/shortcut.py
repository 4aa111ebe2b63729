"""Render lines in a file sink's shortcut, with processors or a custom renderer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from structlog import DropEvent

from outfall.sinks.event.depth import is_tracked
from outfall.sinks.event.event import copy_event
from outfall.sinks.event.json import plain_line
from outfall.sinks.event.levels import NUMBERS, level_name


@dataclass(slots=True)
class Begun:
    """An event that the shortcut has processed in part. The pipeline continues there, and repeats no step.

    Args:
        event: The event as it was given.
        processed: The result of the processors.
        data: The rendered line.
        error: The exception that a processor or the renderer has raised.
    """

    event: Any
    processed: Any = None
    data: bytes | None = None
    error: Exception | None = None


class BegunError(Exception):
    """Raised in the shortcut to pass an event to the pipeline."""

    def __init__(self, begun: Begun) -> None:
        self.begun = begun


#: The method names that processors and renderers get, by level name.
_METHOD_NAMES = {name: level_name(number) for name, number in NUMBERS.items()}


def line_by_screen(sink: Any, event: Any) -> bytes | None:
    """Return the line for an event if the sink's only processor does not change events; b"" if it is suppressed.

    Raises:
        BegunError: If the pipeline has to continue.
        Exception: If the pipeline has to start afresh.
    """
    if event.__class__ is not dict or "level_number" in event:
        return None
    if sink._level and NUMBERS[event["level"]] < sink._level:
        return b""
    made = sink._screen_usual(event)
    if made is None:
        return b""
    try:
        data = plain_line(made, 0)
    except Exception:
        data = None
    if data is None:
        raise BegunError(Begun(event, processed=made))
    return data


def line_by_chain(sink: Any, event: Any) -> bytes | None:
    """Return the line that the sink's processors and renderer make of a plain event; b"" if it is filtered.

    Raises:
        BegunError: If the pipeline has to continue.
        Exception: If the pipeline has to start afresh.
    """
    # NUMBERS and METHOD_NAMES have the same keys; other levels take the pipeline.
    if (
        event.__class__ is not dict
        or "_record" in event
        or "_logger" in event
        or "_name" in event
        or "level_number" in event
    ):
        return None
    level = event["level"]
    name = _METHOD_NAMES[level]
    if sink._level and NUMBERS[level] < sink._level:
        return b""
    processors = sink._processors
    screen = sink._screen
    made: Any = event
    if screen is not None:
        # It does not change the event, which therefore is not copied.
        try:
            made = screen(event, NUMBERS[level])
        except Exception as error:
            raise BegunError(Begun(event, error=error)) from None
        if made is None:
            return b""
        processors = processors[1:]
    renders_plain = sink._renders_plain
    # Processors may change nested values, renderers may only remove keys.
    if processors and is_tracked(made):
        made = copy_event(made)
    elif processors or not renders_plain:
        made = made.copy()
    try:
        for processor in processors:
            made = processor(None, name, made)
    except DropEvent:
        return b""
    except Exception as error:
        raise BegunError(Begun(event, error=error)) from None
    data: bytes | None = None
    if renders_plain:
        try:
            data = plain_line(made, 0)
        except Exception:
            data = None
        if data and sink._line_end != b"\n":
            data = data[:-1] + sink._line_end
    elif made.__class__ is dict and not (
        "_from_structlog" in made or (processors and ("_record" in made or "_logger" in made or "_name" in made))
    ):
        try:
            rendered = sink._renderer(None, name, made)
            if rendered.__class__ is bytes:
                return rendered + sink._line_end  # type: ignore[no-any-return]
            return sink._ended(rendered)  # type: ignore[no-any-return]
        except Exception as error:
            raise BegunError(Begun(event, error=error)) from None
    if data is None:
        raise BegunError(Begun(event, processed=made))
    return data
