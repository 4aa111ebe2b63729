"""Sinks as structlog processors, and the inspection of the chain that calls them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from structlog import DropEvent
from structlog.dev import ConsoleRenderer

from outfall.sinks.errors import SinkError
from outfall.sinks.event.event import TextEvent, as_event

if TYPE_CHECKING:
    from types import FrameType

#: structlog's bound logger is at most this many callers up, behind a logger's method.
_MAX_CALLERS = 5

_MISSING: Any = object()


class InChain:
    """The part of `Sink` that makes it a structlog processor."""

    if TYPE_CHECKING:
        shows_people: ClassVar[bool]
        handle: Callable[[Mapping[str, Any] | str | bytes], None]
        _fail_unraised: Callable[[Exception, object], None]

    #: Whether the chain of processors has been inspected: at the first event, and at the first text.
    _chain_seen = False
    _text_seen = False
    #: Whether a chain was found that continues after this sink: then the chain is inspected at each event.
    _within_chains = False

    def __call__(self, logger: object = None, method_name: str = "", event_dict: Any = _MISSING) -> Any:
        """Act as a structlog processor: `handle` the event, and end the chain if this is its last processor.

        If further processors follow, the event is returned to them; the first event shows whether they do. An event
        without ``level`` is filtered by *method_name*; it gets no level.

        Raises:
            DropEvent: As the last processor, so that structlog calls nothing further.
            TypeError: If the sink is called as a logger factory.
        """
        if self._chain_seen and type(event_dict) is dict and "level" in event_dict:
            self.handle(event_dict)
            raise DropEvent
        return self._handle_in_chain(method_name, event_dict, sys._getframe(1))

    def _handle_in_chain(self, method_name: str, event_dict: Any, frame: FrameType) -> Any:
        """Do what `__call__` does, for the first event, an event without a level, and text too."""
        continues = not self._chain_seen and self._chain_continues(event_dict, frame)
        try:
            event = as_event(event_dict, method_name)
        except TypeError:
            event = event_dict  # handle() counts and reports it
        if not self._text_seen and isinstance(event, TextEvent):
            self._look_at_text(event, chain_of(frame), WITHOUT_RENDERER)
        self.handle(event)
        if continues:
            return event_dict
        raise DropEvent

    def _chain_continues(self, event_dict: Any, frame: FrameType) -> bool:
        """Return True if the chain that *frame* runs continues after this sink; then inspect it at each event."""
        if event_dict is _MISSING:
            msg = f"{type(self).__name__} makes no loggers: write logger_factory=SinkLoggerFactory(sink)"
            raise TypeError(msg)
        continues = _continues_after(self, frame)
        if continues:
            self._within_chains = True
        elif continues is False:
            self._chain_seen = not self._within_chains
        return bool(continues)

    def _look_at_text(self, event: TextEvent, chain: Sequence[Any], way_out: str) -> None:
        """Report, once, that a chain renders text for people although this sink stores or sends it."""
        self._text_seen = True
        wrong = None if for_people(self) else meant_for_people(event.raw, chain, way_out)
        if wrong is not None:
            self._fail_unraised(SinkError(wrong), None)


def _continues_after(sink: Any, frame: FrameType) -> bool | None:
    """Return whether the chain that *frame* runs continues after *sink*; None if *frame* runs no chain."""
    chain = chain_of(frame)
    if not chain:
        return None
    return chain[-1] is not sink and any(processor is sink for processor in chain)


def meant_for_people(text: str | bytes, chain: Sequence[Any], way_out: str) -> str | None:
    """Return the message for *text* that was rendered for people but is stored or sent; None if it was not.

    Args:
        text: The first text that reached the sink.
        chain: The processors that rendered it.
        way_out: The advice at the end of the message.
    """
    escaped = "\x1b[" in text if isinstance(text, str) else b"\x1b[" in text
    if not escaped and not any(isinstance(processor, ConsoleRenderer) for processor in chain):
        return None
    return (
        "its events come as text for people, without their fields: write outfall.configure(sink), which has a console "
        f"beside the sink; or {way_out}"
    )


#: The advice for a chain, and for a handler.
WITHOUT_RENDERER = (
    "leave the ConsoleRenderer out of the chain, "
    "structlog.configure(processors=[…], logger_factory=SinkLoggerFactory(sink)), and give it to a console alone, "
    "StreamSink(renderer=ConsoleRenderer())"
)
WITHOUT_FORMATTER = "leave setFormatter() out, since a SinkHandler without one passes the fields on"


def for_people(sink: Any) -> bool:
    """Return whether *sink*, with all sinks behind it, only shows events to people, and stores or sends none."""
    target = getattr(sink, "target", None)
    behind = [*getattr(sink, "sinks", ()), *([] if target is None else [target])]
    return all(map(for_people, behind)) if behind else bool(sink.shows_people)


def chain_of(frame: FrameType | None) -> Sequence[Any]:
    """Return the processors of the bound logger that calls *frame*; an empty sequence if there is none."""
    for _ in range(_MAX_CALLERS):
        if frame is None:
            break
        if str(frame.f_globals.get("__name__")).partition(".")[0] == "structlog":
            chain = getattr(frame.f_locals.get("self"), "_processors", None)
            if isinstance(chain, Sequence):
                return chain
        frame = frame.f_back
    return ()
