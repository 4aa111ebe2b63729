"""What is measured, in the order in which it is."""

from benchmarks.groups import file, rotating, startup, stdlib, structlog, threads

GROUPS = (file.GROUP, structlog.GROUP, stdlib.GROUP, rotating.GROUP, threads.GROUP, startup.GROUP)
