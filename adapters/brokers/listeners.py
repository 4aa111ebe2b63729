"""Make a listener from a URL, as `open_sink` makes a sink: `open_listener`."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from outfall.adapters.urls.kinds import Kind
from outfall.adapters.urls.request import Request, parameters_of
from outfall.sinks.core.arguments import nearest

if TYPE_CHECKING:
    from outfall.adapters.brokers.listener import BrokerListener
    from outfall.sinks.core.sink import Sink

#: The listener of each scheme, by its name in `outfall`, and whether it gets the whole URL. Else it gets the hosts and
#: the path as separate arguments.
LISTENERS: dict[str, tuple[str, bool]] = {
    "redis": ("RedisListener", True),
    "rediss": ("RedisListener", True),
    "amqp": ("AMQPListener", True),
    "amqps": ("AMQPListener", True),
    "kafka": ("KafkaListener", False),
}


def open_listener(url: str, *sinks: Sink, **options: Any) -> BrokerListener:
    """Make the listener that *url* names. It is not started.

    Args:
        url: The scheme is the kind of broker, and the query has the listener's parameters by name, such as
            ``"redis://127.0.0.1/0?key=logs&group=archive&claim_after=5m"``.
        *sinks: Where the events go. Not owned.
        **options: More parameters, as Python values.

    Raises:
        ValueError: If the scheme or an option is unknown, comes twice, is missing, or has an invalid value.
    """
    scheme, _, rest = url.partition(":")
    scheme = scheme.lower()
    if scheme not in LISTENERS:
        near = nearest(scheme, LISTENERS)
        hint = f"did you mean {near!r}?" if near else f"there are {', '.join(LISTENERS)}"
        msg = f"no listener reads the scheme {scheme!r}: {hint}"
        raise ValueError(msg)
    import outfall

    name, whole = LISTENERS[scheme]
    kind: Any = getattr(outfall, name)
    places = [
        each.name for each in inspect.signature(kind).parameters.values() if each.kind is each.POSITIONAL_OR_KEYWORD
    ]
    request = Request(scheme, _as_kind(name, places[0]), rest, options, {})
    if request.spool is not None or request.background is not None:
        msg = f"{scheme}: spool= and background= are a sink's, and this is a listener"
        raise ValueError(msg)
    given = request.take(kind)
    if whole:
        _ = request.login
    elif request.path.strip("/") and places[1] not in given:
        given[places[1]] = request.path.strip("/")
    request.refuse_credentials(has_token=False)
    request.refuse_rest((kind,))
    for place in places[1:]:
        if place not in given and parameters_of(kind)[place].default is inspect.Parameter.empty:
            msg = f"{scheme}: the option {place!r} is missing: write {place}=…"
            raise ValueError(msg)
    where = f"{scheme}:{request.where}" if whole else request.netloc
    more = [given.pop(place) for place in places[1:]]
    listener: BrokerListener = kind(where, *more, *sinks, **given)
    return listener


def _as_kind(name: str, place: str) -> Kind:
    def refuse(_request: Request) -> Sink:
        raise NotImplementedError

    return Kind("", "", refuse, (name,), frozenset({place}))
