"""The lock of the `logging` module, which must not be held during a wait."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_Result = TypeVar("_Result")


def held() -> Any:
    """Return the lock of `logging` if this thread holds it, else None."""
    lock = getattr(logging, "_lock", None)
    owned = getattr(lock, "_is_owned", None)
    return lock if owned is not None and owned() else None


def released(wait: Callable[..., _Result], *arguments: Any) -> _Result:
    """Call *wait*; release the lock of `logging` meanwhile if this thread holds it.

    `logging.config.dictConfig` flushes and closes handlers while it holds that lock. The thread that the flush waits
    for may need the lock: after a change of levels the next ``logger.debug()`` of any library takes it. Without the
    release the two threads would wait for each other until the flush times out.
    """
    lock: Any = held()
    saved: list[Any] = []
    try:
        if lock:
            # One step in C: an interrupt cannot come between the release and storing its result.
            saved += map(type(lock)._release_save, (lock,))
        return wait(*arguments)
    finally:
        try:
            if saved:
                lock._acquire_restore(saved[0])
        finally:
            pass
