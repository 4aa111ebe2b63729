"""Events over sockets, together: sent by `SocketSink` and `DatagramSink`, received by `SocketListener`."""

from outfall.sinks.datagram import DatagramSink
from outfall.sinks.framed import SocketSink
from outfall.sinks.listener import ListenerStats, SocketListener

__all__ = ["DatagramSink", "ListenerStats", "SocketListener", "SocketSink"]
