"""Drop-in twins of the standard library's logging handlers, under their own names.

.. code-block:: python

    from outfall.adapters.handlers import RotatingFileHandler   # was: logging.handlers

Each twin is a subclass of its namesake and has the same constructor, attributes and methods. On every supported version
it behaves as in Python 3.13. The sinks do the work. The table in :doc:`/explanation/handlers` lists the deliberate
differences: where the standard library loses records or contradicts its documentation.
"""

from logging.handlers import DEFAULT_HTTP_LOGGING_PORT as DEFAULT_HTTP_LOGGING_PORT
from logging.handlers import DEFAULT_SOAP_LOGGING_PORT as DEFAULT_SOAP_LOGGING_PORT
from logging.handlers import DEFAULT_TCP_LOGGING_PORT as DEFAULT_TCP_LOGGING_PORT
from logging.handlers import DEFAULT_UDP_LOGGING_PORT as DEFAULT_UDP_LOGGING_PORT
from logging.handlers import SYSLOG_TCP_PORT as SYSLOG_TCP_PORT
from logging.handlers import SYSLOG_UDP_PORT as SYSLOG_UDP_PORT
from sys import modules as _modules

from outfall.adapters.handlers.buffers import BufferingHandler, MemoryHandler
from outfall.adapters.handlers.eventlog import NTEventLogHandler
from outfall.adapters.handlers.file import FileHandler
from outfall.adapters.handlers.http import HTTPHandler
from outfall.adapters.handlers.mail import SMTPHandler
from outfall.adapters.handlers.queue import QueueHandler, QueueListener
from outfall.adapters.handlers.rotating import BaseRotatingHandler, RotatingFileHandler
from outfall.adapters.handlers.socket import DatagramHandler, SocketHandler
from outfall.adapters.handlers.stream import NullHandler, StreamHandler
from outfall.adapters.handlers.syslog import SysLogHandler
from outfall.adapters.handlers.timed import TimedRotatingFileHandler
from outfall.adapters.handlers.watched import WatchedFileHandler

# structlog's CallsiteParameterAdder, in a ProcessorFormatter, looks for the frame that logged: it skips frames whose
# module's name begins with "logging". The twins' ``emit`` is among the frames that it has to skip.
for _name, _module in list(_modules.items()):
    if _name.startswith(f"{__name__}."):
        vars(_module)["__name__"] = f"logging.{_name}"

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
