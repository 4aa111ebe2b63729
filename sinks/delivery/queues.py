"""Operations on each kind of queue: of `queue`, `multiprocessing` and managers."""

from __future__ import annotations

import contextlib
import queue as queue_module
import sys
import threading
from queue import Empty, SimpleQueue
from typing import Any

#: The exception of a queue that was shut down, from Python 3.13 on.
SHUT_DOWN: tuple[type[Exception], ...] = tuple(
    kind for kind in (getattr(queue_module, "ShutDown", None),) if kind is not None
)


def is_closed(queue: object) -> bool:
    """Return True if *queue* is one of multiprocessing and was closed, as it is at exit."""
    return bool(getattr(getattr(queue, "_reader", None), "closed", False))


def put_nowait(queue: Any, item: Any) -> None:
    """Put *item* into *queue* by its own ``put_nowait``."""
    put = getattr(queue, "put_nowait", None)
    if put is None:  # multiprocessing.SimpleQueue
        put = queue.put
    put(item)


def task_done(queue: Any) -> None:
    """Call the ``task_done`` of *queue* if it has one."""
    done = getattr(queue, "task_done", None)
    if done is not None:
        with contextlib.suppress(Exception):  # other code has called it too often, or the manager has ended
            done()


def renew(queue: Any) -> None:
    """Empty *queue* and renew its locks, in a forked child: the items and the lock holders are the parent's."""
    if isinstance(queue, queue_module.Queue):
        queue.mutex = threading.Lock()
        queue.not_empty = threading.Condition(queue.mutex)
        queue.not_full = threading.Condition(queue.mutex)
        queue.all_tasks_done = threading.Condition(queue.mutex)
        queue.queue.clear()
        queue.unfinished_tasks = 0
    elif isinstance(queue, SimpleQueue):
        with contextlib.suppress(Empty):
            while True:
                queue.get_nowait()
    else:
        # No import: a program with such a queue has imported the module.
        queues = sys.modules.get("multiprocessing.queues")
        if queues is not None and isinstance(queue, queues.Queue):
            # multiprocessing does this in children that it forks itself. Without it the child would wait for a feeder
            # thread that only the parent has.
            queue._after_fork()
