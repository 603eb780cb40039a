"""The capsule: what a session is, sealed by the gateway and carried by its agent. Pure.

A gateway process that never saw a session rebuilds it from the capsule, so no store is needed to
survive the end of a process.
"""

from typing import Final, Literal

import msgspec

PURPOSE: Final = "rendezvous capsule v1"


class Capsule(msgspec.Struct, frozen=True):
    """The facts of a session that outlive a gateway process.

    Attributes:
        launch_id: which launch the agent belongs to.
        fingerprint: of the session key; the key itself is the client's.
        principal: whose session it is.
        server: name of its server.
        created: when its dyno was asked for, wall clock of the gateways, seconds since 1970.
            Gateways of one deployment compare it with their own; the agent's clock is never asked.
        proof: of the agent's resume secret.
        boot_id: of the agent process.
        epoch: number of the attachment that it was handed out on.
        dyno_id: the launcher's name of the dyno, if it was known.
        kind: whether the child has one client or several callers.
        session_id: its public name.
        billed: from when on it pays for its dyno, wall clock; 0 if that was not known yet.
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
    kind: Literal["owned", "shared"] = "owned"
    session_id: str = ""
    billed: float = 0.0
