"""Drop-in twins of `BaseRotatingHandler`, and of `RotatingFileHandler`, which rolls a file over by size."""

from __future__ import annotations

import io
import logging
import logging.handlers
import os
from os import SEEK_END as _SEEK_END
from os import lseek as _lseek
from typing import TYPE_CHECKING, Any

from outfall.adapters.handlers import file as files
from outfall.adapters.handlers.base import account_of, count_failure, is_not_overridden
from outfall.adapters.handlers.file import FileHandler
from outfall.sinks.core.clock import now as monotonic
from outfall.sinks.core.reporting import describe
from outfall.sinks.errors import SinkError
from outfall.sinks.files.sharing import place_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_BaseRotatingHandler = logging.handlers.BaseRotatingHandler
_RotatingFileHandler = logging.handlers.RotatingFileHandler
_flush = logging.StreamHandler.flush

#: Seconds between a failed rollover and the next attempt: the first wait, which doubles, and the longest.
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0

#: Seconds that a handler waits for another handler or sink that uses the same file.
_LOCK_SECONDS = 1.0

#: Fast checks that no rollover is due, by the ``shouldRollover`` that each stands in for. A check gets the handler and
#: the number of bytes to write. The second value says whether the check depends on that number.
quick: dict[Any, tuple[Callable[[Any, int], bool], bool]] = {}


class BaseRotatingHandler(FileHandler, _BaseRotatingHandler):
    """A drop-in twin of `logging.handlers.BaseRotatingHandler`: the base class of handlers that roll over.

    Subclasses implement ``shouldRollover(record)`` and ``doRollover()``.

    Args:
        filename: Path of the file. The constructor makes a relative path absolute.
        mode: ``"a"`` to append, ``"w"`` to truncate, ``"x"`` to fail if the file exists.
        encoding: The encoding of text. Default None: the locale's.
        delay: Open the file at the first record instead of now. Default False.
        errors: How to treat characters that *encoding* does not have, as in ``open``. Default None:
            ``"backslashreplace"``.

    Attributes:
        namer: A function that returns the name of a rotated file, given the default name; None for the default name. A
            subclass may define it as a method.
        rotator: A function that moves the file, given source and destination; None to rename it. A subclass may define
            it as a method.

    Raises:
        OSError: If the file cannot be opened.

    A failed rollover loses no record. The record is written to the old file, ``handleError`` is called once for each
    cause, and the rollover is tried again after 1 s, 2 s, 4 s, … up to 60 s.

    Source: https://docs.python.org/3/library/logging.handlers.html#baserotatinghandler
    """

    mode: str
    encoding: str | None
    errors: str | None

    stream: Any

    def __init__(
        self,
        filename: str | os.PathLike[str],
        mode: str,
        encoding: str | None = None,
        delay: bool = False,
        errors: str | None = None,
    ) -> None:
        FileHandler.__init__(self, filename, mode, encoding, delay, errors)
        self.mode, self.encoding, self.errors = mode, encoding, errors

    #: After a failed rollover: when the next attempt is due, the wait after that one, and the reported cause.
    _outfall_attempts: tuple[float, float, str] | None = None

    if TYPE_CHECKING:
        namer: Callable[[str], str] | None
        rotator: Callable[[str, str], None] | None

        # Of subclasses; the namesake has none either.
        def shouldRollover(self, record: logging.LogRecord) -> bool: ...  # noqa: D102
        def doRollover(self) -> None: ...  # noqa: D102

    def emit(self, record: logging.LogRecord) -> None:
        """Roll over if that is due, and write *record*; call `handleError` if either fails."""
        # The handlers and sinks of this process that use one file share a lock, so that no rollover happens amid a
        # write. The wait is limited: the holder's namer may log to the very handler that waits here.
        lock = lock_of_file(self)
        taken = lock.acquire(_LOCK_SECONDS)
        try:
            if write_early(self, record):
                return
            try:
                roll_over(self, record)
            except Exception:
                files.append(self, record)
                raise
            files.append(self, record)
        except Exception:
            self.handleError(record)
        finally:
            if taken:
                lock.release()


def lock_of_file(handler: Any) -> Any:
    """Return the lock that the handlers and sinks of this process share for the file of *handler*."""
    path, place = getattr(handler, "_outfall_place", None) or (None, None)
    if place is None or path != handler.baseFilename:
        place = place_of(os.fspath(handler.baseFilename))
        handler._outfall_place = handler.baseFilename, place
    return place.lock()


def write_early(handler: Any, record: logging.LogRecord) -> bool:
    """Write *record* and return True if a fast check says that no rollover is due; else return False."""
    early, by_size = quick.get(getattr(getattr(handler, "shouldRollover", None), "__func__", None), (None, False))
    file = getattr(handler, "_outfall_file", None)
    if early is None or file is None or file.stream is not handler.stream:
        return False
    if not (by_size or early(handler, 0)):
        return False
    account = getattr(handler, "_outfall_account", None) or account_of(handler)
    try:
        text, terminator = handler.format(record), handler.terminator
        if not by_size:
            file.append(text, terminator)
        else:
            data = file.ready(file.bytes_of(text, terminator))
            if not early(handler, len(data)):
                return False
            file.write(data)
        flush = handler.flush
        if getattr(flush, "__func__", None) is not _flush:
            flush()
        account._ledger.delivered += 1
    except BaseException as error:
        count_failure(handler, error)
        raise
    return True


def roll_over(handler: Any, record: logging.LogRecord) -> None:
    """Roll over if that is due, except while waiting after a failed attempt; raise each cause of failure once."""
    due, wait, reported = getattr(handler, "_outfall_attempts", None) or (0.0, _FIRST_WAIT, "")
    if not handler.shouldRollover(record) or monotonic() < due:
        return
    if is_elsewhere(handler):
        # Another process has rotated the file, and opened a new one at the path.
        close_stream(handler)
        handler.stream = files.open_stream(handler)
        if not handler.shouldRollover(record):
            return
    try:
        handler.doRollover()
    except Exception as error:
        handler._outfall_attempts = monotonic() + wait, min(2 * wait, _LONGEST_WAIT), describe(error)
        if describe(error) != reported:
            raise
    else:
        handler._outfall_attempts = None


def move_aside(handler: Any, dest: Callable[[], str], *, refuse_copies: bool = False) -> bool:
    """Close the stream of *handler* and move its file away by ``rotate``; return False if there was nothing to move.

    Args:
        handler: The handler.
        dest: Returns the destination.
        refuse_copies: Whether a rotator that copies the file and leaves it in place is an error.

    Raises:
        Exception: The exception of ``rotate``.
        SinkError: If the rotator made a copy; the copy is removed.
    """
    path = handler.baseFilename
    elsewhere = is_elsewhere(handler)
    # An application's own stream may buffer text that belongs in the file before it moves; Windows moves no open file.
    close_stream(handler)
    try:
        before = os.stat(path)
    except OSError:
        before = None
    if elsewhere or before is None or not before.st_size:
        return False
    target = dest()
    try:
        handler.rotate(path, target)
    finally:
        # A rotator that logs has opened the file again.
        close_stream(handler)
    if refuse_copies:
        _refuse_copy(before, path, target)
    return True


def _refuse_copy(before: os.stat_result, path: str, target: str) -> None:
    """Remove *target* and raise if it is a copy of the file at *path*: else each record would make another copy."""
    try:
        after, copied = os.stat(path), os.stat(target)
    except OSError:
        return
    if os.path.samestat(before, after) and after.st_size >= before.st_size and not os.path.samestat(after, copied):
        os.unlink(target)
        msg = f"the rotator left {path!r} where it was"
        raise SinkError(msg)


def is_elsewhere(handler: Any) -> bool:
    """Return True if another file is at the path of the one that *handler* has open."""
    file = files.current_file(handler)
    return file is not None and file.regular and file.is_replaced()


def close_stream(handler: Any) -> None:
    """Close the stream of *handler* if it is open."""
    if handler.stream:
        handler.stream.close()
        handler.stream = None


class RotatingFileHandler(BaseRotatingHandler, _RotatingFileHandler):
    """A drop-in twin of `logging.handlers.RotatingFileHandler`: roll over before the file grows beyond a size.

    Args:
        filename: Path of the file. The constructor makes a relative path absolute.
        mode: ``"a"`` to append (default), ``"w"`` to truncate, ``"x"`` to fail if the file exists. With *maxBytes* the
            mode is always ``"a"``.
        maxBytes: The largest size of the file in bytes; only a single record that is larger exceeds it. Default 0: no
            rollover.
        backupCount: The number of rotated files to keep. Default 0: no rollover.
        encoding: The encoding of text. Default None: the locale's.
        delay: Open the file at the first record instead of now. Default False.
        errors: How to treat characters that *encoding* does not have, as in ``open``. Default None:
            ``"backslashreplace"``.

    Raises:
        OSError: If the file cannot be opened.

    Source: https://docs.python.org/3/library/logging.handlers.html#rotatingfilehandler
    """

    stream: Any

    def __init__(
        self,
        filename: str | os.PathLike[str],
        mode: str = "a",
        maxBytes: int = 0,
        backupCount: int = 0,
        encoding: str | None = None,
        delay: bool = False,
        errors: str | None = None,
    ) -> None:
        if maxBytes > 0:
            mode = "a"
        if "b" not in mode:
            encoding = text_encoding(encoding)
        BaseRotatingHandler.__init__(self, filename, mode, encoding, delay, errors)
        self.maxBytes = maxBytes
        self.backupCount = backupCount

    def shouldRollover(self, record: logging.LogRecord) -> bool:
        """Return True if *record* would make the file larger than `maxBytes`."""
        if self.stream is None:
            self.stream = files.open_stream(self)
        if self.maxBytes <= 0:
            return False
        file = files.current_file(self)
        try:
            if file is None:
                size = self.stream.tell()
            else:
                self.stream.flush()
                size = file.size()
        except io.UnsupportedOperation:  # a pipe
            return False
        if not size:
            return False
        made = self.format(record)
        length = len(made) + len(self.terminator) if file is None else len(file.bytes_of(made, self.terminator))
        if size + length <= self.maxBytes:
            return False
        # Only regular files can be moved away.
        return not os.path.exists(self.baseFilename) or os.path.isfile(self.baseFilename)

    def doRollover(self) -> None:
        """Roll over now: shift the numbered files, move the file to ``.1`` and open a new one.

        Raises:
            OSError: If the file system refuses; logging continues in the same file.
            Exception: The exceptions of `namer` and `rotator`.
        """
        moved = False
        if self.backupCount > 0:
            moved = move_aside(
                self,
                lambda: _shift_numbered(self.rotation_filename, self.baseFilename, self.backupCount),
                refuse_copies=True,
            )
        else:
            close_stream(self)
        if not self.delay:
            self.stream = self._open() if moved or self.backupCount <= 0 else files.open_stream(self)


def _shift_numbered(rotation_filename: Callable[[str], str], path: str, count: int) -> str:
    """Rename the numbered files of *path* one number up, up to the first free number; return the name this frees."""
    names: list[str] = []
    while len(names) < count:
        names.append(rotation_filename(f"{path}.{len(names) + 1}"))
        if not os.path.lexists(names[-1]):
            break
    else:
        _remove((names[-1], rotation_filename(f"{path}.{count + 1}")))
    for source, dest in zip(names[-2::-1], names[::-1], strict=False):
        os.replace(source, dest)
    return names[0]


def _remove(paths: Iterable[str]) -> None:
    for path in paths:
        if os.path.lexists(path):
            os.unlink(path)


def _fits(handler: Any, size: int) -> bool:
    """Return True if the file of *handler* has room for *size* more bytes."""
    limit = handler.maxBytes
    if limit <= 0 or (handler.backupCount <= 0 and _would_only_reopen(handler)):
        return True
    try:
        return bool(_lseek(handler._outfall_file.descriptor, 0, _SEEK_END) + size <= limit)
    except OSError:
        return False


def _would_only_reopen(handler: Any) -> bool:
    """Return True if a rollover of *handler*, which keeps no rotated files, only reopens the file to append."""
    return (
        "a" in handler.mode
        and is_not_overridden(handler.doRollover, RotatingFileHandler.doRollover)
        and is_not_overridden(handler._open, FileHandler._open)
    )


#: Missing in typeshed.
text_encoding: Any = vars(io)["text_encoding"]

quick[RotatingFileHandler.shouldRollover] = _fits, True
