"""What a chain of structlog's processors looks like around a sink."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from structlog.dev import ConsoleRenderer

if TYPE_CHECKING:
    from types import FrameType

#: So many callers up is structlog's bound logger found, through a logger's method.
_MAX_CALLERS = 5


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
