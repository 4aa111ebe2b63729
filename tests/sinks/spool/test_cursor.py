"""The cursor: replaced in one step, checked when read."""

from __future__ import annotations

import errno
import json
import os
import stat

import pytest

from outfall.sinks.spool import cursor as cursors
from outfall.sinks.spool.cursor import Cursor, CursorError, NewerFormatError


def test_it_comes_back(tmp_path):
    """What was put there is read again, with and without a batch in flight."""
    assert cursors.read(str(tmp_path)) is None
    for cursor in (Cursor(1, 0), Cursor(3, 17, 40, "a key"), Cursor(10**17, 2**40, 2**41, "k" * 80)):
        cursors.replace(str(tmp_path), cursor)
        assert cursors.read(str(tmp_path)) == cursor
    assert [path.name for path in tmp_path.iterdir()] == ["cursor.json"]


def test_a_person_can_read_it(tmp_path):
    """It is one line of JSON."""
    cursors.replace(str(tmp_path), Cursor(3, 17, 40, "a key"))
    text = (tmp_path / "cursor.json").read_text()
    assert text.count("\n") == 1
    fields = json.loads(text)
    assert fields.pop("check")
    assert fields == {"format": 1, "segment": 3, "offset": 17, "in_flight": {"end": 40, "key": "a key"}}


@pytest.mark.parametrize("place", range(0, 100, 7))
def test_a_changed_byte_is_noticed(tmp_path, place):
    """Damage anywhere in it is no other cursor."""
    cursors.replace(str(tmp_path), Cursor(3, 17, 40, "a key, a long one, so that it fills the file up"))
    path = tmp_path / "cursor.json"
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises((CursorError, NewerFormatError)):
        cursors.read(str(tmp_path))


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 256, b"{", b"[]", b"7", b"{}", b'{"format":1}', b'{"format":1,"check":"0"}']
)
def test_garbage_is_no_cursor(tmp_path, data):
    """Emptied, zeroed or cut, it raises CursorError."""
    (tmp_path / "cursor.json").write_bytes(data)
    with pytest.raises(CursorError):
        cursors.read(str(tmp_path))


def test_a_later_format_is_told_from_garbage(tmp_path):
    """A version that is not known is not guessed at."""
    (tmp_path / "cursor.json").write_bytes(b'{"format":2,"place":"elsewhere"}')
    with pytest.raises(NewerFormatError, match="format 2; this version of Outfall knows 1"):
        cursors.read(str(tmp_path))


def test_what_is_no_file_is_no_cursor(tmp_path):
    """A directory in its place, or one that cannot be opened, raises CursorError."""
    (tmp_path / "cursor.json").mkdir()
    with pytest.raises(CursorError, match="cannot be read"):
        cursors.read(str(tmp_path))
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / "cursor.json").symlink_to("cursor.json")
    with pytest.raises(CursorError, match="cannot be opened"):
        cursors.read(str(tmp_path / "loop"))


def test_without_room_the_old_one_is_written_over(tmp_path, monkeypatch):
    """Where no new file can be made, progress is recorded all the same."""
    cursors.replace(str(tmp_path), Cursor(1, 5))
    real = os.open

    def full(path, flags, *mode, **options):
        if flags & os.O_CREAT:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        return real(path, flags, *mode, **options)

    monkeypatch.setattr(os, "open", full)
    cursors.replace(str(tmp_path), Cursor(2, 9))
    assert cursors.read(str(tmp_path)) == Cursor(2, 9)


def test_the_first_one_needs_room(tmp_path, monkeypatch):
    """With none to write over, the first error is raised."""
    monkeypatch.setattr(os, "write", lambda descriptor, data: 3)
    with pytest.raises(OSError, match="No space left"):
        cursors.replace(str(tmp_path), Cursor(1, 5))
    with pytest.raises(FileNotFoundError):
        cursors.replace(str(tmp_path / "nowhere"), Cursor(1, 5))


def test_synced_means_file_then_name_then_directory(tmp_path, monkeypatch):
    """With sync, the content is on the medium before the name is changed, and the name before it returns."""
    steps = []
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: steps.append("dir" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
    )
    real = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: (steps.append("replace"), real(*paths)))
    cursors.replace(str(tmp_path), Cursor(1, 5))
    assert steps == ["replace"]
    cursors.replace(str(tmp_path), Cursor(1, 6), sync=True)
    assert steps == ["replace", "file", "replace", "dir"]
