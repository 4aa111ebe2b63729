"""Clients of confluent-kafka: create them, check their configuration, read their errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from outfall.sinks.errors import (
    DeliveryError,
    OversizeDeliveryError,
    PausedDeliveryError,
    PermanentDeliveryError,
    TemporaryDeliveryError,
    extra_module,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Said:
    """The last error that librdkafka has reported for a client."""

    #: Follows each report of an error that leaves no broker.
    _ECHO: ClassVar[str] = "_ALL_BROKERS_DOWN"

    def __init__(self) -> None:
        self._error: Any = None
        #: True while no broker can be reached.
        self.down: bool = False

    def note(self, error: Any) -> None:
        """Remember *error*."""
        if error.name() == self._ECHO:
            self.down = True
        else:
            self._error = error

    def clear(self) -> None:
        """Forget the error, after a delivery."""
        self._error = None
        self.down = False

    def failure(self) -> DeliveryError:
        """Return the failure of a message that was not delivered in time."""
        if self._error is None:
            return TemporaryDeliveryError("no answer from Kafka in time")
        return failure_of(self._error)


def made(kind: str, settings: dict[str, Any]) -> Any:
    """Create a client of confluent-kafka; *kind* is the name of its class.

    Raises:
        ValueError: If librdkafka refuses *settings*. The message holds no secret.
        MissingDependencyError: If confluent-kafka is not installed.
    """
    confluent_kafka = extra_module("confluent_kafka", "kafka")
    given = dict(settings)
    if "logger" not in given:
        import logging

        given["logger"] = logger = logging.getLogger("librdkafka")
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())
    try:
        return getattr(confluent_kafka, kind)(given)
    except confluent_kafka.KafkaException as error:
        told = error.args[0]
        said = told.str()
    # The text names the property, and may quote its value.
    for name, value in settings.items():
        if isinstance(value, str) and value and any(part in name for part in _SECRETS):
            said = said.replace(value, "…")
    msg = f"config: {said}"
    raise ValueError(msg)


def joined(servers: str | Sequence[str]) -> str:
    """Return *servers* as one string, with commas, as librdkafka takes them.

    Raises:
        ValueError: If there is none.
    """
    listed = servers if isinstance(servers, str) else ",".join(servers)
    if not listed:
        msg = f"servers={servers!r}: there has to be one, such as 'localhost:9092'"
        raise ValueError(msg)
    return listed


def checked_config(config: Mapping[str, Any] | None, *owned: str) -> dict[str, Any]:
    """Return a copy of *config*.

    Raises:
        ValueError: If it has one of the settings *owned*, or a setting that each client sets itself.
    """
    given = dict(config or {})
    for name in ("bootstrap.servers", "error_cb", *owned):
        if name in given:
            msg = f"config: {name!r} is set by this class and its other arguments"
            raise ValueError(msg)
    return given


def failure_of(error: Any) -> DeliveryError:
    """Return the delivery error for *error*, a `KafkaError` or an exception that holds one. It holds no message."""
    if isinstance(error, DeliveryError):
        return error
    if isinstance(error, BufferError):
        return TemporaryDeliveryError("the producer's own queue is full")
    if isinstance(error, BaseException):
        error = error.args[0] if error.args else error
    name = getattr(error, "name", None)
    if not callable(name):
        return TemporaryDeliveryError(f"Kafka's client failed: {type(error).__name__}")
    told = f"Kafka: {name()}: {error.str()}"
    if name() in _TOO_LARGE:
        return OversizeDeliveryError(told)
    if name() in _REFUSING:
        return PermanentDeliveryError(told)
    if name() in _PAUSING or "certificate verify failed" in told:
        return PausedDeliveryError(told)
    return TemporaryDeliveryError(told)


def immortalize(client: Any) -> None:
    """Never destroy *client*, which this process has inherited by a fork, not even at exit.

    Destroying it waits for threads that only the parent has, or crashes.
    """
    import ctypes

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(client))


_TOO_LARGE = frozenset({"MSG_SIZE_TOO_LARGE", "RECORD_LIST_TOO_LARGE"})
_REFUSING = frozenset({"INVALID_MSG", "INVALID_RECORD", "INVALID_TIMESTAMP", "_BAD_MSG", "_INVALID_ARG"})
#: Errors that last until somebody changes something at the brokers, or in the configuration.
_PAUSING = frozenset(
    {
        "_AUTHENTICATION",
        "_UNKNOWN_TOPIC",
        "_UNKNOWN_PARTITION",
        "UNKNOWN_TOPIC_OR_PART",
        "TOPIC_EXCEPTION",
        "TOPIC_AUTHORIZATION_FAILED",
        "GROUP_AUTHORIZATION_FAILED",
        "CLUSTER_AUTHORIZATION_FAILED",
        "SASL_AUTHENTICATION_FAILED",
        "UNSUPPORTED_SASL_MECHANISM",
    }
)
_SECRETS = ("password", "secret", "pem", "token")
