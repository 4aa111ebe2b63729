"""Events sent once more, by the command line: what dead processes have left in a spool, and files of events."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import orjson

from outfall.adapters.commandline.terminal import complain, counted, progress
from outfall.sinks.core.item import Batch, Encoded, item_of
from outfall.sinks.core.reporting import describe
from outfall.sinks.delivery.delivery import Delivery, RetryPolicy
from outfall.sinks.event.jsonable import cut
from outfall.sinks.http.sink import HTTPSink
from outfall.sinks.spool.lines import raw_of
from outfall.sinks.spool.sink import SpoolSink

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from outfall.sinks.core.ledger import Outcome
    from outfall.sinks.core.reporting import SinkFailure
    from outfall.sinks.files.file import FileSink

#: Who waits at a terminal does not want to wait for longer between two attempts.
_RETRY = RetryPolicy(max_seconds=5.0, pause_max_seconds=5.0)

#: How long what was sent may take, after nothing more is waited for.
_CLOSE_SECONDS = 1.0


@dataclass
class Account:
    """What became of the events.

    Args:
        delivered: How many the server has taken.
        refused: How many went to the dead letters.
        dropped: How many were lost, by reason.
        left: How many are where they were.
        last_error: What kept them there, or "".
    """

    delivered: int = 0
    refused: int = 0
    dropped: dict[str, int] = field(default_factory=dict[str, int])
    left: int = 0
    last_error: str = ""

    def drop(self, reason: str, events: int = 1) -> None:
        """Count *events* as lost."""
        self.dropped[reason] = self.dropped.get(reason, 0) + events


class EventTarget(HTTPSink):
    """Sends what is in a spool as events, whatever the sink was for which it was stored."""

    def restore_item(self, data: bytes, level: float, time: float) -> Encoded:
        """Return the item as that of an event."""
        return as_event(Encoded(data, level, time))


def as_event(item: Encoded) -> Encoded:
    """Return *item* with data that is a JSON object: text becomes ``{"event": text}``.

    What was stored for a router is taken as the first of its sinks would have had it.
    """
    try:
        decoded: object = orjson.loads(item.data)
    except ValueError:
        decoded = None
    if not isinstance(decoded, dict):
        return Encoded(orjson.dumps(item.event), item.level, item.time)
    if len(decoded) == 1:
        for kind in ("fanout", "fallback"):
            parts = decoded.get(kind)
            for part in parts if isinstance(parts, list) else ():
                if isinstance(part, dict) and isinstance(part.get("event"), dict):
                    return Encoded(orjson.dumps(cut(part["event"])), item.level, item.time)
                if isinstance(part, dict) and isinstance(part.get("text"), str):
                    return as_event(Encoded(str.encode(part["text"]), item.level, item.time))
    text = item.data.strip()
    # As a byte sink may have rendered it, with an end to its line and perhaps in several lines.
    return Encoded(orjson.dumps(cut(decoded)) if b"\n" in text or b"\r" in text else text, item.level, item.time)


def drain(
    target: EventTarget,
    directory: str,
    *,
    waiting: int,
    batch_size: int,
    patience: float,
    letters: FileSink | None,
    quiet: bool,
) -> Account:
    """Deliver what dead processes have left in the spool, until all is done or nothing was taken for *patience*.

    Args:
        target: Where to; it is closed.
        directory: The spool's.
        waiting: About how many events there are, for the progress.
        batch_size: Events in a request.
        patience: In seconds.
        letters: What gets the events that are refused, or None.
        quiet: Whether no progress is shown.
    """
    account = Account()

    def told(failure: SinkFailure) -> None:
        account.last_error = describe(failure.error)
        if failure.events:
            complain(f"{counted(failure.events, 'event')} lost: {account.last_error}")

    sink = SpoolSink(target, directory, batch_size=batch_size, retry=_RETRY, dead_letter=letters, on_error=told)
    sink.start()
    last, since = -1, time.monotonic()
    with progress(waiting, quiet=quiet) as show:
        try:
            while not sink.flush(_FLUSH_SECONDS):
                stats = sink.stats()
                done = stats.adopted - stats.spooled
                show(done, max(waiting, stats.adopted))
                if done != last:
                    last, since = done, time.monotonic()
                elif time.monotonic() - since > patience:
                    break
        finally:
            sink.close(_CLOSE_SECONDS)
        stats = sink.stats()
        show(stats.adopted - stats.spooled, max(waiting, stats.adopted))
    account.delivered, account.refused, account.left = stats.delivered, stats.dead_lettered, stats.spooled
    account.dropped = dict(stats.dropped)
    return account


_FLUSH_SECONDS = 0.2


def replay(
    target: EventTarget,
    names: Sequence[str],
    *,
    batch_size: int,
    patience: float,
    letters: FileSink | None,
    quiet: bool,
) -> Account:
    """Send the events in files of JSON lines, until all is done or nothing was taken for *patience* seconds.

    Args:
        target: Where to; it is closed.
        names: The files; ``"-"`` stands for stdin.
        batch_size: Events in a request.
        patience: In seconds.
        letters: What gets the events that are refused, or None.
        quiet: Whether no progress is shown.

    Raises:
        OSError: If a file cannot be read.
    """
    account = Account()
    taken_at = [time.monotonic()]

    def settle(outcome: Outcome) -> None:
        if outcome.events:
            taken_at[0] = time.monotonic()
        account.delivered += outcome.delivered
        account.refused += outcome.dead_lettered
        for reason, events in outcome.dropped.items():
            account.drop(reason, events)

    def tell(error: Exception, events: int) -> None:
        account.last_error = describe(error)
        if events:
            complain(f"{counted(events, 'event')} lost: {account.last_error}")

    def pause(seconds: float) -> bool:
        left = taken_at[0] + patience - time.monotonic()
        time.sleep(max(0.0, min(seconds, left)))
        return left > 0

    delivery = Delivery(target, retry=_RETRY, dead_letter=letters, settle=settle, tell=tell, pause=pause)
    total = sum(os.path.getsize(name) for name in names if name != "-")
    try:
        with progress(total, quiet=quiet, unit="bytes") as show:
            for batch, read in _batches(names, batch_size, account):
                account.left += len(batch) if account.left else sum(map(len, delivery.deliver(batch)))
                show(read, max(total, read))
    finally:
        target.close(_CLOSE_SECONDS)
    return account


def _batches(names: Sequence[str], batch_size: int, account: Account) -> Iterator[tuple[Batch, int]]:
    """Give the events of the files in batches, and how many bytes have been read so far."""
    read = 0
    for name in names:
        items: list[Encoded] = []
        begun = read
        with contextlib.ExitStack() as stack:
            # As it was given: a Path would make another text of it.
            file: Any = sys.stdin.buffer if name == "-" else stack.enter_context(open(name, "rb"))
            for line in file:
                read += len(line)
                raw = raw_of(line.strip())
                if raw is not None:
                    items.append(as_event(item_of(raw)))
                elif line.strip():
                    account.drop("no JSON object")
                if len(items) == batch_size:
                    yield Batch(items, _key(name, begun, items)), read
                    items, begun = [], read
        if items:
            yield Batch(items, _key(name, begun, items)), read


def _key(name: str, start: int, items: Sequence[Encoded]) -> str:
    """Return a key that is the same whenever the same part of the same file is sent."""
    digest = blake2b(os.fsencode(name), digest_size=16)
    digest.update(b"%d" % start)
    for item in items:
        digest.update(item.data)
    return digest.hexdigest()
