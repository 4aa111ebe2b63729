"""Renderers for consoles: text for people on a terminal, JSON lines elsewhere."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Literal

import structlog

from outfall.sinks.event.json import OrjsonRenderer, event_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from outfall.sinks.core.sink import Sink

#: ``"auto"``: text on a terminal and JSON elsewhere. ``"text"``: text anywhere.
StreamKind = Literal["auto", "text"]


def console_renderer(stream: Any, kind: StreamKind) -> Callable[[Any, str, Any], str | bytes]:
    """Return a renderer for *stream*: of coloured text, plain text, or JSON.

    A terminal gets colours unless the environment variable ``NO_COLOR`` is set. If ``FORCE_COLOR`` is set, any stream
    gets coloured text.

    Source: https://no-color.org and https://force-color.org
    """
    terminal = _is_terminal(stream)
    forced = bool(os.environ.get("FORCE_COLOR"))
    colors = not os.environ.get("NO_COLOR") and (terminal or forced)
    if kind == "text" or terminal or colors:
        return PeopleRenderer(colors=colors)
    return OrjsonRenderer()


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError, OSError):  # a stream of another type, or a closed one
        return False


class PeopleRenderer:
    """Render events for people, by `structlog.dev.ConsoleRenderer`, without the local variables of tracebacks.

    If structlog cannot render an event, the event decoded from its JSON is rendered instead.

    Args:
        colors: Whether to use colours.
    """

    def __init__(self, *, colors: bool) -> None:
        self.colors: bool = colors
        self._render: Any = structlog.dev.ConsoleRenderer(
            colors=colors, exception_formatter=structlog.dev.plain_traceback
        )

    def __call__(self, logger: Any, name: str, event: Any) -> str:
        """Return *event* as text."""
        try:
            return str(self._render(logger, name, dict(event)))
        except Exception:
            line = _json.render(event)
            try:
                plain = event_of(line)
                return str(self._render(logger, name, {str(key): value for key, value in plain.items()}))
            except Exception:
                return line.decode("utf-8", "replace")

    def __repr__(self) -> str:
        return f"PeopleRenderer(colors={self.colors})"


class FollowingRenderer:
    """Render for the current `sys.stderr`, which pytest, notebooks and daemons replace."""

    def __init__(self) -> None:
        self._seen: Any = self
        self._render: Any = None

    def __call__(self, logger: Any, name: str, event: Any) -> str | bytes:
        """Return *event* as text or JSON."""
        stream = sys.stderr
        if stream is not self._seen:
            self._render = console_renderer(stream, "auto")
            self._seen = stream
        rendered: str | bytes = self._render(logger, name, event)
        return rendered

    def __repr__(self) -> str:
        return "FollowingRenderer()"


def renderer_for(stream: Any, color: Literal["auto"] | bool) -> Callable[[Any, str, Any], str | bytes]:
    """Return a renderer for *stream* with *color*; None stands for the current `sys.stderr` at each event."""
    if color != "auto":
        return PeopleRenderer(colors=True)
    return FollowingRenderer() if stream is None else console_renderer(stream, "auto")


#: The types of the renderers that `renderer_for` returns.
RENDERERS = (PeopleRenderer, FollowingRenderer, OrjsonRenderer)


def streams_of(sink: Sink) -> Iterator[Any]:
    """Yield the streams that *sink* and the sinks behind it write to."""
    stream = getattr(sink, "stream", None)
    if stream is not None:
        yield stream
    inner = getattr(sink, "target", None)
    for behind in (*getattr(sink, "sinks", ()), *(() if inner is None else (inner,))):
        yield from streams_of(behind)


_json = OrjsonRenderer()
