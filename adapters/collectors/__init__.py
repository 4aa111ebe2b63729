"""Collectors: a format for the body of each one's requests, and a factory that makes the whole sink in one line.

A factory gives an `HTTPSink` with the collector's format, in a `BackgroundSink` that batches and retries. Where more is
to be different, put them together yourself: ``BackgroundSink(HTTPSink(url, body=LokiStreams(…)))``.
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
