"""Drop-in twins of the handlers for files that roll over: `BaseRotatingHandler`, and by size `RotatingFileHandler`."""

from __future__ import annotations

import io
import logging
import logging.handlers
import os
from os import SEEK_END as _SEEK_END
from os import lseek as _lseek
from time import monotonic
from typing import TYPE_CHECKING, Any

from outfall.adapters.handlers import file as files
from outfall.adapters.handlers.base import account_of, count_failure, untouched
from outfall.adapters.handlers.file import FileHandler
from outfall.sinks.core.reporting import describe
from outfall.sinks.errors import SinkError
from outfall.sinks.files.sharing import place_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_BaseRotatingHandler = logging.handlers.BaseRotatingHandler
_RotatingFileHandler = logging.handlers.RotatingFileHandler
_flush = logging.StreamHandler.flush

#: Seconds from a rollover that failed to the next attempt: the first wait, which doubles, and the longest.
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0

#: How long a handler waits for another one on the same file.
_TURN_SECONDS = 1.0

#: By the method ``shouldRollover`` of a class: what tells, with less ado, that no rollover is due before so many bytes
#: are written; and whether their number matters.
quick: dict[Any, tuple[Callable[[Any, int], bool], bool]] = {}


class BaseRotatingHandler(FileHandler, _BaseRotatingHandler):
    """A drop-in twin of `logging.handlers.BaseRotatingHandler`, what the handlers that roll over have in common.

    For subclasses with ``shouldRollover(record)`` and ``doRollover()`` of their own.

    Args:
        filename: Path of the file; a relative one is resolved now.
        mode: ``"a"`` to append (default), ``"w"`` to truncate, ``"x"`` to fail if the file is there.
        encoding: How text is encoded. Default None: as the locale says.
        delay: True to open the file when the first record comes. Default False.
        errors: What to do with characters that *encoding* does not have. Default None: ``"strict"``.

    Attributes:
        namer: Makes the name of a rotated file from its default name; None for the default name. Also a method.
        rotator: Called with source and destination instead of the renaming; None to rename. Also a method.

    Raises:
        OSError: If the file cannot be opened.

    A rollover that fails costs no record: the record is written, ``handleError`` gets it once, and the rollover is
    tried again after a second, two, … 60.

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

    #: After a rollover that failed: when the next is due, how long to wait after that, and what was told.
    _outfall_attempts: tuple[float, float, str] | None = None

    if TYPE_CHECKING:
        namer: Callable[[str], str] | None
        rotator: Callable[[str, str], None] | None

        # Of subclasses; the namesake has none either.
        def shouldRollover(self, record: logging.LogRecord) -> bool: ...  # noqa: D102
        def doRollover(self) -> None: ...  # noqa: D102

    def emit(self, record: logging.LogRecord) -> None:
        """Write *record*, having rolled over if that is due; a failure of either goes to `handleError`."""
        # Handlers and sinks of this process on one file take turns: who rolls it over finds nobody in the midst of a
        # write. Not for ever, since a namer that logs may do so by the very handler that waits here.
        turn = lock_of_file(self)
        taken = turn.acquire(_TURN_SECONDS)
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
                turn.release()


def lock_of_file(handler: Any) -> Any:
    """Return the lock in which all that this process has on the file of *handler* take turns."""
    path, place = getattr(handler, "_outfall_place", None) or (None, None)
    if place is None or path != handler.baseFilename:
        place = place_of(os.fspath(handler.baseFilename))
        handler._outfall_place = handler.baseFilename, place
    return place.lock()


def write_early(handler: Any, record: logging.LogRecord) -> bool:
    """Write *record* and return True if it is plain that no rollover is due; else return False, or raise."""
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
    """Roll over if that is due, and if no attempt has just failed; raise what is to be told of a failure."""
    due, wait, told = getattr(handler, "_outfall_attempts", None) or (0.0, _FIRST_WAIT, "")
    if not handler.shouldRollover(record) or monotonic() < due:
        return
    if is_elsewhere(handler):
        # Another process has rotated: what is at the path is its file.
        close_stream(handler)
        handler.stream = files.opened(handler)
        if not handler.shouldRollover(record):
            return
    try:
        handler.doRollover()
    except Exception as error:
        handler._outfall_attempts = monotonic() + wait, min(2 * wait, _LONGEST_WAIT), describe(error)
        if describe(error) != told:
            raise
    else:
        handler._outfall_attempts = None


def make_way(handler: Any, dest: Callable[[], str], *, refuse_copies: bool = False) -> bool:
    """Close the stream of *handler* and have the file moved; return False if there was nothing to move.

    Args:
        handler: The handler.
        dest: Gives the path that it is moved to, by ``rotate``.
        refuse_copies: Whether it is a failure if the file is left where it is, and copied.

    Raises:
        Exception: What ``rotate`` has raised.
        SinkError: If it has made a copy, which is removed.
    """
    path = handler.baseFilename
    elsewhere = is_elsewhere(handler)
    # What somebody else buffers has to be in the file before that is moved; and Windows moves no open file.
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
        # A namer or rotator that logs has opened it again.
        close_stream(handler)
    if refuse_copies:
        _refuse_copy(before, path, target)
    return True


def _refuse_copy(before: os.stat_result, path: str, target: str) -> None:
    """Remove *target* and raise if it is a copy of the file that still is at *path*: each record would make another."""
    try:
        after, copied = os.stat(path), os.stat(target)
    except OSError:
        return
    if os.path.samestat(before, after) and after.st_size >= before.st_size and not os.path.samestat(after, copied):
        os.unlink(target)
        msg = f"the rotator left {path!r} where it was"
        raise SinkError(msg)


def is_elsewhere(handler: Any) -> bool:
    """Return True if somebody has put another file in the place of the one that *handler* has open."""
    file = files.current_file(handler)
    return file is not None and file.regular and file.is_replaced()


def close_stream(handler: Any) -> None:
    """Close the stream of *handler*, if there is one."""
    if handler.stream:
        handler.stream.close()
        handler.stream = None


class RotatingFileHandler(BaseRotatingHandler, _RotatingFileHandler):
    """A drop-in twin of `logging.handlers.RotatingFileHandler`: roll over before the file grows beyond a size.

    Args:
        filename: Path of the file; a relative one is resolved now.
        mode: ``"a"`` to append (default), ``"w"`` to truncate, ``"x"`` to fail if the file is there. With *maxBytes* it
            is ``"a"``.
        maxBytes: Size in bytes that the file does not exceed, unless one record alone does. Default 0: it never rolls
            over.
        backupCount: How many rotated files to keep. Default 0: it never rolls over.
        encoding: How text is encoded. Default None: as the locale says.
        delay: True to open the file when the first record comes. Default False.
        errors: What to do with characters that *encoding* does not have. Default None: ``"strict"``.

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
            self.stream = files.opened(self)
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
            OSError: If the file system refuses; the file goes on as it is.
            Exception: Whatever `namer` and `rotator` raise.
        """
        moved = False
        if self.backupCount > 0:
            moved = make_way(
                self,
                lambda: _freed(self.rotation_filename, self.baseFilename, self.backupCount),
                refuse_copies=True,
            )
        else:
            close_stream(self)
        if not self.delay:
            self.stream = self._open() if moved or self.backupCount <= 0 else files.opened(self)


def _freed(rotation_filename: Callable[[str], str], path: str, count: int) -> str:
    """Move the numbered files of *path* up, as far as to the first gap; return the name that is free then."""
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
    """Return True if *size* more bytes do not make the file of *handler* too large."""
    limit = handler.maxBytes
    if limit <= 0 or (handler.backupCount <= 0 and _would_only_reopen(handler)):
        return True
    try:
        return bool(_lseek(handler._outfall_file.descriptor, 0, _SEEK_END) + size <= limit)
    except OSError:
        return False


def _would_only_reopen(handler: Any) -> bool:
    """Return True if a rollover of *handler*, which keeps no files, closes the file and opens it again, to append."""
    return (
        "a" in handler.mode
        and untouched(handler.doRollover, RotatingFileHandler.doRollover)
        and untouched(handler._open, FileHandler._open)
    )


#: Not known to typeshed.
text_encoding: Any = vars(io)["text_encoding"]

quick[RotatingFileHandler.shouldRollover] = _fits, True
