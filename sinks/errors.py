"""The exceptions of Outfall.

.. code-block:: text

    SinkError                        something went wrong in a sink
    ├── SinkClosedError              an event was handled after close()
    ├── MissingDependencyError       an optional package is not installed
    └── DeliveryError                the target could not take it
        ├── TemporaryDeliveryError   try again later
        │   └── PausedDeliveryError  it refuses everything until its configuration changes
        └── PermanentDeliveryError   it would refuse the event again
            └── OversizeDeliveryError  the batch is too large; a part of it might be taken

Misconfiguration is not among them: it raises ``ValueError`` or ``TypeError`` at construction, naming the argument and
the value.

No exception made here holds an event, a header, a URL's credentials or any other secret.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

#: The ``halve_after`` of a lost connection. The size of the batch may not be the reason, so at first the same batch is
#: sent again under the same key, by which the target can recognise it.
LOST_ATTEMPTS = 4


class SinkError(Exception):
    """Base class of everything Outfall raises about an event or its target."""

    #: The key under which an event lost to this error is counted in ``SinkStats.dropped``.
    dropped_as: str = "error"


def reason_of(error: BaseException) -> str:
    """Return the key under which an event lost to *error* is counted in ``SinkStats.dropped``."""
    return error.dropped_as if isinstance(error, SinkError) else "error"


class SinkClosedError(SinkError):
    """An event came to a sink after its ``close``. It is counted as ``dropped["closed"]`` and never reopens a file."""

    dropped_as = "closed"


class ReentrantEventError(SinkError):
    """An event was logged during the delivery or the error report of the sink that got it.

    If the sink took it, its own output would feed it for ever. The event is counted as ``dropped["reentrant"]``. Only
    `Sink.deliver` raises this error; `Sink.handle` counts without a report, since the report could be the next event.
    """

    dropped_as = "reentrant"


class MissingDependencyError(SinkError):
    """An optional package is missing.

    Args:
        package: The importable name that was not found.
        extra: The extra of the distribution that installs it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; install it with: pip install 'outfall[{extra}]'")
        self.package = package
        self.extra = extra

    def __reduce__(self) -> tuple[type[MissingDependencyError], tuple[str, str]]:
        """Pickle the two arguments, since ``args`` holds the message."""
        return type(self), (self.package, self.extra)


def extra_module(name: str, extra: str) -> Any:
    """Return the module *name*, which the *extra* of the distribution installs.

    Raises:
        MissingDependencyError: If it is not installed.
    """
    try:
        return import_module(name)
    except ImportError:
        raise MissingDependencyError(name.partition(".")[0], extra) from None


class DeliveryError(SinkError):
    """The target could not take an event or a batch."""


class TemporaryDeliveryError(DeliveryError):
    """The target could not take it now; the same attempt may succeed later.

    Args:
        message: What happened, without event data and secrets.
        retry_after: Seconds that the target asks to wait before the next attempt, or None when it did not say.
        halve_after: The number of such failures in a row after which the batch is split, since its size may be the
            reason; 1 after a timeout. Default None: the batch is never split.
    """

    def __init__(self, message: str = "", retry_after: float | None = None, halve_after: int | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.halve_after = halve_after


class PausedDeliveryError(TemporaryDeliveryError):
    """The target refuses everything until its configuration changes: credentials, an address, a permission.

    Events are kept, and attempts are made at growing intervals. Over HTTP: 401, 403, 404 and redirects.

    Args:
        message: What happened, without event data and secrets.
        retry_after: Seconds to wait before the next attempt, or None when the target did not say.
    """

    #: True if events were refused, and nothing has shown yet whether they are to blame or the configuration.
    in_doubt: bool = False


class PermanentDeliveryError(DeliveryError):
    """The target refused an event or a batch, and would refuse it again.

    Args:
        reason: Why, without event data and secrets.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


class OversizeDeliveryError(PermanentDeliveryError):
    """The target refused a batch because of its size; it may take smaller parts. Over HTTP: 413.

    Args:
        reason: Why, without event data and secrets.
    """
