"""A batch in as many requests as it takes: `Parts`, which finds the events that are to blame for a refusal."""

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

#: So many events in a row may be refused alone, without one being taken, before the fault is nobody's in particular.
_MOST_IN_A_ROW = 2

#: How far the witness of one round is from that of the next, in events.
_STRIDE = 7919

_NOT_AN_EVENT = (
    "this is not about single events: look at the address, the credentials, and what stands before the server"
)


class History:
    """What is remembered of one batch for the next."""

    __slots__ = ("refused_in_a_row", "rounds")

    def __init__(self) -> None:
        #: How many events were given up since one was taken.
        self.refused_in_a_row: int = 0
        #: How many batches in a row were refused whatever the event.
        self.rounds: int = 0


class Parts:
    """Send *batch* in one request, or in as many as size, format and refusals ask for.

    A refusal whose meaning is not certain (`RefusedDeliveryError`) counts against an event only once the server has
    taken another event since: the batch is divided until the one to blame is alone. If events of the batch are refused
    one by one and none is taken, the fault is not theirs: that is a `PausedDeliveryError`, and all are kept. An event
    that comes alone is refused, unless the answer is a page of HTML, or two before it were refused as well.

    Args:
        batch: One event at least.
        single: True if a request holds one event.
        room_bytes: How large a body of several events may be.
        encode: Returns the body for a part of the batch.
        send: Sends a part: its items, its body, its key.
        history: What is remembered of the batches before; changed.
    """

    def __init__(
        self,
        batch: Batch,
        *,
        single: bool,
        room_bytes: Callable[[], int],
        encode: Callable[[Batch], bytes],
        send: Callable[[Batch, bytes, str], BatchResult | None],
        history: History,
    ) -> None:
        self._batch = batch
        self._single = single
        self._room_bytes = room_bytes
        self._encode = encode
        self._send = send
        self._history = history
        whole = range(len(batch))
        self._parts: deque[Sequence[int]] = deque([[index] for index in whole] if single else [whole])
        self._retry: list[int] = []
        self._rejected: dict[int, str] = {}
        self._unknown = 0
        self._wait: float | None = None
        #: True once the server has taken an event of this batch.
        self._taken = False
        #: Answers in a row that may be about the events, and the events that got one alone.
        self._doubts = 0
        self._suspects: dict[int, RefusedDeliveryError] = {}

    def send(self) -> BatchResult | None:
        """Send everything, and return what was not taken, None if all was.

        Raises:
            Exception: What came of the first request, if nothing was settled before it.
        """
        while self._parts:
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
                if len(self._batch) == 1 or (len(part) > 1 and not self._settled):
                    raise
                self._refuse(part, error.reason)
            except Exception as error:  # a format that fails
                if len(self._batch) == 1 or not (self._single or self._settled):
                    raise
                if not self._single:
                    return self._leave(part, error)
                self._refuse(part, describe(cleaned(error, self._batch[part[0]].event)))
        doubt = self._judge()
        if doubt is None:
            return self._result() if self._retry or self._rejected or self._unknown else None
        if not self._settled:
            raise doubt
        return self._leave((), doubt)

    @property
    def _settled(self) -> bool:
        return self._taken or bool(self._rejected or self._unknown or self._retry)

    def _send_part(self, part: Sequence[int]) -> None:
        """Send *part*, or put it back in smaller ones.

        Raises:
            PausedDeliveryError: If all events that were sent are refused.
        """
        batch = self._batch if len(part) == len(self._batch) else self._batch.part(part)
        body = self._encode(batch)
        if len(part) > 1 and len(body) > self._room_bytes():
            self._parts.extendleft(reversed(self._divided(part, batch, len(body))))
            return
        key = batch.key if batch is self._batch or not self._single else self._batch.item_keys[part[0]]
        refused = result = None
        try:
            result = self._send(batch, body, key)
        except RefusedDeliveryError as error:
            refused = error
        if refused is not None:  # outside the except clause, so that what is raised holds nothing else
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
            self._acquit_the_server()

    def _divided(self, part: Sequence[int], batch: Batch, size: int) -> list[Sequence[int]]:
        """Return *part* in pieces for which there is room, if each event adds to the body in proportion to its data."""
        sizes = [len(data) + 1 for data in batch.data]
        room = self._room_bytes() * sum(sizes) / size
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

    # -- whose fault it is

    def _suspect(self, part: Sequence[int], error: RefusedDeliveryError) -> None:
        """Take note that *part* was refused, and choose what is sent next.

        Raises:
            TemporaryDeliveryError: If too many were refused in a row.
        """
        self._doubts += 1
        if len(part) > 1:
            # The first alone, as long as it is not known that anything is taken.
            middle = len(part) // 2 if self._taken else 1
            self._parts.extendleft((part[middle:], part[:middle]))
            return
        self._suspects[part[0]] = error
        if self._taken and len(self._suspects) > _MOST_IN_A_ROW:
            raise TemporaryDeliveryError(error.reason)
        if not self._taken and self._doubts > _MOST_IN_A_ROW:
            raise self._of_all(error)
        if not self._taken and self._doubts == _MOST_IN_A_ROW and self._parts:
            self._call_a_witness()

    def _call_a_witness(self) -> None:
        """Put one of the events that are left before the others, another one in each round."""
        left = [index for part in self._parts for index in part]
        witness = left.pop(-1 - self._history.rounds * _STRIDE % len(left))
        parts = [[index] for index in left] if self._single else [left]
        self._parts = deque([[witness], *parts] if left else [[witness]])

    def _of_all(self, error: RefusedDeliveryError) -> PausedDeliveryError:
        self._history.rounds += 1
        return PausedDeliveryError(f"{error.reason}; {_NOT_AN_EVENT}")

    def _acquit_the_server(self) -> None:
        """Take note that an event was taken, so that those refused before are to blame themselves.

        What was refused before the first that was taken is sent once more: a gateway may have let the events through
        only since.
        """
        if self._taken:
            for index, error in self._suspects.items():
                self._rejected[index] = error.reason
        else:
            self._parts.extendleft([index] for index in reversed(self._suspects))
        self._suspects.clear()
        self._taken = True
        self._doubts = self._history.refused_in_a_row = self._history.rounds = 0

    def _judge(self) -> DeliveryError | None:
        """Decide about events that were refused alone after the last that was taken; return why they are kept."""
        if not self._suspects:
            return None
        *_, error = self._suspects.values()
        row = self._history.refused_in_a_row + len(self._suspects)
        pages = sum(each.is_page for each in self._suspects.values())
        if row > _MOST_IN_A_ROW or pages > self._taken or not (self._taken or len(self._batch) == 1):
            return self._of_all(error)
        self._history.refused_in_a_row = row
        if len(self._batch) == 1:
            return PermanentDeliveryError(error.reason)
        for index, each in self._suspects.items():
            self._rejected[index] = each.reason
        return None

    def _refuse(self, part: Sequence[int], reason: str) -> None:
        """Take note that *part* is refused for good, or put it back in halves."""
        if len(part) == 1:
            self._rejected[part[0]] = reason
            return
        middle = len(part) // 2
        self._parts.extendleft((part[middle:], part[:middle]))

    def _leave(self, part: Sequence[int], error: Exception | None) -> BatchResult:
        """Return what became of the batch if *part* and all that is left has to be tried again, because of *error*."""
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
