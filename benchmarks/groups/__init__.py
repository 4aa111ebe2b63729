"""What is measured, in the order in which it is."""

from benchmarks.groups import file, startup, stdlib, structlog, threads

GROUPS = (file.GROUP, structlog.GROUP, stdlib.GROUP, threads.GROUP, startup.GROUP)
