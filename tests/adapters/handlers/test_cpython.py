"""The interpreter's own tests of `logging`, with the drop-in handlers in the place of the originals."""

from __future__ import annotations

import importlib.util

import pytest

from tests.sinks._processes import check

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("test") is None or importlib.util.find_spec("test.test_logging") is None,
    reason="this Python comes without its own tests",
)

#: What those tests expect, and the twins do otherwise on purpose; see docs/explanation/handlers.md.
DIFFERENT = {
    "BasicConfigTest.test_encoding_errors_none": "a character that the encoding does not have",
    "FileHandlerTest.test_emit_after_closing_in_write_mode": "a record after close() in mode 'w'",
    "MiscTestCase.test__all__": "the modules logging and logging.handlers would have to define the handlers",
    "RotatingFileHandlerTest.test_should_rollover": "a record that fills the file to exactly maxBytes",
    "SMTPHandlerTest.test_basic": "text that is not ASCII is sent as base64",
    "TimedRotatingFileHandlerTest.test_compute_rollover_MIDNIGHT_local": "atTime is a time that clocks leave out",
    # As a prefix it stands for …_W6_local_interval too.
    "TimedRotatingFileHandlerTest.test_compute_rollover_W6_local": "atTime is a time that clocks leave out",
}

#: What takes long and has little to do with handlers.
SLOW = (
    "HandlerTest.test_race",
    "SocketHandlerTest.test_noserver",
    "ConfigDictTest.test_listen",
    "FormatterTest.test_issue_89047",
    "TimedRotatingFileHandlerTest.test_rollover",
    "TimedRotatingFileHandlerTest.test_should_not_rollover",
)

SCRIPT = """
    import logging, logging.handlers, sys, unittest
    from outfall.adapters import handlers

    for name in handlers.__all__:
        home = logging if name in ("FileHandler", "NullHandler", "StreamHandler") else logging.handlers
        setattr(home, name, getattr(handlers, name))

    import test.test_logging

    skipped = sys.argv[1].split(",")
    found = unittest.defaultTestLoader.loadTestsFromModule(test.test_logging)
    chosen = unittest.TestSuite(
        case for group in found for case in group if not any(part in case.id() for part in skipped)
    )
    result = unittest.TextTestRunner(verbosity=0).run(chosen)
    print(result.testsRun)
    for case, trace in [*result.failures, *result.errors]:
        print(case.id(), *trace.splitlines(), sep="\\n")
    """


def test_the_interpreters_own_tests_pass():
    """All of them but those that expect what the twins do otherwise on purpose."""
    number, _, failures = check(SCRIPT, ",".join([*DIFFERENT, *SLOW])).partition("\n")
    assert failures == ""
    assert int(number) > 150
