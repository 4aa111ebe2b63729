"""CaptureSink keeps snapshots."""

from __future__ import annotations

from outfall import CaptureSink


def test_events_are_snapshots_without_metadata() -> None:
    """What the caller changes later is not seen; metadata is not kept."""
    sink = CaptureSink()
    event = {"event": "x", "tags": ["a"], "_record": object(), "_from_structlog": False}
    sink.handle(event)
    event["tags"].append("b")  # type: ignore[attr-defined]
    assert sink.events == [{"event": "x", "tags": ["a"]}]


def test_clear_forgets() -> None:
    """clear() empties the list; the ledger goes on."""
    sink = CaptureSink()
    sink.handle({"event": "x"})
    sink.clear()
    assert (sink.events, sink.stats().delivered) == ([], 1)


def test_text_is_kept_as_an_event() -> None:
    """Rendered text is kept as an event of one field."""
    sink = CaptureSink()
    sink.handle("done")
    assert sink.events == [{"event": "done"}]
