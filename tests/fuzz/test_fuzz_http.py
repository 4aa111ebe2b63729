"""What a hostile server may answer to an `HTTPSink`."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st

from outfall import NDJSON, BatchResult, DeliveryError, Encoded, HTTPSink
from outfall.sinks.core.item import Batch
from outfall.sinks.http.answers import failure_of, quote
from tests.fuzz._fuzzing import fuzz
from tests.sinks._http import Answer, Server

SECRET = "correct-horse-battery"
VALUE = "staple"

STATUSES = st.sampled_from(
    [100, 101, 200, 204, 206, 299, 300, 302, 304, 400, 401, 404, 413, 422, 429, 500, 503, 599, 0]
)
HEADERS = st.sampled_from(
    [
        b"Retry-After: 1", b"Retry-After: -1", b"Retry-After: " + b"9" * 400, b"Retry-After: \xff",
        b"Retry-After: Wed, 21 Oct 9999 07:28:00 GMT", b"Retry-After: Thu, 32 Foo 2015 99:99:99",
        b"Upload-Limit: max-size=0", b"Upload-Limit: max-size=99999999999999999999", b"Upload-Limit: max-size=1",
        b"Content-Length: 5", b"Content-Length: -1", b"Content-Length: " + b"9" * 30, b"Content-Length: x",
        b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip", b"Content-Encoding: gzip",
        b"Content-Encoding: deflate, gzip", b"Content-Encoding: zstd", b"Content-Encoding: " + b"gzip," * 40,
        b"Location: http://[::1", b"Location: http://h:99999/" + SECRET.encode(), b"Location: //\xff\x00",
        b"Set-Cookie: a=b; Max-Age=99999999999999999999", b"Connection: close", b"Connection: upgrade",
        b"Content-Type: application/json; charset=\xff", b"Content-Type: text/plain", b"no colon here", b" folded",
        b"X: " + b"y" * 70_000, b"WWW-Authenticate: Basic realm=" + VALUE.encode(),
    ]
)  # fmt: skip
CHUNKS = st.sampled_from(
    [b"5\r\nhello\r\n", b"0\r\n\r\n", b"-1\r\n", b"ffffffffffffffffff\r\n", b"x\r\n", b"5;a=b\r\nhel", b"\r\n"]
)
BODIES = st.one_of(
    st.binary(max_size=40),
    st.lists(CHUNKS, max_size=4).map(b"".join),
    st.sampled_from([b"\x1f\x8b\x08", b"{}", VALUE.encode() * 3, SECRET.encode(), b"{" * 5_000, b"<html>"]),
)


@st.composite
def answers(draw):
    """Draw an answer, most often one that begins as HTTP does."""
    if draw(st.integers(0, 5)) == 0:
        return draw(st.binary(max_size=60))
    line = b"HTTP/1.%d %d %b" % (draw(st.integers(0, 2)), draw(STATUSES), draw(st.binary(max_size=6)))
    whole = b"\r\n".join([line, *draw(st.lists(HEADERS, max_size=4)), b"", draw(BODIES)])
    return whole[: draw(st.integers(0, len(whole)))] if draw(st.integers(0, 4)) == 0 else whole


class _Reading(NDJSON):
    """A format that answers tell more than their status."""

    max_response_bytes = 100

    def read(self, response_status, response_headers, response_body, batch):
        """Refuse the first event in the server's own words."""
        assert len(response_body) <= self.max_response_bytes
        return BatchResult(rejected={0: response_body.decode("utf-8", "replace")}) if response_body else None


SERVERS = []


@pytest.fixture(scope="module", autouse=True)
def _server():
    """Have a server that stays for all examples."""
    with Server() as server:
        SERVERS.append(server)
        yield
    SERVERS.clear()


@fuzz(raw=st.lists(answers(), min_size=1, max_size=3), reads=st.booleans(), alone=st.booleans())
def test_whatever_a_server_answers_is_a_failure_of_the_delivery_at_most(raw, reads, alone):
    """Each answer is taken, or raises a DeliveryError without a secret, a value or a cause; and in time."""
    [here] = SERVERS
    here.requests.clear()
    here.errors.clear()
    batch = Batch([Encoded(b'{"event":"%b"}' % VALUE.encode(), 20, 0.0) for _ in range(1 if alone else 2)])
    body = _Reading() if reads else NDJSON()
    with HTTPSink(f"{here.url}/in?{SECRET}", body=body, token=SECRET, timeout=(5, 10)) as sink:
        for each in raw:
            here.answers.clear()
            here.answers += [Answer(raw=each)] * 2  # a connection that ended before any answer is tried again
            told = ""
            try:
                result = sink.emit_batch(batch)
                told = "" if result is None else repr(result)
                assert result is None or reads or set(result.rejected) <= {0, 1}
            except DeliveryError as error:
                told = f"{error!r} {error} {error.__cause__} {error.__context__}"
            # A limit of one byte would be kept, as the server has it.
            sink._history.room_bytes = 1_048_576
            assert SECRET not in told
            assert VALUE not in told
        # And the sink is fit for the next request.
        here.answers.clear()
        assert sink.emit_batch(batch) is None


@fuzz(
    status=st.integers(-1, 1_000),
    headers=st.dictionaries(
        st.sampled_from(["retry-after", "Retry-After", "location", "upload-limit", "content-type"]),
        st.text(max_size=30) | st.sampled_from(["1e9", "٣", "Mon, 01 Jan 0001 00:00:00 +9999", "http://h:x/"]),
    ),
    body=st.binary(max_size=200),
)
def test_an_answer_means_a_failure_or_none(status, headers, body):
    """The functions that read answers raise nothing, and no wait is beyond an hour."""
    failure = failure_of(status, headers, peer="h:1", now=1e9)
    assert (failure is None) == (200 <= status < 300)
    wait = getattr(failure, "retry_after", None)
    assert wait is None or 0 <= wait <= 3_600
    assert "\n" not in quote(body, headers, [SECRET], [{"event": VALUE}])
