"""The composition root: wires the rooms. What differs between platforms is in `deployment`."""

import asyncio
import contextlib
import secrets
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager

import structlog
from aiohttp import web

from dyno_agent.link import DEFAULT_LIMITS
from gateway import deployment, events, patience
from gateway.deployment import Deployment
from gateway.edge import toolkit_sse, toolkits
from gateway.edge.answering import refusal
from gateway.edge.auth import KeyRing
from gateway.edge.cors import Cors
from gateway.edge.door import Door, Endpoints, at
from gateway.edge.legacy_sse import LegacySse
from gateway.edge.loopback import Loopback
from gateway.edge.modern_http import ModernHttp
from gateway.edge.relaying import Relaying
from gateway.edge.streamable_http import StreamableHttp
from gateway.edge.toolkit_sse import ToolkitSse
from gateway.edge.toolkits import Toolkits
from gateway.errors import GatewayError
from gateway.exchange.exchange import Exchange
from gateway.fleet.ledger import Budgets
from gateway.fleet.warmth import Caps
from gateway.ops import health
from gateway.oversight import Oversight, Ways
from gateway.registry.discovery import Discovery
from gateway.registry.servers import BadServersFile, Change, Registry, ServerDefinition
from gateway.rendezvous import archive
from gateway.rendezvous.bootstrap import Bootstrap
from gateway.rendezvous.endpoint import Rendezvous
from gateway.rendezvous.hooks import Hooks
from gateway.sessions.catalogues import Catalogues
from gateway.sessions.farewell import DRAIN_S
from gateway.sessions.manager import Manager
from gateway.sessions.terms import Terms
from gateway.settings import Settings
from gateway.store.base import Store
from gateway.store.memory import MemoryStore
from gateway.v1.room import V1, Inference

HTTP_PATHS = at("/mcp", "/handles/{handle}/mcp")
"""Of Streamable HTTP."""

TOOLKIT_PATHS = [*toolkits.PATHS, *toolkit_sse.SSE_PATHS, *toolkit_sse.POST_PATHS]
"""Of toolkits, whatever the transport."""

MCP_PATHS = [*HTTP_PATHS, *at("/sse", "/messages"), *TOOLKIT_PATHS]
"""Of all MCP endpoints."""

KEEP_ALIVE_S = 95.0
"""The platform's router reuses connections for 90 s; closing earlier races with its requests."""

FLUSH_S = 2.0
"""How long the end may wait until other processes have what they were told."""

LOOPBACK: web.AppKey[Loopback] = web.AppKey("loopback")
"""Performs what other processes carry here; to be served with the application's runner."""

LEAVING: web.AppKey[asyncio.Event] = web.AppKey("leaving")
"""Set once this process shall drain and end."""

OVERSIGHT: web.AppKey[Oversight] = web.AppKey("oversight")
"""Hears all that happens."""

RELAYING: web.AppKey[Relaying] = web.AppKey("relaying")
"""Carries requests away; to be drained beside the manager."""

SHUTDOWN_S = 2.0
"""What aiohttp may take after our own drain has ended every stream."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def errors_to_responses(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn errors into answers: the one boundary between exceptions and the wire."""
    log = structlog.get_logger()
    patience.begin()
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


def build(
    settings: Settings, registry: Registry, manager: Manager, platform: Deployment | None = None
) -> web.Application:
    """Return the application with all rooms wired; the manager lives as long as it.

    Args:
        settings: all of them.
        registry: the servers.
        manager: the sessions.
        platform: where dynos run; without one there is no way in for operators and webhooks.
    """
    app = web.Application(middlewares=[errors_to_responses])
    leaving = app[LEAVING] = asyncio.Event()
    oversight = app[OVERSIGHT] = Oversight(settings, registry, manager)
    loopback = app[LOOPBACK] = Loopback()
    exchange = _exchange(manager, loopback)
    catalogues = Catalogues(manager, registry)
    relaying = app[RELAYING] = Relaying(exchange, message_bytes=DEFAULT_LIMITS.message_bytes)
    hosts = settings.allowed_hosts or None
    cors = Cors(hosts)
    door = Door(registry, KeyRing(settings.keys()), hosts, loopback)
    app.add_routes(_for_clients(door, registry, manager, catalogues, relaying))
    app.add_routes(cors.routes(MCP_PATHS))
    v1 = V1(manager, catalogues, registry, door.admit, inference=_inference(settings))
    app.add_routes([*Rendezvous(manager).routes(), *health.routes(manager), *v1.routes()])
    app.on_response_prepare.extend([cors.on_prepare, relaying.on_prepare, toolkits.on_prepare])

    async def hang_up(_request: web.Request, response: web.StreamResponse) -> None:
        if manager.draining and response.status != 101:
            response.force_close()  # or the router sends its next request there

    app.on_response_prepare.append(hang_up)
    discovery = None
    if platform is not None:
        discovery = _discovery(settings, registry, manager, platform)
        ways = Ways(
            relaying.serve,
            lambda headers: loopback.carried(headers) is not None,
            catalogues.tools,
            leaving.set,
        )
        app.add_routes(oversight.routes(platform, discovery, ways))
        app.add_routes(_of_the_platform(manager, platform, discovery))

    async def lifetime(_app: web.Application) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            keeping = None
            if platform is not None and discovery is not None:
                await discovery.look()
                keeping = tasks.create_task(_discover(discovery, platform), name="discovery")
            async with manager, exchange or contextlib.nullcontext(), catalogues, v1, oversight:
                yield
                if exchange is not None:
                    await exchange.flush(FLUSH_S)
            if keeping is not None:
                keeping.cancel()

    app.cleanup_ctx.append(lifetime)
    return app


def _exchange(manager: Manager, loopback: Loopback) -> Exchange | None:
    """Return the way to other processes; None where there are none."""
    if manager.store.alone:
        return None
    exchange = Exchange(manager.store, loopback.perform, manager.neighbours.hear)
    manager.neighbours.tell = exchange.tell
    return exchange


def _for_clients(
    door: Door, registry: Registry, manager: Manager, catalogues: Catalogues, relaying: Relaying
) -> list[web.RouteDef]:
    """Return the MCP endpoints."""
    size, serve = DEFAULT_LIMITS.message_bytes, relaying.serve
    legacy = StreamableHttp(manager, catalogues, message_bytes=size)
    modern = ModernHttp(manager, catalogues, message_bytes=size)
    servers = Endpoints(door, legacy, modern, serve)
    return [
        *servers.routes(HTTP_PATHS),
        *LegacySse(door, manager, legacy, serve, message_bytes=size).routes(),
        *Toolkits(door, servers, registry, manager, catalogues, message_bytes=size).routes(),
        *ToolkitSse(door, manager, catalogues, legacy, serve, message_bytes=size).routes(),
    ]


def _inference(settings: Settings) -> Inference:
    """Return where the model is that these settings name."""
    key = settings.inference_key
    return Inference(
        settings.inference_base,
        "" if key is None else key.get_secret_value(),
        settings.inference_model_id,
    )


def _of_the_platform(
    manager: Manager, platform: Deployment, discovery: Discovery | None
) -> list[web.RouteDef]:
    """Return the ways in for the platform, and for agents that are to be fetched."""
    routes = Bootstrap(platform.archive).routes()
    if discovery is not None:
        heard, asked = manager.neighbours.heard, discovery.ask
        routes += Hooks(platform.hook_secret, platform.launch_of, heard, asked).routes()
    return routes


def _discovery(
    settings: Settings, registry: Registry, manager: Manager, platform: Deployment
) -> Discovery | None:
    """Return what keeps the registry as the platform's apps are, if it has apps."""
    if platform.formation is None:
        return None

    def changed(change: Change) -> None:
        for name in sorted(change.changed):
            server = registry.find(name)
            if server is not None:
                manager.emit(
                    events.Registered(server=name, app=server.app or "", release=server.release)
                )
        for name in sorted(change.gone):
            manager.emit(events.Disconnected(server=name))

    def failed(problems: Mapping[str, str]) -> None:
        for app, why in problems.items():
            manager.emit(events.NotDiscovered(app=app, why=why))

    registry.subscribe(changed)
    interval_s = settings.heroku_refresh_s
    return Discovery(registry, registry.servers, platform.formation, interval_s, failed)


async def _discover(discovery: Discovery, platform: Deployment) -> None:
    """Subscribe to releases, and only then look again: none is missed in between."""
    for problem in await platform.subscribe():
        structlog.get_logger().warning("not_subscribed", why=problem)
    await discovery.keep()


def platform_for(settings: Settings, environment: Mapping[str, str], secret: bytes) -> Deployment:
    """Return the platform that these settings ask for."""
    agent = archive.build()
    if settings.launcher_name == "heroku" and settings.heroku_api_key is not None:
        return deployment.heroku(
            settings, settings.heroku_api_key.get_secret_value(), secret, agent
        )
    return deployment.local(environment, secret, agent)


def check(registry: Registry, settings: Settings) -> None:
    """Make sure that every server can run on the platform there is.

    Raises:
        BadServersFile: names the entry and the key.
    """
    for server in registry.servers:
        if problem := _misplaced(server, settings):
            raise BadServersFile(f"mcpServers.{server.name}.{problem}")


def _misplaced(server: ServerDefinition, settings: Settings) -> str:
    if settings.launcher_name != "heroku":
        no_apps = "process_type: needs the heroku launcher, as this machine has no apps"
        return no_apps if server.process_type else ""
    if server.app not in settings.heroku_apps:
        return f"app: one of HEROKU_APPS ({', '.join(settings.heroku_apps)})"
    return ""


def manager_for(
    settings: Settings, registry: Registry, platform: Deployment, secret: bytes
) -> Manager:
    """Return the manager that these settings ask for."""
    terms = Terms(
        settings.base_url,
        secret,
        settings.max_sessions,
        settings.link_grace_s,
        budgets=Budgets(settings.monthly_budget_usd, settings.key_budgets_usd),
        caps=Caps(settings.warm_usd_per_hour, settings.warm_usd_per_month),
        queue_length=settings.queue_length,
        queue_timeout_s=settings.queue_timeout_s,
        hand_over=settings.gateway_secret is not None,
        max_sessions_per_key=settings.max_sessions_per_key,
        opens_per_minute=settings.opens_per_minute,
    )
    return Manager(platform.launcher, registry, terms, store=store_for(settings))


def store_for(settings: Settings) -> Store:
    """Return what these settings say that the processes share."""
    if settings.redis_url is None:
        return MemoryStore()
    from gateway.store.valkey import ValkeyStore  # noqa: PLC0415 - a lone process needs no client

    return ValkeyStore(settings.redis_url.get_secret_value(), verify=settings.redis_tls_verify)


def performing(
    app: web.Application, runner: web.BaseRunner, manager: Manager
) -> AbstractAsyncContextManager[None]:
    """Perform what other processes carry here, inside; nothing is carried where there are none."""
    if manager.store.alone:
        return contextlib.nullcontext()
    return app[LOOPBACK].serving(runner)


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
        MissingExtra: traces are asked for, and cannot be made.
        BadServersFile: a server cannot run here.
    """
    log = structlog.get_logger()
    check(registry, settings)
    given = settings.gateway_secret
    secret = (secrets.token_hex(32) if given is None else given.get_secret_value()).encode()
    platform = platform_for(settings, environment, secret)
    manager = manager_for(settings, registry, platform, secret)
    app = build(settings, registry, manager, platform)
    app[OVERSIGHT].log()
    app[OVERSIGHT].trace(environment)
    runner = web.AppRunner(
        app,
        handler_cancellation=True,
        auto_decompress=False,  # an encoded body is refused, not unpacked
        keepalive_timeout=KEEP_ALIVE_S,
        shutdown_timeout=SHUTDOWN_S,
        access_log=None,
    )
    stopping = app[LEAVING]
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)

    def interrupted() -> None:
        manager.keep_nothing()
        stopping.set()

    loop.add_signal_handler(signal.SIGINT, interrupted)
    await runner.setup()
    try:
        async with performing(app, runner, manager):
            site = web.TCPSite(runner, settings.address, settings.port)
            await site.start()
            log.info(
                "serving",
                url=settings.base_url,
                launcher=settings.launcher_name,
                servers=",".join(registry.names),
                store=manager.store.name,
                gateway=manager.store.gateway,
            )
            listening()
            await stopping.wait()
            log.info("draining", sessions=manager.sessions)
            await site.stop()  # first, as the next process may want the port
            async with asyncio.TaskGroup() as leaving:
                leaving.create_task(manager.drain(), name="drain")
                leaving.create_task(app[RELAYING].drain(DRAIN_S), name="drain what is carried")
    finally:
        await runner.cleanup()
        await platform.aclose()
    log.info("stopped")
