"""The lock of the `logging` module, which may be held where a sink has to wait."""

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
    """Call *wait* without the lock of `logging`, if this thread has it, as `threading.Condition` waits without its own.

    `logging.config.dictConfig` flushes and closes handlers while it holds that lock. The thread that such a flush waits
    for may need it: each ``logger.debug()`` of a library does when it is the first since levels have changed. The two
    would wait for one another until the flush gives up.
    """
    lock: Any = _lock()
    saved: list[Any] = []
    try:
        if held():
            # In one step, so that an interrupt cannot come between the release and the note of it.
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
