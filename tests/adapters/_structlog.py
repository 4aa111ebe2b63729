"""What the installed structlog has."""

from __future__ import annotations

import structlog

#: Whether it is older than 25.1, with which ``render_to_log_args_and_kwargs`` came.
OLD = not hasattr(structlog.stdlib, "render_to_log_args_and_kwargs")

#: The processors that pack an event for a logging call.
PACKING = [structlog.stdlib.render_to_log_kwargs]
if not OLD:
    PACKING.append(structlog.stdlib.render_to_log_args_and_kwargs)
