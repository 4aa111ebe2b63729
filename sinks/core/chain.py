"""A sink as a processor of structlog, and what the chain of processors around it looks like."""

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

#: So many callers up is structlog's bound logger found, through a logger's method.
_MAX_CALLERS = 5

_MISSING: Any = object()


class InChain:
    """The part of `Sink` that is a processor of structlog."""

    if TYPE_CHECKING:
        shows_people: ClassVar[bool]
        handle: Callable[[Mapping[str, Any] | str | bytes], None]
        _fail_unraised: Callable[[Exception, object], None]

    #: Whether the chain of processors around it has been looked at: at the first event, and at the first text.
    _chain_seen = False
    _text_seen = False
    #: Whether it has been found within a chain: then every chain that comes is looked at.
    _within_chains = False

    def __call__(self, logger: object = None, method_name: str = "", event_dict: Any = _MISSING) -> Any:
        """Be a processor of structlog: `handle` the event, then end the chain, or pass the event on if it goes on.

        Whether there are processors behind this one is looked at when the first event comes. A missing ``level`` is
        taken from *method_name* for filtering; it is not written into the event.

        Raises:
            DropEvent: As the last of its chain, so that structlog calls nothing further.
            TypeError: If it is called as a factory of loggers.
        """
        if self._chain_seen and type(event_dict) is dict and "level" in event_dict:
            self.handle(event_dict)
            raise DropEvent
        return self._handle_in_chain(method_name, event_dict, sys._getframe(1))

    def _handle_in_chain(self, method_name: str, event_dict: Any, frame: FrameType) -> Any:
        """Do what `__call__` does, also for the first event, for one without a level, and for text."""
        passed_by = not self._chain_seen and self._is_passed_by(event_dict, frame)
        try:
            event = as_event(event_dict, method_name)
        except TypeError:
            event = event_dict  # handle() counts and reports it
        if not self._text_seen and isinstance(event, TextEvent):
            self._look_at_text(event, chain_of(frame), WITHOUT_RENDERER)
        self.handle(event)
        if passed_by:
            return event_dict
        raise DropEvent

    def _is_passed_by(self, event_dict: Any, frame: FrameType) -> bool:
        """Return True if the chain that *frame* runs goes on behind this sink; then it is asked again each time."""
        if event_dict is _MISSING:
            msg = f"{type(self).__name__} makes no loggers: write logger_factory=SinkLoggerFactory(sink)"
            raise TypeError(msg)
        passed_by = goes_on(self, frame)
        if passed_by:
            self._within_chains = True
        elif passed_by is False:
            self._chain_seen = not self._within_chains
        return bool(passed_by)

    def _look_at_text(self, event: TextEvent, chain: Sequence[Any], way_out: str) -> None:
        """Tell, once, if the first text that a chain has rendered is for people, and this sink keeps or sends it."""
        self._text_seen = True
        wrong = None if for_people(self) else meant_for_people(event.raw, chain, way_out)
        if wrong is not None:
            self._fail_unraised(SinkError(wrong), None)


def goes_on(sink: Any, frame: FrameType) -> bool | None:
    """Return whether the chain that *frame* runs goes on behind *sink*; None if it runs none."""
    chain = chain_of(frame)
    if not chain:
        return None
    return chain[-1] is not sink and any(processor is sink for processor in chain)


def meant_for_people(text: str | bytes, chain: Sequence[Any], way_out: str) -> str | None:
    """Return what is wrong with *text*, which is to be kept or sent, if it was rendered for people; else None.

    Args:
        text: The first text that came.
        chain: The processors that made it.
        way_out: What to leave out instead.
    """
    escaped = "\x1b[" in text if isinstance(text, str) else b"\x1b[" in text
    if not escaped and not any(isinstance(processor, ConsoleRenderer) for processor in chain):
        return None
    return (
        "its events come as text for people, without their fields: write outfall.configure(sink), which has a console "
        f"beside the sink; or {way_out}"
    )


#: What to leave out of a chain, and of a handler.
WITHOUT_RENDERER = (
    "leave the ConsoleRenderer out of the chain, "
    "structlog.configure(processors=[…], logger_factory=SinkLoggerFactory(sink)), and give it to a console alone, "
    "StreamSink(renderer=ConsoleRenderer())"
)
WITHOUT_FORMATTER = "leave setFormatter() out, since a SinkHandler without one hands on the fields"


def for_people(sink: Any) -> bool:
    """Return whether all that is behind *sink* shows its events to people, and none keeps or sends them."""
    target = getattr(sink, "target", None)
    behind = [*getattr(sink, "sinks", ()), *([] if target is None else [target])]
    return all(map(for_people, behind)) if behind else bool(sink.shows_people)


def chain_of(frame: FrameType | None) -> Sequence[Any]:
    """Return the processors of the bound logger that calls *frame*; none if none does."""
    for _ in range(_MAX_CALLERS):
        if frame is None:
            break
        if str(frame.f_globals.get("__name__")).partition(".")[0] == "structlog":
            chain = getattr(frame.f_locals.get("self"), "_processors", None)
            if isinstance(chain, Sequence):
                return chain
        frame = frame.f_back
    return ()
