"""The era that a child shows to the gateway: its own, or the other one in translation."""

from dyno_agent.faces.face import Face, Moves
from dyno_agent.faces.legacy import LegacyFace
from dyno_agent.faces.modern import ModernFace
from dyno_agent.faces.plain import PlainFace

FACES: dict[str, type[Face]] = {"plain": PlainFace, "modern": ModernFace, "legacy": LegacyFace}
"""By the name that a WELCOME uses."""

__all__ = ["FACES", "Face", "Moves"]
