"""A set-up in a file of TOML."""

from __future__ import annotations

import json
import logging
import sys

import pytest

import outfall
from tests.sinks._http import Server

pytestmark = pytest.mark.usefixtures("own_logging")


@pytest.fixture
def write(tmp_path):
    """Give a function that writes a file of TOML, and returns its path."""

    def write(text):
        path = tmp_path / "logging.toml"
        path.write_text(text)
        return path

    return write


def test_a_byte_order_mark_is_no_error(write, tmp_path):
    """Editors of Windows write it."""
    path = write(f"[outfall]\nconsole = false\n[sinks.a]\nurl = 'file:{tmp_path}/a.jsonl'")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    with outfall.configure_from(path) as setup:
        assert [sink.name for sink in setup.sinks] == ["a"]


def test_a_file_sets_up_what_configure_does(write, tmp_path):
    """Arguments in one table, each sink in its own, with options as text or as values."""
    path = write(f"""
        [outfall]
        console = false
        level = "debug"
        levels = {{ noisy = "error" }}

        [sinks.audit]
        url = "file:{tmp_path}/audit.jsonl"
        max_bytes = "1.5 MB"
        backup_count = 3
        level = "warning"

        [sinks.all]
        url = "file:{tmp_path}/all%20events.jsonl?delay=true"
    """)
    with outfall.configure_from(path) as setup:
        audit, everything = setup.sinks
        assert (type(audit), audit.max_bytes, audit.backup_count) == (outfall.RotatingFileSink, 1_500_000, 3)
        assert (audit.name, everything.name, everything.delay) == ("audit", "all", True)
        outfall.get_logger("shop").debug("one")
        logging.getLogger("noisy").warning("left out")
        logging.getLogger("shop").warning("two")
    read = [json.loads(line)["event"] for line in (tmp_path / "all events.jsonl").read_text().splitlines()]
    assert read == ["one", "two"]
    assert [json.loads(line)["event"] for line in (tmp_path / "audit.jsonl").read_text().splitlines()] == ["two"]


def test_options_with_a_dot_are_tables(write, tmp_path):
    """Labels, headers, the query of the server, and a spool with its own options."""
    with Server() as server:
        path = write(f"""
            outfall.console = false

            [sinks.loki]
            url = "loki+{server.url}"
            labels = {{ app = "shop" }}
            headers.X-Team = "a"
            spool = {{ directory = "{tmp_path}/spool", linger = 0, max_bytes = "1 GB" }}

            [sinks.own]
            url = "{server.url}"
            query = {{ api = "v 2" }}
            linger = 0
        """)
        with outfall.configure_from(path) as setup:
            loki, own = setup.sinks
            assert isinstance(loki, outfall.SpoolSink)
            outfall.get_logger("shop").info("sold")
            assert loki.flush(60)
            assert own.flush(60)
        pushed, posted = sorted(server.requests, key=lambda request: "loki" not in request.target)
        assert json.loads(pushed.raw_body)["streams"][0]["stream"]["app"] == "shop"
        assert pushed.headers["x-team"] == "a"
        assert posted.target.endswith("?api=v%202")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[outfal]", "there is no table 'outfal': did you mean 'outfall'?"),
        ("[outfall]\nlevle = 'info'", "[outfall] there is no key 'levle': did you mean 'level'?"),
        ("[outfall]\nprocessors = []", "[outfall] there is no key 'processors'"),
        ("[outfall]\nstdlib = 'no'", "[outfall] stdlib = 'no' is not true or false"),
        ("[outfall]\nlevel = true", "[outfall] level = True is not a level"),
        ("[outfall]\nlevel = 'loud'", "level='loud'"),
        ("[outfall]\nlevels = { shop = 'loud' }", "levels['shop']='loud'"),
        ("[outfall]\nconsole = 'always'", "console='always' is none of"),
        ("outfall = 3", "outfall is not a table"),
        ("[sinks]\nfile = 'app.jsonl'", "sinks.file is not a table"),
        ("[sinks.file]\npath = 'app.jsonl'", "[sinks.file] has no url"),
        ("[sinks.file]\nurl = 3", "[sinks.file] url is not text"),
        ("[sinks.file]\nurl = 'file:x'\nmax_byte = 3", "[sinks.file]: file: there is no option 'max_byte'"),
        (
            "[sinks.file]\nurl = 'file:x?delay=true'\ndelay = true",
            "[sinks.file]: file: the option 'delay' is given",
        ),
        (
            "[sinks.file]\nurl = 'file:x?delay=true'\ndelay = 'no'",
            "[sinks.file]: file: the option 'delay' is given",
        ),
        ("[sinks.file]\nurl = 'flie:x'", "[sinks.file]: the scheme 'flie' is not known: did you mean 'file'?"),
        ("[sinks.file]\nurl = 'file:x'\nlevel = []", "[sinks.file]: level=[]"),
        ("[sinks.file]\nurl = 'file:x'\nurl = 'file:y'", "logging.toml: "),
        ("console: auto", "logging.toml: "),
    ],
)
def test_what_makes_no_sense_names_file_and_key(write, tmp_path, monkeypatch, text, message):
    """Nothing has changed then."""
    monkeypatch.chdir(tmp_path)
    before, opened = logging.getLogger().handlers[:], set(outfall.open_sinks())
    path = write(text)
    with pytest.raises(ValueError, match=r".") as caught:
        outfall.configure_from(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert logging.getLogger().handlers == before
    assert set(outfall.open_sinks()) <= opened


def test_no_secret_of_the_file_is_repeated(write):
    """Neither of a URL nor of an option that is not known."""
    for text in ("url = 'http://ann:sesame@127.0.0.1:99999'", "url = 'file:x'\ntokn = 'sesame'"):
        with pytest.raises(ValueError, match=r".") as caught:
            outfall.configure_from(write(f"[sinks.x]\n{text}"))
        assert "sesame" not in str(caught.value)


def test_a_file_that_is_missing_is_an_oserror(tmp_path):
    """With its name."""
    with pytest.raises(FileNotFoundError, match=r"nothing\.toml"):
        outfall.configure_from(tmp_path / "nothing.toml")


def test_without_a_reader_of_toml_it_says_what_to_install(write, monkeypatch):
    """As on Python 3.10 without the extra."""
    monkeypatch.setitem(sys.modules, "tomllib", None)
    monkeypatch.setitem(sys.modules, "tomli", None)
    with pytest.raises(outfall.MissingDependencyError, match=r"pip install 'outfall\[toml\]'"):
        outfall.configure_from(write(""))


def test_sinks_of_a_file_are_opened_again(write, tmp_path):
    """When what came after it is closed, as with configure()."""
    path = write(f"[outfall]\nconsole = false\n[sinks.file]\nurl = 'file:{tmp_path}/a.jsonl'")
    with outfall.configure_from(path):
        with outfall.configure(tmp_path / "b.jsonl", console=False):
            outfall.get_logger("shop").info("between")
        outfall.get_logger("shop").info("after")
    assert json.loads((tmp_path / "a.jsonl").read_text())["event"] == "after"
