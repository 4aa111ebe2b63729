"""What the clients of all brokers have in common."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from outfall.sinks.core.arguments import checked_seconds
from outfall.sinks.errors import MissingDependencyError

if TYPE_CHECKING:
    from outfall.sinks.event.units import Span


def timeout_of(timeout: Span) -> float:
    """Return *timeout* in seconds.

    Raises:
        ValueError: If it is no span of time, or none that ends and lasts.
    """
    seconds = checked_seconds(timeout, "timeout")
    if not 0 < seconds < float("inf"):
        msg = f"timeout={timeout!r} is not above 0, or has no end"
        raise ValueError(msg)
    return seconds


def package(name: str, extra: str) -> Any:
    """Return the package *name*, which the *extra* of the distribution installs.

    Raises:
        MissingDependencyError: If it is not there.
    """
    try:
        return import_module(name)
    except ImportError:
        raise MissingDependencyError(name.partition(".")[0], extra) from None


class HasClient:
    """A sink's or listener's part that has a broker's client, and leaves a parent's alone in a forked child."""

    _client: Any = None

    def _forget_client(self) -> None:
        """Forget the client of the process that this one was forked from, if there is one."""
        client, self._client = self._client, None
        if client is not None:
            self._keep(client)

    def _keep(self, client: Any) -> None:
        """Keep *client*, which is the parent's, from being taken apart: some say farewell when they go."""
        _KEPT.append(client)


_KEPT: list[Any] = []
