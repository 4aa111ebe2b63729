"""What becomes of a batch: waits, halves, dead letters, and the policy behind them."""

from __future__ import annotations

import datetime as dt
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outfall import (
    BackgroundSink,
    BatchResult,
    CaptureSink,
    DeliveryError,
    Encoded,
    OversizeDeliveryError,
    PausedDeliveryError,
    PermanentDeliveryError,
    RetryPolicy,
    Sink,
    TemporaryDeliveryError,
)
from outfall.sinks.core.item import Batch
from outfall.sinks.core.ledger import Outcome
from outfall.sinks.delivery.delivery import Delivery
from outfall.sinks.testing import FailingSink

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def items(*numbers: int) -> list[Encoded]:
    """Return one item for each number."""
    return [Encoded(b'{"n":%d}' % number, 20, 1.0) for number in numbers]


class Target(Sink):
    """Does with each batch what its script says: an answer, an exception to raise, or a callable that gives one."""

    def __init__(self, *script: Any) -> None:
        super().__init__()
        self.script = list(script)
        self.batches: list[Batch] = []
        self.taken: list[int] = []

    def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
        assert isinstance(batch, Batch)
        self.batches.append(batch)
        answer = self.script.pop(0) if self.script else None
        if callable(answer):
            answer = answer(batch)
        if isinstance(answer, BaseException):
            raise answer
        left = set() if answer is None else {*answer.retry, *answer.rejected}
        self.taken += [item.event["n"] for index, item in enumerate(batch) if index not in left]
        return answer


class Run:
    """A delivery with everything around it recorded."""

    def __init__(
        self, target: Sink, *, stop_after: int | None = None, random: Callable[[], float] = lambda: 1.0, **options: Any
    ):
        self.outcomes: list[Outcome] = []
        self.told: list[tuple[Exception, int]] = []
        self.waits: list[float] = []
        self.stop_after = stop_after
        self.delivery = Delivery(
            target,
            settle=self.outcomes.append,
            tell=lambda error, events: self.told.append((error, events)),
            pause=self.pause,
            random=random,
            **options,
        )

    def pause(self, seconds: float) -> bool:
        self.waits.append(seconds)
        return self.stop_after is None or len(self.waits) < self.stop_after

    def __call__(self, *numbers: int) -> list[Batch]:
        return self.delivery.deliver(Batch(items(*numbers), "key"))

    def total(self, name: str) -> int:
        return sum(getattr(outcome, name) for outcome in self.outcomes)

    @property
    def dropped(self) -> dict[str, int]:
        made: dict[str, int] = {}
        for outcome in self.outcomes:
            for reason, events in outcome.dropped.items():
                made[reason] = made.get(reason, 0) + events
        return made


def refuse(*bad: int, error: type[Exception] = PermanentDeliveryError) -> Callable[[Batch], Any]:
    """Return an answer that refuses every batch with one of these events in it."""
    return lambda batch: error("bad") if any(item.event["n"] in bad for item in batch) else None


# -- delivering


def test_a_batch_that_is_taken_is_settled_whole():
    """One call, one outcome, nothing told."""
    run = Run(target := Target())
    assert run(1, 2, 3) == []
    assert run.outcomes == [Outcome(delivered=3)]
    assert (target.taken, run.told, run.waits) == ([1, 2, 3], [], [])


def test_an_empty_batch_is_not_delivered():
    """The target is not asked to take nothing."""
    run = Run(target := Target())
    assert run() == []
    assert target.batches == []


def test_a_temporary_failure_is_tried_again_with_the_same_key():
    """The whole batch again, after a wait, under one key; each failure is told without a loss."""
    error = TemporaryDeliveryError("busy")
    run = Run(target := Target(error, error))
    assert run(1, 2) == []
    assert [batch.key for batch in target.batches] == ["key"] * 3
    assert (run.total("delivered"), run.total("retried")) == (2, 2)
    assert run.told == [(error, 0)] * 2


@pytest.mark.parametrize("error", [ConnectionResetError("reset"), TimeoutError("late"), OSError("no route")])
def test_an_error_of_the_system_is_temporary(error):
    """Who writes a sink need not translate what a socket raises."""
    run = Run(target := Target(error))
    assert run(1) == []
    assert target.taken == [1]


def test_waits_grow_from_start_to_the_limit():
    """0.5 s, doubled each time, never over 30 s, when the jitter takes the whole."""
    run = Run(Target(*[TemporaryDeliveryError("busy")] * 9))
    run(1)
    assert run.waits == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


@pytest.mark.parametrize("late", [TemporaryDeliveryError("late", halve_after=1), TimeoutError("late")])
def test_less_is_sent_at_once_after_a_timeout_and_more_again_when_it_gets_through(late):
    """A target that is through with eight events in time gets eight or fewer, soon, and is tried with a few more."""

    def slow(batch: Batch) -> Any:
        return late if len(batch) > 8 else None

    run = Run(target := Target(*[slow] * 1000))
    assert run(*[1] * 64) == []
    sizes = [len(batch) for batch in target.batches]
    assert sizes[:4] == [64, 32, 16, 8]
    assert max(sizes[4:]) in {9, 10}
    assert sum(sizes) < 4 * 64
    assert len(target.taken) == 64
    target.script.clear()
    before = len(target.batches)
    run(*[1] * 1000)
    sizes = [len(batch) for batch in target.batches[before:]]
    assert sizes[:-1] == sorted(sizes[:-1])
    assert max(sizes) > 100


@pytest.mark.parametrize("lost", [TemporaryDeliveryError("lost", halve_after=4), ConnectionResetError("lost")])
def test_what_gets_no_answer_again_and_again_is_sent_in_smaller_parts(lost):
    """The same under the same key at first; no batch is sent the same way for ever."""

    def breaks(batch: Batch) -> Any:
        return lost if len(batch) > 3 else None

    run = Run(target := Target(*[breaks] * 1000))
    assert run(*range(16)) == []
    assert [len(batch) for batch in target.batches][:6] == [16, 16, 16, 16, 8, 4]
    assert [batch.key for batch in target.batches[:4]] == ["key"] * 4
    assert target.taken == list(range(16))


@pytest.mark.parametrize("error", [TemporaryDeliveryError("503"), PausedDeliveryError("401"), OSError("full")])
def test_what_says_nothing_of_the_size_keeps_the_batch_whole(error):
    """A server that is away or full is asked for the same again, however often."""
    run = Run(target := Target(*[error] * 20))
    assert run(*range(16)) == []
    assert {batch.key for batch in target.batches} == {"key"}


def test_one_event_that_is_never_answered_is_tried_for_ever_and_the_attempts_count():
    """It cannot be made smaller; a limit of attempts gives it up, and the others follow."""

    def slow(batch: Batch) -> Any:
        return TemporaryDeliveryError("late", halve_after=1) if any(item.event["n"] == 1 for item in batch) else None

    run = Run(target := Target(*[slow] * 1000), retry=RetryPolicy(max_attempts=3))
    assert run(0, 1, 2, 3) == []
    assert (target.taken, run.dropped) == ([0, 2, 3], {"retries": 1})


def test_a_success_begins_the_waits_anew():
    """What failed an hour ago does not lengthen the next wait."""
    error = TemporaryDeliveryError("busy")
    run = Run(Target(error, error, None, error))
    run(1)
    run(2)
    assert run.waits == [0.5, 1, 0.5]


def test_the_target_s_own_word_is_the_wait():
    """Retry-After makes a wait longer; nothing and too little leave it as the policy has it, in a pause too."""
    run = Run(
        Target(
            TemporaryDeliveryError("busy", 120.0),
            TemporaryDeliveryError("busy", 0.0),
            BatchResult([0], retry_after=7),
            BatchResult([0], retry_after=0),
            TemporaryDeliveryError("busy", float("nan")),
            PausedDeliveryError("no", 0.0),
            PausedDeliveryError("no", 90.0),
        )
    )
    run(1)
    assert run.waits == [120, 1, 7, 4, 8, 1, 90]


def test_a_pause_grows_by_itself_to_a_minute():
    """1 s, doubled each time, never over 60 s, without jitter."""
    run = Run(Target(*[PausedDeliveryError("401")] * 8), random=lambda: 0.0)
    run(1)
    assert run.waits == [1, 2, 4, 8, 16, 32, 60, 60]


def test_a_delivery_that_has_to_stop_gives_back_what_is_left():
    """In order, and what was settled before is not among it."""
    run = Run(target := Target(refuse(3), None, TemporaryDeliveryError("busy")), stop_after=1)
    left = run(1, 2, 3, 4)
    assert target.taken == [1, 2]
    assert [[item.event["n"] for item in batch] for batch in left] == [[3, 4]]


def test_the_number_of_attempts_can_be_limited():
    """After so many the events are given up, each told; a pause does not count."""
    busy = TemporaryDeliveryError("busy")
    run = Run(target := Target(busy, busy, None), retry=RetryPolicy(max_attempts=2))
    assert run(1, 2) == []
    assert run.dropped == {"retries": 2}
    assert len(run.waits) == 1
    assert [events for _, events in run.told] == [0, 1, 1]
    run(3)
    assert target.taken == [3]
    run = Run(target := Target(*[PausedDeliveryError("404")] * 5), retry=RetryPolicy(max_attempts=2))
    run(1)
    assert target.taken == [1]


def test_what_is_given_up_goes_to_the_dead_letter_sink():
    """With one, nothing is dropped."""
    dead = CaptureSink()
    busy = TemporaryDeliveryError("busy")
    run = Run(Target(busy), retry=RetryPolicy(max_attempts=1), dead_letter=dead)
    run(1, 2)
    assert [event["n"] for event in dead.events] == [1, 2]
    assert (run.total("dead_lettered"), run.dropped) == (2, {})


# -- refusing


def test_one_bad_event_in_a_batch_costs_itself_alone():
    """A batch that is refused is halved until the one is found; all others are delivered, in order."""
    dead = CaptureSink()
    run = Run(target := Target(*[refuse(313)] * 100), dead_letter=dead)
    assert run(*range(500)) == []
    assert target.taken == [number for number in range(500) if number != 313]
    assert [event["n"] for event in dead.events] == [313]
    assert len(target.batches) < 2 * 10 + 1
    assert run.waits == []


def test_without_a_dead_letter_sink_it_is_counted_and_told():
    """The loss of one event, with the reason."""
    run = Run(Target(PermanentDeliveryError("no such field")))
    run(1)
    assert run.dropped == {"rejected": 1}
    [(error, events)] = run.told
    assert (str(error), events) == ("no such field", 1)


def test_an_unexpected_exception_finds_its_event_too():
    """A defect of the target costs the event it chokes on, counted as an error."""
    run = Run(target := Target(*[refuse(2, error=ValueError)] * 9))
    assert run(1, 2, 3) == []
    assert target.taken == [1, 3]
    assert run.dropped == {"error": 1}


def test_what_is_told_holds_no_value_of_the_event():
    """A target's own exception may quote what it could not take."""
    target = Target(lambda batch: ValueError(f"cannot take {batch[0].data!r}"))
    run = Run(target)
    run.delivery.deliver(Batch([Encoded(b'{"password":"correct horse"}', 20, 1.0)]))
    assert run.told
    assert "correct horse" not in repr(run.told)


def test_parts_of_a_batch_have_keys_of_their_own_that_follow_from_it():
    """The same halves at the next start have the same keys; no two parts share one."""

    def keys() -> list[str]:
        run = Run(target := Target(*[refuse(3)] * 20))
        run(*range(8))
        return [batch.key for batch in target.batches]

    assert keys() == keys()
    assert len(set(keys())) == len(keys())
    assert keys()[0] == "key"


def test_too_large_a_batch_is_halved_and_the_next_ones_are_smaller_at_once():
    """What was too much once is not sent again."""
    limit = 30

    def large(batch: Batch) -> Any:
        return OversizeDeliveryError("413") if sum(map(len, batch.data)) > limit else None

    run = Run(target := Target(*[large] * 100))
    run(*range(8))
    assert target.taken == list(range(8))
    tried = len(target.batches)
    run(*range(8))
    assert target.taken == [*range(8)] * 2
    refused = [batch for batch in target.batches[tried:] if sum(map(len, batch.data)) > limit]
    assert refused == []


def test_one_event_that_is_too_large_by_itself_is_set_aside_and_shrinks_no_batch():
    """A huge event is dead-lettered; the next batches go whole."""
    dead = CaptureSink()
    huge = Encoded(b'{"n":1,"text":"%s"}' % (b"x" * 1000), 20, 1.0)

    def large(batch: Batch) -> Any:
        return OversizeDeliveryError("413") if sum(map(len, batch.data)) > 500 else None

    run = Run(target := Target(*[large] * 100), dead_letter=dead)
    run.delivery.deliver(Batch([*items(0), huge, *items(2, 3)]))
    assert target.taken == [0, 2, 3]
    assert [event["n"] for event in dead.events] == [1]
    before = len(target.batches)
    run(*range(20))
    assert len(target.batches) == before + 1


# -- partial success


def test_what_a_result_names_is_retried_or_set_aside_and_the_rest_is_delivered():
    """The answer is read item by item."""
    dead = CaptureSink()
    run = Run(target := Target(BatchResult([1, 3], {0: "no"})), dead_letter=dead)
    assert run(0, 1, 2, 3) == []
    assert target.taken == [2, 1, 3]
    assert [event["n"] for event in dead.events] == [0]
    assert (run.total("delivered"), run.total("dead_lettered")) == (3, 1)
    assert target.batches[1].key != target.batches[0].key


def test_what_was_refused_without_saying_which_is_counted():
    """OTLP says only how many."""
    run = Run(Target(BatchResult(rejected_unknown=2)))
    run(0, 1, 2)
    assert (run.total("delivered"), run.dropped) == (1, {"rejected": 2})
    assert [events for _, events in run.told] == [2]


def test_a_result_that_makes_no_sense_settles_each_event_once():
    """Indexes out of range, named twice, or more refused than there are."""
    run = Run(Target(BatchResult([0, 0, 9, -1], {0: "no", 7: "no"}, rejected_unknown=50)))
    assert run(0, 1) == []
    assert sum(outcome.events for outcome in run.outcomes) == 2


def test_progress_begins_the_attempts_anew():
    """A target that takes a part each time is not given up."""
    run = Run(target := Target(BatchResult([1, 2]), BatchResult([1]), None), retry=RetryPolicy(max_attempts=2))
    assert run(0, 1, 2) == []
    assert sorted(target.taken) == [0, 1, 2]
    assert run.dropped == {}


# -- dead letters


def test_a_dead_letter_sink_that_fails_is_told_and_the_loss_counted():
    """No loss is silent, that of a dead letter neither."""
    run = Run(Target(PermanentDeliveryError("no")), dead_letter=FailingSink(OSError("disk full")))
    run(1)
    assert run.dropped == {"rejected": 1}
    assert [(type(error), events) for error, events in run.told] == [(OSError, 0), (PermanentDeliveryError, 1)]


def test_a_dead_letter_sink_may_be_a_background_sink():
    """The mark of a delivering thread does not make it refuse."""
    kept = CaptureSink()
    with BackgroundSink(kept) as dead, BackgroundSink(Target(PermanentDeliveryError("no")), dead_letter=dead) as sink:
        sink.handle({"event": "x", "n": 1})
        assert sink.flush()
        assert sink.stats().dead_lettered == 1
        assert dead.flush()
    assert [event["n"] for event in kept.events] == [1]


@given(st.data())
def test_every_event_is_settled_exactly_once(data):
    """Whatever the target answers, the ledger balances, and nothing is taken twice or out of order."""
    n = data.draw(st.integers(1, 12))
    indexes = st.lists(st.integers(-1, 13), max_size=4)
    answers = st.one_of(
        st.none(),
        st.builds(TemporaryDeliveryError, st.just("busy"), st.one_of(st.none(), st.floats(0, 5))),
        st.builds(PausedDeliveryError, st.just("404")),
        st.builds(PermanentDeliveryError, st.just("bad")),
        st.builds(OversizeDeliveryError, st.just("413")),
        st.builds(ValueError),
        st.builds(BatchResult, indexes, st.dictionaries(st.integers(-1, 13), st.just("no")), st.integers(0, 3)),
    )
    run = Run(
        target := Target(*data.draw(st.lists(answers, max_size=20))),
        retry=RetryPolicy(max_attempts=data.draw(st.one_of(st.none(), st.integers(1, 3)))),
        stop_after=data.draw(st.one_of(st.none(), st.integers(1, 5))),
    )
    left = run(*range(n))
    rest = [item.event["n"] for batch in left for item in batch]
    assert sum(outcome.events for outcome in run.outcomes) + len(rest) == n
    assert run.total("delivered") <= len(target.taken) <= n
    assert len(set(target.taken)) == len(target.taken)
    assert not set(rest) & set(target.taken)
    assert all(one < other for one, other in pairwise(rest))


# -- the policy


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("start_seconds", -1),
        ("start_seconds", "soon"),
        ("max_seconds", float("inf")),
        ("pause_start_seconds", True),
        ("pause_max_seconds", float("nan")),
        ("factor", 0.5),
        ("factor", None),
        ("max_attempts", 0),
        ("max_attempts", 1.5),
        ("max_attempts", True),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused_by_name(name, value):
    """The message names the argument and the value."""
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        RetryPolicy(**{name: value})


def test_times_may_be_timedeltas_and_text():
    """They are kept as seconds."""
    policy = RetryPolicy(
        start_seconds=dt.timedelta(milliseconds=250),
        max_seconds="1m30s",
        pause_start_seconds="2 s",
        pause_max_seconds=dt.timedelta(hours=1),
    )
    assert policy == RetryPolicy(start_seconds=0.25, max_seconds=90, pause_start_seconds=2, pause_max_seconds=3600)
    assert policy.pause_seconds(20) == 3600


def test_jitter_takes_a_random_part_of_the_wait():
    """From nothing to the whole."""
    policy = RetryPolicy(start_seconds=8)
    assert [policy.wait_seconds(1, lambda part=part: part) for part in (0.0, 0.25, 1.0)] == [0, 2, 8]
    assert RetryPolicy(start_seconds=8, jitter=False).wait_seconds(1, lambda: 0.25) == 8


@given(st.floats(1, 1e300), st.integers(1, 10_000), st.floats(0, 1e6))
def test_a_wait_never_exceeds_the_limit_nor_overflows(factor, failures, start):
    """However often it has failed."""
    policy = RetryPolicy(start_seconds=start, factor=factor, jitter=False)
    assert 0 <= policy.wait_seconds(failures, lambda: 1.0) <= 30
    assert 0 <= policy.pause_seconds(failures) <= 60


def test_options_of_another_type_are_refused():
    """The message names the argument and the value."""
    with pytest.raises(TypeError, match="retry=3 is not a RetryPolicy"):
        BackgroundSink(CaptureSink(), retry=3)
    with pytest.raises(TypeError, match="dead_letter='x' is not a Sink"):
        BackgroundSink(CaptureSink(), dead_letter="x")


def test_what_delivery_raises_is_a_delivery_error():
    """The classes that mean something to it are in the tree."""
    assert issubclass(PausedDeliveryError, TemporaryDeliveryError)
    assert issubclass(OversizeDeliveryError, PermanentDeliveryError)
    assert issubclass(TemporaryDeliveryError, DeliveryError)
