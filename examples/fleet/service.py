"""A service of the fleet: logs events to a stream of Redis, through a spool.

Run it as ``python service.py redis://127.0.0.1 SPOOL NUMBER EVENTS``. When ``handle`` returns, an event is on disk.
When the spool is closed, all events are in Redis. Events that cannot be delivered are delivered at the next start.
"""

from __future__ import annotations

import sys

import structlog

from outfall import RedisSink, SpoolSink


def main() -> int:
    """Log events, and deliver them."""
    url, directory, service, events = sys.argv[1:]
    sink = SpoolSink(RedisSink(url, "logs", max_events=10_000_000), directory, batch_size=500)
    add_time = structlog.processors.TimeStamper(fmt="iso")
    structlog.configure(processors=[structlog.processors.add_log_level, add_time, sink])
    log = structlog.get_logger().bind(service=int(service))
    for number in range(int(events)):
        log.info("order placed", number=number)
    delivered = sink.flush(100)
    sink.close()
    return 0 if delivered else 1


if __name__ == "__main__":
    sys.exit(main())
