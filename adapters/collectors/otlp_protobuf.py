"""OpenTelemetry's log records as Protocol Buffers, by the official classes: `Messages`."""

from __future__ import annotations

import base64
from importlib import import_module
from typing import TYPE_CHECKING, Any

from outfall.sinks.errors import MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CONTENT_TYPE = "application/x-protobuf"


class Messages:
    """Converts requests from their JSON form to Protocol Buffers, and reads responses.

    Raises:
        MissingDependencyError: If opentelemetry-proto is not installed.
    """

    def __init__(self) -> None:
        try:
            self._service: Any = import_module("opentelemetry.proto.collector.logs.v1.logs_service_pb2")
            self._common: Any = import_module("opentelemetry.proto.common.v1.common_pb2")
            self._logs: Any = import_module("opentelemetry.proto.logs.v1.logs_pb2")
            self._resource: Any = import_module("opentelemetry.proto.resource.v1.resource_pb2")
        except ImportError:
            raise MissingDependencyError(package="opentelemetry-proto", extra="otel") from None
        self._key_value: Any = self._common.KeyValue
        self._any_value: Any = self._common.AnyValue

    def request(
        self, resource: Sequence[Mapping[str, Any]], scopes: Mapping[str, Sequence[Mapping[str, Any]]]
    ) -> bytes:
        """Return an ``ExportLogsServiceRequest``.

        Args:
            resource: The attributes of the resource.
            scopes: Log records by the name of their scope.
        """
        made = self._service.ExportLogsServiceRequest()
        logs = made.resource_logs.add(resource=self._resource.Resource(attributes=self._key_values(resource)))
        for name, records in scopes.items():
            scope = logs.scope_logs.add(scope=self._common.InstrumentationScope(name=name))
            scope.log_records.extend([self._record(record) for record in records])
        return bytes(made.SerializeToString())

    def rejected(self, body: bytes) -> int:
        """Return the number of refused records in *body*, an ``ExportLogsServiceResponse``; 0 if it is not one."""
        try:
            answer = self._service.ExportLogsServiceResponse.FromString(body)
        except Exception:  # the error's class differs between implementations
            return 0
        return int(answer.partial_success.rejected_log_records)

    def _record(self, record: Mapping[str, Any]) -> Any:
        given: dict[str, Any] = {}
        for field, name in (("traceId", "trace_id"), ("spanId", "span_id")):
            if field in record:
                given[name] = bytes.fromhex(record[field])
        if "body" in record:
            given["body"] = self._value(record["body"])
        return self._logs.LogRecord(
            time_unix_nano=int(record["timeUnixNano"]),
            observed_time_unix_nano=int(record["observedTimeUnixNano"]),
            severity_number=record["severityNumber"],
            severity_text=record.get("severityText", ""),
            flags=record.get("flags", 0),
            attributes=self._key_values(record["attributes"]),
            **given,
        )

    def _key_values(self, pairs: Sequence[Mapping[str, Any]]) -> list[Any]:
        make, value_of = self._key_value, self._value
        return [make(key=pair["key"], value=value_of(pair["value"])) for pair in pairs]

    def _value(self, value: Mapping[str, Any]) -> Any:
        """Return an ``AnyValue``."""
        make = self._any_value
        for kind, given in value.items():
            if kind == "stringValue":
                return make(string_value=given)
            if kind == "intValue":
                return make(int_value=int(given))
            if kind == "doubleValue":
                return make(double_value=float(given))
            if kind == "boolValue":
                return make(bool_value=given)
            if kind == "bytesValue":
                return make(bytes_value=base64.b64decode(given))
            if kind == "arrayValue":
                return make(array_value=self._common.ArrayValue(values=list(map(self._value, given["values"]))))
            return make(kvlist_value=self._common.KeyValueList(values=self._key_values(given["values"])))
        return make()
