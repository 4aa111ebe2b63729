"""Figures of the benchmarks in sentences: ``{{ us_loguru }}`` is what was measured last."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.config import Config

#: The name in a page: the group and the row, as `benchmarks` has them.
ROWS = {
    "us_structlog_filesink": ("structlog", "structlog → FileSink, last processor"),
    "us_structlog": ("structlog", "structlog → BytesLogger"),
    "us_loguru": ("stdlib", "loguru, serialize=True"),
    "us_spool": ("spool", "SpoolSink(HTTPSink(NDJSON))"),
    "us_logstash": ("spool", "python-logstash-async: SQLite, HttpTransport"),
    "us_otlp": ("collectors", "BackgroundSink(HTTPSink(OTLPLogs))"),
    "us_opentelemetry": ("collectors", "OpenTelemetry: BatchLogRecordProcessor, OTLP"),
}


def setup(app: Sphinx) -> dict[str, Any]:
    """Give MyST the figures."""
    app.connect("config-inited", _add, priority=1)
    return {"parallel_read_safe": True}


def _add(app: Sphinx, config: Config) -> None:
    config.myst_substitutions = substitutions(Path(app.srcdir) / "benchmarks" / "results.json")


def substitutions(results: Path) -> dict[str, str]:
    """Return the figures in *results* by name, in microseconds an event."""
    groups = json.loads(results.read_text(encoding="utf-8"))["groups"]
    found = {(group["name"], row["name"]): row["median"] for group in groups for row in group["rows"]}
    return {name: f"{found[row]:.1f}" if found[row] < 20 else f"{found[row]:.0f}" for name, row in ROWS.items()}
