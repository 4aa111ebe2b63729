"""What a sink lets the sink around it do: the protocol between wrappers and their targets.

A wrapper (`BackgroundSink`, `SpoolSink`, `FanoutSink`, one of your own) takes events for a *target*. Where it hands
each event on in the thread that logs, it calls ``target.deliver(event)`` and needs nothing of this. Where events wait
in between, the work is in two parts:

1. In the thread that logs, ``item = target.make_item(event)`` runs the target's level, processors and renderer. The
   item is a snapshot, bytes and two numbers, that shares nothing with the event. None means that the target filters it.
2. Later, in any thread, ``target.emit_batch(items)`` puts items out. ``target.restore_item(data, level, time)`` makes
   an item again of what a disk has kept of it.

Nothing is counted on the way: the outermost sink counts. Four questions make short cuts possible: `Forwarding.plain`,
`Forwarding.needs_moment`, `Forwarding.takes_any_number` and `Forwarding.keeps_in_memory`. Their answers may change with
the target's settings; a wrapper that has called ``target.surround(self)`` gets its own ``_refresh`` called then.
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
    """Mark an ``emit_batch`` that reads nothing but the items' data: not their level, nor their time.

    An override without the mark reads all of an item, as far as wrappers know.

    Args:
        any_number: Whether it does the same with any number of items, which it joins and writes at once. Default False.
    """

    def mark(method: _Method) -> _Method:
        method.reads_data_alone = True  # type: ignore[attr-defined]
        method.takes_any_number = any_number  # type: ignore[attr-defined]
        return method

    return mark


class Forwarding:
    """The part of `Sink` that the sink around it calls. What a wrapper of its own overrides stands at each method."""

    if TYPE_CHECKING:
        _level: float
        _processors: tuple[Callable[[Any, str, Any], Any], ...]
        _processed: Callable[[dict[str, Any]], dict[str, Any]]
        encode: Callable[[dict[str, Any]], Encoded]
        emit_batch: Callable[..., Any]

    #: The sinks around this one, whose own short cuts depend on it; held weakly.
    _wrappers: tuple[weakref.ref[Sink], ...] = ()

    def make_item(self, event: dict[str, Any], *, respect_level: bool = True) -> Encoded | None:
        """Do all that has to be done in the thread that logs; return what to give to ``emit_batch``, None if filtered.

        A wrapper overrides ``encode(event)`` to return ``target.make_item(event)``, and raises `structlog.DropEvent`
        where that is None; its own level and processors run before.

        Args:
            event: The event. It is not changed.
            respect_level: Whether the level of this sink may filter it; that of a target always may. Default True.

        Raises:
            Exception: What processors and renderers raise; `structlog.DropEvent` filters the event.
        """
        if isinstance(event, Remainder):
            if not self.has_processor(event.maker):
                return None
        elif respect_level and self._level and level_of(event) < self._level:
            return None
        return self.encode(self._processed(event) if self._processors else event)

    def restore_item(self, data: bytes, level: float, time: float) -> Encoded:
        """Return again the item that `make_item` made, of what a disk has kept of it: called once for each item.

        A wrapper returns ``target.restore_item(data, level, time)``. The same object has to come to ``emit_batch`` at
        each retry, since routers note in it who has the event already.
        """
        return Encoded(data, level, time)

    def surround(self, wrapper: Sink) -> None:
        """Let *wrapper* own this sink: it drains it at exit, and hears of changes that its short cuts depend on."""
        self._wrappers += (weakref.ref(wrapper),)

    @property
    def behind(self) -> tuple[Sink, ...]:
        """The sinks that get what `make_item` makes or ``deliver`` takes, before ``deliver`` returns. Default: none."""
        return ()

    def all_processors(self) -> Iterator[Any]:
        """Give the processors that an event may meet before ``deliver`` returns: this sink's, then those behind it."""
        yield from self._processors
        for sink in self.behind:
            yield from sink.all_processors()

    def has_processor(self, processor: object) -> bool:
        """Return True if *processor* is one of `all_processors`."""
        return any(each is processor for each in self.all_processors())

    @property
    def plain(self) -> bool:
        """Whether ``plain_line(event, level)`` without its line break is all that `make_item` makes of a plain event.

        It is for ``plain_line``; the level is the higher one of the wrapper's and this sink's.
        Default: False.
        """
        return False

    @property
    def line_appender(self) -> Callable[[Any, bytes], None] | None:
        """What puts out a line that ``plain_line`` has made, given this sink and the line; None: ``deliver`` does.

        It counts the event. It raises where ``deliver`` has to do it, and has done nothing then.
        """
        return None

    @property
    def keeps_types(self) -> bool:
        """Whether `make_item` keeps what JSON does not carry; then a line with a ``null``, perhaps a NaN, is not plain.

        Default: False.
        """
        return False

    @property
    def needs_moment(self) -> bool:
        """Whether ``emit_batch`` looks at an item's level or time. If not, a wrapper need not find them out."""
        return not getattr(type(self).emit_batch, "reads_data_alone", False)

    @property
    def takes_any_number(self) -> bool:
        """Whether ``emit_batch`` writes all items at once, so that a batch may be as large as memory allows."""
        return getattr(type(self).emit_batch, "takes_any_number", False)

    @property
    def keeps_in_memory(self) -> bool:
        """Whether events that ``emit_batch`` has taken may still be in this process's memory alone.

        So it is of buffers and queues, and of what has one of them for a target: a death of the process loses those
        events, though they count as delivered.
        """
        return False
