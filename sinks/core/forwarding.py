"""The protocol between a wrapper and its target: `Forwarding`.

A wrapper (`BackgroundSink`, `SpoolSink`, `FanoutSink`, one of your own) takes events for a *target*. A wrapper that
passes each event on in the thread that logs calls ``target.deliver(event)``, and needs nothing else. If events wait in
between, the work has two parts:

1. In the thread that logs, ``item = target.make_item(event)`` runs the target's level, processors and renderer. The
   item is a snapshot, bytes and two numbers, that shares nothing with the event. None means that the target filters the
   event.
2. Later, in any thread, ``target.emit_batch(items)`` puts the items out. ``target.restore_item(data, level, time)``
   makes an item from the data that a disk has kept.

Only the outermost sink counts events. Four properties allow shortcuts: `Forwarding.plain`, `Forwarding.needs_moment`,
`Forwarding.takes_any_number` and `Forwarding.keeps_in_memory`. Their values may change with the target's settings; then
the ``_refresh`` of each wrapper that has called ``target.surround(self)`` is called.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, TypeVar

from outfall.sinks.core.item import Encoded
from outfall.sinks.event.event import Remainder
from outfall.sinks.event.levels import level_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from outfall.sinks.core.sink import Sink

    _Method = TypeVar("_Method", bound=Callable[..., Any])


def reads_data_alone(*, any_number: bool = False) -> Callable[[_Method], _Method]:
    """Mark an ``emit_batch`` that reads only the items' data, not their level or time.

    Wrappers assume that an override without the mark reads everything.

    Args:
        any_number: Whether it joins all items and writes them at once, however many there are. Default False.
    """

    def mark(method: _Method) -> _Method:
        method.reads_data_alone = True  # type: ignore[attr-defined]
        method.takes_any_number = any_number  # type: ignore[attr-defined]
        return method

    return mark


class Forwarding:
    """The part of `Sink` that a wrapper calls. Each method says what a wrapper has to override."""

    if TYPE_CHECKING:
        _level: float
        _processors: tuple[Callable[[Any, str, Any], Any], ...]
        _processed: Callable[[dict[str, Any]], dict[str, Any]]
        encode: Callable[[dict[str, Any]], Encoded]
        emit_batch: Callable[..., Any]

    #: The wrappers of this sink, whose shortcuts depend on it; weak references.
    _wrappers: tuple[weakref.ref[Sink], ...] = ()

    def make_item(self, event: dict[str, Any], *, respect_level: bool = True) -> Encoded | None:
        """Filter, process and render *event* in the thread that logs; return the item for ``emit_batch``, or None.

        A wrapper overrides ``encode(event)`` to return ``target.make_item(event)``, and to raise `structlog.DropEvent`
        if that is None. The wrapper's own level and processors run before.

        Args:
            event: The event. It is not changed.
            respect_level: Whether this sink's level applies; a target's level always does. Default True.

        Returns:
            The item; None if the event is filtered.

        Raises:
            Exception: The exceptions of processors and renderers; `structlog.DropEvent` filters the event.
        """
        if isinstance(event, Remainder):
            if not self.has_processor(event.maker):
                return None
        elif respect_level and self._level and level_of(event) < self._level:
            return None
        return self.encode(self._processed(event) if self._processors else event)

    def restore_item(self, data: bytes, level: float, time: float) -> Encoded:
        """Restore an item that `make_item` made from its stored parts; called once for each item.

        A wrapper returns ``target.restore_item(data, level, time)``. Each retry has to pass the same object to
        ``emit_batch``, since routers record in it which sinks have the event already.
        """
        return Encoded(data, level, time)

    def surround(self, wrapper: Sink) -> None:
        """Make *wrapper* the owner: it drains this sink at exit, and changes of settings call its ``_refresh``."""
        added = (weakref.ref(wrapper),)
        self._wrappers += added

    @property
    def behind(self) -> tuple[Sink, ...]:
        """The sinks that get each event before ``deliver`` returns. Default: none."""
        return ()

    def all_processors(self) -> Iterator[Any]:
        """Yield the processors that run before ``deliver`` returns: this sink's, then those of the sinks behind it."""
        yield from self._processors
        for sink in self.behind:
            yield from sink.all_processors()

    def has_processor(self, processor: object) -> bool:
        """Return True if *processor* is one of `all_processors`."""
        return any(each is processor for each in self.all_processors())

    @property
    def plain(self) -> bool:
        """Whether the item of a plain event is ``plain_line(event, level)`` without its line break. False by default.

        *level* is the higher one of the wrapper's level and this sink's.
        """
        return False

    @property
    def line_appender(self) -> Callable[[Any, bytes], None] | None:
        """A function that writes and counts a line of ``plain_line``, or None. It is given this sink and the line.

        The function raises, without having done anything, if ``deliver`` has to do the work instead.
        """
        return None

    @property
    def keeps_types(self) -> bool:
        """Whether items keep values that JSON cannot represent. False by default.

        Then a line with a ``null`` is not plain, since the value may have been a NaN.
        """
        return False

    @property
    def needs_moment(self) -> bool:
        """Whether ``emit_batch`` reads an item's level or time. If not, a wrapper need not compute them."""
        return not getattr(type(self).emit_batch, "reads_data_alone", False)

    @property
    def takes_any_number(self) -> bool:
        """Whether ``emit_batch`` writes all items at once, so that a batch may have any size."""
        return getattr(type(self).emit_batch, "takes_any_number", False)

    @property
    def keeps_in_memory(self) -> bool:
        """Whether events that ``emit_batch`` has taken may be in this process's memory only.

        This is so for buffers, queues, and sinks that have one as target. If the process is killed, those events are
        lost, though they count as delivered.
        """
        return False
