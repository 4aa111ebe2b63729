"""What is measured, in the order in which it is."""

from benchmarks.groups import (
    collectors,
    file,
    filehandlers,
    rotating,
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
    syslog.GROUP,
    threads.GROUP,
    wire.GROUP,
    collectors.GROUP,
    collectors.CALLER_GROUP,
    startup.GROUP,
)
