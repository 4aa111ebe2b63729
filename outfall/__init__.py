"""Outfall: where your events flow out. Sinks for structured logging.

An event is a dict; a sink takes event dicts and puts them somewhere. Every public name of the package is here.
"""

from outfall.adapters.collectors import (
    DatadogLogs,
    ElasticsearchBulk,
    GELFMessage,
    LokiStreams,
    OTLPLogs,
    SinkOptions,
    SplunkEvents,
    TokenOptions,
    datadog_sink,
    elasticsearch_sink,
    gelf_sink,
    loki_sink,
    opensearch_sink,
    otlp_sink,
    splunk_sink,
)
from outfall.adapters.stdlib import HandlerSink, SinkHandler
from outfall.adapters.structlog import SinkLogger, SinkLoggerFactory, tee
from outfall.sinks.background import BackgroundSink
from outfall.sinks.base import ByteSink, Sink, SinkStats
from outfall.sinks.batch import BatchResult, Encoded
from outfall.sinks.bodies import NDJSON, BodyFormat, FormURLEncoded, JSONArray, JSONObject
from outfall.sinks.codec import JSONFrames, PickleFrames, SignedFrames
from outfall.sinks.delivery import RetryPolicy
from outfall.sinks.errors import (
    DeliveryError,
    MissingDependencyError,
    OversizeDeliveryError,
    PausedDeliveryError,
    PermanentDeliveryError,
    ReentrantEventError,
    SinkClosedError,
    SinkError,
    TemporaryDeliveryError,
)
from outfall.sinks.failures import SinkFailure, report
from outfall.sinks.file import FileSink
from outfall.sinks.http import HTTPSink
from outfall.sinks.listener import ListenerStats, SocketListener
from outfall.sinks.memory import BufferingSink, CaptureSink, MemorySink
from outfall.sinks.nteventlog import NTEventLogSink
from outfall.sinks.projection import Constant, Projection
from outfall.sinks.queue import QueueListener, QueueSink
from outfall.sinks.rendering import OrjsonRenderer
from outfall.sinks.rotating import BaseRotatingFileSink, RotatingFileSink
from outfall.sinks.routing import FallbackSink, FanoutSink
from outfall.sinks.smtp import SMTPSink
from outfall.sinks.socket import DatagramSink, SocketSink
from outfall.sinks.spool import SpoolSink
from outfall.sinks.spoolstatus import SpoolStatus, StoreStatus
from outfall.sinks.stream import NullSink, StreamSink
from outfall.sinks.syslog import SysLogSink
from outfall.sinks.timed import TimedRotatingFileSink
from outfall.sinks.watched import WatchedFileSink

__all__ = [
    "NDJSON",
    "BackgroundSink",
    "BaseRotatingFileSink",
    "BatchResult",
    "BodyFormat",
    "BufferingSink",
    "ByteSink",
    "CaptureSink",
    "Constant",
    "DatadogLogs",
    "DatagramSink",
    "DeliveryError",
    "ElasticsearchBulk",
    "Encoded",
    "FallbackSink",
    "FanoutSink",
    "FileSink",
    "FormURLEncoded",
    "GELFMessage",
    "HTTPSink",
    "HandlerSink",
    "JSONArray",
    "JSONFrames",
    "JSONObject",
    "ListenerStats",
    "LokiStreams",
    "MemorySink",
    "MissingDependencyError",
    "NTEventLogSink",
    "NullSink",
    "OTLPLogs",
    "OrjsonRenderer",
    "OversizeDeliveryError",
    "PausedDeliveryError",
    "PermanentDeliveryError",
    "PickleFrames",
    "Projection",
    "QueueListener",
    "QueueSink",
    "ReentrantEventError",
    "RetryPolicy",
    "RotatingFileSink",
    "SMTPSink",
    "SignedFrames",
    "Sink",
    "SinkClosedError",
    "SinkError",
    "SinkFailure",
    "SinkHandler",
    "SinkLogger",
    "SinkLoggerFactory",
    "SinkOptions",
    "SinkStats",
    "SocketListener",
    "SocketSink",
    "SplunkEvents",
    "SpoolSink",
    "SpoolStatus",
    "StoreStatus",
    "StreamSink",
    "SysLogSink",
    "TemporaryDeliveryError",
    "TimedRotatingFileSink",
    "TokenOptions",
    "WatchedFileSink",
    "datadog_sink",
    "elasticsearch_sink",
    "gelf_sink",
    "loki_sink",
    "opensearch_sink",
    "otlp_sink",
    "report",
    "splunk_sink",
    "tee",
]
