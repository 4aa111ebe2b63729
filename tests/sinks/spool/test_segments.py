"""Segments: appended to whole lines at a time, read line by line."""

from __future__ import annotations

import errno
import os

import pytest

from outfall.sinks.spool import segments
from outfall.sinks.spool.cursor import NewerFormatError
from outfall.sinks.spool.segments import Appender, Reader, count_lines, is_segment, name_of, segments_in


@pytest.fixture
def appender(tmp_path):
    """An open segment."""
    made = Appender()
    made.descriptor = made.create(str(tmp_path / "segment"))
    yield made
    made.close()


def _content(tmp_path):
    return (tmp_path / "segment").read_bytes()


def test_lines_are_appended_and_counted(appender, tmp_path):
    """What was appended stands in the file when append returns."""
    appender.append(b'{"a":1}\n')
    appender.append(b'{"a":2}\n')
    assert _content(tmp_path) == b'{"a":1}\n{"a":2}\n'
    assert (appender.end, appender.events) == (16, 2)


def test_a_segment_is_begun_once(appender, tmp_path):
    """A file that is there already is not taken for a new one."""
    with pytest.raises(FileExistsError):
        appender.create(str(tmp_path / "segment"))


def test_a_short_write_is_gone_on_with(appender, tmp_path, monkeypatch):
    """What the system took a part of is written to its end."""
    real = os.write
    monkeypatch.setattr(segments.os, "write", lambda descriptor, data: real(descriptor, bytes(data)[:3]))
    appender.append(b'{"a":1}\n')
    assert _content(tmp_path) == b'{"a":1}\n'
    assert (appender.end, appender.events) == (8, 1)


def _full_after(monkeypatch, size):
    """Let the disk be full after so many more bytes."""
    real = os.write
    left = [size]

    def write(descriptor, data):
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = real(descriptor, bytes(data)[: left[0]])
        left[0] -= written
        return written

    monkeypatch.setattr(segments.os, "write", write)


@pytest.mark.parametrize("room", [0, 1, 5, 7])
def test_half_a_line_on_a_full_disk_is_taken_back(appender, tmp_path, monkeypatch, room):
    """A line that does not fit leaves nothing behind; the next that fits is not glued to it."""
    appender.append(b'{"a":1}\n')
    with monkeypatch.context() as patch:
        _full_after(patch, room)
        with pytest.raises(OSError, match="No space left"):
            appender.append(b'{"a":2}\n')
    assert (appender.end, appender.events) == (8, 1)
    appender.append(b'{"a":3}\n')
    assert _content(tmp_path) == b'{"a":1}\n{"a":3}\n'


def test_what_cannot_be_taken_back_is_left_behind(appender, tmp_path, monkeypatch):
    """If half a line stays, nothing more is appended to that segment."""
    _full_after(monkeypatch, 3)

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(segments.os, "ftruncate", fail)
    with pytest.raises(OSError, match="No space left"):
        appender.append(b'{"a":2}\n')
    assert appender.descriptor == -1
    assert appender.limit == -1
    assert _content(tmp_path) == b'{"a'


@pytest.mark.parametrize("written", [0, 4, 8, 16, 19])
def test_after_an_interrupt_what_is_there_counts(appender, tmp_path, written):
    """Whole lines that were written and not counted are; half a line is taken back."""
    appender.append(b'{"a":1}\n')
    lines = b'{"a":2}\n{"a":3}\n{"a":4}\n'
    os.write(appender.descriptor, lines[:written])
    appender.unsure = True
    appender.amend()
    assert appender.found == written // 8
    assert (appender.end, appender.events) == (8 + written // 8 * 8, 1 + written // 8)
    assert not appender.unsure
    appender.append(b'{"a":5}\n')
    assert _content(tmp_path) == b'{"a":1}\n' + lines[: written // 8 * 8] + b'{"a":5}\n'


def test_an_interrupt_before_the_first_segment_is_open_is_no_trouble():
    """There is no file to look at then."""
    appender = Appender()
    appender.unsure = True
    appender.amend()
    assert appender.found == 0
    assert not appender.unsure


def test_an_interrupt_between_the_write_and_the_count_is_known(appender, tmp_path, monkeypatch):
    """A KeyboardInterrupt on the way back from the system leaves word that the file has to be looked at."""
    real = os.write

    def write(descriptor, data):
        real(descriptor, data)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(segments.os, "write", write)
        with pytest.raises(KeyboardInterrupt):
            appender.append(b'{"a":1}\n')
    assert appender.unsure
    appender.amend()
    assert appender.found == 1
    assert appender.events == 1


@pytest.mark.parametrize("chunk", [1, 3, 8, 64, 10_000])
@pytest.mark.parametrize("most", [1, 2, 100])
def test_lines_are_read_in_order_in_pieces_of_any_size(tmp_path, monkeypatch, chunk, most):
    """Nothing is lost or torn where one read of the file ends and the next begins."""
    monkeypatch.setattr(segments, "_CHUNK_BYTES", chunk)
    lines = [b"a" * size for size in (0, 1, 2, 7, 8, 9, 63, 64, 65, 200, 1)]
    path = tmp_path / "segment"
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    size = path.stat().st_size
    reader, found, start = Reader(), [], 0
    while start < size:
        # As it grows while it is read, the end of a line being known at any time.
        stop = size if len(found) > 5 else len(b"\n".join(lines[:6])) + 1
        taken, start = reader.lines(str(path), 1, start, stop, most, 10_000)
        assert 0 < len(taken) <= most
        found += taken
    assert found == lines
    reader.forget()


def test_a_batch_has_a_bound_in_bytes(tmp_path):
    """No more lines than fit are taken, but one at least."""
    path = tmp_path / "segment"
    path.write_bytes(b"aaaa\nbbbb\n" + b"c" * 50 + b"\ndddd\n")
    reader = Reader()
    assert reader.lines(str(path), 1, 0, 66, 10, 10) == ([b"aaaa", b"bbbb"], 10)
    assert reader.lines(str(path), 1, 10, 66, 10, 10) == ([b"c" * 50], 61)
    assert reader.lines(str(path), 1, 61, 66, 10, 10) == ([b"dddd"], 66)
    reader.forget()


def test_half_a_line_at_the_end_is_a_line(tmp_path):
    """What a killed writer left of a line is returned, so that it is counted."""
    path = tmp_path / "segment"
    path.write_bytes(b'{"a":1}\n{"a')
    reader = Reader()
    assert reader.lines(str(path), 1, 0, 11, 10, 1000) == ([b'{"a":1}', b'{"a'], 11)
    reader.forget()


def test_a_file_that_is_shorter_than_it_was_ends_there(tmp_path):
    """What somebody has cut off is passed over."""
    path = tmp_path / "segment"
    path.write_bytes(b'{"a":1}\n')
    reader = Reader()
    taken, after = reader.lines(str(path), 1, 0, 24, 10, 1000)
    assert taken == [b'{"a":1}']
    while after < 24:
        taken, after = reader.lines(str(path), 1, after, 24, 10, 1000)
        assert taken == []
    reader.forget()


def test_one_segment_is_read_after_the_other(tmp_path):
    """A change of number means another file, from its beginning."""
    reader = Reader()
    for number in (1, 2):
        path = tmp_path / str(number)
        path.write_bytes(b"%d\n" % number)
        assert reader.lines(str(path), number, 0, 2, 10, 1000) == ([b"%d" % number], 2)
    reader.forget()


def test_segments_are_found_in_the_order_of_their_numbers(tmp_path):
    """By number and not by text, and nothing else in the directory is taken for one."""
    for name in ("00000002.v1.ndjson", "123456789.v1.ndjson", "00000010.v1.ndjson", "1.v1.ndjson", "cursor.json", "x"):
        (tmp_path / name).touch()
    assert list(segments_in(str(tmp_path))) == [2, 10, 123456789]
    assert name_of(2) == "00000002.v1.ndjson"
    assert is_segment("00000002.v7.ndjson")
    assert not is_segment("00000002.v1.ndjson.tmp")


def test_a_segment_of_a_later_format_is_refused(tmp_path):
    """A version that is not known is not guessed at."""
    (tmp_path / "00000002.v2.ndjson").touch()
    with pytest.raises(NewerFormatError, match=r"00000002\.v2\.ndjson has format 2; this version of Outfall knows 1"):
        segments_in(str(tmp_path))


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_lines_are_counted(tmp_path, monkeypatch, chunk):
    """From anywhere on, with half a line at the end."""
    monkeypatch.setattr(segments, "_CHUNK_BYTES", chunk)
    path = tmp_path / "segment"
    for content, offset, lines in ((b"", 0, 0), (b"a\n", 0, 1), (b"a\nb", 0, 2), (b"a\nb\nc\n", 2, 2), (b"a\n", 2, 0)):
        path.write_bytes(content)
        assert count_lines(str(path), offset) == lines
