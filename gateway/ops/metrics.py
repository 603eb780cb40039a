"""Prometheus metrics: how sessions and dynos begin and end, and what they cost."""

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from gateway import events
from gateway.ops.admin import Handler
from gateway.sessions.manager import Manager
from gateway.sessions.record import Reason


class Metrics:
    """Hears all events and counts; served at `GET /metrics` to operators."""

    def __init__(self, manager: Manager) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        self._opened = Counter(
            "rendezvous_sessions_opened_total", "Sessions opened", registry=registry
        )
        self._ended = Counter(
            "rendezvous_sessions_ended_total", "Sessions ended", ["reason"], registry=registry
        )
        for reason in Reason:
            self._ended.labels(reason=reason.value)
        self._dynos = Counter(
            "rendezvous_dynos_ended_total", "Dynos that are gone", ["was"], registry=registry
        )
        self._seconds = Counter(
            "rendezvous_dyno_seconds_total", "Seconds of dynos gone", ["was"], registry=registry
        )
        self._usd = Counter(
            "rendezvous_dyno_usd_total", "What dynos gone have cost", ["was"], registry=registry
        )
        self._failures = Counter(
            "rendezvous_dyno_stops_failed_total", "Stops tried again", registry=registry
        )
        fleet, pool = manager.fleet, manager.pool
        self._gauge("rendezvous_sessions_live", "Sessions that live", lambda: manager.sessions)
        self._gauge("rendezvous_pool_dynos", "Dynos of the pool", lambda: len(list(pool)))
        self._gauge(
            "rendezvous_queue_length", "Sessions in line", lambda: sum(fleet.lines.values())
        )

    def _gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        Gauge(name, text, registry=self._registry).set_function(value)

    def hear(self, event: events.Event) -> None:
        """Be a sink."""
        match event:
            case events.Requested():
                self._opened.inc()
            case events.Closed():
                self._ended.labels(reason=event.reason).inc()
                self._gone("session", event.dyno_s, event.usd)
            case events.Adopted():
                self._seconds.labels(was="parked").inc(event.pool_dyno_s)
                self._usd.labels(was="parked").inc(event.pool_usd)
            case events.DynoUnparked():
                self._gone("parked", event.dyno_s, event.usd)
            case events.OrphanGone():
                self._gone("orphan", event.dyno_s, event.usd)
            case events.NotStopped():
                self._failures.inc()
            case _:
                pass

    def _gone(self, was: str, dyno_s: float, usd: float) -> None:
        if dyno_s:
            self._dynos.labels(was=was).inc()
            self._seconds.labels(was=was).inc(dyno_s)
            self._usd.labels(was=was).inc(usd)

    def routes(self, guarded: Callable[[Handler], Handler]) -> list[web.RouteDef]:
        """Return the one route of this room."""

        async def metrics(_request: web.Request) -> web.Response:
            text = generate_latest(self._registry)
            return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})

        return [web.get("/metrics", guarded(metrics))]
