"""The cursor: replaced by one write, checked when read."""

from __future__ import annotations

import errno
import json
import os
import stat

import pytest

from outfall.sinks.spool import cursor as cursors
from outfall.sinks.spool.cursor import Cursor, CursorError, CursorFile, NewerFormatError


def _write(directory, *written, **options):
    """Write cursors one after the other, as a store does; return the file."""
    file = CursorFile(str(directory))
    for cursor in written:
        file.write(cursor, **options)
    file.close()
    return directory / "cursor.json"


def test_it_comes_back(tmp_path):
    """What was put there is read again, with and without a batch in flight, whoever has opened the file."""
    assert cursors.read(str(tmp_path)) is None
    for cursor in (Cursor(1, 0), Cursor(3, 17, 40, "a key"), Cursor(10**17, 2**40, 2**41, "k" * 80), Cursor(1, 5)):
        _write(tmp_path, cursor)
        assert cursors.read(str(tmp_path)) == cursor
    file = CursorFile(str(tmp_path))
    for offset in range(10):
        file.write(Cursor(7, offset))
        assert cursors.read(str(tmp_path)) == Cursor(7, offset)
    file.close()
    assert [path.name for path in tmp_path.iterdir()] == ["cursor.json"]


def test_a_person_can_read_it(tmp_path):
    """It is lines of JSON of one length; the one with the higher turn counts."""
    path = _write(tmp_path, Cursor(3, 17), Cursor(3, 17, 40, "a key"))
    lines = path.read_text().splitlines()
    assert [len(line) for line in lines] == [511, 511]
    earlier, fields = map(json.loads, lines)
    assert fields.pop("check")
    assert fields == {"format": 1, "turn": 2, "segment": 3, "offset": 17, "in_flight": {"end": 40, "key": "a key"}}
    assert (earlier["turn"], earlier["in_flight"]) == (1, None)


@pytest.mark.parametrize("place", range(0, 100, 7))
def test_a_changed_byte_is_noticed(tmp_path, place):
    """Damage anywhere in it is no other cursor."""
    path = _write(tmp_path, Cursor(3, 17, 40, "a key, a long one, so that it fills the file up"))
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises((CursorError, NewerFormatError)):
        cursors.read(str(tmp_path))


@pytest.mark.parametrize("cut", [0, 1, 100, 300, 511])
@pytest.mark.parametrize("writes", [2, 3])
def test_a_torn_write_leaves_the_one_before_it(tmp_path, cut, writes):
    """A loss of power in the midst of a write costs that write alone; the next one goes on."""
    path = _write(tmp_path, *(Cursor(1, offset) for offset in range(writes)))
    data = bytearray(path.read_bytes())
    place = 512 * ((writes - 1) % 2)
    data[place + cut : place + 512] = b"\0" * (512 - cut)
    path.write_bytes(data)
    assert cursors.read(str(tmp_path)) == Cursor(1, writes - 2)
    _write(tmp_path, Cursor(2, 9))
    assert cursors.read(str(tmp_path)) == Cursor(2, 9)


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
    with pytest.raises(CursorError, match="cannot be read"):
        cursors.read(str(tmp_path / "loop"))


def test_without_room_the_old_one_is_written_over(tmp_path, monkeypatch):
    """The first takes the room for all; no file is made or opened for the others."""
    file = CursorFile(str(tmp_path))
    file.write(Cursor(1, 5))
    assert (tmp_path / "cursor.json").stat().st_size == 1024

    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", full)
        file.write(Cursor(2, 9))
        file.write(Cursor(2, 10))
    assert cursors.read(str(tmp_path)) == Cursor(2, 10)
    assert (tmp_path / "cursor.json").stat().st_size == 1024
    file.close()


def test_the_first_one_needs_room(tmp_path, monkeypatch):
    """With none to write over, the error is raised, and the next attempt begins anew."""
    file = CursorFile(str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda *_: 3)
        with pytest.raises(OSError, match="No space left"):
            file.write(Cursor(1, 5))
    file.write(Cursor(1, 5))
    assert cursors.read(str(tmp_path)) == Cursor(1, 5)
    file.close()
    with pytest.raises(FileNotFoundError):
        CursorFile(str(tmp_path / "nowhere")).write(Cursor(1, 5))


def test_a_write_that_fails_leaves_the_one_before_it(tmp_path, monkeypatch):
    """It is not half another, and the next write takes the same place."""
    file = CursorFile(str(tmp_path))
    file.write(Cursor(1, 5))
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda *_: 3)
        with pytest.raises(OSError, match="No space left"):
            file.write(Cursor(1, 6))
    assert cursors.read(str(tmp_path)) == Cursor(1, 5)
    file.write(Cursor(1, 7))
    assert cursors.read(str(tmp_path)) == Cursor(1, 7)
    file.close()


def test_it_is_noticed_if_somebody_removes_it(tmp_path):
    """By its path, as whoever adopts the store will look for it."""
    file = CursorFile(str(tmp_path))
    assert file.is_there()
    file.write(Cursor(1, 5))
    assert file.is_there()
    (tmp_path / "cursor.json").unlink()
    assert not file.is_there()
    (tmp_path / "cursor.json").touch()
    assert not file.is_there()
    file.close()
    file.write(Cursor(1, 6))
    assert file.is_there()
    assert cursors.read(str(tmp_path)) == Cursor(1, 6)
    file.close()


def test_synced_means_the_file_and_once_its_name(tmp_path, monkeypatch):
    """With sync the content is on the medium before it returns, and with the first one the name too."""
    steps = []
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: steps.append("dir" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
    )
    file = CursorFile(str(tmp_path))
    file.write(Cursor(1, 5), sync=True)
    assert steps == ["file", "dir"]
    file.write(Cursor(1, 6))
    file.write(Cursor(1, 7), sync=True)
    assert steps == ["file", "dir", "file"]
    file.close()
