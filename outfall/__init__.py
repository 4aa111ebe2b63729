"""Outfall: where your events flow out. Sinks for structured logging.

An event is a dict; a sink takes event dicts and puts them somewhere. Every public name of the package is here.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from outfall.adapters.brokers.amqp import AMQPSink
    from outfall.adapters.brokers.amqplistener import AMQPListener
    from outfall.adapters.brokers.kafka import KafkaSink
    from outfall.adapters.brokers.kafkalistener import KafkaListener
    from outfall.adapters.brokers.redis import RedisSink
    from outfall.adapters.brokers.redislistener import RedisListener
    from outfall.adapters.collectors import (
        DatadogLogs,
        ElasticsearchBulk,
        GELFDatagramSink,
        GELFFrames,
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
    from outfall.adapters.setup import Destination, Setup, close_all, configure, get_logger, open_sinks
    from outfall.adapters.stdlib.handlersink import HandlerSink
    from outfall.adapters.stdlib.sinkhandler import SinkHandler
    from outfall.adapters.structlog import SinkLogger, SinkLoggerFactory, tee
    from outfall.adapters.toml import configure_from
    from outfall.adapters.urls import open_sink
    from outfall.sinks.core.bytesink import ByteSink
    from outfall.sinks.core.item import BatchResult, Encoded
    from outfall.sinks.core.ledger import SinkStats
    from outfall.sinks.core.reporting import SinkFailure, report
    from outfall.sinks.core.sink import OnError, Sink
    from outfall.sinks.delivery.background import BackgroundSink
    from outfall.sinks.delivery.delivery import RetryPolicy
    from outfall.sinks.delivery.memory import BufferingSink, CaptureSink, MemorySink
    from outfall.sinks.delivery.queue import QueueListener, QueueSink
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
    from outfall.sinks.event.chained import ChainedRenderer
    from outfall.sinks.event.event import NaiveTimestamps
    from outfall.sinks.event.fields import Constant, Projection
    from outfall.sinks.event.json import OrjsonRenderer
    from outfall.sinks.event.jsonable import plain
    from outfall.sinks.event.levels import Level
    from outfall.sinks.event.units import Size, Span
    from outfall.sinks.files.by_size import RotatingFileSink
    from outfall.sinks.files.by_time import TimedRotatingFileSink
    from outfall.sinks.files.file import FileSink
    from outfall.sinks.files.rotating import BaseRotatingFileSink, RotatedFile
    from outfall.sinks.files.stream import NullSink, StreamSink
    from outfall.sinks.files.watched import WatchedFileSink
    from outfall.sinks.http.bodies import NDJSON, BodyFormat, FormURLEncoded, JSONArray, JSONObject
    from outfall.sinks.http.sink import HTTPSink
    from outfall.sinks.mail.smtp import SMTPSink
    from outfall.sinks.network.datagram import DatagramSink
    from outfall.sinks.network.fluent import FluentSink
    from outfall.sinks.network.frames import (
        Codec,
        FrameError,
        JSONFrames,
        JSONLines,
        PickleFrames,
        SignedFrames,
    )
    from outfall.sinks.network.listener import ListenerStats, SocketListener
    from outfall.sinks.network.socket import SocketSink
    from outfall.sinks.routing.fallback import FallbackSink
    from outfall.sinks.routing.fanout import FanoutSink
    from outfall.sinks.shaping import Once, Sample, Throttle
    from outfall.sinks.spool.sink import SpoolSink
    from outfall.sinks.spool.status import SpoolStatus, StoreStatus
    from outfall.sinks.system.eventlog import NTEventLogSink
    from outfall.sinks.system.journald import JournaldSink
    from outfall.sinks.system.syslog import SysLogSink
else:
    # Names are imported at their first use (PEP 562): importing all takes longer than importing structlog, and most
    # programs use two or three sinks. Type checkers read the imports above instead: with a module's __getattr__ they
    # would accept any misspelt name.
    _NAMES = {
        "adapters.brokers.amqp": "AMQPSink",
        "adapters.brokers.amqplistener": "AMQPListener",
        "adapters.brokers.kafka": "KafkaSink",
        "adapters.brokers.kafkalistener": "KafkaListener",
        "adapters.brokers.redis": "RedisSink",
        "adapters.brokers.redislistener": "RedisListener",
        "adapters.collectors": (
            "DatadogLogs ElasticsearchBulk GELFDatagramSink GELFFrames GELFMessage LokiStreams OTLPLogs "
            "SinkOptions SplunkEvents TokenOptions datadog_sink elasticsearch_sink gelf_sink loki_sink "
            "opensearch_sink otlp_sink splunk_sink"
        ),
        "adapters.setup": "Destination Setup close_all configure get_logger open_sinks",
        "adapters.stdlib.handlersink": "HandlerSink",
        "adapters.stdlib.sinkhandler": "SinkHandler",
        "adapters.structlog": "SinkLogger SinkLoggerFactory tee",
        "adapters.toml": "configure_from",
        "adapters.urls": "open_sink",
        "sinks.core.bytesink": "ByteSink",
        "sinks.core.item": "BatchResult Encoded",
        "sinks.core.ledger": "SinkStats",
        "sinks.core.reporting": "SinkFailure report",
        "sinks.core.sink": "OnError Sink",
        "sinks.delivery.background": "BackgroundSink",
        "sinks.delivery.delivery": "RetryPolicy",
        "sinks.delivery.memory": "BufferingSink CaptureSink MemorySink",
        "sinks.delivery.queue": "QueueListener QueueSink",
        "sinks.errors": (
            "DeliveryError MissingDependencyError OversizeDeliveryError PausedDeliveryError "
            "PermanentDeliveryError ReentrantEventError SinkClosedError SinkError TemporaryDeliveryError"
        ),
        "sinks.event.chained": "ChainedRenderer",
        "sinks.event.event": "NaiveTimestamps",
        "sinks.event.fields": "Constant Projection",
        "sinks.event.json": "OrjsonRenderer",
        "sinks.event.jsonable": "plain",
        "sinks.event.levels": "Level",
        "sinks.event.units": "Size Span",
        "sinks.files.by_size": "RotatingFileSink",
        "sinks.files.by_time": "TimedRotatingFileSink",
        "sinks.files.file": "FileSink",
        "sinks.files.rotating": "BaseRotatingFileSink RotatedFile",
        "sinks.files.stream": "NullSink StreamSink",
        "sinks.files.watched": "WatchedFileSink",
        "sinks.http.bodies": "BodyFormat FormURLEncoded JSONArray JSONObject NDJSON",
        "sinks.http.sink": "HTTPSink",
        "sinks.mail.smtp": "SMTPSink",
        "sinks.network.datagram": "DatagramSink",
        "sinks.network.fluent": "FluentSink",
        "sinks.network.frames": "Codec FrameError JSONFrames JSONLines PickleFrames SignedFrames",
        "sinks.network.listener": "ListenerStats SocketListener",
        "sinks.network.socket": "SocketSink",
        "sinks.routing.fallback": "FallbackSink",
        "sinks.routing.fanout": "FanoutSink",
        "sinks.shaping": "Once Sample Throttle",
        "sinks.spool.sink": "SpoolSink",
        "sinks.spool.status": "SpoolStatus StoreStatus",
        "sinks.system.eventlog": "NTEventLogSink",
        "sinks.system.journald": "JournaldSink",
        "sinks.system.syslog": "SysLogSink",
    }
    _MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}

    def __getattr__(name: str) -> object:
        from importlib import import_module

        module = _MODULES.get(name)
        if module is None:
            msg = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(msg)
        found = import_module(f"{__name__}.{module}")
        # Store all names of the module: once the interpreter shuts down, nothing can be imported.
        globals().update({each: getattr(found, each) for each, home in _MODULES.items() if home == module})
        return globals()[name]

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__} - {"TYPE_CHECKING"})


__all__ = [
    "NDJSON",
    "AMQPListener",
    "AMQPSink",
    "BackgroundSink",
    "BaseRotatingFileSink",
    "BatchResult",
    "BodyFormat",
    "BufferingSink",
    "ByteSink",
    "CaptureSink",
    "ChainedRenderer",
    "Codec",
    "Constant",
    "DatadogLogs",
    "DatagramSink",
    "DeliveryError",
    "Destination",
    "ElasticsearchBulk",
    "Encoded",
    "FallbackSink",
    "FanoutSink",
    "FileSink",
    "FluentSink",
    "FormURLEncoded",
    "FrameError",
    "GELFDatagramSink",
    "GELFFrames",
    "GELFMessage",
    "HTTPSink",
    "HandlerSink",
    "JSONArray",
    "JSONFrames",
    "JSONLines",
    "JSONObject",
    "JournaldSink",
    "KafkaListener",
    "KafkaSink",
    "Level",
    "ListenerStats",
    "LokiStreams",
    "MemorySink",
    "MissingDependencyError",
    "NTEventLogSink",
    "NaiveTimestamps",
    "NullSink",
    "OTLPLogs",
    "OnError",
    "Once",
    "OrjsonRenderer",
    "OversizeDeliveryError",
    "PausedDeliveryError",
    "PermanentDeliveryError",
    "PickleFrames",
    "Projection",
    "QueueListener",
    "QueueSink",
    "RedisListener",
    "RedisSink",
    "ReentrantEventError",
    "RetryPolicy",
    "RotatedFile",
    "RotatingFileSink",
    "SMTPSink",
    "Sample",
    "Setup",
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
    "Size",
    "SocketListener",
    "SocketSink",
    "Span",
    "SplunkEvents",
    "SpoolSink",
    "SpoolStatus",
    "StoreStatus",
    "StreamSink",
    "SysLogSink",
    "TemporaryDeliveryError",
    "Throttle",
    "TimedRotatingFileSink",
    "TokenOptions",
    "WatchedFileSink",
    "close_all",
    "configure",
    "configure_from",
    "datadog_sink",
    "elasticsearch_sink",
    "gelf_sink",
    "get_logger",
    "loki_sink",
    "open_sink",
    "open_sinks",
    "opensearch_sink",
    "otlp_sink",
    "plain",
    "report",
    "splunk_sink",
    "tee",
]
