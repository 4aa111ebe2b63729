"""The ledgers of all open sinks as metrics, for Prometheus and OpenTelemetry.

| metric (Prometheus) | instrument (OpenTelemetry) | what it counts |
| --- | --- | --- |
| ``outfall_events_accepted_total`` | ``outfall.events.accepted`` | events that passed level and processors |
| ``outfall_events_adopted_total`` | ``outfall.events.adopted`` | events taken over from a dead process's spool |
| ``outfall_events_filtered_total`` | ``outfall.events.filtered`` | events that level or processors rejected |
| ``outfall_events_delivered_total`` | ``outfall.events.delivered`` | events that the target took |
| ``outfall_events_dropped_total`` | ``outfall.events.dropped`` | lost events, by ``reason`` |
| ``outfall_events_dead_lettered_total`` | ``outfall.events.dead_lettered`` | refused events in dead letters |
| ``outfall_retries_total`` | ``outfall.retries`` | repeated attempts |
| ``outfall_events_pending`` | ``outfall.events.pending`` | events in memory without an outcome yet |
| ``outfall_events_spooled`` | ``outfall.events.spooled`` | events on disk that are not delivered |
| ``outfall_spool_used_bytes`` | ``outfall.spool.used`` | the size of a spool on disk |
| ``outfall_spool_max_bytes`` | ``outfall.spool.max`` | its largest size |
| ``outfall_last_delivery_timestamp_seconds`` | ``outfall.last_delivery`` | when events were last seen to be delivered |

Each metric has the labels ``sink``, the name of the sink (of a sink behind a router or listener: that of the owner and
its own), and ``where``, its target: a path, a host. The numbers of sinks with the same labels are added. The ledgers
are read when metrics are collected; sinks do no extra counting.
"""

from __future__ import annotations

import time
from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from outfall.adapters.setup import open_sinks
from outfall.sinks.core.ledger import SinkStats
from outfall.sinks.core.lifecycle import participants
from outfall.sinks.core.sink import Sink
from outfall.sinks.errors import extra_module

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class _Series(NamedTuple):
    """A metric.

    Args:
        prometheus: The name in Prometheus, without ``_total``.
        otel: The name in OpenTelemetry.
        unit: The unit in OpenTelemetry.
        about: The description.
        counts: True for a counter, False for a gauge.
    """

    prometheus: str
    otel: str
    unit: str
    about: str
    counts: bool


#: The description of each number of a ledger that counts events.
_EVENTS = {
    "accepted": "Events that passed level and processors",
    "adopted": "Events taken over from a dead process's spool",
    "filtered": "Events that level or processors rejected",
    "delivered": "Events that the target took",
    "dropped": "Lost events, by reason",
    "dead_lettered": "Refused events that a dead letter sink took",
    "pending": "Events in memory without an outcome yet",
    "spooled": "Events on disk that are not delivered",
}

_LAST = "When events were last seen to be delivered, in seconds since the epoch"

_SERIES = {
    name: _Series(
        f"outfall_events_{name}", f"outfall.events.{name}", "{event}", about, name not in ("pending", "spooled")
    )
    for name, about in _EVENTS.items()
} | {
    "retried": _Series("outfall_retries", "outfall.retries", "{attempt}", "Repeated attempts", True),
    "used": _Series("outfall_spool_used_bytes", "outfall.spool.used", "By", "The size of a spool on disk", False),
    "max": _Series("outfall_spool_max_bytes", "outfall.spool.max", "By", "The largest size of a spool on disk", False),
    "last": _Series("outfall_last_delivery_timestamp_seconds", "outfall.last_delivery", "s", _LAST, False),
}

#: The fields of a ledger that are numbers.
_NUMBERS = (*(name for name in _EVENTS if name != "dropped"), "retried")

#: The values of the labels: sink, where, and the reason of drops.
_Labels = tuple[str, str, str]

#: The target of a sink, for the label, and the trees of the sinks behind it, in the order of its ledger's ``targets``.
_Tree = tuple[str, "list[_Tree]"]


class SinkMetrics:
    """Read the ledgers of all open sinks and listeners of this process as metrics; a collector for Prometheus.

    ``outfall_last_delivery_timestamp_seconds`` is the time of the last reading that found more delivered events than
    the reading before it. So its precision is the interval between readings.

    A forked child has its own numbers, since its ledgers start empty. Safe from any thread.
    """

    def __init__(self) -> None:
        #: For each sink the number of delivered events at the last reading, and when it was last seen to grow.
        self._seen: dict[_Labels, tuple[float, float]] = {}

    def read(self) -> dict[str, dict[tuple[str, str, str], float]]:
        """Return the numbers: by the ledger's name for them, then by sink, where, and reason ("" except for drops)."""
        found: dict[str, dict[_Labels, float]] = {name: defaultdict(float) for name in _SERIES}
        for sink in open_sinks():
            self._add(found, sink.stats(), _tree(sink))
            for spool in _spools(sink):
                place = (spool.name, spool._where(), "")
                found["used"][place] += spool.used_bytes
                found["max"][place] += spool.max_bytes
        for listener in _listeners():
            # The ledger of a listener contains one for each of its sinks, which contains the sink's own.
            sinks = [(sink._where(), [_tree(sink)]) for sink, _ in [*getattr(listener, "_accounts", {}).values()]]
            self._add(found, listener.stats(), (listener._where() if hasattr(listener, "_where") else "", sinks))
        self._look_at_deliveries(found)
        return found

    def _add(self, found: dict[str, dict[_Labels, float]], stats: SinkStats, tree: _Tree, owner: str = "") -> None:
        where, behind = tree
        name = f"{owner}/{stats.name}" if owner else stats.name
        place = (name, where, "")
        for number in _NUMBERS:
            found[number][place] += getattr(stats, number)
        for reason, events in stats.dropped.items():
            found["dropped"][name, where, reason] += events
        if len(behind) != len(stats.targets):
            behind = [(where, [])] * len(stats.targets)
        for target, branch in zip(stats.targets, behind, strict=True):
            # Events of a sink behind a wrapper are counted by the wrapper.
            if target.accepted or target.targets:
                self._add(found, target, branch, name)

    def _look_at_deliveries(self, found: dict[str, dict[_Labels, float]]) -> None:
        now, seen = time.time(), self._seen
        for place, delivered in found["delivered"].items():
            before, when = seen.get(place, (0.0, 0.0))
            if delivered != before:
                when = now
            seen[place] = (delivered, when)
            if when:
                found["last"][place] = when

    def collect(self) -> Iterator[Any]:
        """Yield the metrics; ``prometheus_client`` calls this at each scrape."""
        core = extra_module("prometheus_client.core", "prometheus")
        found = self.read()
        for name, series in _SERIES.items():
            labels = ("sink", "where", "reason") if name == "dropped" else ("sink", "where")
            kind = core.CounterMetricFamily if series.counts else core.GaugeMetricFamily
            family = kind(series.prometheus, series.about, labels=labels)
            for place, number in found[name].items():
                family.add_metric(place[: len(labels)], number)
            yield family

    def describe(self) -> Iterable[Any]:
        """Return nothing, so that registering does not read the ledgers."""
        return ()


def register(registry: Any = None) -> SinkMetrics:
    """Register the metrics with *registry* of ``prometheus_client``, and return the collector.

    Args:
        registry: A ``prometheus_client.CollectorRegistry``. Default None: the client's own.

    Raises:
        MissingDependencyError: Without prometheus_client; it comes with the extra ``prometheus``.
    """
    client = extra_module("prometheus_client", "prometheus")
    made = SinkMetrics()
    (client.REGISTRY if registry is None else registry).register(made)
    return made


def observe(meter_provider: Any = None) -> SinkMetrics:
    """Register the metrics as observable instruments of OpenTelemetry, and return the object that reads them.

    Args:
        meter_provider: A ``MeterProvider``. Default None: that of the process.

    Raises:
        MissingDependencyError: Without opentelemetry-api; it comes with the extra ``otel``.
    """
    metrics = extra_module("opentelemetry.metrics", "otel")
    provider = metrics.get_meter_provider() if meter_provider is None else meter_provider
    meter = provider.get_meter("outfall")
    made = SinkMetrics()

    #: The numbers of the last reading that have not been observed yet: each collection reads the ledgers once.
    waiting: dict[str, dict[_Labels, float]] = {}

    def observations(name: str, _options: Any) -> list[Any]:
        numbers = waiting.pop(name, None)
        if numbers is None:
            found = made.read()
            numbers = found.pop(name)
            waiting.update(found)
        given: list[Any] = []
        for (sink, where, reason), number in numbers.items():
            attributes = {"sink": sink, "where": where} | ({"reason": reason} if reason else {})
            given.append(metrics.Observation(number, attributes))
        return given

    for name, series in _SERIES.items():
        make = meter.create_observable_counter if series.counts else meter.create_observable_gauge
        make(series.otel, [partial(observations, name)], unit=series.unit, description=series.about)
    return made


def _spools(sink: Sink) -> Iterator[Any]:
    """Yield the spools among *sink* and the sinks behind it."""
    if hasattr(sink, "used_bytes"):
        yield sink
    for behind in _behind(sink):
        yield from _spools(behind)


def _behind(sink: Sink) -> list[Sink]:
    return [each for each in (getattr(sink, "target", None), *getattr(sink, "sinks", ())) if isinstance(each, Sink)]


def _tree(sink: Sink) -> _Tree:
    """Return the target of *sink*, and the trees of the sinks behind it."""
    return sink._where(), [_tree(each) for each in _behind(sink)]


def _listeners() -> Iterator[Any]:
    """Yield the running listeners that have a ledger."""
    for each in participants():
        if not isinstance(each, Sink) and getattr(each, "running", False):
            stats = getattr(each, "stats", None)
            if callable(stats) and isinstance(stats(), SinkStats):
                yield each
