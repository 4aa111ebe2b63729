"""The files that roll over, together: by size, by time, and what they have in common."""

from outfall.sinks.numbered import RotatingFileSink
from outfall.sinks.rotation import BaseRotatingFileSink, RotatedFile
from outfall.sinks.timed import TimedRotatingFileSink

__all__ = ["BaseRotatingFileSink", "RotatedFile", "RotatingFileSink", "TimedRotatingFileSink"]
