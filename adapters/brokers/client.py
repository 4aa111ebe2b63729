"""What the sinks and listeners of all brokers have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from outfall.sinks.core.arguments import checked_seconds

if TYPE_CHECKING:
    from outfall.sinks.event.units import Span


def timeout_of(timeout: Span) -> float:
    """Return *timeout* in seconds.

    Raises:
        ValueError: If it is no span of time, is not positive, or has no end.
    """
    seconds = checked_seconds(timeout, "timeout")
    if not 0 < seconds < float("inf"):
        msg = f"timeout={timeout!r} is not above 0, or has no end"
        raise ValueError(msg)
    return seconds


def checked_name(name: str, argument: str) -> str:
    """Return *name*.

    Raises:
        ValueError: If it is not text, or empty.
    """
    if not isinstance(name, str) or not name:
        msg = f"{argument}={name!r} is not the name of a {argument}"
        raise ValueError(msg)
    return name


class HasClient:
    """The part of a sink or listener that holds a broker's client, and that keeps a forked child off its parent's."""

    _client: Any = None

    def _forget_client(self) -> None:
        """Forget the client. In a forked child, the parent's client is kept alive without being used."""
        client, self._client = self._client, None
        if client is not None:
            self._keep(client)

    def _keep(self, client: Any) -> None:
        """Keep *client* from being destroyed in a forked child: destroying it may send a farewell to the broker."""
        _KEPT.append(client)


_KEPT: list[Any] = []
