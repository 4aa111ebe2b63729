"""Whose fault a refusal is: batches that are sent in parts, to servers that refuse some events, or all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outfall.sinks.core.item import Batch, BatchResult, Encoded
from outfall.sinks.errors import (
    OversizeDeliveryError,
    PausedDeliveryError,
    PermanentDeliveryError,
    TemporaryDeliveryError,
)
from outfall.sinks.http.answers import RefusedDeliveryError
from outfall.sinks.http.parts import History, Parts


class Peer:
    """A server that refuses some events, by number; and what it got.

    Args:
        bad: The numbers it refuses; None for all.
        is_page: True to refuse with a page of HTML.
        certain: True to refuse by a format's own error.
    """

    def __init__(self, *bad, is_page=False, certain=False):
        self.bad = None if bad == (None,) else bad
        self.is_page, self.certain = is_page, certain
        self.history = History(10**9)
        self.requests = []
        self.taken = []

    def send(self, batch, body, key):
        """Take a part or refuse it."""
        numbers = [int(data) for data in body.split(b",")]
        self.requests.append(numbers)
        if self.bad is None or set(numbers) & set(self.bad):
            raise (
                PermanentDeliveryError("code 6")
                if self.certain
                else RefusedDeliveryError("it answered 400", is_page=self.is_page)
            )
        self.taken += numbers

    def emit(self, numbers, *, single=False, room=10**9):
        """Send a batch of events with these *numbers*."""
        self.history.room_bytes = room
        batch = Batch([Encoded(b"%d" % number, 20, 0) for number in numbers], "key")
        return Parts(
            batch,
            single=single,
            encode=lambda part: b",".join(part.data),
            send=self.send,
            history=self.history,
        ).send()

    def emit_again(self, count, *, single):
        """Send a batch of so many events as a delivery does, for a while; return what is refused and what is left."""
        numbers, refused = list(range(count)), set()
        for _ in range(500):
            try:
                result = self.emit(numbers, single=single) or BatchResult()
            except PausedDeliveryError:
                continue
            refused |= {numbers[index] for index in result.rejected}
            numbers = [numbers[index] for index in result.retry]
            if not numbers:
                break
        return refused, numbers


@pytest.mark.parametrize("single", [True, False])
@given(bad=st.integers(0, 49), second=st.integers(0, 49))
def test_the_events_to_blame_are_found(single, bad, second):
    """One or two bad events of fifty are refused, all others are taken, each once and in order but for one witness."""
    peer = Peer(bad, second)
    assert peer.emit_again(50, single=single) == ({bad, second}, [])
    assert sorted(peer.taken) == sorted(set(range(50)) - {bad, second})
    assert len(peer.requests) <= (53 if single else 32)


@pytest.mark.parametrize("is_page", [True, False])
@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("events", [2, 3, 200])
def test_what_refuses_everything_keeps_everything(single, events, is_page):
    """No event is refused, few requests are made each time, and the report says that it is not about events."""
    peer = Peer(None, is_page=is_page)
    for _ in range(5):
        with pytest.raises(PausedDeliveryError, match="it answered 400; this is not about single events") as caught:
            peer.emit(range(events), single=single)
        assert caught.value.__context__ is None
    assert len(peer.requests) == 5 * min(3, events if single else events + 1)
    peer.bad = ()
    assert peer.emit(range(events), single=single) is None
    assert peer.taken == list(range(events))


@pytest.mark.parametrize("single", [True, False])
def test_many_bad_events_in_front_stop_nothing_for_ever(single):
    """Each round asks another witness, so that the good ones are found; then these are witnesses, a few times each."""
    peer = Peer(*range(30), *range(34, 58))
    assert peer.emit_again(60, single=single) == ({*range(30), *range(34, 58)}, [])
    assert {*peer.taken} == {30, 31, 32, 33, 58, 59}
    assert len(peer.taken) < 10


@pytest.mark.parametrize("single", [True, False])
def test_bad_events_alone_stop_nothing_once_the_server_has_taken_one(single):
    """It is sent that one again, and it alone; where it does not take that either, everything is kept."""
    peer = Peer(*range(1, 60))
    assert peer.emit([0], single=single) is None
    result = peer.emit(range(1, 60), single=single)
    assert (set(result.rejected), result.retry) == (set(range(59)), [])
    assert peer.taken == [0] * 4
    peer.bad = None
    with pytest.raises(PausedDeliveryError, match="not about single events"):
        peer.emit(range(60, 70), single=single)
    peer.bad = ()
    assert peer.emit(range(60, 70), single=single) is None


def test_bad_events_that_come_one_by_one_are_refused_while_the_server_takes_others():
    """The first two at once, those after them once it has taken another one again."""
    peer = Peer(1)
    peer.emit([0])
    for number in range(9):
        try:
            reasons = peer.emit([1]).rejected
        except PermanentDeliveryError as error:
            reasons = {0: error.reason}
        assert reasons == {0: "it answered 400"}, number
    assert len(peer.taken) == 5


def test_pages_ask_for_no_event_again():
    """What stands before the server would be to blame."""
    peer = Peer(is_page=True)
    peer.emit([0])
    peer.bad = None
    with pytest.raises(PausedDeliveryError):
        peer.emit(range(1, 9))
    assert [0] not in peer.requests[1:]


def test_a_server_that_begins_to_refuse_everything_costs_nothing():
    """What was taken stays taken, and of all others none is refused; one that was taken is asked for once more."""
    peer = Peer()

    def send(batch, body, key):
        if len(peer.taken) == 20:
            peer.bad = None
        return Peer.send(peer, batch, body, key)

    peer.send = send
    result = peer.emit(range(50), single=True)
    assert (list(result.retry), result.rejected) == (list(range(20, 50)), {})
    assert len(peer.requests) == 24


def test_an_event_that_comes_alone():
    """It is refused, the second too; from the third on the fault is not the events', until one is taken again."""
    peer = Peer(None)
    for kind in (PermanentDeliveryError, PermanentDeliveryError, PausedDeliveryError, PausedDeliveryError):
        with pytest.raises(kind) as caught:
            peer.emit([1])
        assert type(caught.value) is kind
    peer.bad = ()
    assert peer.emit([1]) is None
    peer.bad = None
    with pytest.raises(PermanentDeliveryError):
        peer.emit([1])
    with pytest.raises(PausedDeliveryError):
        Peer(None, is_page=True).emit([1])


def test_the_last_of_a_batch():
    """An event at the end is refused if those before were taken, two are as well, and pages refuse one alone."""
    assert set(Peer(8).emit(range(9)).rejected) == {8}
    assert set(Peer(7, 8).emit(range(9), single=True).rejected) == {7, 8}
    assert set(Peer(8, is_page=True).emit(range(9)).rejected) == {8}
    kept = Peer(7, 8, is_page=True).emit(range(9), single=True)
    assert (list(kept.retry), kept.rejected) == ([7, 8], {})


@pytest.mark.parametrize("events", [1, 4])
def test_a_refusal_by_the_format_is_certain(events):
    """It is raised as it is, for whoever delivers to find the event; after the first part it is found here."""
    peer = Peer(3, certain=True)
    with pytest.raises(PermanentDeliveryError, match=r"^code 6$"):
        peer.emit(range(3, 3 + events))
    peer = Peer(3, certain=True)
    result = peer.emit(range(9), room=4)
    assert (set(result.rejected), peer.taken) == ({3}, [0, 1, 2, 4, 5, 6, 7, 8])


def test_failures_that_pass_leave_what_was_refused_before_for_later():
    """Unless an event was taken and one refused before."""
    peer = Peer(None)
    usual = peer.send

    def send(batch, body, key):
        if len(peer.requests) == 1:
            raise TemporaryDeliveryError("busy", 3)
        return usual(batch, body, key)

    peer.send = send
    with pytest.raises(TemporaryDeliveryError, match="busy"):
        peer.emit(range(5), single=True)


def test_a_size_that_is_too_much_is_for_the_delivery_to_learn():
    """The first part's is raised."""

    def send(batch, body, key):
        raise OversizeDeliveryError("413")

    peer = Peer()
    peer.send = send
    with pytest.raises(OversizeDeliveryError):
        peer.emit(range(5))
    assert peer.emit(range(5), single=True) == BatchResult([], dict.fromkeys(range(5), "413"))
