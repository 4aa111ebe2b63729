"""A message under another name than ``event``: the same one in every format."""

from __future__ import annotations

import logging
import pickle
import socket

import orjson
import pytest
from structlog.processors import EventRenamer

from outfall import (
    CaptureSink,
    DatadogLogs,
    ElasticsearchBulk,
    GELFMessage,
    HandlerSink,
    OTLPLogs,
    PickleFrames,
    SysLogSink,
)
from outfall.adapters.commandline.terminal import pretty
from outfall.sinks.event.event import message_key
from outfall.sinks.event.json import OrjsonRenderer
from outfall.sinks.mail.message import SubjectTemplate, readable


def body(form, event):
    """Return what *form* makes of *event*."""
    return orjson.loads(form.encode([CaptureSink().encode(event)]).rstrip(b"\n").splitlines()[-1])


def by_otlp(event):
    """Return the body of the log record."""
    record = body(OTLPLogs(), event)["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0]
    return record["body"]["stringValue"], [attribute["key"] for attribute in record["attributes"]]


def by_elasticsearch(event):
    """Return the document's message."""
    document = body(ElasticsearchBulk(), event)
    return document.pop("message"), list(document)


def by_datadog(event):
    """Return the log's message."""
    [log] = body(DatadogLogs(), event)
    return log.pop("message"), list(log)


def by_gelf(event):
    """Return the short message."""
    made = body(GELFMessage(), event)
    return made["short_message"], [name.lstrip("_") for name in made]


def by_rfc5424(event):
    """Return the message of syslog."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        peer.settimeout(60)
        with SysLogSink(peer.getsockname(), format="rfc5424", structured_data_id="x@1") as sink:
            sink.handle(event)
        head, _, message = peer.recv(9000).decode().partition("] ")
    return message.lstrip("\ufeff"), head.replace('="', " ").split()


def by_logging(event):
    """Return the record's message."""
    record = HandlerSink(logging.NullHandler()).record(event)
    return record.getMessage(), list(vars(record))


def by_pickle(event):
    """Return the message of what is pickled for a receiver of the standard library."""
    record = pickle.loads(PickleFrames().encode(event, OrjsonRenderer().render))
    return record.pop("msg"), list(record)


def by_mail(event):
    """Return the first line of the mail."""
    first, _, rest = readable(event).partition("\n")
    return first, rest.replace(":", " ").split()


def by_subject(event):
    """Return the subject."""
    return SubjectTemplate("{event}").fill(event), []


def by_terminal(event):
    """Return the message of a line for people."""
    line = pretty(CaptureSink().encode(event))
    message = line.split("info     ")[1]
    return message.split("  ")[0], [pair.partition("=")[0] for pair in message.split("  ")[1].split()]


FORMATS = [
    by_otlp,
    by_elasticsearch,
    by_datadog,
    by_gelf,
    by_rfc5424,
    by_logging,
    by_pickle,
    by_mail,
    by_subject,
    by_terminal,
]


@pytest.mark.parametrize("name", ["event", "message", "msg"])
@pytest.mark.parametrize("form", FORMATS)
def test_a_renamed_message_is_the_message(form, name):
    """What structlog's EventRenamer has renamed is in the place of the message, and in no other."""
    event = EventRenamer(name)(None, "info", {"event": "stock is low", "level": "info", "item": 4})
    message, others = form(event)
    assert message == "stock is low"
    # A record has attributes of its own for the first two.
    assert form in (by_logging, by_pickle) or name not in others


@pytest.mark.parametrize("form", FORMATS)
def test_beside_an_event_other_names_are_fields(form):
    """The message is the event's, whatever else is there."""
    message, _ = form({"event": "stock is low", "message": "mine", "msg": "mine too", "level": "info", "item": 4})
    assert message == "stock is low"


@pytest.mark.parametrize(
    ("event", "key"),
    [
        ({}, "event"),
        ({"event": None}, "event"),
        ({"event": None, "message": "x"}, "message"),
        ({"event": "", "message": "x"}, "event"),
        ({"message": None, "msg": "x"}, "msg"),
        ({"message": "x", "msg": "y"}, "message"),
        ({"event": None, "msg": None}, "event"),
    ],
)
def test_the_first_name_that_holds_something_is_the_message(event, key):
    """None holds nothing, an empty text does."""
    assert message_key(event) == key
