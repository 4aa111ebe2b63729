"""Outfall: where your events flow out. Sinks for structured logging.

An event is a dict; a sink takes event dicts and puts them somewhere. Every public name of the package is here.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
    from outfall.sinks.datagram import DatagramSink
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
    from outfall.sinks.framed import SocketSink
    from outfall.sinks.http import HTTPSink
    from outfall.sinks.listener import ListenerStats, SocketListener
    from outfall.sinks.memory import BufferingSink, CaptureSink, MemorySink
    from outfall.sinks.nteventlog import NTEventLogSink
    from outfall.sinks.numbered import RotatingFileSink
    from outfall.sinks.projection import Constant, Projection
    from outfall.sinks.queue import QueueListener, QueueSink
    from outfall.sinks.rendering import OrjsonRenderer
    from outfall.sinks.rotation import BaseRotatingFileSink
    from outfall.sinks.routing import FallbackSink, FanoutSink
    from outfall.sinks.smtp import SMTPSink
    from outfall.sinks.spool import SpoolSink
    from outfall.sinks.spoolstatus import SpoolStatus, StoreStatus
    from outfall.sinks.stream import NullSink, StreamSink
    from outfall.sinks.syslog import SysLogSink
    from outfall.sinks.timed import TimedRotatingFileSink
    from outfall.sinks.watched import WatchedFileSink
else:
    # Importing everything takes longer than structlog does, and most programs use two or three sinks (PEP 562). Type
    # checkers read the imports above, since with this function in sight they would take any misspelt name.
    _MODULES = {
        "BackgroundSink": "sinks.background",
        "BaseRotatingFileSink": "sinks.rotation",
        "BatchResult": "sinks.batch",
        "BodyFormat": "sinks.bodies",
        "BufferingSink": "sinks.memory",
        "ByteSink": "sinks.base",
        "CaptureSink": "sinks.memory",
        "Constant": "sinks.projection",
        "DatadogLogs": "adapters.collectors",
        "DatagramSink": "sinks.datagram",
        "DeliveryError": "sinks.errors",
        "ElasticsearchBulk": "adapters.collectors",
        "Encoded": "sinks.batch",
        "FallbackSink": "sinks.routing",
        "FanoutSink": "sinks.routing",
        "FileSink": "sinks.file",
        "FormURLEncoded": "sinks.bodies",
        "GELFMessage": "adapters.collectors",
        "HTTPSink": "sinks.http",
        "HandlerSink": "adapters.stdlib",
        "JSONArray": "sinks.bodies",
        "JSONFrames": "sinks.codec",
        "JSONObject": "sinks.bodies",
        "ListenerStats": "sinks.listener",
        "LokiStreams": "adapters.collectors",
        "MemorySink": "sinks.memory",
        "MissingDependencyError": "sinks.errors",
        "NDJSON": "sinks.bodies",
        "NTEventLogSink": "sinks.nteventlog",
        "NullSink": "sinks.stream",
        "OTLPLogs": "adapters.collectors",
        "OrjsonRenderer": "sinks.rendering",
        "OversizeDeliveryError": "sinks.errors",
        "PausedDeliveryError": "sinks.errors",
        "PermanentDeliveryError": "sinks.errors",
        "PickleFrames": "sinks.codec",
        "Projection": "sinks.projection",
        "QueueListener": "sinks.queue",
        "QueueSink": "sinks.queue",
        "ReentrantEventError": "sinks.errors",
        "RetryPolicy": "sinks.delivery",
        "RotatingFileSink": "sinks.numbered",
        "SMTPSink": "sinks.smtp",
        "SignedFrames": "sinks.codec",
        "Sink": "sinks.base",
        "SinkClosedError": "sinks.errors",
        "SinkError": "sinks.errors",
        "SinkFailure": "sinks.failures",
        "SinkHandler": "adapters.stdlib",
        "SinkLogger": "adapters.structlog",
        "SinkLoggerFactory": "adapters.structlog",
        "SinkOptions": "adapters.collectors",
        "SinkStats": "sinks.base",
        "SocketListener": "sinks.listener",
        "SocketSink": "sinks.framed",
        "SplunkEvents": "adapters.collectors",
        "SpoolSink": "sinks.spool",
        "SpoolStatus": "sinks.spoolstatus",
        "StoreStatus": "sinks.spoolstatus",
        "StreamSink": "sinks.stream",
        "SysLogSink": "sinks.syslog",
        "TemporaryDeliveryError": "sinks.errors",
        "TimedRotatingFileSink": "sinks.timed",
        "TokenOptions": "adapters.collectors",
        "WatchedFileSink": "sinks.watched",
        "datadog_sink": "adapters.collectors",
        "elasticsearch_sink": "adapters.collectors",
        "gelf_sink": "adapters.collectors",
        "loki_sink": "adapters.collectors",
        "opensearch_sink": "adapters.collectors",
        "otlp_sink": "adapters.collectors",
        "report": "sinks.failures",
        "splunk_sink": "adapters.collectors",
        "tee": "adapters.structlog",
    }

    def __getattr__(name: str) -> object:
        from importlib import import_module  # noqa: PLC0415 - once for each name

        module = _MODULES.get(name)
        if module is None:
            msg = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(msg)
        found = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__} - {"TYPE_CHECKING"})


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
