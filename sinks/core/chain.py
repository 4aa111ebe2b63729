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
    chain = _chain_of(frame)
    if not chain:
        return None
    return chain[-1] is not sink and any(processor is sink for processor in chain)


def meant_for_people(text: str | bytes, frame: FrameType) -> str | None:
    """Return what is wrong with *text*, which is to be kept or sent, if it was rendered for people; else None."""
    escaped = "\x1b[" in text if isinstance(text, str) else b"\x1b[" in text
    chain = _chain_of(frame)
    if not escaped and not any(isinstance(processor, ConsoleRenderer) for processor in chain):
        return None
    return (
        "its events come as text for people, without their fields: leave the ConsoleRenderer out of the chain, "
        "structlog.configure(processors=[…], logger_factory=SinkLoggerFactory(sink)), and give it to a console alone, "
        "StreamSink(renderer=ConsoleRenderer())"
    )


def _chain_of(frame: FrameType | None) -> Sequence[Any]:
    for _ in range(_MAX_CALLERS):
        if frame is None:
            break
        if str(frame.f_globals.get("__name__")).partition(".")[0] == "structlog":
            chain = getattr(frame.f_locals.get("self"), "_processors", None)
            if isinstance(chain, Sequence):
                return chain
        frame = frame.f_back
    return ()
