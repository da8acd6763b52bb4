"""Makes the protocols of the load test's sessions. Called by `server.load`."""

from pplex.server.load_chat import ChatWire
from pplex.server.load_live import LiveWire
from pplex.server.load_realtime import RealtimeWire
from pplex.server.load_twilio import TwilioWire
from pplex.server.load_wire import Asked, LoadWire

WIRES: dict[str, type[LoadWire]] = {
    "chat": ChatWire,
    "live": LiveWire,
    "realtime": RealtimeWire,
    "twilio": TwilioWire,
}


def make_wire(protocol: str, asked: Asked) -> LoadWire:
    """A new connection's protocol."""
    return WIRES[protocol](asked)
