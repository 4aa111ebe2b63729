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
    _MODULES = {
        "Span": "sinks.event.units",
        "Size": "sinks.event.units",
        "NaiveTimestamps": "sinks.event.event",
        "Destination": "adapters.setup",
        "AMQPListener": "adapters.brokers.amqplistener",
        "AMQPSink": "adapters.brokers.amqp",
        "BackgroundSink": "sinks.delivery.background",
        "BaseRotatingFileSink": "sinks.files.rotating",
        "BatchResult": "sinks.core.item",
        "BodyFormat": "sinks.http.bodies",
        "BufferingSink": "sinks.delivery.memory",
        "ByteSink": "sinks.core.bytesink",
        "CaptureSink": "sinks.delivery.memory",
        "ChainedRenderer": "sinks.event.chained",
        "Codec": "sinks.network.frames",
        "Constant": "sinks.event.fields",
        "DatadogLogs": "adapters.collectors",
        "DatagramSink": "sinks.network.datagram",
        "DeliveryError": "sinks.errors",
        "ElasticsearchBulk": "adapters.collectors",
        "Encoded": "sinks.core.item",
        "FallbackSink": "sinks.routing.fallback",
        "FanoutSink": "sinks.routing.fanout",
        "FileSink": "sinks.files.file",
        "FluentSink": "sinks.network.fluent",
        "FormURLEncoded": "sinks.http.bodies",
        "FrameError": "sinks.network.frames",
        "GELFDatagramSink": "adapters.collectors",
        "GELFFrames": "adapters.collectors",
        "GELFMessage": "adapters.collectors",
        "HTTPSink": "sinks.http.sink",
        "HandlerSink": "adapters.stdlib.handlersink",
        "JSONArray": "sinks.http.bodies",
        "JSONFrames": "sinks.network.frames",
        "JSONLines": "sinks.network.frames",
        "JSONObject": "sinks.http.bodies",
        "JournaldSink": "sinks.system.journald",
        "KafkaListener": "adapters.brokers.kafkalistener",
        "KafkaSink": "adapters.brokers.kafka",
        "Level": "sinks.event.levels",
        "ListenerStats": "sinks.network.listener",
        "LokiStreams": "adapters.collectors",
        "MemorySink": "sinks.delivery.memory",
        "MissingDependencyError": "sinks.errors",
        "NDJSON": "sinks.http.bodies",
        "NTEventLogSink": "sinks.system.eventlog",
        "NullSink": "sinks.files.stream",
        "OTLPLogs": "adapters.collectors",
        "OnError": "sinks.core.sink",
        "Once": "sinks.shaping",
        "OrjsonRenderer": "sinks.event.json",
        "OversizeDeliveryError": "sinks.errors",
        "PausedDeliveryError": "sinks.errors",
        "PermanentDeliveryError": "sinks.errors",
        "PickleFrames": "sinks.network.frames",
        "Projection": "sinks.event.fields",
        "QueueListener": "sinks.delivery.queue",
        "QueueSink": "sinks.delivery.queue",
        "ReentrantEventError": "sinks.errors",
        "RedisListener": "adapters.brokers.redislistener",
        "RedisSink": "adapters.brokers.redis",
        "RetryPolicy": "sinks.delivery.delivery",
        "RotatedFile": "sinks.files.rotating",
        "RotatingFileSink": "sinks.files.by_size",
        "SMTPSink": "sinks.mail.smtp",
        "Sample": "sinks.shaping",
        "Setup": "adapters.setup",
        "SignedFrames": "sinks.network.frames",
        "Sink": "sinks.core.sink",
        "SinkClosedError": "sinks.errors",
        "SinkError": "sinks.errors",
        "SinkFailure": "sinks.core.reporting",
        "SinkHandler": "adapters.stdlib.sinkhandler",
        "SinkLogger": "adapters.structlog",
        "SinkLoggerFactory": "adapters.structlog",
        "SinkOptions": "adapters.collectors",
        "SinkStats": "sinks.core.ledger",
        "SocketListener": "sinks.network.listener",
        "SocketSink": "sinks.network.socket",
        "SplunkEvents": "adapters.collectors",
        "SpoolSink": "sinks.spool.sink",
        "SpoolStatus": "sinks.spool.status",
        "StoreStatus": "sinks.spool.status",
        "StreamSink": "sinks.files.stream",
        "SysLogSink": "sinks.system.syslog",
        "TemporaryDeliveryError": "sinks.errors",
        "Throttle": "sinks.shaping",
        "TimedRotatingFileSink": "sinks.files.by_time",
        "TokenOptions": "adapters.collectors",
        "WatchedFileSink": "sinks.files.watched",
        "close_all": "adapters.setup",
        "configure": "adapters.setup",
        "configure_from": "adapters.toml",
        "datadog_sink": "adapters.collectors",
        "elasticsearch_sink": "adapters.collectors",
        "gelf_sink": "adapters.collectors",
        "get_logger": "adapters.setup",
        "loki_sink": "adapters.collectors",
        "open_sink": "adapters.urls",
        "open_sinks": "adapters.setup",
        "opensearch_sink": "adapters.collectors",
        "otlp_sink": "adapters.collectors",
        "plain": "sinks.event.jsonable",
        "report": "sinks.core.reporting",
        "splunk_sink": "adapters.collectors",
        "tee": "adapters.structlog",
    }

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
