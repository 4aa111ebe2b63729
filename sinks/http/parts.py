"""Sends a batch in one or more requests: `Parts`, which finds the events that cause a refusal."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from outfall.sinks.core.item import Batch, BatchResult
from outfall.sinks.core.reporting import cleaned, describe
from outfall.sinks.errors import (
    DeliveryError,
    PausedDeliveryError,
    PermanentDeliveryError,
    SinkClosedError,
    TemporaryDeliveryError,
)
from outfall.sinks.http.answers import RefusedDeliveryError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: If more single events than this are refused in a row and none is accepted, the events are not the cause.
_MOST_IN_A_ROW = 2

#: The factor by which that number grows once the server has accepted the witness again.
_GROWTH = 4

#: The distance between the probe events of one round and of the next.
_STRIDE = 7919

_NOT_AN_EVENT = (
    "this is not about single events: look at the address, the credentials, and what stands before the server"
)


class History:
    """What a sink remembers of one batch for the next.

    Args:
        room_bytes: The largest size of a body with several events.
    """

    __slots__ = ("refused_in_a_row", "room_bytes", "rounds", "witness")

    def __init__(self, room_bytes: int) -> None:
        #: The argument; less after a server has required a smaller body.
        self.room_bytes: int = room_bytes
        #: The number of events given up since one was taken.
        self.refused_in_a_row: int = 0
        #: The number of batches in a row that were refused whatever the event.
        self.rounds: int = 0
        #: A batch of one event that the server has accepted.
        self.witness: Batch | None = None


class Parts:
    """Send *batch* in one request, or in several, as size, format and refusals require.

    A refusal without a certain cause (`RefusedDeliveryError`) counts against an event only after the server has
    accepted another event: the batch is divided until the event at fault is alone. If events are refused one by one
    and none is accepted, an event is sent again that the server accepted before. If the server refuses it too, or has
    never accepted one, the events are not the cause: all are kept, and a `PausedDeliveryError` is raised. A batch of
    one event is refused, unless the response is a page of HTML, or two events before it were refused too.

    Args:
        batch: The batch.
        single: True if a request holds one event.
        encode: Returns the body for a part of the batch.
        send: Sends a part, given the items, the body and the key.
        history: What is remembered of earlier batches; it is updated.
    """

    def __init__(
        self,
        batch: Batch,
        *,
        single: bool,
        encode: Callable[[Batch], bytes],
        send: Callable[[Batch, bytes, str], BatchResult | None],
        history: History,
    ) -> None:
        self._batch = batch
        self._single = single
        self._encode = encode
        self._send = send
        self._history = history
        self._size = len(batch)
        whole = range(self._size)
        self._parts: deque[Sequence[int]] = deque([[index] for index in whole] if single else [whole] if whole else [])
        self._retry: list[int] = []
        self._rejected: dict[int, str] = {}
        self._unknown = 0
        self._wait: float | None = None
        #: True once the server has taken an event of this batch.
        self._taken = False
        #: The number of uncertain refusals in a row, and the single events that got one.
        self._doubts = 0
        self._suspects: dict[int, RefusedDeliveryError] = {}
        #: The number of single events that may be refused in a row before the server must accept another one.
        self._most = _MOST_IN_A_ROW

    def send(self) -> BatchResult | None:
        """Send everything; return None if all events were taken, else the result.

        Raises:
            Exception: The error of the first request, if no event had an outcome before it.
        """
        doubt: DeliveryError | None = None
        while self._parts or (self._suspects and doubt is None):
            if not self._parts:
                doubt = self._judge()
                continue
            part = self._parts.popleft()
            if self._single and self._retry:
                return self._leave(part, None)
            try:
                self._send_part(part)
            except (TemporaryDeliveryError, SinkClosedError) as error:
                if not self._settled:
                    raise
                return self._leave(part, error)
            except PermanentDeliveryError as error:
                if self._size == 1 or (len(part) > 1 and not self._settled):
                    raise
                self._refuse(part, error.reason)
            except Exception as error:  # a format that fails
                if self._size == 1 or not (self._single or self._settled):
                    raise
                if not self._single:
                    return self._leave(part, error)
                self._refuse(part, describe(cleaned(error, self._batch[part[0]].event)))
        if doubt is None:
            return self._result() if self._retry or self._rejected or self._unknown else None
        if not self._settled:
            raise doubt
        return self._leave((), doubt)

    @property
    def _settled(self) -> bool:
        return self._taken or bool(self._rejected or self._unknown or self._retry)

    def _send_part(self, part: Sequence[int]) -> None:
        """Send *part*, or divide it if its body is too large.

        Raises:
            PausedDeliveryError: If all events that were sent are refused.
        """
        batch = self._batch if len(part) == self._size else self._batch.part(part)
        body = self._encode(batch)
        if len(part) > 1 and len(body) > self._history.room_bytes:
            self._parts.extendleft(reversed(self._divided(part, batch, len(body))))
            return
        key = batch.key if batch is self._batch or not self._single else self._batch.item_keys[part[0]]
        refused = result = None
        try:
            result = self._send(batch, body, key)
        except RefusedDeliveryError as error:
            refused = error
        if refused is not None:  # outside of the except block, so that an error raised here has no context
            self._suspect(part, refused)
            return
        delivered = len(part)
        if result is not None:
            self._retry += [part[index] for index in result.retry]
            self._rejected.update({part[index]: reason for index, reason in result.rejected.items()})
            delivered -= len(result.retry) + len(result.rejected) + result.rejected_unknown
            if len(part) == 1 and result.rejected_unknown and part[0] not in self._rejected:
                self._rejected[part[0]] = "the server refused the event"
            else:
                self._unknown += result.rejected_unknown
            if result.retry_after is not None:
                self._wait = max(self._wait or 0.0, result.retry_after)
        if delivered > 0:
            if delivered == len(part):
                self._history.witness = batch if delivered == 1 else batch.part((delivered - 1,))
            self._confirm_refusals()

    def _divided(self, part: Sequence[int], batch: Batch, size: int) -> list[Sequence[int]]:
        """Divide *part* into pieces that fit, assuming that each event adds to the body in proportion to its data."""
        sizes = [len(data) + 1 for data in batch.data]
        room = self._history.room_bytes * sum(sizes) / size
        pieces: list[Sequence[int]] = []
        first = filled = 0
        for index, each in enumerate(sizes):
            if index > first and filled + each > room:
                pieces.append(part[first:index])
                first, filled = index, 0
            filled += each
        if not pieces:
            first = len(part) // 2
            pieces.append(part[:first])
        return [*pieces, part[first:]]

    # -- finding the cause of refusals

    def _suspect(self, part: Sequence[int], error: RefusedDeliveryError) -> None:
        """Record that *part* was refused, and choose what to send next.

        Raises:
            TemporaryDeliveryError: If too many parts were refused in a row.
        """
        self._doubts += 1
        if len(part) > 1:
            # Send the first event alone until one was taken.
            middle = len(part) // 2 if self._taken else 1
            self._parts.extendleft((part[middle:], part[:middle]))
            return
        self._suspects[part[0]] = error
        if self._taken and len(self._suspects) > self._most:
            if not self._takes_another():
                raise TemporaryDeliveryError(error.reason)
        elif not self._taken and self._doubts > _MOST_IN_A_ROW:
            if not self._takes_another():
                raise self._of_all(error)
        elif not self._taken and self._doubts == _MOST_IN_A_ROW and self._parts:
            self._send_probe_next()

    def _send_probe_next(self) -> None:
        """Put one of the remaining events, another one in each round, before the others."""
        left = [index for part in self._parts for index in part]
        probe = left.pop(-1 - self._history.rounds * _STRIDE % len(left))
        parts = [[index] for index in left] if self._single else [left]
        self._parts = deque([[probe], *parts] if left else [[probe]])

    def _takes_another(self) -> bool:
        """Send the witness again; if the server accepts it, return True, and the suspects are the cause.

        The server gets the witness twice. So each further check follows more refusals than the one before.
        """
        witness = self._history.witness
        if witness is None or any(error.is_page for error in self._suspects.values()):
            return False
        try:
            result = self._send(witness, self._encode(witness), witness.key)
        except DeliveryError:
            return False
        if result is not None:
            return False
        self._most *= _GROWTH
        self._confirm_refusals()
        return True

    def _of_all(self, error: RefusedDeliveryError) -> PausedDeliveryError:
        self._history.rounds += 1
        failure = PausedDeliveryError(f"{error.reason}; {_NOT_AN_EVENT}")
        failure.in_doubt = True
        return failure

    def _confirm_refusals(self) -> None:
        """Record that the server takes events, so that those refused before are the cause of their refusals.

        Those refused before the first one was taken are sent once more: a gateway may have refused them.
        """
        if self._taken:
            self._rejected.update((index, error.reason) for index, error in self._suspects.items())
        elif self._suspects:
            self._parts.extendleft([index] for index in reversed(self._suspects))
        self._suspects.clear()
        self._taken = True
        self._doubts = self._history.refused_in_a_row = self._history.rounds = 0

    def _judge(self) -> DeliveryError | None:
        """Decide about single events refused after the last one was taken; return the error if they are kept."""
        *_, error = self._suspects.values()
        row = self._history.refused_in_a_row + len(self._suspects)
        pages = sum(each.is_page for each in self._suspects.values())
        if row > self._most or pages > self._taken or not (self._taken or self._size == 1):
            return None if self._takes_another() else self._of_all(error)
        self._history.refused_in_a_row = row
        if self._size == 1:
            return PermanentDeliveryError(error.reason)
        for index, each in self._suspects.items():
            self._rejected[index] = each.reason
        self._suspects.clear()
        return None

    def _refuse(self, part: Sequence[int], reason: str) -> None:
        """Record that the event in *part* is refused for good; divide a part with several events."""
        if len(part) == 1:
            self._rejected[part[0]] = reason
            return
        middle = len(part) // 2
        self._parts.extendleft((part[middle:], part[:middle]))

    def _leave(self, part: Sequence[int], error: Exception | None) -> BatchResult:
        """Return the result if *part* and all that is left have to be tried again, because of *error*."""
        suspects = dict(self._suspects)
        if len(suspects) == 1 and self._taken:
            [(index, refused)] = suspects.items()
            self._rejected[index] = refused.reason
            suspects.clear()
        self._retry += {*suspects, *part, *(index for each in self._parts for index in each)}
        if error is not None:
            self._wait = getattr(error, "retry_after", None)
        return self._result()

    def _result(self) -> BatchResult:
        return BatchResult(sorted(self._retry), self._rejected, self._unknown, self._wait)
