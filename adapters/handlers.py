"""Drop-in twins of the standard library's logging handlers, under their own names.

.. code-block:: python

    from outfall.adapters.handlers import RotatingFileHandler   # was: logging.handlers

Same constructors, attributes and methods, in the semantics of Python 3.13 on every supported version; the work is done
by the sinks. Each is a subclass of its namesake. Where one differs on purpose, because the standard library loses
records or contradicts its documentation, :doc:`/explanation/handlers` says so in a table.
"""

from outfall.adapters.bufferhandlers import BufferingHandler, MemoryHandler
from outfall.adapters.filehandlers import FileHandler, WatchedFileHandler
from outfall.adapters.httphandlers import HTTPHandler
from outfall.adapters.mailhandlers import SMTPHandler
from outfall.adapters.nteventloghandlers import NTEventLogHandler
from outfall.adapters.queuehandlers import QueueHandler, QueueListener
from outfall.adapters.rotatinghandlers import BaseRotatingHandler, RotatingFileHandler
from outfall.adapters.sockethandlers import DatagramHandler, SocketHandler
from outfall.adapters.streamhandlers import NullHandler, StreamHandler
from outfall.adapters.sysloghandlers import SysLogHandler
from outfall.adapters.timedhandlers import TimedRotatingFileHandler

__all__ = [
    "BaseRotatingHandler",
    "BufferingHandler",
    "DatagramHandler",
    "FileHandler",
    "HTTPHandler",
    "MemoryHandler",
    "NTEventLogHandler",
    "NullHandler",
    "QueueHandler",
    "QueueListener",
    "RotatingFileHandler",
    "SMTPHandler",
    "SocketHandler",
    "StreamHandler",
    "SysLogHandler",
    "TimedRotatingFileHandler",
    "WatchedFileHandler",
]
