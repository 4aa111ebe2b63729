"""Tokens that a callable returns, which is called for each use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from outfall.sinks.errors import PausedDeliveryError

if TYPE_CHECKING:
    from collections.abc import Callable


def is_sendable(value: Any) -> bool:
    """Return True if *value* is text for an HTTP header: printable Latin-1 without blanks at either end."""
    if not isinstance(value, str) or not value or value != value.strip() or not value.isprintable():
        return False
    try:
        value.encode("latin-1")
    except UnicodeError:
        return False
    return True


def asked(token: Callable[[], str]) -> str:
    """Return what *token* gives now.

    Raises:
        PausedDeliveryError: If it raises, or gives nothing that can be sent. The message does not repeat it.
    """
    failure = None
    given: Any = None
    try:
        given = token()
    except Exception as error:
        failure = PausedDeliveryError(f"token() raised {type(error).__name__}")
    if failure is None and not is_sendable(given):
        failure = PausedDeliveryError("token() returned nothing that can be sent")
    if failure is not None:
        # Outside of the except block: the original error, which may hold secrets, must not become its context.
        raise failure
    return str(given)
