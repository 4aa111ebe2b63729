"""What the standard library documents of its handlers for streams and files, sentence by sentence, of the twins."""

from __future__ import annotations

import copy
import datetime as dt
import gc
import gzip
import inspect
import io
import logging
import logging.config
import logging.handlers
import os
import re
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest
import structlog
import time_machine

from outfall.adapters import handlers as twins
from outfall.adapters.handlers import (
    BaseRotatingHandler,
    FileHandler,
    NullHandler,
    RotatingFileHandler,
    StreamHandler,
    TimedRotatingFileHandler,
    WatchedFileHandler,
    openfile,
)

NOW = 1_700_000_000  # 2023-11-14 22:13:20 UTC, a Tuesday

#: The constructors of Python 3.13.
SIGNATURES = {
    "StreamHandler": "(stream=None)",
    "FileHandler": "(filename, mode='a', encoding=None, delay=False, errors=None)",
    "NullHandler": "(level=0)",
    "WatchedFileHandler": "(filename, mode='a', encoding=None, delay=False, errors=None)",
    "BaseRotatingHandler": "(filename, mode, encoding=None, delay=False, errors=None)",
    "RotatingFileHandler": ("(filename, mode='a', maxBytes=0, backupCount=0, encoding=None, delay=False, errors=None)"),
    "TimedRotatingFileHandler": (
        "(filename, when='h', interval=1, backupCount=0, encoding=None, delay=False, utc=False, atTime=None,"
        " errors=None)"
    ),
}


def namesake(name):
    """Return the standard library's class."""
    return getattr(logging, name, None) or getattr(logging.handlers, name)


def record(message="message", *args, level=logging.INFO, exc_info=None):
    """Return a log record."""
    return logging.LogRecord("app", level, "/app/main.py", 7, message, args, exc_info)


@pytest.fixture
def path(tmp_path):
    """Give the path of a log file that is not there yet."""
    return tmp_path / "app.log"


@pytest.fixture
def utc():
    """Have local time be UTC."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = "UTC"
    time.tzset()
    yield
    os.environ.pop("TZ") if before is None else os.environ.update(TZ=before)
    time.tzset()


@pytest.fixture
def clock(utc):
    """Let time stand still, in UTC; shift it to let time pass."""
    with time_machine.travel(NOW, tick=False) as traveller:
        yield traveller


def names(directory):
    """Return the names of what is in *directory*."""
    return sorted(entry.name for entry in directory.iterdir())


def _written_before(path, text="before\n", at=NOW):
    path.write_text(text)
    os.utime(path, (at, at))


# -- the classes


@pytest.mark.parametrize("name", SIGNATURES)
def test_constructors_are_those_of_python_3_13(name):
    """Order, names and defaults are the same, and so is what is written down here of them."""
    found = inspect.signature(getattr(twins, name))
    bare = [each.replace(annotation=inspect.Parameter.empty) for each in found.parameters.values()]
    assert str(inspect.Signature(bare)) == SIGNATURES[name]
    if sys.version_info >= (3, 13):
        assert str(inspect.signature(namesake(name))) == SIGNATURES[name]


@pytest.mark.parametrize("name", SIGNATURES)
def test_each_is_a_subclass_of_its_namesake(name):
    """`isinstance` holds."""
    assert issubclass(getattr(twins, name), namesake(name))


def test_they_can_be_imported_from_one_module_that_names_them():
    """The public namespace is the list of names, and the numbers of ports that `logging.handlers` has."""
    for port, number in vars(logging.handlers).items():
        if port.endswith("_PORT"):
            assert getattr(twins, port) == number
    assert set(SIGNATURES) <= set(twins.__all__)
    assert all(getattr(twins, name).__name__ == name for name in twins.__all__)


# -- what all of them have from logging.Handler


@pytest.mark.parametrize("name", sorted(SIGNATURES.keys() - {"NullHandler"}))
def test_level_formatter_filters_name_and_lock_are_those_of_any_handler(name, path):
    """What `logging.Handler` documents holds: it is one."""
    arguments = {"BaseRotatingHandler": (path, "a"), "StreamHandler": (io.StringIO(),)}.get(name, (path,))
    handler = getattr(twins, name)(*arguments)
    handler.setLevel("WARNING")
    handler.set_name(f"of {name}")
    assert handler.level == logging.WARNING
    assert logging._handlers[f"of {name}"] is handler
    handler.acquire()
    assert handler.lock._is_owned()
    handler.release()
    formatter = logging.Formatter("%(message)s")
    handler.setFormatter(formatter)
    assert handler.formatter is formatter
    assert handler.format(record("%d", 1)) == "1"
    handler.close()
    assert f"of {name}" not in logging._handlers


def test_a_record_that_a_filter_rejects_is_not_emitted():
    """`handle` returns a false value then, and else the record, as Python 3.12 and later do."""
    stream = io.StringIO()
    handler = StreamHandler(stream)
    handler.addFilter(lambda record: record.levelno > logging.INFO)
    said = record("kept", level=logging.ERROR)
    assert not handler.handle(record("rejected"))
    assert handler.handle(said) is said
    assert stream.getvalue() == "kept\n"


def test_a_filter_may_replace_the_record():
    """On every version, as in Python 3.12: what the filter returns is what is emitted, and what later filters see."""
    stream = io.StringIO()
    handler = StreamHandler(stream)

    class Loud(logging.Filter):
        def filter(self, given):
            replaced = copy.copy(given)
            replaced.msg = given.msg.upper()
            return replaced

    seen = []
    handler.addFilter(Loud())
    handler.addFilter(lambda given: seen.append(given.msg) or True)
    original = record("quiet")
    assert handler.handle(original).msg == "QUIET"
    assert (stream.getvalue(), seen, original.msg) == ("QUIET\n", ["QUIET"], "quiet")


def test_emit_runs_under_the_handlers_lock():
    """Who has acquired the lock keeps all others out."""

    class Asking(StreamHandler):
        def emit(self, given):
            held.append(self.lock._is_owned())

    held = []
    Asking(io.StringIO()).handle(record())
    assert held == [True]


def test_failures_go_to_handle_error_and_not_to_the_application(capsys, monkeypatch):
    """`handleError` gets the record, and prints what it is unless `logging.raiseExceptions` is false."""
    handler = StreamHandler(io.StringIO())
    handler.handle(record("%d", "no number"))
    printed = capsys.readouterr().err
    assert printed.startswith("--- Logging error ---\n")
    assert "TypeError: %d format: a real number is required, not str" in printed
    assert "Arguments: ('no number',)" in printed
    monkeypatch.setattr(logging, "raiseExceptions", False)
    handler.handle(record("%d", "no number"))
    assert capsys.readouterr().err == ""


def test_recursion_errors_are_raised():
    """A `RecursionError` is not handled, as that would recurse."""

    class Deep(logging.Formatter):
        def format(self, given):
            raise RecursionError

    handler = StreamHandler(io.StringIO())
    handler.setFormatter(Deep())
    with pytest.raises(RecursionError):
        handler.handle(record())


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", [FileHandler, WatchedFileHandler, RotatingFileHandler, TimedRotatingFileHandler])
def test_a_handler_dies_with_its_last_reference(kind, path):
    """Handlers and sinks make no cycles: logging holds handlers weakly, and the file is closed."""
    handler = kind(path, delay=False)
    handler.handle(record())
    descriptor = handler.stream.fileno()
    gc.disable()
    try:
        died = weakref.ref(handler)
        del handler
        assert died() is None
    finally:
        gc.enable()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


@pytest.mark.parametrize("kind", [FileHandler, WatchedFileHandler, RotatingFileHandler, TimedRotatingFileHandler])
def test_a_copy_shares_the_file_and_has_its_own_attributes(kind, path):
    """`copy.copy` of a handler can have another formatter, and writes to the same file."""
    handler = kind(path)
    other = copy.copy(handler)
    other.setFormatter(logging.Formatter("copy: %(message)s"))
    other.terminator = "!\n"
    for each in (handler, other, handler):
        each.handle(record())
    assert other.stream is handler.stream
    assert path.read_text() == "message\ncopy: message!\nmessage\n"
    handler.close()


def test_a_copy_of_a_stream_handler_has_its_own_stream():
    """A stream that is set on the copy is not the original's."""
    one, two = io.StringIO(), io.StringIO()
    handler = StreamHandler(one)
    other = copy.copy(handler)
    other.stream = two
    handler.handle(record("one"))
    other.handle(record("two"))
    assert (one.getvalue(), two.getvalue()) == ("one\n", "two\n")


SHUTDOWN = """
import logging
from outfall.adapters.handlers import FileHandler, StreamHandler
handler = FileHandler({path!r}, mode="w")
logging.getLogger().addHandler(handler)
logging.warning("in the program")
import atexit
atexit.register(logging.warning, "at exit")
"""


def test_logging_shutdown_closes_them_at_exit(path):
    """What is logged until the end of the program is in the file."""
    subprocess.run([sys.executable, "-c", SHUTDOWN.format(path=str(path))], check=True, timeout=60)
    assert path.read_text() == "in the program\nat exit\n"


def test_shutdown_flushes_and_closes():
    """`logging.shutdown` finds them as it finds any handler."""
    handler = FileHandler(os.devnull)
    logging.shutdown([weakref.ref(handler)])
    assert handler.stream is None
    assert handler._closed


def test_dict_config_makes_them_by_their_path(tmp_path):
    """Only the class's path changes in a configuration."""
    logger = logging.getLogger("outfall.tests.twins")
    try:
        logging.config.dictConfig(
            {
                "version": 1,
                "disable_existing_loggers": False,
                "formatters": {
                    "brace": {"format": "{levelname}|{message}", "style": "{"},
                    "json": {
                        "()": structlog.stdlib.ProcessorFormatter,
                        "processors": [
                            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                            structlog.processors.JSONRenderer(),
                        ],
                    },
                },
                "handlers": {
                    "size": {
                        "class": "outfall.adapters.handlers.RotatingFileHandler",
                        "filename": str(tmp_path / "size.log"),
                        "maxBytes": 20,
                        "backupCount": 1,
                        "formatter": "brace",
                        "level": "WARNING",
                    },
                    "time": {
                        "class": "outfall.adapters.handlers.TimedRotatingFileHandler",
                        "filename": str(tmp_path / "time.log"),
                        "when": "midnight",
                        "formatter": "json",
                        ".": {"suffix": "%Y"},
                    },
                    "null": {"class": "outfall.adapters.handlers.NullHandler"},
                },
                "loggers": {logger.name: {"level": "INFO", "handlers": ["size", "time", "null"], "propagate": False}},
            }
        )
        logger.info("low")
        logger.warning("one")
        logger.warning("two")
        time_handler = next(each for each in logger.handlers if isinstance(each, TimedRotatingFileHandler))
        assert time_handler.suffix == "%Y"
        assert (tmp_path / "size.log").read_text() == "WARNING|two\n"
        assert (tmp_path / "size.log.1").read_text() == "WARNING|one\n"
        assert (tmp_path / "time.log").read_text() == '{"event": "low"}\n{"event": "one"}\n{"event": "two"}\n'
    finally:
        for handler in logger.handlers[:]:
            logger.removeHandler(handler)
            handler.close()


@pytest.mark.usefixtures("own_logging")
def test_file_config_makes_them_by_their_path(tmp_path):
    """So does the older form of configuration."""
    config = tmp_path / "logging.ini"
    config.write_text(
        f"""
[loggers]
keys=root
[handlers]
keys=file
[formatters]
keys=plain
[logger_root]
level=INFO
handlers=file
[handler_file]
class=outfall.adapters.handlers.WatchedFileHandler
args=({str(tmp_path / "app.log")!r}, "w")
formatter=plain
[formatter_plain]
format=%(levelname)s %(message)s
"""
    )
    logging.config.fileConfig(config, disable_existing_loggers=False)
    root = logging.getLogger()
    try:
        logging.info("configured")
        assert type(root.handlers[0]) is WatchedFileHandler
        assert (tmp_path / "app.log").read_text() == "INFO configured\n"
    finally:
        for handler in root.handlers[:]:
            root.removeHandler(handler)
            handler.close()


# -- StreamHandler


def test_the_stream_is_stderr_unless_another_is_given(monkeypatch):
    """As it is at construction."""
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    handler = StreamHandler()
    monkeypatch.undo()
    handler.handle(record())
    assert (handler.stream, stderr.getvalue()) == (stderr, "message\n")


def test_exception_text_is_appended_to_the_stream():
    """A record with an exception is written with its traceback, in one write."""
    stream = io.StringIO()
    try:
        raise ValueError("why")
    except ValueError:
        StreamHandler(stream).handle(record(exc_info=sys.exc_info()))
    assert re.fullmatch(r"message\nTraceback .*\nValueError: why\n", stream.getvalue(), re.DOTALL)


def test_close_of_a_stream_handler_does_no_output():
    """`close` is that of `Handler`: an explicit `flush` may be needed at times, and the stream stays open."""
    calls = []

    class Stream(io.StringIO):
        def flush(self):
            calls.append("flush")

    handler = StreamHandler(Stream())
    handler.close()
    assert (calls, handler.stream.closed) == ([], False)
    handler.flush()
    assert calls == ["flush"]


def test_set_stream_flushes_the_old_stream_first_and_returns_it():
    """Or returns None, if the stream is the same."""
    calls = []

    class Stream(io.StringIO):
        def flush(self):
            calls.append(handler.stream is old)

    old = Stream()
    handler = StreamHandler(old)
    new = io.StringIO()
    assert handler.setStream(old) is None
    assert not calls
    assert handler.setStream(new) is old
    assert calls == [True]
    assert handler.stream is new


def test_each_record_is_flushed_by_the_flush_of_a_subclass():
    """Which may leave it at that: the stream's own `flush` is then not called."""
    calls = []

    class Stream(io.StringIO):
        def flush(self):
            calls.append("stream")

    class Lazy(StreamHandler):
        def flush(self):
            calls.append("handler")

    Lazy(Stream()).handle(record())
    assert calls == ["handler"]


def test_the_terminator_can_be_set_for_the_class_or_for_one_handler():
    """It is read at each record; the empty one ends no line."""

    class Dotted(StreamHandler):
        terminator = "."

    stream = io.StringIO()
    handler = Dotted(stream)
    handler.handle(record("a"))
    handler.terminator = ""
    handler.handle(record("b"))
    del handler.terminator
    Dotted.terminator = "!"
    handler.handle(record("c"))
    assert stream.getvalue() == "a.bc!"


def test_a_stream_without_flush_or_that_is_false_is_not_flushed():
    """What has no `flush` needs none."""

    class Plain:
        def __init__(self):
            self.written = []

        def write(self, text):
            self.written.append(text)

    handler = StreamHandler(Plain())
    handler.handle(record())
    handler.flush()
    assert handler.stream.written == ["message\n"]
    handler.stream = None
    handler.flush()

    class Empty(list):
        def flush(self):
            pytest.fail("flushed")

    handler.stream = Empty()
    handler.flush()


def test_a_subclass_may_make_the_stream_a_property():
    """As the handler of last resort does, to follow `sys.stderr`."""
    streams = [io.StringIO(), io.StringIO()]

    class Following(StreamHandler):
        def __init__(self):
            logging.Handler.__init__(self)

        @property
        def stream(self):
            return streams[-1]

    handler = Following()
    handler.handle(record("last"))
    streams.pop()
    handler.handle(record("first"))
    assert streams[0].getvalue() == "first\n"


# -- NullHandler


def test_the_null_handler_does_nothing():
    """`handle` and `emit` return None, and there is no lock."""
    handler = NullHandler()
    assert handler.handle(record()) is None
    assert handler.emit(record()) is None
    assert handler.createLock() is None
    assert handler.lock is None
    assert "_sink" not in vars(handler)


# -- FileHandler


def test_the_file_is_opened_at_once_and_appended_to(path):
    """The mode is ``"a"`` unless another is given."""
    path.write_text("before\n")
    handler = FileHandler(path)
    assert handler.stream is not None
    handler.handle(record())
    assert path.read_text() == "before\nmessage\n"
    handler.close()


def test_with_delay_the_file_is_opened_by_the_first_record(path):
    """Until then there is no file, and no stream."""
    handler = FileHandler(path, delay=True)
    assert handler.stream is None
    assert not path.exists()
    handler.handle(record())
    assert path.read_text() == "message\n"
    assert handler.stream.name == str(path)
    handler.close()


@pytest.mark.parametrize("given", [str, Path, os.fsencode])
def test_the_path_may_be_of_any_kind_and_is_made_absolute_once(given, tmp_path, monkeypatch):
    """A later change of directory does not move the file."""
    monkeypatch.chdir(tmp_path)
    handler = FileHandler(given("app.log") if given is not Path else Path("app.log"), delay=True)
    monkeypatch.chdir("/")
    handler.handle(record())
    assert handler.baseFilename == str(tmp_path / "app.log")
    assert (tmp_path / "app.log").read_text() == "message\n"
    handler.close()


def test_encoding_and_errors_are_those_that_are_given(path):
    """They are used to write the file, and are attributes."""
    handler = FileHandler(path, encoding="ascii", errors="xmlcharrefreplace")
    handler.handle(record("é"))
    handler.close()
    assert path.read_bytes() == b"&#233;\n"
    assert (handler.encoding, handler.errors, handler.mode, handler.delay) == ("ascii", "xmlcharrefreplace", "a", False)


def test_a_file_that_cannot_be_opened_raises_at_construction(tmp_path):
    """As any `open` does; so do a mode, an encoding and an error handler that nobody knows."""
    with pytest.raises(FileNotFoundError, match=r"no/app\.log"):
        FileHandler(tmp_path / "no" / "app.log")
    with pytest.raises(IsADirectoryError):
        FileHandler(tmp_path)
    with pytest.raises(ValueError, match="mode"):
        FileHandler(tmp_path / "app.log", mode="q")
    with pytest.raises(LookupError, match="unknown encoding"):
        FileHandler(tmp_path / "app.log", encoding="klingon")
    assert names(tmp_path) == []


def test_mode_w_truncates_and_mode_x_insists_on_a_new_file(path):
    """When the file is first opened."""
    path.write_text("before\n")
    FileHandler(path, mode="w").close()
    assert path.read_text() == ""
    with pytest.raises(FileExistsError):
        FileHandler(path, mode="x")


def test_close_closes_the_file(path):
    """The stream is None from then on, until another record comes."""
    handler = FileHandler(path)
    stream = handler.stream
    handler.close()
    assert (stream.closed, handler.stream) == (True, None)
    with pytest.raises(ValueError, match="closed"):
        stream.write("late")
    handler.handle(record())
    assert path.read_text() == "message\n"
    handler.close()


def test_the_stream_is_one_as_open_makes_it(path):
    """Text, with the attributes of a file; what it buffers comes before the next record."""
    path.write_text("before\n")
    handler = FileHandler(path, encoding="utf-8")
    stream = handler.stream
    assert type(stream) is io.TextIOWrapper
    assert (stream.name, stream.mode, stream.encoding) == (str(path), "a", "utf-8")
    assert (stream.writable(), stream.readable(), stream.isatty(), stream.closed) == (True, False, False, False)
    assert stream.tell() == len("before\n")
    handler.handle(record())
    stream.write("by hand é\n")
    stream.flush()
    stream.buffer.write(b"bytes\n")
    handler.handle(record())
    assert path.read_text("utf-8") == "before\nmessage\nby hand é\nbytes\nmessage\n"
    assert stream.tell() == path.stat().st_size == stream.seek(0, os.SEEK_END)
    stream.truncate(0)
    assert path.read_bytes() == b""
    stream.close()
    assert stream.closed
    assert handler.stream is stream


def test_a_stream_that_is_assigned_gets_the_records(path):
    """And None has the file opened again by the next."""
    handler = FileHandler(path)
    handler.stream.close()
    handler.stream = io.StringIO()
    handler.handle(record("elsewhere"))
    assert handler.stream.getvalue() == "elsewhere\n"
    handler.stream = None
    handler.handle(record("here"))
    assert path.read_text() == "here\n"
    handler.close()


def test_who_writes_by_hand_may_go_back(path):
    """In mode "w", as with any file: the records alone go to the end, wherever that is."""
    handler = FileHandler(path, mode="w")
    handler.stream.write("[1]")
    handler.stream.seek(2)
    handler.stream.write(",2]")
    handler.stream.seek(0)
    handler.handle(record())
    assert path.read_text() == "[1,2]message\n"
    handler.stream.write("after\n")
    handler.close()
    assert path.read_text() == "[1,2]message\nafter\n"


def test_a_stream_may_be_reconfigured(path):
    """Its encoding and error handler are those of the next record."""
    handler = FileHandler(path, encoding="utf-8")
    handler.handle(record("é"))
    handler.stream.reconfigure(encoding="ascii", errors="replace")
    handler.handle(record("é"))
    handler.close()
    assert path.read_bytes() == "é\n?\n".encode()


def test_open_may_be_called_at_any_time(path):
    """Each stream it returns is one of its own: the first goes on, and closing it does not touch the other."""
    handler = FileHandler(path)
    old, handler.stream = handler.stream, handler._open()
    old.write("old\n")
    handler.handle(record("one"))
    old.close()
    handler.handle(record("two"))
    assert path.read_text() == "one\nold\ntwo\n"
    handler.close()


def test_open_in_mode_w_truncates_each_time_it_is_called(path):
    """By a subclass that copies the file and begins it anew, for example."""
    handler = FileHandler(path, mode="w")
    for message in ("one", "two"):
        handler.handle(record(message))
        handler.stream.close()
        handler.stream = handler._open()
        assert path.read_text() == ""
    handler.close()


@pytest.mark.parametrize("mode", ["a+", "w+"])
def test_a_stream_that_is_open_for_reading_can_be_read(path, mode):
    """What was written by hand and what was logged."""
    handler = FileHandler(path, mode=mode)
    handler.stream.write("by hand\n")
    handler.handle(record())
    handler.stream.seek(0)
    assert handler.stream.read() == "by hand\nmessage\n"
    handler.handle(record("again"))
    handler.close()
    assert path.read_text() == "by hand\nmessage\nagain\n"


def test_what_is_set_for_the_file_acts_when_it_is_next_opened(tmp_path):
    """Path, mode, encoding and errors are read by `_open`, as subclasses expect."""
    handler = FileHandler(tmp_path / "one.log")
    handler.close()
    (tmp_path / "two.log").write_text("before\n")
    handler.baseFilename = str(tmp_path / "two.log")
    handler.mode, handler.encoding, handler.errors = "w", "latin-1", "replace"
    handler.handle(record("é€"))
    handler.close()
    assert (tmp_path / "two.log").read_bytes() == b"\xe9?\n"
    handler.mode = "a"
    handler.handle(record("again"))
    handler.mode = "w"
    handler.close()
    handler.handle(record("anew"))
    assert (tmp_path / "two.log").read_bytes() == b"anew\n"
    handler.close()


def test_a_subclass_may_open_the_file_itself(path):
    """`_open` may return any stream."""

    class Packed(FileHandler):
        def _open(self):
            return gzip.open(self.baseFilename, "at", encoding="utf-8")

    handler = Packed(path)
    handler.handle(record("é"))
    handler.close()
    handler.handle(record("again"))
    handler.close()
    with gzip.open(path, "rt", encoding="utf-8") as file:
        assert file.read() == "é\nagain\n"


@pytest.mark.parametrize("kind", [FileHandler, WatchedFileHandler, RotatingFileHandler, TimedRotatingFileHandler])
def test_a_subclass_may_override_what_it_likes(kind, path):
    """`emit`, `format`, `flush`, `close`, `_open` and `handleError` of a subclass are called."""
    calls = []

    class Mine(kind):
        def emit(self, given):
            calls.append("emit")
            super().emit(given)

        def format(self, given):
            calls.append("format")
            return super().format(given)

        def flush(self):
            calls.append("flush")
            super().flush()

        def close(self):
            calls.append("close")
            super().close()

        def _open(self):
            calls.append("_open")
            return super()._open()

        def handleError(self, given):
            calls.append(f"handleError {given.msg}")

    handler = Mine(path)
    handler.handle(record())
    handler.handle(record("%d", "no number"))
    handler.close()
    assert calls == ["_open", "emit", "format", "flush", "emit", "format", "handleError %d", "close", "flush"]
    assert path.read_text() == "message\n"


def test_a_flush_that_is_set_on_one_handler_is_called_after_each_record(path):
    """As a subclass's is."""
    handler = FileHandler(path)
    calls = []
    handler.flush = lambda: calls.append(path.read_text())
    handler.handle(record())
    assert calls == ["message\n"]
    handler.close()


def test_a_subclass_may_call_the_namesakes_methods(path):
    """Those of the standard library work on a twin: through its stream."""

    class Old(FileHandler):
        def __init__(self, filename):
            logging.FileHandler.__init__(self, filename, encoding="utf-8")

        def emit(self, given):
            logging.FileHandler.emit(self, given)

    handler = Old(path)
    handler.handle(record("é"))
    handler.close()
    assert path.read_text("utf-8") == "é\n"


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="logging itself needs the lock since Python 3.13")
def test_a_subclass_may_do_without_a_lock(path):
    """With a `createLock` that makes none."""

    class Bare(FileHandler):
        def createLock(self):
            self.lock = None

    handler = Bare(path)
    handler.handle(record())
    handler.stream.close()
    handler.stream = io.StringIO()
    handler.handle(record("elsewhere"))
    assert (path.read_text(), handler.stream.getvalue()) == ("message\n", "elsewhere\n")
    handler.close()


def test_a_forked_child_writes_to_the_same_file(path):
    """The lock is fresh there, and the file is the parent's."""
    handler = FileHandler(path)
    handler.handle(record("parent"))
    child = os.fork()
    if child == 0:
        try:
            handler.handle(record("child"))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    handler.handle(record("parent again"))
    assert path.read_text() == "parent\nchild\nparent again\n"
    handler.close()


# -- WatchedFileHandler


def test_a_watched_file_that_was_moved_is_opened_anew(path):
    """A file has changed if its device or inode has: the next record goes to the path."""
    handler = WatchedFileHandler(path)
    handler.handle(record("one"))
    first = handler.stream
    path.rename(path.with_suffix(".1"))
    path.touch()
    handler.handle(record("two"))
    assert (path.with_suffix(".1").read_text(), path.read_text()) == ("one\n", "two\n")
    assert first.closed
    assert handler.stream is not first
    assert (handler.dev, handler.ino) == (path.stat().st_dev, path.stat().st_ino)
    handler.close()


def test_reopen_if_needed_may_be_called_and_is_called_before_each_record(path):
    """It opens the file again only if it has changed."""
    calls = []

    class Mine(WatchedFileHandler):
        def reopenIfNeeded(self):
            calls.append(path.exists())
            super().reopenIfNeeded()

    handler = Mine(path)
    stream = handler.stream
    handler.reopenIfNeeded()
    assert handler.stream is stream
    path.unlink()
    handler.reopenIfNeeded()
    assert path.exists()
    assert handler.stream is not stream
    for _ in range(3):
        handler.handle(record())
    assert calls == [True, False, True, True, True]
    handler.close()
    handler.reopenIfNeeded()
    assert handler.stream is None


def test_device_and_inode_can_be_set_to_have_the_file_opened_anew(path):
    """They are what the file at the path is compared with."""
    handler = WatchedFileHandler(path)
    stream = handler.stream
    handler.ino = -1
    handler.handle(record())
    assert handler.stream is not stream
    assert handler.ino == path.stat().st_ino
    handler._statstream()
    assert handler.ino == path.stat().st_ino
    stream = handler.stream
    handler.dev = -1
    handler.reopenIfNeeded()
    assert handler.stream is not stream
    handler.close()


def test_a_watched_file_that_a_subclass_opens_is_watched_too(path):
    """Whatever stream its `_open` returns."""

    class Mine(WatchedFileHandler):
        def _open(self):
            return open(self.baseFilename, "a", encoding="utf-8")

    handler = Mine(path)
    handler.handle(record("one"))
    path.rename(path.with_suffix(".1"))
    handler.handle(record("two"))
    handler.handle(record("three"))
    assert (path.with_suffix(".1").read_text(), path.read_text()) == ("one\n", "two\nthree\n")
    handler.close()


# -- BaseRotatingHandler


@pytest.mark.parametrize("by_attribute", [True, False])
def test_namer_and_rotator_are_delegated_to(path, by_attribute):
    """`rotation_filename` and `rotate` call them with their own arguments; a subclass may override the methods."""
    calls = []

    def namer(name):
        calls.append(("namer", name))
        return name + ".x"

    def rotator(source, dest):
        calls.append(("rotator", source, dest))
        Path(source).rename(dest)

    class Mine(RotatingFileHandler):
        def rotation_filename(self, default_name):
            return namer(default_name)

        def rotate(self, source, dest):
            rotator(source, dest)

    handler = (RotatingFileHandler if by_attribute else Mine)(path, maxBytes=10, backupCount=1)
    if by_attribute:
        handler.namer, handler.rotator = namer, rotator
    assert handler.rotation_filename("any") == "any.x"
    for message in ("one", "two two"):
        handler.handle(record(message))
    assert ("rotator", str(path), f"{path}.1.x") in calls
    assert ("namer", f"{path}.1") in calls
    assert names(path.parent) == ["app.log", "app.log.1.x"]
    handler.close()


def test_namer_and_rotator_may_be_methods_of_a_subclass(path):
    """An attribute may be a method as well."""

    class Mine(RotatingFileHandler):
        def namer(self, name):
            return name + ".mine"

        def rotator(self, source, dest):
            Path(source).rename(dest)

    handler = Mine(path, maxBytes=10, backupCount=1)
    for message in ("one", "two two"):
        handler.handle(record(message))
    assert names(path.parent) == ["app.log", "app.log.1.mine"]
    handler.close()


def test_without_them_the_name_is_the_default_and_the_file_renamed(path):
    """A source that is not there is no error; what is not callable is not called."""
    handler = RotatingFileHandler(path, delay=True)
    handler.namer = handler.rotator = "not callable"
    assert handler.rotation_filename("any") == "any"
    path.write_text("source")
    handler.rotate(str(path), f"{path}.dest")
    assert path.with_name("app.log.dest").read_text() == "source"
    handler.rotate(str(path), f"{path}.dest")
    assert path.with_name("app.log.dest").read_text() == "source"


@pytest.mark.parametrize("hook", ["namer", "rotator", "shouldRollover", "doRollover"])
def test_what_a_hook_raises_goes_to_handle_error(path, hook):
    """In the same way as any other exception during an `emit` call."""
    handler = RotatingFileHandler(path, maxBytes=10, backupCount=1)
    errors = []
    handler.handleError = lambda given: errors.append((type(sys.exc_info()[1]), given.msg))

    def broken(*args):
        raise ZeroDivisionError

    handler.handle(record("one"))
    setattr(handler, hook, broken)
    handler.handle(record("two two"))
    assert errors == [(ZeroDivisionError, "two two")]
    handler.close()


def test_a_subclass_says_itself_when_and_how_to_roll_over(path):
    """With `shouldRollover` and `doRollover`, which close, rotate and open as they always did."""

    class ByWord(BaseRotatingHandler):
        files = 0

        def shouldRollover(self, given):
            return given.getMessage() == "roll"

        def doRollover(self):
            if self.stream:
                self.stream.close()
                self.stream = None
            self.files += 1
            self.rotate(self.baseFilename, self.rotation_filename(f"{self.baseFilename}.{self.files}"))
            self.stream = self._open()

    handler = ByWord(path, "a", encoding="utf-8")
    for message in ("one", "roll", "two", "roll"):
        handler.handle(record(message))
    assert [path.with_name(name).read_text() for name in names(path.parent)] == ["roll\n", "one\n", "roll\ntwo\n"]
    assert handler.encoding == "utf-8"
    handler.close()


@pytest.mark.parametrize("kind", [RotatingFileHandler, TimedRotatingFileHandler])
@pytest.mark.parametrize("on_instance", [False, True])
def test_whether_to_roll_over_is_what_should_rollover_says(path, kind, on_instance):
    """Whatever the size and the time: that of a subclass, or one that is set on the handler."""

    class ByWord(kind):
        def shouldRollover(self, given):
            return given.getMessage() == "roll"

    handler = (kind if on_instance else ByWord)(path, backupCount=2)
    if on_instance:
        handler.shouldRollover = lambda given: given.getMessage() == "roll"
    for message in ("one", "two", "roll"):
        handler.handle(record(message))
    handler.close()
    assert sorted(entry.read_text() for entry in path.parent.iterdir()) == ["one\ntwo\n", "roll\n"]


def test_the_base_class_alone_cannot_roll_over_and_loses_nothing(path):
    """It has neither method, as its namesake; the record is written."""
    handler = BaseRotatingHandler(path, "a")
    errors = []
    handler.handleError = lambda given: errors.append(type(sys.exc_info()[1]))
    handler.handle(record())
    assert (errors, path.read_text()) == ([AttributeError], "message\n")
    assert handler.encoding is None
    handler.close()


# -- RotatingFileHandler


def test_old_files_get_numbers_and_the_oldest_goes(path):
    """The file written to is always the one named; each rollover moves the others up, up to `backupCount`."""
    handler = RotatingFileHandler(path, maxBytes=10, backupCount=2)
    for message in ("one", "two two", "three", "four four", "five"):
        handler.handle(record(message))
    assert {name: path.with_name(name).read_text() for name in names(path.parent)} == {
        "app.log": "five\n",
        "app.log.1": "four four\n",
        "app.log.2": "three\n",
    }
    handler.close()


@pytest.mark.parametrize(("max_bytes", "backup_count"), [(0, 0), (0, 3), (10, 0)])
def test_rollover_never_occurs_if_either_bound_is_zero(path, max_bytes, backup_count):
    """The file then grows indefinitely."""
    handler = RotatingFileHandler(path, maxBytes=max_bytes, backupCount=backup_count)
    stream = handler.stream
    for _ in range(5):
        handler.handle(record("a longer message"))
    assert handler.stream is stream
    if not backup_count:
        handler.doRollover()
    assert names(path.parent) == ["app.log"]
    assert path.read_text() == "a longer message\n" * 5
    handler.close()


def test_should_rollover_says_whether_the_record_would_exceed_the_limit(path):
    """It may be asked at any time, and goes by the limit there is now."""
    handler = RotatingFileHandler(path, maxBytes=20, backupCount=1)
    assert not handler.shouldRollover(record("x" * 30))
    handler.handle(record("x" * 9))
    assert not handler.shouldRollover(record("x" * 5))
    assert handler.shouldRollover(record("x" * 15))
    handler.maxBytes = 30
    assert not handler.shouldRollover(record("x" * 15))
    handler.close()
    assert handler.shouldRollover(record("x" * 25))
    handler.close()


def test_do_rollover_rolls_over_now(path):
    """Whatever the size; the old stream is closed, and a new one open unless `delay` is set."""
    handler = RotatingFileHandler(path, backupCount=1)
    handler.handle(record("one"))
    first = handler.stream
    handler.doRollover()
    assert first.closed
    assert not handler.stream.closed
    handler.handle(record("two"))
    assert (path.with_name("app.log.1").read_text(), path.read_text()) == ("one\n", "two\n")
    handler.delay = True
    handler.doRollover()
    assert handler.stream is None
    assert names(path.parent) == ["app.log.1"]
    handler.close()


def test_with_a_limit_mode_w_is_mode_a(path):
    """A run of the program would else lose what the one before has logged."""
    path.write_text("before\n")
    handler = RotatingFileHandler(path, mode="w", maxBytes=100, backupCount=1)
    assert (handler.mode, path.read_text()) == ("a", "before\n")
    handler.close()
    RotatingFileHandler(path, mode="w").close()
    assert path.read_text() == ""


def test_a_file_that_is_not_regular_never_rolls_over(tmp_path):
    """Only regular files can be moved away."""
    handler = RotatingFileHandler(os.devnull, maxBytes=1, backupCount=1)
    handler.handle(record())
    handler.handle(record())
    assert not handler.shouldRollover(record())
    handler.close()
    assert not Path(f"{os.devnull}.1").exists()


def test_a_stream_of_a_subclass_rolls_over_by_its_position(path):
    """A rotating handler may open what it likes, too."""

    class Mine(RotatingFileHandler):
        def _open(self):
            return open(self.baseFilename, "a", encoding="utf-8")

    handler = Mine(path, maxBytes=10, backupCount=2)
    for message in ("one", "two", "three", "four four"):
        handler.handle(record(message))
    assert {name: path.with_name(name).read_text() for name in names(path.parent)} == {
        "app.log": "four four\n",
        "app.log.1": "three\n",
        "app.log.2": "one\ntwo\n",
    }
    handler.doRollover()
    handler.doRollover()
    assert handler.stream is not None
    assert path.with_name("app.log.1").read_text() == "four four\n"
    handler.close()


# -- TimedRotatingFileHandler


@pytest.mark.parametrize(
    ("when", "interval", "seconds", "suffix"),
    [
        ("S", 5, 5, "2023-11-14_22-13-20"),
        ("m", 1, 60, "2023-11-14_22-13"),
        ("H", 2, 7200, "2023-11-14_22"),
        ("d", 1, 86_400, "2023-11-14"),
        ("midnight", 1, 6400, "2023-11-14"),
        ("W1", 1, 6400, "2023-11-08"),
        ("W0", 1, 6 * 86_400 + 6400, "2023-11-14"),
    ],
)
def test_units_and_names(path, clock, when, interval, seconds, suffix):
    """Each unit, in any case, has its length and its own part of ``%Y-%m-%d_%H-%M-%S``."""
    _written_before(path)
    handler = TimedRotatingFileHandler(path, when=when, interval=interval)
    assert handler.when == when.upper()
    assert handler.rolloverAt == NOW + seconds
    assert handler.extMatch.fullmatch(suffix)
    clock.shift(seconds - 1)
    assert not handler.shouldRollover(record())
    clock.shift(1)
    assert handler.shouldRollover(record())
    handler.handle(record())
    assert names(path.parent) == ["app.log", f"app.log.{suffix}"]
    assert path.read_text() == "message\n"
    handler.close()


@pytest.mark.parametrize("when", ["X", "W7", "W", "W10", "", "weekly"])
def test_a_unit_that_is_none_is_refused(path, when):
    """With a ValueError, before there is a file."""
    with pytest.raises(ValueError, match="when"):
        TimedRotatingFileHandler(path, when=when)
    assert not path.exists()


def test_the_first_interval_begins_with_the_last_modification_of_the_file(path, clock):
    """Or now, if there is no file."""
    assert TimedRotatingFileHandler(path, delay=True).rolloverAt == NOW + 3600
    _written_before(path, at=NOW - 3000)
    handler = TimedRotatingFileHandler(path, delay=True)
    assert handler.rolloverAt == NOW + 600


def test_the_next_interval_begins_with_the_rollover(path, clock):
    """Rollover times are calculated when a rollover occurs, and that is when there is output."""
    _written_before(path)
    handler = TimedRotatingFileHandler(path, when="M")
    clock.shift(290)
    assert handler.rolloverAt == NOW + 60
    handler.handle(record("after five minutes"))
    assert handler.rolloverAt == NOW + 290 + 60
    assert names(path.parent) == ["app.log", "app.log.2023-11-14_22-13"]
    handler.close()


def test_at_time_is_the_time_of_day_of_the_rollover(path, clock):
    """At midnight and on weekdays; in UTC if asked to."""
    _written_before(path)
    at = dt.time(23, 30)
    assert TimedRotatingFileHandler(path, "midnight", atTime=at, delay=True).rolloverAt == NOW + 4600
    assert TimedRotatingFileHandler(path, "W1", atTime=at, utc=True, delay=True).rolloverAt == NOW + 4600
    assert TimedRotatingFileHandler(path, "W2", atTime=at, delay=True).rolloverAt == NOW + 4600 + 86_400
    assert TimedRotatingFileHandler(path, "H", atTime=at, delay=True).rolloverAt == NOW + 3600
    exact = dt.time(23, 30, 0, 7, tzinfo=dt.timezone.utc)
    assert TimedRotatingFileHandler(path, "midnight", atTime=exact, delay=True).rolloverAt == NOW + 4600


def test_utc_decides_about_midnight_and_names(path, monkeypatch):
    """Else local time is used."""
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        with time_machine.travel(NOW, tick=False) as clock:
            for utc, day in ((True, "2023-11-14"), (False, "2023-11-15")):
                _written_before(path)
                handler = TimedRotatingFileHandler(path, "midnight", utc=utc)
                clock.move_to(NOW + 86_400)
                handler.handle(record())
                assert path.with_name(f"app.log.{day}").read_text() == "before\n"
                handler.close()
                clock.move_to(NOW)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_at_most_backup_count_files_are_kept(path, clock):
    """The oldest go; other files are none of the handler's business."""
    _written_before(path)
    others = ["app.log.2020-01-01.gz", "app.log.notes", "other.log.2020-01-01_00", "app.log.2020-01-01_001"]
    for name in others:
        path.with_name(name).touch()
    handler = TimedRotatingFileHandler(path, backupCount=2)
    for hour in range(4):
        clock.shift(3600)
        handler.handle(record(f"hour {hour}"))
    assert handler.getFilesToDelete() == []
    handler.backupCount = 1
    assert handler.getFilesToDelete() == [f"{path}.2023-11-15_00"]
    assert set(names(path.parent)) == {*others, "app.log", "app.log.2023-11-15_00", "app.log.2023-11-15_01"}
    handler.close()


def test_files_are_found_by_a_pattern_that_is_anchored(path, clock):
    """As the handler's own were before Python 3.13: it is for what follows the file's name and a dot."""
    handler = TimedRotatingFileHandler(path, when="D", backupCount=1, delay=True)
    handler.extMatch = re.compile(r"^\d{4}-\d{2}-\d{2}$")
    for name in ("app.log.2023-01-02", "app.log.2023-01-02.1", "app.log.2023-01-01", "other.2023-01-01"):
        path.with_name(name).touch()
    assert handler.getFilesToDelete() == [f"{path}.2023-01-01", f"{path}.2023-01-02"]


def test_files_are_found_through_the_namer(path, clock):
    """Whatever it makes of the names, as long as the date is in them."""
    _written_before(path)
    handler = TimedRotatingFileHandler(path, when="D", backupCount=1)
    handler.namer = lambda name: str(path.with_name("old-" + name.rpartition(".")[2] + ".txt"))
    path.with_name("old-2023-01-01.log").touch()
    for _ in range(3):
        clock.shift(86_400)
        handler.handle(record())
    assert names(path.parent) == ["app.log", "old-2023-01-01.log", "old-2023-11-16.txt"]
    handler.close()


def test_suffix_pattern_interval_and_time_can_be_set(path, clock):
    """They act at the next rollover, which may be had by setting its time."""
    _written_before(path)
    handler = TimedRotatingFileHandler(path, when="H", backupCount=1)
    handler.suffix, handler.extMatch = "%d.%m.%Y", r"\d\d\.\d\d\.\d{4}"
    handler.interval = 86_400
    handler.rolloverAt = NOW
    handler.handle(record("one"))
    assert names(path.parent) == ["app.log", "app.log.13.11.2023"]
    assert handler.rolloverAt == NOW + 86_400
    handler.when, handler.atTime, handler.utc = "MIDNIGHT", dt.time(1), True
    assert handler.computeRollover(NOW) == NOW + 6400 + 3600
    handler.when, handler.dayOfWeek = "W1", 3
    assert handler.computeRollover(NOW) == NOW + 6400 + 3600 + 86_400
    handler.close()


def test_a_subclass_may_override_what_rolls_it_over(path, clock):
    """`shouldRollover`, `doRollover`, `computeRollover` and `getFilesToDelete` are called."""
    calls = []

    class Mine(TimedRotatingFileHandler):
        def shouldRollover(self, given):
            calls.append("shouldRollover")
            return super().shouldRollover(given)

        def doRollover(self):
            calls.append("doRollover")
            super().doRollover()

        def computeRollover(self, now):
            calls.append("computeRollover")
            return super().computeRollover(now) + 1

        def getFilesToDelete(self):
            calls.append("getFilesToDelete")
            return [str(path.with_name("doomed"))]

    _written_before(path)
    path.with_name("doomed").touch()
    handler = Mine(path, backupCount=5)
    clock.shift(3601)
    handler.handle(record())
    assert calls == ["computeRollover", "shouldRollover", "doRollover", "getFilesToDelete", "computeRollover"]
    assert names(path.parent) == ["app.log", "app.log.2023-11-14_22"]
    assert handler.rolloverAt == NOW + 3601 + 3601
    handler.close()


def test_without_a_backup_count_nothing_is_asked_to_be_deleted(path, clock):
    """All files are kept then, whatever a subclass's `getFilesToDelete` would say."""

    class Eager(TimedRotatingFileHandler):
        def getFilesToDelete(self):
            return [str(path.with_name("app.log.2023-11-14_22"))]

    _written_before(path)
    handler = Eager(path)
    clock.shift(3600)
    handler.handle(record())
    assert names(path.parent) == ["app.log", "app.log.2023-11-14_22"]
    handler.close()


def test_should_rollover_needs_no_record(path, clock):
    """It is a matter of time alone."""
    _written_before(path)
    handler = TimedRotatingFileHandler(path)
    assert not handler.shouldRollover(None)
    clock.shift(3600)
    assert handler.shouldRollover(None)
    handler.close()


def test_a_special_file_is_looked_at_again_after_an_interval(clock):
    """It does not roll over, and the time of the next look is set."""
    handler = TimedRotatingFileHandler(os.devnull, when="M")
    handler.rolloverAt = NOW
    handler.handle(record())
    assert handler.rolloverAt == NOW + 60
    handler.close()


# -- the ledger


def test_the_sink_behind_a_handler_counts(path):
    """`sink.stats()` tells what was written and what failed."""
    handler = FileHandler(path)
    handler.handle(record())
    handler.handle(record())
    assert handler.sink.stats().delivered == 2
    handler.close()


def test_what_fails_is_counted_too(path):
    """A record that could not be written is dropped for an error, one whose write was interrupted as that."""

    class Stream(io.StringIO):
        def write(self, text):
            raise stop

    handler = StreamHandler(Stream())
    handler.handleError = lambda given: None
    stop = ValueError("no")
    handler.handle(record())
    stop = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        handler.handle(record())
    assert handler.sink.stats().dropped == {"error": 1, "interrupted": 1}
    assert handler.sink.stats().delivered == 0


def test_an_interrupt_in_a_write_to_a_file_passes_through_and_is_counted(path, monkeypatch):
    """The handler goes on afterwards."""
    handler = FileHandler(path)

    def interrupted(descriptor, data):
        raise KeyboardInterrupt

    monkeypatch.setattr(openfile, "_os_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        handler.handle(record())
    monkeypatch.undo()
    handler.handle(record())
    assert handler.sink.stats().dropped == {"interrupted": 1}
    assert path.read_text() == "message\n"
    handler.close()


def test_a_pipe_gets_whole_lines(tmp_path):
    """A file may be a named pipe that somebody reads."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    handler = FileHandler(tmp_path / "pipe")
    assert not handler.stream.seekable()
    handler.handle(record())
    assert os.read(reader, 100) == b"message\n"
    handler.close()
    os.close(reader)


def test_a_record_logged_while_another_is_written_is_written_too(path):
    """By a namer, for example, which runs in the midst of a rollover."""
    handler = RotatingFileHandler(path, maxBytes=10, backupCount=3)

    def namer(name):
        if not seen:
            seen.append(name)
            handler.handle(record("from the namer"))
        return name

    seen = []
    handler.handle(record("one"))
    handler.namer = namer
    handler.handle(record("two two"))
    handler.handle(record("three"))
    text = "".join(path.with_name(name).read_text() for name in names(path.parent))
    assert sorted(text.splitlines()) == ["from the namer", "one", "three", "two two"]
    handler.close()


def test_a_copy_that_logs_in_the_midst_of_a_record_keeps_its_attributes_to_itself(path):
    """Each use of the shared sink is by the attributes of the handler that uses it."""
    handler = RotatingFileHandler(path, maxBytes=10, backupCount=1)
    other = copy.copy(handler)
    other.maxBytes, other.backupCount = 0, 9

    def namer(name):
        assert other.rotation_filename("any") == "any"
        return name

    handler.namer = namer
    for message in ("one", "two two", "three three", "four four"):
        handler.handle(record(message))
    assert names(path.parent) == ["app.log", "app.log.1"]
    handler.close()


def test_a_stream_that_a_subclass_opens_after_a_rollover_gets_the_record(path):
    """Whatever kind `_open` returned before."""

    class Changing(RotatingFileHandler):
        own = True

        def _open(self):
            if self.own:
                self.own = False
                return super()._open()
            return open(self.baseFilename, "a", encoding="utf-8")

    handler = Changing(path, maxBytes=10, backupCount=2)
    first = handler.stream
    for message in ("one", "two two", "three"):
        handler.handle(record(message))
    assert first.closed
    handler.close()
    assert [path.with_name(name).read_text() for name in names(path.parent)] == ["three\n", "two two\n", "one\n"]


def test_what_a_hook_raises_on_a_stream_of_a_subclass_goes_to_handle_error_too(path):
    """And the record is written."""

    class Mine(RotatingFileHandler):
        def _open(self):
            return open(self.baseFilename, "a", encoding="utf-8")

        def doRollover(self):
            self.stream.close()
            self.stream = None
            raise ZeroDivisionError

    handler = Mine(path, maxBytes=10, backupCount=2)
    errors = []
    handler.handleError = lambda given: errors.append(type(sys.exc_info()[1]))
    for message in ("one", "two two"):
        handler.handle(record(message))
    assert (errors, path.read_text()) == ([ZeroDivisionError], "one\ntwo two\n")
    handler.close()


def test_a_terminator_that_is_no_text_leaves_the_handler_usable(path):
    """It is a failure of the record."""
    handler = FileHandler(path)
    errors = []
    handler.handleError = lambda given: errors.append(type(sys.exc_info()[1]))
    handler.terminator = 7
    handler.handle(record())
    handler.namer = "unused"
    handler.terminator = "\n"
    handler.handle(record())
    assert (errors, path.read_text()) == ([TypeError], "message\n")
    handler.close()


@pytest.mark.parametrize("refusing", [False, True])
def test_a_file_is_closed_before_it_is_moved(path, refusing):
    """As Windows needs it; and if moving it fails all the same, it is opened again."""
    handler = RotatingFileHandler(path, maxBytes=10, backupCount=1)
    handler.handleError = lambda given: None
    open_then = []

    def rotator(source, dest):
        open_then.append(handler.stream)
        if refusing:
            raise PermissionError
        Path(source).rename(dest)

    handler.rotator = rotator
    for message in ("one", "two two"):
        handler.handle(record(message))
    assert open_then == [None]
    text = {name: path.with_name(name).read_text() for name in names(path.parent)}
    assert text == ({"app.log": "one\ntwo two\n"} if refusing else {"app.log": "two two\n", "app.log.1": "one\n"})
    handler.close()


def test_any_number_of_threads_may_log(path):
    """Each record is in one of the files, once and whole."""
    handler = RotatingFileHandler(path, maxBytes=1000, backupCount=1000)

    def log(thread):
        for number in range(150):
            handler.handle(record(f"{thread} {number}"))

    threads = [threading.Thread(target=log, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handler.close()
    lines = "".join(path.with_name(name).read_text() for name in names(path.parent)).splitlines()
    assert sorted(lines) == sorted(f"{thread} {number}" for thread in range(4) for number in range(150))


def test_a_rollover_of_ones_own_in_the_old_way_works(path, clock):
    """Subclasses that close, rename, open and set the next time by hand are common."""

    class Own(TimedRotatingFileHandler):
        def doRollover(self):
            if self.stream:
                self.stream.close()
                self.stream = None
            now = int(time.time())
            dest = f"{self.baseFilename}.{time.strftime(self.suffix, time.localtime(self.rolloverAt - self.interval))}"
            if not Path(dest).exists() and Path(self.baseFilename).exists():
                Path(self.baseFilename).rename(dest)
            if self.backupCount > 0:
                for surplus in self.getFilesToDelete():
                    Path(surplus).unlink()
            if not self.delay:
                self.mode = "a"
                self.stream = self._open()
            following = self.computeRollover(now)
            while following <= now:
                following += self.interval
            self.rolloverAt = following

    _written_before(path)
    handler = Own(path, when="H", backupCount=2)
    for hour in range(4):
        clock.shift(3600)
        handler.handle(record(f"hour {hour}"))
    assert {name: path.with_name(name).read_text() for name in names(path.parent)} == {
        "app.log": "hour 3\n",
        "app.log.2023-11-15_00": "hour 1\n",
        "app.log.2023-11-15_01": "hour 2\n",
    }
    handler.close()


@pytest.mark.parametrize("kind", [StreamHandler, FileHandler, WatchedFileHandler, RotatingFileHandler])
def test_the_call_site_that_structlog_finds_is_the_applications(kind, path):
    """Frames of handlers are skipped, as those of `logging` are: the function is the one that logged."""
    stream = io.StringIO()
    handler = kind(stream) if kind is StreamHandler else kind(path)
    names = structlog.processors.CallsiteParameter
    adder = structlog.processors.CallsiteParameterAdder([names.FUNC_NAME, names.MODULE])
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                adder,
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(sort_keys=True),
            ]
        )
    )
    standard = logging.Logger("outfall.tests.callsite")
    standard.addHandler(handler)
    logger = structlog.wrap_logger(
        standard,
        wrapper_class=structlog.stdlib.BoundLogger,
        processors=[structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
    )

    def application():
        logger.info("hello")

    application()
    handler.flush()
    handler.close()
    said = stream.getvalue() or path.read_text()
    assert said == '{"event": "hello", "func_name": "application", "module": "test_files_documented"}\n'
