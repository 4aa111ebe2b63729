"""What the installed structlog has."""

from __future__ import annotations

import structlog

#: Whether it is older than 25.1, with which ``render_to_log_args_and_kwargs`` came.
OLD = not hasattr(structlog.stdlib, "render_to_log_args_and_kwargs")

#: The processors that pack an event for a logging call.
PACKING = [structlog.stdlib.render_to_log_kwargs]
if not OLD:
    PACKING.append(structlog.stdlib.render_to_log_args_and_kwargs)


class Told(list):
    """Events compared without the logger and the time that a `SinkLogger` adds, where those are not asked for."""

    __hash__ = None

    def __eq__(self, wanted):
        """Tell whether the events are *wanted* ones."""
        return len(self) == len(wanted) and all(
            {key: value for key, value in event.items() if key in want or key not in ("logger", "timestamp")} == want
            for event, want in zip(self, wanted, strict=True)
        )
