"""The capsule: what a session is, sealed by the gateway and carried by its agent.

A gateway process that never saw a session rebuilds it from the capsule, so no store is needed to
survive the end of a process. It is encrypted as well as authenticated (Fernet), because the dyno
that carries it is hostile. Pure but for the chance that Fernet draws.
"""

import base64
import hmac

import msgspec
from cryptography.fernet import Fernet, InvalidToken


class BadCapsule(Exception):
    """Not sealed by this deployment, or by an incompatible version of it."""


class Capsule(msgspec.Struct, frozen=True):
    """The facts of a session that outlive a gateway process.

    Attributes:
        launch_id: which launch the agent belongs to.
        fingerprint: of the session key; the key itself is the client's.
        principal: whose session it is.
        server: name of its server.
        created: wall clock of the gateways, seconds since 1970. Gateways of one deployment compare
            it with their own; the agent's clock is never asked.
        proof: of the agent's resume secret.
        boot_id: of the agent process.
        epoch: number of the attachment that it was handed out on.
        dyno_id: the launcher's name of the dyno, if it was known.
    """

    launch_id: str
    fingerprint: str
    principal: str
    server: str
    created: float
    proof: str
    boot_id: str
    epoch: int
    dyno_id: str | None = None


_DECODER = msgspec.json.Decoder(Capsule)


class Sealer:
    """Seals and opens capsules.

    Args:
        secret: the deployment's GATEWAY_SECRET.
    """

    def __init__(self, secret: bytes) -> None:
        key = hmac.digest(secret, b"rendezvous capsule v1", "sha256")
        self._fernet = Fernet(base64.urlsafe_b64encode(key))

    def seal(self, capsule: Capsule) -> str:
        """Return the capsule as ASCII text for a header."""
        return self._fernet.encrypt(msgspec.json.encode(capsule)).decode()

    def open(self, text: str) -> Capsule:
        """Read a capsule.

        Raises:
            BadCapsule: it was not sealed with this secret, or is of another shape.
        """
        try:
            return _DECODER.decode(self._fernet.decrypt(text.encode()))
        except (InvalidToken, msgspec.DecodeError, UnicodeEncodeError) as error:
            raise BadCapsule from error
