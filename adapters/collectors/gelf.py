"""Graylog: `GELFMessage`, the Graylog Extended Log Format over HTTP, and `gelf_sink`."""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING, Any, overload

from outfall.adapters.collectors.answers import CollectorFormat
from outfall.adapters.collectors.factory import shipped, with_path
from outfall.adapters.collectors.fields import dump, syslog_severity, take_level, take_message, take_time, text_of
from outfall.adapters.collectors.placement import Placement
from outfall.sinks.event.exceptions import MESSAGE, TYPE, take_failure

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from typing_extensions import Unpack

    from outfall.adapters.collectors.factory import TokenOptions
    from outfall.sinks.core.item import Encoded
    from outfall.sinks.delivery.background import BackgroundSink
    from outfall.sinks.spool.sink import SpoolSink

_UNFIT = re.compile(r"[^\w.\-]", re.ASCII)
_LARGEST = 2**63


class GELFMessage(CollectorFormat):
    """Encode an event as a message of the Graylog Extended Log Format, version 1.1; by default one in each request.

    ==========================  =====================================================================================
    ``event``                   ``short_message``
    ``exception``, ``stack``    ``full_message``, after the message
    level                       ``level``, as the number of a syslog severity, and ``_level_name``
    ``timestamp``               ``timestamp``, seconds with microseconds
    all others                  additional fields: the name with ``_`` before it. Text and numbers are unchanged, other
                                values are JSON as text
    ==========================  =====================================================================================

    Invalid characters in a name become ``_``, and so does an empty part of a name with dots. ``id`` is sent as
    ``_id_``, since ``_id`` is not allowed. The same holds for ``host``, ``source``, ``message`` and other names that a
    message has already, which Graylog would drop. A name that is taken, or that has other names below it, gets ``_`` at
    its end.

    Args:
        host: The name of the sender. Default None: this machine's name.
        bulk: True to send many messages in a request, separated by line breaks; the input needs the setting "Enable
            Bulk Receiving". Default False.

    Source: https://go2docs.graylog.org/current/getting_in_log_data/gelf_format.html and
    https://go2docs.graylog.org/current/getting_in_log_data/gelf_inputs.html
    """

    content_type: str = "application/json"
    single: bool = True

    def __init__(self, host: str | None = None, *, bulk: bool = False) -> None:
        super().__init__()
        self._host = host or socket.gethostname() or "localhost"
        self.single = not bulk

    def encode(self, batch: Sequence[Encoded]) -> bytes:
        """Return the messages, one a line."""
        return b"\n".join(map(self._message, batch))

    def _message(self, item: Encoded) -> bytes:
        event = item.event
        when = take_time(item, event)
        short = take_message(event) or ""
        made: dict[str, Any] = {
            "version": "1.1",
            "host": self._host,
            "short_message": short if short.strip() else "-",  # Graylog refuses an empty one
            "timestamp": when // 1_000 / 1_000_000,
            "level": syslog_severity(item.level),
        }
        failure = take_failure(event)
        parts = [] if failure is None else [failure.stack]
        if failure is not None:
            kind_and_message = ((TYPE, failure.kind), (MESSAGE, failure.message))
            event.update((name, text) for name, text in kind_and_message if text is not None)
        if isinstance(event.get("stack"), str):
            parts.append(event.pop("stack"))
        if parts:
            made["full_message"] = "\n\n".join([made["short_message"], *parts])
        level = take_level(item, event)
        more: dict[str, Any] = {} if level is None else {"level_name": level}
        for name, value in event.items():
            if value is not None:
                free = _UNFIT.sub("_", name)
                while free in more:
                    free += "_"
                more[free] = _field(value)
        made.update((f"_{name}", value) for name, value in _placement.beside({}, more).items())
        return dump(made)


#: Graylog's storage takes dots in names for nesting. Graylog refuses ``_id``, and drops fields whose name without ``_``
#: is one that a message has already.
_placement = Placement(
    own=("id", "version", "host", "source", "short_message", "message", "full_message", "timestamp", "level", "streams")
)


def _field(value: object) -> str | int | float:
    if isinstance(value, (str, float)):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and -_LARGEST <= value < _LARGEST:
        return value
    return text_of(value)


@overload
def gelf_sink(
    url: str,
    *,
    host: str | None = ...,
    bulk: bool = ...,
    spool: None = None,
    **options: Unpack[TokenOptions],
) -> BackgroundSink: ...
@overload
def gelf_sink(
    url: str,
    *,
    host: str | None = ...,
    bulk: bool = ...,
    spool: str | os.PathLike[str],
    **options: Unpack[TokenOptions],
) -> SpoolSink: ...
def gelf_sink(
    url: str,
    *,
    host: str | None = None,
    bulk: bool = False,
    spool: str | os.PathLike[str] | None = None,
    **options: Unpack[TokenOptions],
) -> BackgroundSink | SpoolSink:
    """Return a sink that sends events to a GELF HTTP input of Graylog in the background.

    Args:
        url: The input's URL, such as ``"http://graylog.example.org:12201"``; ``/gelf`` is added to one without a path.
        host: The name of the sender. Default None: this machine's name.
        bulk: True to send many messages in a request, if the input accepts them. Default False.
        spool: The directory of a `SpoolSink`, where events wait. Default None: a `BackgroundSink`, in memory.
        options: Arguments of `HTTPSink`, and of `BackgroundSink` or `SpoolSink`; see `TokenOptions`.

    Raises:
        ValueError: If a sink refuses an argument.
        TypeError: If an argument is unknown or has the wrong type.
    """
    options.setdefault("name", "graylog")
    return shipped(
        gelf_sink, with_path(url, "/gelf", only_without=True), GELFMessage(host, bulk=bulk), options, spool=spool
    )
