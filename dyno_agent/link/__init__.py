"""The link: a reliable duplex channel between one agent and the gateway.

Pure protocol code, shared by both sides: bytes and `now` in, bytes and messages out. It knows no
socket, no clock, no session and no MCP. The gateway imports this package and nothing else of the
agent. The wire is written down in docs/link.md.
"""

from dyno_agent.link.closing import CloseCode
from dyno_agent.link.endpoint import Endpoint, LinkLost, Message
from dyno_agent.link.frames import Channel, ProtocolViolation
from dyno_agent.link.handshake import ChildSpec, Face, Hello, Welcome
from dyno_agent.link.limits import DEFAULT_LIMITS, Limits

PATH = "/agent/v1/link"
"""Where the gateway takes agents, below its public base URL."""

CAPSULE_HEADER = "Rendezvous-Capsule"
"""Request header in which an agent presents its capsule when it resumes."""

SUBPROTOCOL = "rdv.v1"
"""The WebSocket subprotocol; its number is the major version of the wire."""

__all__ = [
    "CAPSULE_HEADER",
    "DEFAULT_LIMITS",
    "PATH",
    "SUBPROTOCOL",
    "Channel",
    "ChildSpec",
    "CloseCode",
    "Endpoint",
    "Face",
    "Hello",
    "Limits",
    "LinkLost",
    "Message",
    "ProtocolViolation",
    "Welcome",
]
