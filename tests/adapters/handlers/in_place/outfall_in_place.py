"""A plug-in for pytest that puts the drop-in handlers in the place of the originals, for the tests of other projects.

It is no part of the package ``tests``, of which they have one too: with this folder on the path,
``pytest -p outfall_in_place``.
"""

from __future__ import annotations

import logging
import logging.handlers


def pytest_load_initial_conftests():
    """Do it before what is tested is imported, and after pytest has put its own streams in place."""
    from outfall.adapters import handlers

    for name in handlers.__all__:
        home = logging if name in {"FileHandler", "NullHandler", "StreamHandler"} else logging.handlers
        setattr(home, name, getattr(handlers, name))
