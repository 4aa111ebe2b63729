"""Writes the results as text and tables for the documentation."""

from __future__ import annotations

from typing import Any

_PJL = "python-json-logger[orjson]"

#: The table at the top of the page: description, group, our row, the other row.
SUMMARY = (
    ("structlog into a file", "structlog", "structlog → FileSink, last processor", "structlog → BytesLogger"),
    ("logging into a file", "stdlib", "SinkHandler → FileSink, callsite=False", f"FileHandler + {_PJL}"),
    (
        "logging into a file that rotates by size",
        "rotating",
        "logging → SinkHandler → RotatingFileSink",
        f"RotatingFileHandler + {_PJL}",
    ),
    (
        "a rotating file that processes share",
        "rotating",
        "RotatingFileSink, multiprocess=True",
        "concurrent-log-handler + the same",
    ),
    (
        "logging into a file behind a thread, all CPU",
        "behind",
        "SinkHandler → BackgroundSink(FileSink)",
        "QueueHandler, QueueListener → FileHandler + json",
    ),
    ("the share of the thread that logs", "background", "SinkHandler → BackgroundSink", "QueueHandler"),
    (
        "logging into syslog, UDP",
        "syslog",
        "SinkHandler → SysLogSink, RFC 3164",
        f"SysLogHandler + {_PJL}",
    ),
    (
        "logging to an HTTP collector",
        "collectors",
        "SinkHandler → BackgroundSink(HTTPSink(NDJSON))",
        "QueueHandler, QueueListener → HTTPHandler",
    ),
    (
        "events to an OpenTelemetry collector",
        "collectors",
        "BackgroundSink(HTTPSink(OTLPLogs))",
        "OpenTelemetry: BatchLogRecordProcessor, OTLP",
    ),
    (
        "events to a collector through a spool on disk",
        "spool",
        "SpoolSink(HTTPSink(NDJSON))",
        "python-logstash-async: SQLite, HttpTransport",
    ),
)

#: The reasons why rows do not keep their budget.
REASONS = {
    "FileSink, throttled, none held back": "as FileSink with a processor; its window is looked up, and a clock is read",
    "FileSink, a storm of one message, throttled": "the event's window is looked up, and a clock is read",
    "RotatingFileSink, multiprocess=True": "what processes share takes a second and a third call of the system",
    "BackgroundSink(NullSink)": "the worker has the interpreter lock meanwhile",
    "BackgroundSink, a target that counts": "the worker has the interpreter lock meanwhile",
    "BackgroundSink(FileSink), caller": "the worker has the interpreter lock meanwhile",
    "BackgroundSink(FanoutSink(two FileSinks)), caller": "the worker has the interpreter lock meanwhile",
    "BackgroundSink(FileSink), 8 threads": "eight threads and the worker share two processors",
    "FanoutSink(two FileSinks), 8 threads": "the threads wait for the turn of each file",
    "QueueSink": "each event asks whether it is a plain one",
    "DatagramSink": "is it plain: 0.15 µs; how long is it: 0.05; the socket's turn: 0.2",
    "HTTPSink, ElasticsearchBulk": "each event becomes an action and a document with names of its own",
    "SpoolSink(HTTPSink(NDJSON))": "each event is written, and read again",
    "from outfall import FileSink, after those": "the modules that a FileSink needs are imported",
    "FileSink": "is it plain: 0.13 µs; the clock: 0.1; the file's turn: 0.08; the call and its look-ups: 0.1",
    "FileSink, level set": "as FileSink, and the level's comparison: 0.05 µs",
    "FileSink, a processor": "the event is copied, so that a processor cannot change the caller's",
    "FileSink, a renderer": "the renderer is a call of its own, whose result is checked for its type",
    "FileSink, buffer_bytes=64 KiB": "is it plain: 0.13 µs; the clock: 0.1; the level: 0.05; calls and look-ups: 0.2",
    "structlog → FileSink, last processor": "within the noise of the peer",
    "structlog → FileSink, SinkLoggerFactory": "the factory's logger is one call more",
    "RotatingFileSink": "as FileSink, and the size is counted: 0.1 µs",
    "TimedRotatingFileSink": "as FileSink, and the size is counted, in two calls more: 0.15 µs",
    "logging → SinkHandler → RotatingFileSink": "logging's own part is 0.22 of the peer, and the record becomes a dict",
    "SysLogSink, RFC 3164": "is it plain: 0.15 µs; header, control characters: 0.2; the socket's turn: 0.2",
    "BackgroundSink": "is it plain: 0.15 µs; the copy that waits: 0.1; the count of events and bytes: 0.2",
    "BackgroundSink(FileSink)": "the caller's part alone is 0.6 of it, and the system copies the same bytes",
    "BackgroundSink(SocketSink)": "the caller's part alone is nearly half of it, and the system copies the same bytes",
    "BackgroundSink(SysLogSink, TCP)": "the caller's part alone is half of it: each event waits with its level",
    "BackgroundSink(SysLogSink, UDP), caller": "each message is made in the thread that logs, for its time and level",
    "FanoutSink(two FileSinks)": "each file takes its own turn and counts for itself",
    "FanoutSink(five FileSinks)": "each file takes its own turn and counts for itself",
    "SocketSink": "is it plain: 0.15 µs; its length: 0.1; the turn, and whether the peer has closed: 0.25",
    "BackgroundSink(HTTPSink(NDJSON))": "what its caller pays is under the same interpreter lock as the worker",
    "HTTPSink, LokiStreams": "each event's time and labels are read from its JSON",
    "HTTPSink, OTLPLogs": "each event becomes a tree of typed values",
    "SpoolSink, collector away": "as FileSink, and the length of the segment is compared",
}


def number(value: float) -> str:
    """Return *value* with the digits that are significant."""
    return f"{value:.0f}" if value >= _WHOLE_FROM else f"{value:.2f}" if value >= _TWO_PLACES_FROM else f"{value:.3f}"


_WHOLE_FROM, _TWO_PLACES_FROM = 20, 0.1


def machine_of(results: dict[str, Any]) -> str:
    """Return the date, machine and software of the measurement."""
    libraries = ", ".join(f"{name} {version}" for name, version in results["libraries"].items() if version)
    return (
        f"Measured on {results['date']} on {results['machine']}, {results['system']}, file system"
        f" {results['file system']}, load {results['load']} at the beginning, with {results['python']}, {libraries}.\n"
    )


def summary_of(results: dict[str, Any]) -> str:
    """Return the table at the top of the page: what an event costs with Outfall, and with other libraries."""
    found = {(group["name"], row["name"]): (row, group["unit"]) for group in results["groups"] for row in group["rows"]}
    lines = ["| what | with Outfall | with others | others are |", "| --- | --- | --- | --- |"]
    for what, group, ours, theirs in SUMMARY:
        row, unit = found[group, ours]
        other = found[group, theirs][0]
        beside = other["missing"] or f"{number(other['median'])} {unit}"
        lines.append(f"| {what} | {number(row['median'])} {unit} | {beside} | {theirs} |")
    return "\n".join(lines) + "\n"


def budgets_of(results: dict[str, Any]) -> str:
    """Return a table of the budgets: whether each was kept, and if not, the reason.

    Raises:
        KeyError: If a budget was not kept and `REASONS` has no reason for it.
    """
    lines = ["| what | compared with | measured | budget | kept |", "| --- | --- | --- | --- | --- |"]
    for group in results["groups"]:
        for row in group["rows"]:
            if row["budget"] is not None:
                measured, unit = measured_of(row, group["unit"])
                told = row["missing"] or f"{number(measured)}{unit}"
                verdict = "yes" if row["met"] else "not measured"
                if row["met"] is False:
                    verdict = f"**no**: {REASONS[row['name']]}"
                other = row["peer"] or row["floor"] or ""
                lines.append(f"| {row['name']} | {other} | {told} | {number(row['budget'])}{unit} | {verdict} |")
    return "\n".join(lines) + "\n"


def measured_of(row: dict[str, Any], unit: str) -> tuple[float, str]:
    """Return the number that the budget of *row* limits, and its unit."""
    if row["peer"] is not None:
        return row["peer_ratio"] or 0.0, ""
    if row["floor"] is not None:
        return row["floor_ratio"] or 0.0, ""
    return row["median"] or 0.0, f" {unit}"


def figures_of(results: dict[str, Any]) -> str:
    """Return a table of all results of each group."""
    parts: list[str] = []
    for group in results["groups"]:
        parts.append(f"**{group['name']}**: {group['about']}. {group['rounds']} rounds of {group['events']}.\n")
        parts.append(
            f"| | {group['unit']} | spread | x floor | x peer | arrived |\n| --- | --- | --- | --- | --- | --- |"
        )
        for row in group["rows"]:
            cells = [
                "-" if row["median"] is None else number(row["median"]),
                "-" if row["spread"] is None else f"{row['spread']:.0%}",
                *("-" if row[ratio] is None else number(row[ratio]) for ratio in ("floor_ratio", "peer_ratio")),
                "-" if row["arrived"] is None else f"{row['arrived']:.1%}",
            ]
            parts.append(f"| {row['name']} | {' | '.join(cells)} |")
        parts.append("")
    return "\n".join(parts)
