"""Collectors: for each a body format, and a factory that makes the complete sink in one line.

A factory returns an `HTTPSink` with the collector's format, in a `BackgroundSink` that makes batches and retries. To
change more than its arguments, combine them yourself: ``BackgroundSink(HTTPSink(url, body=LokiStreams(…)))``.
"""

from outfall.adapters.collectors.datadog import DatadogLogs, datadog_sink
from outfall.adapters.collectors.elasticsearch import ElasticsearchBulk, elasticsearch_sink, opensearch_sink
from outfall.adapters.collectors.factory import SinkOptions, TokenOptions
from outfall.adapters.collectors.gelf import GELFMessage, gelf_sink
from outfall.adapters.collectors.gelf_sockets import GELFDatagramSink, GELFFrames
from outfall.adapters.collectors.loki import LokiStreams, loki_sink
from outfall.adapters.collectors.otlp import OTLPLogs, otlp_sink
from outfall.adapters.collectors.splunk import SplunkEvents, splunk_sink

__all__ = [
    "DatadogLogs",
    "ElasticsearchBulk",
    "GELFDatagramSink",
    "GELFFrames",
    "GELFMessage",
    "LokiStreams",
    "OTLPLogs",
    "SinkOptions",
    "SplunkEvents",
    "TokenOptions",
    "datadog_sink",
    "elasticsearch_sink",
    "gelf_sink",
    "loki_sink",
    "opensearch_sink",
    "otlp_sink",
    "splunk_sink",
]
