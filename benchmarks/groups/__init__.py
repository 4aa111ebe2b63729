"""What is measured, in the order in which it is."""

from benchmarks.groups import (
    background,
    collectors,
    file,
    filehandlers,
    handlers,
    queue,
    rotating,
    spool,
    startup,
    stdlib,
    structlog,
    syslog,
    threads,
    wire,
)

GROUPS = (
    file.GROUP,
    structlog.GROUP,
    stdlib.GROUP,
    rotating.GROUP,
    filehandlers.GROUP,
    handlers.GROUP,
    handlers.HTTP_GROUP,
    syslog.GROUP,
    threads.GROUP,
    background.GROUP,
    queue.GROUP,
    wire.GROUP,
    collectors.GROUP,
    collectors.CALLER_GROUP,
    spool.GROUP,
    spool.CALLER_GROUP,
    spool.SQLITE_GROUP,
    startup.GROUP,
)
