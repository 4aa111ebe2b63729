"""Draws the results as charts, and writes text, for the documentation: ``docs/benchmarks``.

A chart is an SVG, in one version for light pages and one for dark pages: bars, a line for the lowest possible cost, and
a mark for the budget of each of our own rows. Charts are drawn from ``results.json`` alone, so they can be drawn again
without measuring: ``python -m benchmarks.charts docs/benchmarks``.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from xml.sax.saxutils import escape

from benchmarks import words

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

RESULTS = "results.json"


@dataclass(frozen=True)
class Chart:
    """One chart.

    Args:
        slug: The beginning of the names of its files.
        title: A description of the comparison, for people who cannot see the chart.
        bars: The rows to show, as (group, row), with a label if the row's name is not suitable.
        by: The length of a bar: ``"floor"`` or ``"peer"``, the ratio to that row; ``"median"``, in the group's unit;
            ``"rate"``, the ratio to the floor's events per second.
        axis: What 1 means, or the unit.
    """

    slug: str
    title: str
    bars: tuple[tuple[str, ...], ...]
    by: Literal["floor", "peer", "median", "rate"]
    axis: str


_F = "times an os.write of the ready line"
_PJL = "python-json-logger[orjson]"

#: In the order of the page: one chart for each comparison with a budget.
CHARTS = (
    Chart(
        "file",
        "Event dicts into a file",
        (
            ("file", "FileSink"),
            ("file", "FileSink, level set"),
            ("file", "FileSink, a processor"),
            ("file", "FileSink, throttled, none held back"),
            ("file", "FileSink, a storm of one message, throttled"),
            ("file", "FileSink, a renderer"),
            ("structlog", "structlog → BytesLogger"),
            ("stdlib", "FileHandler + json", "logging → FileHandler + json"),
            ("stdlib", f"FileHandler + {_PJL}", f"logging → FileHandler + {_PJL}"),
            ("stdlib", "loguru, serialize=True"),
        ),
        "floor",
        _F,
    ),
    Chart(
        "buffered",
        "The same with a buffer",
        (("file", "FileSink, buffer_bytes=64 KiB"),),
        "floor",
        "times the ready line into a buffered file",
    ),
    Chart(
        "structlog",
        "structlog into a file",
        (
            ("structlog", "structlog → FileSink, last processor"),
            ("structlog", "structlog → FileSink, SinkLoggerFactory"),
            ("structlog", "structlog → BytesLogger"),
        ),
        "peer",
        "times structlog → BytesLogger",
    ),
    Chart(
        "rotating",
        "Files that roll over",
        (
            ("rotating", "RotatingFileSink"),
            ("rotating", "TimedRotatingFileSink"),
            ("rotating", f"RotatingFileHandler + {_PJL}", f"logging → RotatingFileHandler + {_PJL}"),
            (
                "rotating",
                "TimedRotatingFileHandler + the same",
                f"logging → TimedRotatingFileHandler + {_PJL}",
            ),
            ("rotating", "loguru, serialize=True, rotation="),
        ),
        "floor",
        _F,
    ),
    Chart(
        "multiprocess",
        "Files that roll over, shared by processes",
        (
            ("rotating", "RotatingFileSink, multiprocess=True"),
            ("rotating", "concurrent-log-handler + the same", f"logging → concurrent-log-handler + {_PJL}"),
        ),
        "floor",
        _F,
    ),
    Chart(
        "logging",
        "logging into a file that rolls over",
        (
            ("rotating", "logging → SinkHandler → RotatingFileSink"),
            ("rotating", f"RotatingFileHandler + {_PJL}", f"logging → RotatingFileHandler + {_PJL}"),
        ),
        "peer",
        f"times logging → RotatingFileHandler + {_PJL}",
    ),
    Chart(
        "background",
        "Event dicts to a thread, the caller's side",
        (
            ("queue", "QueueSink"),
            ("background", "BackgroundSink"),
            ("background", "SinkHandler → BackgroundSink", "logging → SinkHandler → BackgroundSink"),
            ("background", "QueueHandler", "logging → QueueHandler"),
            ("background", "loguru, enqueue=True"),
        ),
        "floor",
        "times a SimpleQueue.put of the ready line",
    ),
    Chart(
        "behind",
        "A file behind a thread, all CPU of the process",
        (
            ("behind", "BackgroundSink(FileSink)"),
            ("behind", "BackgroundSink(RotatingFileSink)"),
            ("behind", "SinkHandler → BackgroundSink(FileSink)", "logging → SinkHandler → BackgroundSink(FileSink)"),
            (
                "behind",
                "QueueHandler, QueueListener → FileHandler + json",
                "logging → QueueHandler … FileHandler + json",
            ),
        ),
        "floor",
        "times FileSink alone",
    ),
    Chart(
        "behind-wire",
        "Sockets behind a thread, all CPU of the process",
        (("behind", "BackgroundSink(SocketSink)"), ("behind", "BackgroundSink(SysLogSink, TCP)")),
        "floor",
        "times the same sink alone",
    ),
    Chart(
        "fanout",
        "One event to several files",
        (("behind", "FanoutSink(two FileSinks)"), ("behind", "FanoutSink(five FileSinks)")),
        "floor",
        "times one orjson.dumps and as many os.writes",
    ),
    Chart(
        "behind-caller",
        "The caller's CPU while a worker delivers",
        (
            ("behind-caller", "BackgroundSink(NullSink)"),
            ("behind-caller", "BackgroundSink, a target that counts"),
            ("behind-caller", "BackgroundSink(FileSink), caller"),
            ("behind-caller", "BackgroundSink(FanoutSink(two FileSinks)), caller"),
            ("behind-caller", "BackgroundSink(SysLogSink, UDP), caller"),
        ),
        "floor",
        "times a SimpleQueue.put of the ready line",
    ),
    Chart(
        "behind-rate",
        "Eight threads at once, until the last event is in the file",
        (("behind-rate", "BackgroundSink(FileSink), 8 threads"),),
        "floor",
        "times what FileSink takes",
    ),
    Chart(
        "fanout-rate",
        "Two files from eight threads",
        (("behind-rate", "FanoutSink(two FileSinks), 8 threads"),),
        "floor",
        "times what one thread takes",
    ),
    Chart(
        "behind-tail",
        "The slowest of 1 000 calls of handle",
        (
            ("behind-tail", "BackgroundSink(FileSink), p99.9, 1 thread"),
            ("behind-tail", "FileSink, p99.9, 1 thread"),
            ("behind-tail", "BackgroundSink(FileSink), p99.9, 8 threads"),
            ("behind-tail", "FileSink, p99.9, 8 threads"),
        ),
        "median",
        "microseconds",
    ),
    Chart(
        "bodies",
        "The body of a request, for each event",
        (
            ("bodies", "HTTPSink, LokiStreams"),
            ("bodies", "HTTPSink, ElasticsearchBulk"),
            ("bodies", "HTTPSink, OTLPLogs"),
            ("bodies", "HTTPSink, NDJSON"),
        ),
        "median",
        "microseconds of the worker",
    ),
    Chart(
        "tcp",
        "Event dicts over TCP",
        (("wire", "SocketSink"), ("wire", "SocketHandler", "logging → SocketHandler")),
        "floor",
        "times a sendall of the ready frame",
    ),
    Chart(
        "udp",
        "Event dicts over UDP",
        (("wire", "DatagramSink"), ("wire", "DatagramHandler", "logging → DatagramHandler")),
        "floor",
        "times a sendto of the ready line",
    ),
    Chart(
        "syslog",
        "Event dicts to a syslog daemon over UDP",
        (
            ("syslog", "SysLogSink, RFC 3164"),
            ("syslog", "SysLogHandler + python-json-logger[orjson]", f"logging → SysLogHandler + {_PJL}"),
        ),
        "floor",
        "times a send of the ready line",
    ),
    Chart(
        "collectors",
        "A burst of events to an HTTP collector, until the last has arrived",
        (
            ("collectors", "BackgroundSink(HTTPSink(NDJSON))"),
            ("collectors", "BackgroundSink(HTTPSink(OTLPLogs))"),
            ("collectors", "OpenTelemetry: BatchLogRecordProcessor, OTLP"),
            ("collectors", "python-logstash-async: HttpTransport"),
            ("collectors", "QueueHandler, QueueListener → HTTPHandler", "logging → QueueHandler … HTTPHandler"),
            ("collectors", "HTTPHandler", "logging → HTTPHandler"),
        ),
        "rate",
        "of the events a second that requests posts, 500 lines at a time; more is better",
    ),
    Chart(
        "spool",
        "The same by way of the disk",
        (
            ("spool", "SpoolSink(HTTPSink(NDJSON))"),
            ("spool", 'SpoolSink(HTTPSink(NDJSON)), fsync="interval"'),
            ("spool", "python-logstash-async: SQLite, HttpTransport"),
        ),
        "rate",
        "of the events a second that requests posts, 500 lines at a time; more is better",
    ),
    Chart(
        "spool-caller",
        "Event dicts to a spool, the caller's side",
        (
            ("spool-caller", "SpoolSink, collector away"),
            ("spool-caller", "SpoolSink, while it delivers"),
        ),
        "floor",
        _F,
    ),
    Chart(
        "startup",
        "Importing",
        (
            ("startup", "from outfall import FileSink, after those", "from outfall import FileSink"),
            ("startup", "import structlog, orjson", "import structlog, orjson before it"),
        ),
        "median",
        "milliseconds in a new interpreter",
    ),
)


# -- from results to bars


@dataclass(frozen=True)
class Bar:
    """One bar.

    Args:
        label: The text above it.
        value: Its length; None if the library was not installed.
        text: The value as text.
        budget: The position of the mark, or None.
        ours: True for a row of Outfall's.
    """

    label: str
    value: float | None
    text: str
    budget: float | None
    ours: bool


def bars_of(chart: Chart, results: dict[str, Any]) -> list[Bar]:
    """Return the bars of *chart*.

    Raises:
        KeyError: If one of its rows is not in *results*.
    """
    found = {(group["name"], row["name"]): row for group in results["groups"] for row in group["rows"]}
    return [_bar(chart, found[bar[0], bar[1]], bar[-1]) for bar in chart.bars]


def _bar(chart: Chart, row: dict[str, Any], label: str) -> Bar:
    value: float | None = row["median"]
    if chart.by != "median" and value is not None:
        ratio = row["peer_ratio"] if chart.by == "peer" else row["floor_ratio"]
        # The row that the others are compared with has no ratio.
        value = 1.0 if ratio is None else ratio
    # A row with a peer has its budget as a ratio to the peer.
    budget: float | None = row["budget"] if (row["peer"] is None) == (chart.by != "peer") else None
    if chart.by == "rate":
        value, budget = value and 1 / value, budget and 1 / budget
    if value is None:
        text = str(row["missing"])
    else:
        unit = "µs" if chart.axis.startswith("microseconds") else "ms"
        text = f"{value:.1f} {unit}" if chart.by == "median" else words.number(value)
        if row["arrived"] is not None and row["arrived"] < 1:
            text += f", {1 - row['arrived']:.1%} lost"
    return Bar(label, value, text, budget, bool(_OURS.search(row["name"])))


_OURS = re.compile(r"Sink|outfall")


# -- drawing


@dataclass(frozen=True)
class Theme:
    """The colours of a chart: those of the documentation's light and dark pages."""

    name: str
    text: str
    faint: str
    ours: str
    theirs: str
    budget: str


THEMES = (
    Theme("light", text="#1f2328", faint="#6b7280", ours="#2563eb", theirs="#b6bcc6", budget="#b42318"),
    Theme("dark", text="#e6e6e6", faint="#9aa1ab", ours="#5b9dff", theirs="#5a616b", budget="#ff8f85"),
)

_WIDTH, _ROW, _BAR, _TOP, _BOTTOM = 520, 46, 14, 6, 24
#: The position of the values, right of the longest bar.
_VALUES = 150
#: A bar longer than our longest times this is cut off: otherwise ours would be too short to see.
_LONGEST = 12.0
#: The width of the gap in such a bar, and its distance from the end.
_GAP, _GAP_FROM_END = 5, 24


def draw(chart: Chart, bars: Sequence[Bar], theme: Theme) -> str:
    """Return the SVG."""
    lengths = [bar.value for bar in bars if bar.value is not None]
    # The scale fits our own rows with a budget, which the chart is about.
    ours = [each for bar in bars if bar.ours and bar.budget and bar.value for each in (bar.value, bar.budget)]
    scale = min(max(lengths + ours, default=1.0), _LONGEST * max(ours or lengths, default=1.0))
    height = _TOP + _ROW * len(bars) + _BOTTOM
    size = f'viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="system-ui, sans-serif" font-size="13">',
        f"<title>{escape(chart.title)}</title>",
    ]
    for index, bar in enumerate(bars):
        parts += _drawn(bar, scale, _TOP + _ROW * index, theme)
    parts.append(
        _text(
            0, height - 8, f"{chart.axis}; {'more' if chart.by == 'rate' else 'less'} is better", theme.faint, size=11
        )
    )
    return "\n".join([*parts, "</svg>", ""])


def _drawn(bar: Bar, scale: float, top: int, theme: Theme) -> Iterator[str]:
    room, weight = _WIDTH - _VALUES, 600 if bar.ours else 400
    yield _text(0, top + 13, bar.label, theme.text, weight=weight)
    if bar.value is None:
        yield _text(0, top + 32, bar.text, theme.faint)
        return
    end = max(2.0, min(bar.value / scale, 1.0) * room)
    for start, stop in (
        ((0.0, end),)
        if bar.value <= scale
        else (
            (0.0, end - _GAP_FROM_END),
            (end - _GAP_FROM_END + _GAP, end),
        )
    ):
        colour = theme.ours if bar.ours else theme.theirs
        yield f'<rect x="{start:.1f}" y="{top + 20}" width="{stop - start:.1f}" height="{_BAR}" fill="{colour}"/>'
    note = bar.text
    if bar.ours and bar.budget is not None:
        mark = bar.budget / scale * room
        yield f'<path d="M{mark:.1f} {top + 17}v{_BAR + 6}" stroke="{theme.budget}" stroke-width="2"/>'
        note += f" (budget {words.number(bar.budget)})"
        end = max(end, mark)
    yield _text(end + 6, top + 31, note, theme.text, weight=weight)


def _text(x: float, y: float, text: str, colour: str, *, weight: int = 400, size: int = 13) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" font-weight="{weight}" font-size="{size}">{escape(text)}</text>'
    )


# -- the documentation


def publish(directory: Path, results: dict[str, Any] | None = None) -> None:
    """Write *results*, charts and texts into *directory*; without results, use those that are there.

    Raises:
        KeyError: If a group or row that a chart shows was not measured.
    """
    if results is None:
        results = json.loads((directory / RESULTS).read_text(encoding="utf-8"))
    assert results is not None
    made = {
        "machine.inc": words.machine_of(results),
        "summary.inc": words.summary_of(results),
        "budgets.inc": words.budgets_of(results),
        "figures.inc": words.figures_of(results),
        RESULTS: json.dumps(results, indent=1, ensure_ascii=False) + "\n",
    }
    for chart in CHARTS:
        bars = bars_of(chart, results)
        made |= {f"{chart.slug}-{theme.name}.svg": draw(chart, bars, theme) for theme in THEMES}
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in made.items():
        (directory / name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    publish(Path(sys.argv[1]))
