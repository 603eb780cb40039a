"""Open the WebSocket to a gateway: one attachment a call, and how long to wait between calls."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from dyno_agent.compat import timeout
from dyno_agent.link import (
    CAPSULE_HEADER,
    PATH,
    SUBPROTOCOL,
    CloseCode,
    Hello,
    ProtocolViolation,
    Welcome,
)
from dyno_agent.link.closing import is_retriable
from dyno_agent.link.handshake import is_parked
from dyno_agent.link.limits import HANDSHAKE_S, PARKED_DEAD_S, WELCOME_BYTES
from dyno_agent.slots import SLOTS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

OPEN_S = 10.0
"""Connect, TLS and upgrade. A router that needs longer is better tried again."""

FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 4.0
"""Full jitter between dials: uniform in 0 … min(cap, first x 2^n), so that a gateway that comes
back is not met by all agents at once. It waits for those of shared sessions a second longer."""

SPREAD_S = 1.0
"""A gateway that drains sends all its agents away at once: they come back over so long."""

ELSEWHERE, ELSEWHERE_S = 421, 0.3
"""That status is an answer and no outage: the next dial comes within so long."""

TERMINAL_STATUS = {400, 401, 403}
"""Refusals that a repeat cannot mend. A 404, 429 or 5xx may be a router or a gateway in between."""


class Refused(Exception):
    """The gateway will not have this agent, now or later; the message says why."""


class Unreachable(Exception):
    """No attachment this time; dial again."""


class Elsewhere(Unreachable):
    """This gateway process is not the one: the session can live at another one only."""


@dataclass(**SLOTS)
class Backoff:
    """How long to wait before the next dial. Make a new one once an attachment was useful.

    Attributes:
        attempt: dials so far.
        spread: the next one is one of many at the same moment.
        elsewhere: the last one has reached the wrong process.
    """

    attempt: int = 0
    spread: bool = False
    elsewhere: bool = False

    def wait_s(self) -> float:
        """Return the next pause in seconds."""
        if self.elsewhere:
            self.elsewhere = False
            return random.uniform(0, ELSEWHERE_S)  # noqa: S311 - jitter, not a secret
        ceiling = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**self.attempt)
        if self.spread:
            ceiling, self.spread = max(ceiling, SPREAD_S), False
        self.attempt = min(self.attempt + 1, 16)
        return random.uniform(0, ceiling)  # noqa: S311 - jitter, not a secret


class Attachment:
    """One open WebSocket after its handshake."""

    def __init__(self, connection: ClientConnection, welcome: Welcome) -> None:
        self._connection = connection
        self.welcome = welcome

    async def send(self, frame: bytes | str) -> None:
        """Write one frame. A socket that is gone is noticed by the reader, so it is no error."""
        try:
            await self._connection.send(frame)
        except ConnectionClosed:
            return

    @property
    def drained(self) -> bool:
        """True when the gateway closed it because it leaves."""
        return self._connection.close_code == CloseCode.DRAIN

    async def frames(self) -> AsyncIterator[bytes]:
        """Yield frames until the socket is gone.

        Raises:
            Refused: the gateway closed it with a terminal code.
            ProtocolViolation: a text frame after the handshake.
        """
        try:
            async for data in self._connection:
                if isinstance(data, str):
                    raise ProtocolViolation("text after the handshake")
                yield data
        except ConnectionClosed:
            pass
        code = self._connection.close_code or 1006
        if not is_retriable(code):
            raise Refused(f"closed by the gateway: {code} {self._connection.close_reason or ''}")

    async def close(self, code: CloseCode) -> None:
        """Close with one of the link's codes; a peer that does not read is cut off."""
        try:
            async with timeout(2 * HANDSHAKE_S):
                await self._connection.close(code, code.sentence)
        except TimeoutError:
            self.abort()

    def abort(self) -> None:
        """Drop the TCP connection."""
        self._connection.transport.abort()


Abort = Callable[[], None]


async def dial(
    base_url: str,
    credential: str,
    hello: Hello,
    capsule: str = "",
    parked: Callable[[Abort], None] | None = None,
) -> Attachment:
    """Dial the gateway and shake hands.

    Args:
        base_url: http(s) URL of the gateway.
        credential: join token or resume credential; travels in the Authorization header.
        hello: what to say first.
        capsule: what the last gateway gave, for one that does not know the session.
        parked: called when the gateway lets this agent wait for its session, with what drops the
            connection; the wait has no end of its own.

    Raises:
        Refused: token refused, protocol refused: do not dial again.
        Unreachable: anything else.
    """
    url = "ws" + base_url.removeprefix("http") + PATH
    headers = {"Authorization": f"Bearer {credential}"}
    if capsule:
        headers[CAPSULE_HEADER] = capsule
    try:
        connection = await connect(
            url,
            additional_headers=headers,
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            compression=None,
            max_size=WELCOME_BYTES,
            ping_interval=None,
            open_timeout=OPEN_S,
            close_timeout=HANDSHAKE_S,
            proxy=None if url.startswith("ws:") else True,
        )
    except InvalidStatus as error:
        status = error.response.status_code
        if status in TERMINAL_STATUS:
            raise Refused(f"the gateway answered HTTP {status}") from error
        if status == ELSEWHERE:
            raise Elsewhere("the gateway has sent us to another of its processes") from error
        raise Unreachable(f"HTTP {status}") from error
    except (OSError, asyncio.TimeoutError, WebSocketException) as error:
        raise Unreachable(f"{type(error).__name__}: {error}") from error
    return await _shake_hands(connection, hello, parked)


async def _shake_hands(
    connection: ClientConnection, hello: Hello, parked: Callable[[Abort], None] | None
) -> Attachment:
    patience_s = HANDSHAKE_S
    try:
        async with timeout(HANDSHAKE_S):
            await connection.send(hello.encode())
        while True:
            async with timeout(patience_s):
                answer = await connection.recv()
            text = answer if isinstance(answer, str) else ""
            if parked is None or not is_parked(text):
                break
            parked(connection.transport.abort)
            patience_s = PARKED_DEAD_S
        return Attachment(connection, Welcome.decode(text))
    except ConnectionClosed as error:
        code = connection.close_code or 1006
        if is_retriable(code):
            raise Unreachable(f"closed with {code}") from error
        raise Refused(f"refused with {code} {connection.close_reason or ''}") from error
    except (TimeoutError, ProtocolViolation) as error:
        await connection.close(CloseCode.PROTOCOL_VIOLATION)
        raise Unreachable(f"no WELCOME: {error}") from error
