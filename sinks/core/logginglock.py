"""The lock of the `logging` module, which must not be held during a wait."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_Result = TypeVar("_Result")


def held() -> bool:
    """Return True if this thread holds the lock of `logging`."""
    owned = getattr(_lock(), "_is_owned", None)
    return owned is not None and bool(owned())


def released(wait: Callable[..., _Result], *arguments: Any) -> _Result:
    """Call *wait*; release the lock of `logging` meanwhile if this thread holds it.

    `logging.config.dictConfig` flushes and closes handlers while it holds that lock. The thread that the flush waits
    for may need the lock: after a change of levels the next ``logger.debug()`` of any library takes it. Without the
    release the two threads would wait for each other until the flush times out.
    """
    lock: Any = _lock()
    saved: list[Any] = []
    try:
        if held():
            # One step in C: an interrupt cannot come between the release and storing its result.
            saved += map(type(lock)._release_save, (lock,))
        return wait(*arguments)
    finally:
        try:
            if saved:
                lock._acquire_restore(saved[0])
        finally:
            pass


def _lock() -> Any:
    return getattr(logging, "_lock", None)
