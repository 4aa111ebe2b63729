"""The protocol between a wrapper and its target, by the wrapper of the how-to."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from outfall import BackgroundSink, CaptureSink, FanoutSink, FileSink, MemorySink, NullSink, Sink, SpoolSink
from outfall.sinks.core.forwarding import reads_data_alone
from outfall.sinks.testing import SinkContract
from tests.sinks._processes import ROOT, events_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from outfall import BatchResult, Encoded


def _wrapper() -> Any:
    """Return the class that the how-to shows."""
    page = (ROOT / "docs/how-to/own-sink.md").read_text()
    block = next(each for each in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "class TaggedSink" in each)
    names: dict[str, Any] = {"__name__": __name__}
    exec(block.partition("\ntarget = ")[0], names)
    return names["TaggedSink"]


TaggedSink = _wrapper()


class TestTaggedSink(SinkContract):
    """The wrapper of the how-to keeps the promises of all sinks."""

    def make_sink(self, **options: Any) -> Sink:
        """Return one around a sink that captures."""
        self.target = CaptureSink()
        made: Sink = TaggedSink(self.target, "blue", **options)
        return made

    def received(self, sink: Sink) -> Sequence[Any]:
        """Return what came, less the field that the wrapper adds."""
        return [{key: value for key, value in event.items() if key != "tag"} for event in self.target.events]


@pytest.mark.parametrize("kind", ["background", "spool", "fanout"])
def test_a_wrapper_is_a_target_like_any_other(tmp_path: Path, kind: str) -> None:
    """What it adds is there, the target's level counts, and each event comes once."""
    path = tmp_path / "out.jsonl"
    wrapper = TaggedSink(FileSink(path, level="info"), "blue")
    made: dict[str, Any] = {
        "background": lambda: BackgroundSink(wrapper),
        "spool": lambda: SpoolSink(wrapper, tmp_path / "spool"),
        "fanout": lambda: BackgroundSink(FanoutSink(wrapper, NullSink())),
    }
    with made[kind]() as sink:
        for number in range(3):
            sink.handle({"event": "x", "level": "info", "n": number})
            sink.handle({"event": "x", "level": "debug", "n": number})
        assert sink.flush(60)
    assert [(event["n"], event["tag"]) for event in events_of(path)] == [(0, "blue"), (1, "blue"), (2, "blue")]


def test_a_wrapper_around_a_buffer_says_so() -> None:
    """A spool refuses it: what the buffer has is lost with the process."""
    assert TaggedSink(MemorySink(10), "blue").keeps_in_memory
    assert FanoutSink(NullSink(), TaggedSink(BackgroundSink(NullSink()), "blue")).keeps_in_memory
    assert not TaggedSink(NullSink(), "blue").keeps_in_memory


def test_an_emit_batch_of_ones_own_reads_all_of_an_item() -> None:
    """Unless it is marked: then neither level nor time are found out for it."""

    class Own(FileSink):
        def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
            return super().emit_batch(batch)

    class Marked(FileSink):
        @reads_data_alone()
        def emit_batch(self, batch: Sequence[Encoded]) -> BatchResult | None:
            return super().emit_batch(batch)

    plain, own, marked = (kind("never opened", delay=True) for kind in (FileSink, Own, Marked))
    assert (plain.needs_moment, own.needs_moment, marked.needs_moment) == (False, True, False)
    assert (plain.takes_any_number, own.takes_any_number, marked.takes_any_number) == (True, False, False)
    assert (plain.plain, own.plain, marked.plain) == (True, True, True)
