"""Whether threads are still what they were when this package was imported."""

from __future__ import annotations

import _thread

from outfall.sinks.errors import SinkError

_start_new_thread = _thread.start_new_thread


def check_threads() -> None:
    """Raise if somebody has put other threads in the place of the system's since this package was imported.

    gevent and eventlet do so. A thread would then be a greenlet, and would hold up all others with the locks and queues
    that this package has imported before.

    Raises:
        SinkError: If so.
    """
    if _thread.start_new_thread is not _start_new_thread:
        msg = (
            "threads have been replaced since outfall was imported, as gevent and eventlet do; "
            "call monkey.patch_all() (or monkey_patch()) first, and import outfall after it"
        )
        raise SinkError(msg)
