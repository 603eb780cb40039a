"""The agents' WebSocket: authenticate, shake hands, attach, read until it is over.

A link speaks for exactly one session, which comes from the credential and never from a frame.
"""

import asyncio
import time

from aiohttp import WebSocketError, WSMsgType, web

from dyno_agent.link import (
    CAPSULE_HEADER,
    PATH,
    SUBPROTOCOL,
    CloseCode,
    Hello,
    ProtocolViolation,
)
from dyno_agent.link.frames import MAX_FRAME_BYTES
from dyno_agent.link.handshake import PARKED
from dyno_agent.link.limits import HANDSHAKE_S, JOURNAL_PAGES, PARKED_S
from dyno_agent.link.resumption import JournalPage
from gateway.fleet.desk import TokenRefused, TokenReplayed
from gateway.sessions.live import Live
from gateway.sessions.manager import Manager
from gateway.sessions.pool import Parked

CLOSE_S = 2.0
"""How long to wait for the other side's half of a closing handshake."""


class SocketAttachment:
    """An aiohttp WebSocket as the session's attachment."""

    def __init__(self, request: web.Request, socket: web.WebSocketResponse) -> None:
        self._request = request
        self._socket = socket

    async def send(self, frame: bytes) -> None:
        """Write one frame; what a lost socket swallows is replayed on the next."""
        if self._socket.closed:
            return
        try:
            await self._socket.send_bytes(frame)
        except ConnectionError:
            return

    async def close(self, code: CloseCode) -> None:
        """Close with one of the link's codes; a peer that does not read is cut off."""
        try:
            async with asyncio.timeout(2 * CLOSE_S):
                await self._socket.close(code=code, message=code.sentence.encode())
        except TimeoutError:
            self.abort()

    def abort(self) -> None:
        """Drop the TCP connection."""
        if self._request.transport is not None:
            self._request.transport.abort()


class Rendezvous:
    """Handler of `GET /agent/v1/link`."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    def routes(self) -> list[web.RouteDef]:
        """Return the one route of this room."""
        return [web.get(PATH, self.link)]

    async def link(self, request: web.Request) -> web.StreamResponse:
        """Take one attachment of one agent, from its upgrade to its end."""
        if "Origin" in request.headers:
            raise web.HTTPForbidden(text="agents are not browsers")
        offered = request.headers.get("Sec-WebSocket-Protocol", "").split(",")
        if SUBPROTOCOL not in map(str.strip, offered):
            raise web.HTTPBadRequest(text=f"this gateway speaks {SUBPROTOCOL}")
        credential = request.headers.get("Authorization", "").removeprefix("Bearer ")
        try:
            found = await self._manager.recognise(
                credential, request.headers.get(CAPSULE_HEADER, "")
            )
        except TokenRefused:
            raise web.HTTPUnauthorized(text=CloseCode.BAD_TOKEN.sentence) from None
        socket = web.WebSocketResponse(
            protocols=(SUBPROTOCOL,),
            compress=False,
            max_msg_size=MAX_FRAME_BYTES + 1,  # aiohttp refuses what is as large as its limit
            timeout=CLOSE_S,
            heartbeat=PARKED_S if isinstance(found, Parked) else None,
        )
        try:
            await socket.prepare(request)
        except ValueError:
            raise web.HTTPBadRequest(text="Sec-WebSocket-Key is no key") from None
        except ConnectionError:
            return socket  # it has hung up meanwhile, and dials again
        if isinstance(found, Parked):
            await self._park(found, credential, request, socket)
        else:
            await self._attach(found, credential, request, socket)
        return socket

    async def _park(
        self, parked: Parked, credential: str, request: web.Request, socket: web.WebSocketResponse
    ) -> None:
        """Hold an agent at the door until a session adopts it."""
        attachment = SocketAttachment(request, socket)
        try:
            text = await _text(socket)
            if text is None:
                return
            hello = Hello.decode(text)
            await self._manager.reception.admit(credential, hello)
            live = await self._adopted(parked, attachment, socket)
        except (TokenRefused, TokenReplayed):
            self._manager.pool.lost(parked)  # nobody can know which of two is honest
            await attachment.close(CloseCode.REPLAYED_TOKEN)
        except ProtocolViolation as violation:
            self._manager.pool.lost(parked)
            await attachment.close(violation.code)
        except TimeoutError:
            attachment.abort()
        else:
            if live is not None:
                await self._attach(live, credential, request, socket, hello)
            elif parked.over or parked.live is not None:
                await attachment.close(CloseCode.SESSION_ENDED)
            else:  # it is wanted at another process, or this one leaves
                await attachment.close(CloseCode.DRAIN)

    async def _adopted(
        self, parked: Parked, attachment: SocketAttachment, socket: web.WebSocketResponse
    ) -> Live | None:
        """Wait until a session wants a parked agent; None if none will, or the agent has left."""
        pool = self._manager.pool
        pool.arrived(parked, attachment)
        try:
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(socket.receive(), name=f"parked {parked.launch_id}")
                called = tasks.create_task(parked.called.wait(), name=f"call {parked.launch_id}")
                while not reading.done() and not called.done():
                    await socket.send_str(PARKED)
                    await asyncio.wait(
                        (reading, called), timeout=PARKED_S, return_when=asyncio.FIRST_COMPLETED
                    )
                spoke = reading.done() and reading.result().type in (
                    WSMsgType.TEXT,
                    WSMsgType.BINARY,
                )
                gone = reading.done() and not spoke
                reading.cancel()
                called.cancel()
        finally:
            pool.departed(parked, attachment)
        if spoke:
            raise ProtocolViolation("a parked agent has nothing to say")
        return None if gone or parked.holder is not attachment else parked.live

    async def _attach(
        self,
        live: Live,
        credential: str,
        request: web.Request,
        socket: web.WebSocketResponse,
        hello: Hello | None = None,
    ) -> None:
        attachment = SocketAttachment(request, socket)
        try:
            if await self._shake_hands(live, credential, socket, attachment, hello):
                await self._serve(live, socket, attachment)
        except TokenRefused:
            await attachment.close(CloseCode.BAD_TOKEN)
        except TokenReplayed:
            self._manager.breach(live, "join token used by a second process")
            await attachment.close(CloseCode.REPLAYED_TOKEN)
        except ProtocolViolation as violation:
            self._manager.breach(live, str(violation))
            await attachment.close(violation.code)
        finally:
            # aiohttp closes by itself on a broken frame; this handler may only see its own end.
            if isinstance(broken := socket.exception(), WebSocketError):
                self._manager.breach(live, f"WebSocket error {broken.code}: {broken}")
            cause = f"close code {socket.close_code}" if socket.close_code else "connection lost"
            live.part(attachment, cause, time.monotonic())

    async def _shake_hands(
        self,
        live: Live,
        credential: str,
        socket: web.WebSocketResponse,
        attachment: SocketAttachment,
        hello: Hello | None,
    ) -> bool:
        """Return whether the attachment is open and current."""
        try:
            if hello is None:
                text = await _text(socket)
                if text is None:
                    return False
                hello = Hello.decode(text)
                await self._manager.reception.admit(credential, hello)
            if live.moved:
                await attachment.close(CloseCode.DRAIN)
                return False
            live.fence(attachment)
            welcome = self._manager.reception.welcome(live, hello)
            await socket.send_str(welcome.encode())
            journal: list[JournalPage] = []
            while welcome.fresh and not (journal and journal[-1].last):
                if len(journal) >= JOURNAL_PAGES:
                    raise ProtocolViolation("a journal without an end")
                text = await _text(socket)
                if text is None:
                    return False
                journal.append(JournalPage.decode(text))
        except TimeoutError:
            attachment.abort()
            return False
        if not live.holds(attachment):
            return False
        live.attach(hello, journal, time.monotonic())
        self._manager.attached(live)
        return True

    async def _serve(
        self, live: Live, socket: web.WebSocketResponse, attachment: SocketAttachment
    ) -> None:
        violation: ProtocolViolation | None = None
        async with asyncio.TaskGroup() as tasks:
            writer = tasks.create_task(
                live.write(attachment), name=f"write {live.record.session_id}"
            )
            try:
                await self._read(live, socket, attachment)
            except ProtocolViolation as broken:
                violation = broken
            finally:
                writer.cancel()
        if violation is not None:
            raise violation

    async def _read(
        self, live: Live, socket: web.WebSocketResponse, attachment: SocketAttachment
    ) -> None:
        async for message in socket:
            if not live.holds(attachment):
                return
            if message.type is WSMsgType.ERROR:
                return
            if message.type is not WSMsgType.BINARY:
                raise ProtocolViolation("text after the handshake")
            live.perform(live.session.receive(message.data, time.monotonic()))
            live.heard()
            self._manager.settle(live)


async def _text(socket: web.WebSocketResponse) -> str | None:
    """Return the next document of the handshake, or None if the socket ended.

    Raises:
        ProtocolViolation: a binary frame.
        TimeoutError: none in time.
    """
    async with asyncio.timeout(HANDSHAKE_S):
        message = await socket.receive()
    if message.type is WSMsgType.BINARY:
        raise ProtocolViolation("a binary frame in the handshake")
    return message.data if message.type is WSMsgType.TEXT else None
