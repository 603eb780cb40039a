"""The composition root: the only place that names concrete launchers and wires the rooms."""

import asyncio
import hmac
import secrets
import signal
from collections.abc import AsyncIterator, Awaitable, Callable

import structlog
from aiohttp import web

from dyno_agent.link import DEFAULT_LIMITS
from gateway.edge.answering import refusal
from gateway.edge.auth import KeyRing
from gateway.edge.cors import Cors
from gateway.edge.door import Door, Endpoints, at
from gateway.edge.legacy_sse import LegacySse
from gateway.edge.modern_http import ModernHttp
from gateway.edge.streamable_http import StreamableHttp
from gateway.errors import GatewayError
from gateway.launchers.base import Launcher
from gateway.launchers.local import LocalLauncher
from gateway.ops import health, logs
from gateway.registry.servers import Registry
from gateway.rendezvous.endpoint import Rendezvous
from gateway.sessions.catalogues import Catalogues
from gateway.sessions.manager import Manager, Terms
from gateway.settings import Settings

KEEP_ALIVE_S = 95.0
"""The platform's router reuses connections for 90 s; closing earlier races with its requests."""

SHUTDOWN_S = 2.0
"""What aiohttp may take after our own drain has ended every stream."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def launchers(environment: dict[str, str], realm: str) -> dict[str, Callable[[], Launcher]]:
    """Return how to make each launcher, by the name that LAUNCHER takes.

    Args:
        environment: the gateway's own.
        realm: public name of the deployment: whose dynos are whose.
    """
    return {"local": lambda: LocalLauncher(environment, realm)}


@web.middleware
async def errors_to_responses(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn errors into answers: the one boundary between exceptions and the wire."""
    log = structlog.get_logger()
    try:
        response = await handler(request)
    except GatewayError as error:
        response = refusal(error)
    except web.HTTPException:
        raise
    except Exception as error:  # logged whole, told as nothing
        log.exception("internal_error", path=request.path, error=type(error).__name__)
        response = refusal(GatewayError("internal error of the gateway; its log says more"))
    if response.status >= 400 and not response.prepared:
        log.info("refused", method=request.method, path=request.path, status=response.status)
    return response


def build(settings: Settings, registry: Registry, manager: Manager) -> web.Application:
    """Return the application with all rooms wired; the manager lives as long as it."""
    app = web.Application(middlewares=[errors_to_responses])
    catalogues = Catalogues(manager, registry)
    hosts = settings.allowed_hosts or None
    door = Door(registry, KeyRing(settings.keys()), hosts)
    cors = Cors(hosts)
    paths = at("/mcp", "/handles/{handle}/mcp")
    size = DEFAULT_LIMITS.message_bytes
    legacy = StreamableHttp(manager, catalogues, message_bytes=size)
    modern = ModernHttp(manager, catalogues, message_bytes=size)
    app.add_routes(
        [
            *Endpoints(door, legacy, modern).routes(paths),
            *LegacySse(door, manager, legacy, message_bytes=size).routes(),
            *cors.routes([*paths, *at("/sse", "/messages")]),
            *Rendezvous(manager).routes(),
            *health.routes(manager),
        ]
    )
    app.on_response_prepare.append(cors.on_prepare)

    async def lifetime(_app: web.Application) -> AsyncIterator[None]:
        async with manager, catalogues:
            yield

    app.cleanup_ctx.append(lifetime)
    return app


def manager_for(settings: Settings, registry: Registry, environment: dict[str, str]) -> Manager:
    """Return the manager that these settings ask for, with its launcher."""
    given = settings.gateway_secret
    secret = (secrets.token_hex(32) if given is None else given.get_secret_value()).encode()
    realm = hmac.digest(secret, b"rendezvous realm v1", "sha256").hex()[:12]
    launcher = launchers(environment, realm)[settings.launcher_name]()
    terms = Terms(
        settings.base_url,
        secret,
        settings.max_sessions,
        settings.link_grace_s,
        hand_over=given is not None,
    )
    return Manager(launcher, registry, terms, logs.log_sink())


async def serve(
    settings: Settings,
    registry: Registry,
    listening: Callable[[], None],
    environment: dict[str, str],
) -> None:
    """Serve until SIGTERM or SIGINT, then drain.

    SIGTERM hands sessions over to the next process, if GATEWAY_SECRET lets it open what this one
    has sealed; SIGINT, which is somebody at a terminal, ends them. Nothing new is accepted.

    Args:
        settings: all of them.
        registry: the servers.
        listening: called once the port is open.
        environment: the gateway's own, for launchers that pass parts of it on.

    Raises:
        OSError: the port cannot be opened.
    """
    log = structlog.get_logger()
    manager = manager_for(settings, registry, environment)
    runner = web.AppRunner(
        build(settings, registry, manager),
        handler_cancellation=True,
        auto_decompress=False,  # an encoded body is refused, not unpacked
        keepalive_timeout=KEEP_ALIVE_S,
        shutdown_timeout=SHUTDOWN_S,
        access_log=None,
    )
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)

    def interrupted() -> None:
        manager.keep_nothing()
        stopping.set()

    loop.add_signal_handler(signal.SIGINT, interrupted)
    await runner.setup()
    try:
        site = web.TCPSite(runner, settings.address, settings.port)
        await site.start()
        log.info(
            "serving",
            url=settings.base_url,
            launcher=settings.launcher_name,
            servers=",".join(registry.names),
        )
        listening()
        if settings.redis_url is not None:
            log.warning("redis_url_unused", why="one process serves; its state is in memory")
        await stopping.wait()
        log.info("draining", sessions=manager.sessions)
        await site.stop()
        await manager.drain()
    finally:
        await runner.cleanup()
    log.info("stopped")
