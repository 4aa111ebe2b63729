"""Sends events again for the command line: those of dead processes in a spool, and those in files."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import orjson

from outfall.adapters.commandline.reading import raw_lines_of
from outfall.adapters.commandline.terminal import complain, counted, line_ranges, progress
from outfall.sinks.core.item import Batch, BatchResult, Encoded, data_of, item_of
from outfall.sinks.core.reporting import cleaned, describe
from outfall.sinks.core.sink import Sink
from outfall.sinks.delivery.delivery import Delivery, RetryPolicy
from outfall.sinks.errors import DeliveryError, PausedDeliveryError, TemporaryDeliveryError
from outfall.sinks.event.json import OrjsonRenderer, loads
from outfall.sinks.spool.lines import raw_of
from outfall.sinks.spool.sink import SpoolSink

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import BinaryIO

    from outfall.sinks.core.ledger import Outcome
    from outfall.sinks.core.reporting import SinkFailure

#: Short waits, since a person waits at the terminal.
_RETRY = RetryPolicy(max_seconds=5.0, pause_max_seconds=5.0)

#: Seconds that the close of the target may take.
_CLOSE_SECONDS = 1.0

#: If more events than these are refused before one was accepted, the settings are probably wrong, not the events.
_MOST_AT_FIRST = 2


@dataclass
class Account:
    """The outcome of a redelivery, in numbers of events.

    Args:
        delivered: Events that the server accepted.
        refused: Events that it refused and that were discarded or written to the dead letters.
        left_out: Lines without an event.
        left: Events that were not sent and remain in the spool or file.
        place: The place in the files where it stopped, in words, or "".
        last_error: Why it stopped, or "".
        interrupted: The number of the signal that ended it, or 0.
        dropped: Lost events by reason.
    """

    delivered: int = 0
    refused: int = 0
    left_out: int = 0
    left: int = 0
    place: str = ""
    last_error: str = ""
    interrupted: int = 0
    dropped: dict[str, int] = field(default_factory=dict[str, int])


class Interrupted(KeyboardInterrupt):
    """Raised by the handler of a termination signal.

    Args:
        number: The signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Guard(Sink):
    """A sink in front of *target* that handles refused events: it writes them to a file, discards them, or stops.

    Args:
        target: The sink that sends. It is closed with this one.
        refused: How to handle refused events: ``"keep"`` stops at the first, ``"discard"`` drops them, and a file gets
            them appended.

    If the first events sent are all refused, it stops whatever *refused* says: then the address, the credentials or
    the format is probably wrong.
    """

    delivers_through_loggers = True
    locks_emit = False

    def __init__(self, target: Sink, refused: Literal["keep", "discard"] | BinaryIO) -> None:
        super().__init__(name=target.name)
        self._to = target
        self._refused = refused
        #: How many events the target has accepted, and refused.
        self.taken: int = 0
        self.refused: int = 0
        #: Why the redelivery stops, or "".
        self.stopped: str = ""

    def restore_item(self, data: bytes, level: float, time: float) -> Encoded:
        """Return an item that holds an event, whatever format the spool's sink stored it in."""
        return as_event(Encoded(data, level, time))

    def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
        """Send *batch* by the target, and handle refused events.

        Raises:
            PausedDeliveryError: If the redelivery stops.
            Exception: A temporary error of the target's, or any error if the batch has more than one event.
        """
        if self.stopped:
            raise PausedDeliveryError(self.stopped)
        try:
            result = self._to.emit_batch(batch) or BatchResult()
        except PausedDeliveryError as error:
            self._stop(f"{error}")
        except (TemporaryDeliveryError, OSError):
            raise
        except Exception as error:
            if len(batch) > 1:
                raise  # `Delivery` halves the batch until it finds the event at fault
            reported = error if isinstance(error, DeliveryError) else cleaned(error, batch[0].event)
            result = BatchResult(rejected={0: f"{reported}"})
        number = len(result.rejected) + result.rejected_unknown
        taken = len(batch) - len(result.retry) - number
        left = sorted(result.retry)
        if number:
            # If the target does not say which events it refused, treat all as refused.
            reasons = dict(result.rejected) or dict.fromkeys(range(len(batch)), "it was not said which")
            stays = self._stay(number, next(iter(reasons.values())), taken)
            if stays and (not taken or result.rejected_unknown):
                raise PausedDeliveryError(self.stopped)
            if stays:
                left = sorted({*left, *reasons})
            else:
                self._set_aside([batch[index] for index in reasons])
                self.refused += number
        self.taken += taken
        return BatchResult(left, retry_after=result.retry_after) if left else None

    def _stay(self, number: int, reason: str, taken: int) -> bool:
        """Return True, and stop the redelivery, if *number* refused events must stay where they are."""
        at_first = not self.taken and not taken and self.refused + number > _MOST_AT_FIRST
        if not at_first and self._refused != "keep":
            return False
        self.stopped = f"{counted(number, 'event')} refused: {reason}"
        if not at_first:
            self.stopped += "; say where such events go: --dead-letters FILE or --discard-refused"
        return True

    def _set_aside(self, items: Sequence[Encoded]) -> None:
        if self._refused in ("keep", "discard"):
            return
        file: Any = self._refused
        try:
            rest = b"".join(data + b"\n" for data in data_of(items))
            while rest:
                rest = rest[file.write(rest) :]
        except OSError as error:
            self._stop(f"the dead letters cannot be written: {error.strerror}")

    def _stop(self, why: str) -> NoReturn:
        self.stopped = why
        raise PausedDeliveryError(why) from None

    def close(self, timeout: float | None = None) -> bool:
        """Close this sink and its target."""
        super().close(timeout)
        return self._to.close(timeout)


def as_event(item: Encoded) -> Encoded:
    """Return *item* with a JSON object as its data: an object is left as it is, text becomes ``{"event": text}``.

    Of an event stored for a router, the part of the router's first sink is taken.
    """
    text = item.data.strip()
    if not _is_object(text):
        return Encoded(_json.render(item.event), item.level, item.time)
    for kind in (b'{"fanout":', b'{"fallback":'):
        if text.startswith(kind):
            part = _first_part(text)
            if part is not None:
                return as_event(Encoded(part, item.level, item.time))
    # A line break outside of JSON strings is white space; within them it is escaped.
    return Encoded(text.replace(b"\r", b" ").replace(b"\n", b" "), item.level, item.time)


_json = OrjsonRenderer()


def _first_part(envelope: bytes) -> bytes | None:
    """Return the part for a router's first sink of the *envelope* that the router stored; None if there is none."""
    try:
        decoded = loads(envelope)
    except (ValueError, RecursionError):
        return None
    [parts, *others] = decoded.values()
    for part in parts if isinstance(parts, list) and not others else ():
        if isinstance(part, dict) and isinstance(part.get("event"), dict):
            return _json.render(part["event"])
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            return str.encode(part["text"])
    return None


def _is_object(text: bytes) -> bool:
    """Return True if *text* is a JSON object; NaN is allowed, and nesting too deep to be parsed."""
    if text[:1] != b"{" or text[-1:] != b"}":
        return False
    try:
        orjson.loads(text)
    except ValueError:
        try:
            json.loads(text)
        except ValueError:
            return False
        except RecursionError:
            pass
    return True


def _item_in(line: bytes, *, text: bool) -> Encoded | None:
    """Return the event in a *line* of a file, unchanged; None if the line holds none.

    Args:
        line: A line of JSON or text, or of a spool's segment.
        text: Whether a line that is not a JSON object becomes an event's text.
    """
    raw = raw_of(line)
    if raw is not None:
        return as_event(item_of(raw))
    if _is_object(line):
        return item_of((line, None, None, False))
    return as_event(item_of((line, None, None, False))) if text else None


def drain(target: Guard, directory: str, *, waiting: int, batch_size: int, patience: float, quiet: bool) -> Account:
    """Deliver the events of dead processes in a spool, until all are delivered or the target refuses events.

    Args:
        target: The sink to deliver to; it is closed.
        directory: The spool's directory.
        waiting: The approximate number of events, for the progress.
        batch_size: The number of events in a request.
        patience: Seconds without a delivered event after which to give up.
        quiet: Whether to show no progress.
    """
    account = Account()

    def report(failure: SinkFailure) -> None:
        account.last_error = describe(failure.error)
        if failure.events:
            complain(f"{counted(failure.events, 'event')} lost: {account.last_error}")

    sink = SpoolSink(target, directory, batch_size=batch_size, retry=_RETRY, on_error=report)
    last, since = -1, time.monotonic()
    with progress(waiting, quiet=quiet) as show:
        try:
            while not target.stopped and not sink.flush(_FLUSH_SECONDS):
                stats = sink.stats()
                done = stats.adopted - stats.spooled
                show(done, max(waiting, stats.adopted))
                if done != last:
                    last, since = done, time.monotonic()
                elif time.monotonic() - since > patience:
                    break
        except KeyboardInterrupt as interrupt:
            account.interrupted = number_of(interrupt)
        finally:
            sink.close(0 if target.stopped else _CLOSE_SECONDS)
        stats = sink.stats()
        show(stats.adopted - stats.spooled, max(waiting, stats.adopted))
    account.delivered, account.refused, account.left = target.taken, target.refused, stats.spooled
    account.dropped = dict(stats.dropped)
    account.last_error = target.stopped or account.last_error
    return account


_FLUSH_SECONDS = 0.2


def number_of(interrupt: KeyboardInterrupt) -> int:
    """Return the number of the signal that caused *interrupt*."""
    return interrupt.number if isinstance(interrupt, Interrupted) else signal.SIGINT


def replay(
    target: Guard, names: Sequence[str], *, batch_size: int, patience: float, text: bool, quiet: bool
) -> Account:
    """Send the events in files of JSON lines, until all are sent or the target refuses events.

    Args:
        target: The sink to send by; it is closed.
        names: The files; ``"-"`` stands for stdin.
        batch_size: The number of events in a request.
        patience: Seconds without a delivered event after which to give up.
        text: Whether a line that is not a JSON object becomes an event's text; else it is left out, and reported.
        quiet: Whether to show no progress.
    """
    account = Account()
    taken_at = [time.monotonic()]

    def settle(outcome: Outcome) -> None:
        if outcome.events:
            taken_at[0] = time.monotonic()
        for reason, events in outcome.dropped.items():
            account.dropped[reason] = account.dropped.get(reason, 0) + events

    def tell(error: Exception, events: int) -> None:
        account.last_error = describe(error)
        if events:
            complain(f"{counted(events, 'event')} lost: {account.last_error}")

    def pause(seconds: float) -> bool:
        left = taken_at[0] + patience - time.monotonic()
        if target.stopped:
            return False
        time.sleep(max(0.0, min(seconds, left)))
        return left > 0

    delivery = Delivery(target, retry=_RETRY, settle=settle, tell=tell, pause=pause)
    total = sum(os.path.getsize(name) for name in names if name != "-")
    try:
        with progress(total, quiet=quiet, unit="bytes") as show:
            for batch, place, read in _batches(names, batch_size, account, text=text):
                account.place = account.place if account.left else place
                account.left += len(batch) if account.left else sum(map(len, delivery.deliver(batch)))
                show(read, max(total, read))
        account.place = account.place if account.left else ""
    except KeyboardInterrupt as interrupt:
        account.interrupted = number_of(interrupt)
    except OSError as error:
        account.left = account.left or 1
        account.last_error = f"{error.filename or 'a file'}: {error.strerror}"
    finally:
        target.close(_CLOSE_SECONDS)
    account.delivered, account.refused = target.taken, target.refused
    account.last_error = target.stopped or account.last_error
    return account


def _batches(
    names: Sequence[str], batch_size: int, account: Account, *, text: bool
) -> Iterator[tuple[Batch, str, int]]:
    """Yield the events of the files in batches, each with the place where it begins and the number of bytes read."""
    read = 0
    for name in names:
        items: list[Encoded] = []
        begun, first, number = read, 1, 0
        left_out: list[int] = []
        shown = "stdin" if name == "-" else repr(name)
        cut_off: list[str] = []
        with contextlib.ExitStack() as stack:
            stack.callback(_name_lines, shown, left_out)
            for line in raw_lines_of(name, cut_off.append):
                number += 1
                read += len(line) + 1
                stripped = line.strip()
                item = _item_in(stripped, text=text) if stripped else None
                if item is not None:
                    items.append(item)
                elif stripped:
                    left_out.append(number)
                    account.left_out += 1
                if len(items) == batch_size:
                    yield Batch(items, _key(name, begun, items)), f"line {first} of {shown}", read
                    items, begun, first = [], read, number + 1
            if items:
                yield Batch(items, _key(name, begun, items)), f"line {first} of {shown}", read
        for message in cut_off:
            complain(message)
            account.left_out += not left_out


def _name_lines(name: str, numbers: list[int]) -> None:
    if numbers:
        what = "hold no JSON object and were left out" if len(numbers) > 1 else "holds no JSON object and was left out"
        complain(f"{name}: {line_ranges(numbers)} {what}; --text sends such a line as an event's text")


def _key(name: str, start: int, items: Sequence[Encoded]) -> str:
    """Return an idempotency key: the same part of the same file always gets the same."""
    digest = blake2b(os.fsencode(name), digest_size=16)
    digest.update(b"%d" % start)
    for item in items:
        digest.update(item.data)
    return digest.hexdigest()
