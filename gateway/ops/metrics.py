"""Prometheus metrics: what lives, how it begins and ends, how fast it answers, and what it costs.

Counters are fed by events alone; what stands right now is asked for when somebody scrapes. No label
has a value that a client, a child or an agent could choose: servers are those of the registry,
methods, outcomes and reasons come from closed sets, and anything else is `other`.

Messages and calls are counted by hand, as they come by the thousand: a counter of the library takes
about a microsecond, and one call would touch four of them.
"""

import asyncio
from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import web
from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from dyno_agent import __version__
from gateway import errors, events
from gateway.sessions.manager import Manager
from gateway.sessions.record import Reason, State

BOOT_BUCKETS_S: Final = (0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 120.0)
"""A dyno takes 5 to 15 s, an adopted one less than one, and a boot is given up after minutes."""

CALL_BUCKETS_S: Final = (
    *(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    *(30.0, 60.0, 120.0, 300.0, 900.0, 3600.0),
)
"""From an answer of the catalogue to the longest time that a call may take by default."""

SCRAPE_S: Final = 10.0
"""How long a scrape may take: as long as Prometheus waits by default. 1,000 series take 20 ms."""

MAX_SESSIONS: Final = 50_000
"""Sessions whose server is remembered; dormant ones are at most 10,000."""

MAX_SERVERS: Final = 500
"""Servers with figures of their own; discovery may bring new names for as long as we run."""

UNKNOWN: Final = "(unknown)"
"""The server of what belongs to no session that is known here; no server can be called so."""

OTHERS: Final = "(others)"
"""All servers beyond `MAX_SERVERS`."""

OTHER: Final = "other"
"""Methods and outcomes of no closed set."""

METHODS: Final = frozenset(
    {
        "initialize",
        "ping",
        "server/discover",
        "tools/list",
        "tools/call",
        "prompts/list",
        "prompts/get",
        "resources/list",
        "resources/templates/list",
        "resources/read",
        "resources/subscribe",
        "resources/unsubscribe",
        "completion/complete",
        "logging/setLevel",
        "subscriptions/listen",
        "tasks/get",
        "tasks/list",
        "tasks/result",
        "tasks/cancel",
        "tasks/update",
    }
)
"""Requests that clients may send, in any revision."""


def _reasons(error: type[errors.GatewayError]) -> Iterator[str]:
    yield error.reason
    for kind in error.__subclasses__():
        yield from _reasons(kind)


OUTCOMES: Final = frozenset(
    {"ok", "error", "tool_error", "cancelled", "catalogue", *_reasons(errors.GatewayError)}
)
"""How a call may end, see `events.CallFinished`."""

REASONS: Final = frozenset(reason.value for reason in Reason)

TROUBLES: Final = (
    events.NotParked,
    events.NotStopped,
    events.NotListed,
    events.NotDiscovered,
    events.NotLearned,
    events.Contradicted,
    events.Breach,
    events.Noise,
    events.Dropped,
    events.StoreAway,
)
"""Events that say that something went wrong; each is counted under its name."""

STATES: Final = (*(state.value for state in State if state is not State.CLOSED), "queued")
"""A session that waits in line is `queued`, whatever its record says."""

ALL: Final = "(all)"
"""Whose budget the overall one is; no principal can be called so."""

Counts = Mapping[tuple[str, ...], float]
"""Figures by the values of their labels."""

Handler = Callable[[web.Request], Awaitable[web.Response]]
Guard = Callable[[Handler], Callable[[web.Request], Awaitable[web.StreamResponse]]]


@dataclass(slots=True)
class _Flow:
    """What went to one side of one server's sessions."""

    messages: int = 0
    bytes: int = 0


@dataclass(slots=True)
class _Server:
    """What is counted of one server by hand."""

    name: str
    flows: dict[str, _Flow] = field(default_factory=lambda: {"child": _Flow(), "client": _Flow()})


@dataclass(slots=True)
class _Latency:
    """How long the calls of one method of one server took: counts by bucket, and one for longer."""

    sum_ms: float = 0.0
    counts: list[int] = field(default_factory=lambda: [0] * (len(CALL_BUCKETS_S) + 1))


@dataclass(slots=True)
class _Calls:
    """The calls of one method of one server that ended alike, and where else they count."""

    latency: _Latency
    flow: _Flow
    count: int = 0


@dataclass(slots=True)
class _Session:
    """What later events of a session do not say."""

    server: _Server
    warm: bool = False


class Metrics:
    """Hears all events and counts; served at `GET /metrics` to operators."""

    def __init__(self, manager: Manager) -> None:
        # When each series began would be as many series again; the process tells when it started.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        build = Info("rendezvous_build", "What runs here", registry=registry)
        build.info({"version": __version__})
        self._traffic = Traffic()
        registry.register(self._traffic)
        registry.register(_Standing(manager))
        self._sessions: dict[str, _Session] = {}
        self._shown: set[str] = set()
        self._lives()
        self._boots()
        self._dynos()
        self._hears: dict[type[events.Event], Callable[[Any], None]] = {
            events.Passed: self._passed,
            events.CallFinished: self._traffic.answered,
            events.Requested: self._requested,
            events.Hydrated: self._hydrated,
            events.HandedOver: self._handed_over,
            events.Adopted: self._adopted,
            events.Ready: self._ready,
            events.Parted: self._parted,
            events.Resumed: self._resumed,
            events.Closed: self._closed,
            events.DynoParked: self._dyno_parked,
            events.DynoUnparked: self._dyno_unparked,
            events.OrphanGone: self._orphan_gone,
            events.StoreBack: self._store_back,
            **dict.fromkeys(TROUBLES, self._trouble),
        }

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"rendezvous_{name}", text, labels, registry=self._registry)

    def _lives(self) -> None:
        counter = self._counter
        self._opened = counter("sessions_opened_total", "Sessions opened")
        self._server_opened = counter(
            "server_sessions_opened_total", "Sessions opened, by server", "server"
        )
        self._ended = counter("sessions_ended_total", "Sessions ended", "reason")
        for reason in REASONS:
            self._ended.labels(reason)
        self._server_ended = counter(
            "server_sessions_ended_total", "Sessions ended, by server", "server", "reason"
        )
        self._moved = counter("sessions_moved_total", "Sessions that changed the process", "way")
        for way in ("came", "left"):
            self._moved.labels(way)
        self._parts = counter("link_parts_total", "Attachments of agents lost", "server")
        self._resumes = counter("link_resumes_total", "Attachments of agents resumed", "server")
        self._troubles = counter("troubles_total", "What went wrong, by the event", "event")
        for kind in TROUBLES:
            self._troubles.labels(kind.name)
        self._away = counter("store_outage_seconds_total", "Outages of the store that are over")

    def _boots(self) -> None:
        self._boot = Histogram(
            "rendezvous_boot_seconds",
            "From asking for a dyno to a running child (cold, warm), or to the door (pool)",
            ["server", "start"],
            buckets=BOOT_BUCKETS_S,
            registry=self._registry,
        )

    def _dynos(self) -> None:
        counter = self._counter
        self._gone_dynos = counter("dynos_ended_total", "Dynos that are gone", "was")
        self._gone_seconds = counter("dyno_seconds_total", "Seconds of dynos gone", "was")
        self._gone_usd = counter("dyno_usd_total", "What dynos gone have cost", "was")
        by = ("server", "was")
        self._server_dynos = counter("server_dynos_ended_total", "Dynos gone, by server", *by)
        self._server_seconds = counter("server_dyno_seconds_total", "Their seconds", *by)
        self._server_usd = counter("server_dyno_usd_total", "What they have cost", *by)
        self._orphans = counter("orphans_gone_total", "Dynos gone that had no session", "stopped")
        for stopped in ("yes", "no"):
            self._orphans.labels(stopped)
        self._failures = counter("dyno_stops_failed_total", "Stops tried again")

    # What happens

    def hear(self, event: events.Event) -> None:
        """Be a sink."""
        hears = self._hears.get(type(event))
        if hears is not None:
            hears(event)

    def _passed(self, event: events.Passed) -> None:
        session = self._sessions.get(event.session)
        server = self._traffic.unknown if session is None else session.server
        flow = server.flows[event.to]
        flow.messages += 1
        flow.bytes += event.bytes

    def _requested(self, event: events.Requested) -> None:
        server = self._know(event.session, event.server)
        self._opened.inc()
        self._server_opened.labels(server).inc()

    def _hydrated(self, event: events.Hydrated) -> None:
        self._know(event.session, event.server)
        self._moved.labels("came").inc()

    def _handed_over(self, event: events.HandedOver) -> None:
        self._sessions.pop(event.session, None)
        self._moved.labels("left").inc()

    def _know(self, session: str, name: str) -> str:
        """Remember the server of a session; return its label."""
        server = self._traffic.server(name)
        if server.name not in self._shown:
            self._show(server.name)
        if len(self._sessions) >= MAX_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        self._sessions[session] = _Session(server)
        return server.name

    def _show(self, server: str) -> None:
        """Begin every series of a server at 0, or the first event of each would not be a change."""
        self._shown.add(server)
        self._parts.labels(server)
        self._resumes.labels(server)
        for reason in REASONS:
            self._server_ended.labels(server, reason)

    def _server_of(self, session: str) -> str:
        known = self._sessions.get(session)
        return UNKNOWN if known is None else known.server.name

    def _adopted(self, event: events.Adopted) -> None:
        session = self._sessions.get(event.session)
        if session is not None:
            session.warm = True
        server = self._server_of(event.session)
        self._paid(server, "parked", event.pool_dyno_s, event.pool_usd)

    def _ready(self, event: events.Ready) -> None:
        session = self._sessions.get(event.session)
        if session is not None:
            start = "warm" if session.warm else "cold"
            self._boot.labels(session.server.name, start).observe(event.boot_s)

    def _parted(self, event: events.Parted) -> None:
        self._parts.labels(self._server_of(event.session)).inc()

    def _resumed(self, event: events.Resumed) -> None:
        self._resumes.labels(self._server_of(event.session)).inc()

    def _closed(self, event: events.Closed) -> None:
        server = self._server_of(event.session)
        self._sessions.pop(event.session, None)
        reason = event.reason if event.reason in REASONS else OTHER
        self._ended.labels(reason).inc()
        self._server_ended.labels(server, reason).inc()
        self._gone(server, "session", event.dyno_s, event.usd)

    def _dyno_parked(self, event: events.DynoParked) -> None:
        self._boot.labels(self._traffic.server(event.server).name, "pool").observe(event.boot_s)

    def _dyno_unparked(self, event: events.DynoUnparked) -> None:
        server = self._traffic.server(event.server).name
        self._gone(server, "parked", event.dyno_s, event.usd)

    def _orphan_gone(self, event: events.OrphanGone) -> None:
        self._orphans.labels("yes" if event.stopped else "no").inc()
        self._gone(UNKNOWN, "orphan", event.dyno_s, event.usd)

    def _store_back(self, event: events.StoreBack) -> None:
        self._away.inc(event.seconds)

    def _trouble(self, event: events.Event) -> None:
        self._troubles.labels(event.name).inc()
        if type(event) is events.NotStopped:
            self._failures.inc()

    def _gone(self, server: str, was: str, dyno_s: float, usd: float) -> None:
        if dyno_s:
            self._gone_dynos.labels(was).inc()
            self._server_dynos.labels(server, was).inc()
            self._paid(server, was, dyno_s, usd)

    def _paid(self, server: str, was: str, dyno_s: float, usd: float) -> None:
        self._gone_seconds.labels(was).inc(dyno_s)
        self._gone_usd.labels(was).inc(usd)
        self._server_seconds.labels(server, was).inc(dyno_s)
        self._server_usd.labels(server, was).inc(usd)

    # What is served

    def routes(self, guarded: Guard) -> list[web.RouteDef]:
        """Return the one route of this room: Prometheus text, or OpenMetrics if asked for."""

        async def metrics(request: web.Request) -> web.Response:
            encode, content_type = choose_encoder(request.headers.get("Accept", ""))
            async with asyncio.timeout(SCRAPE_S):  # thousands of lines: not in the loop
                body = await asyncio.to_thread(encode, _Taken(self.families()))
            return web.Response(body=body, headers={"Content-Type": content_type})

        return [web.get("/metrics", guarded(metrics))]

    def families(self) -> list[Metric]:
        """Return every metric as it is now."""
        return list(self._registry.collect())


class _Taken(Collector):
    """What a scrape found, to be written down elsewhere."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        """Return it."""
        return self._families


class Traffic(Collector):
    """Messages and calls, counted by hand.

    Attributes:
        unknown: what belongs to no session that is known here.
    """

    def __init__(self) -> None:
        self.unknown = _Server(UNKNOWN)
        self._servers = {UNKNOWN: self.unknown}
        self._calls: dict[tuple[str, str, str], _Calls] = {}
        self._latencies: dict[tuple[str, str], _Latency] = {}

    def server(self, name: str) -> _Server:
        """Return what is counted of a server; beyond `MAX_SERVERS` all others are one."""
        found = self._servers.get(name)
        if found is None:
            if len(self._servers) >= MAX_SERVERS:
                name = OTHERS
            found = self._servers.setdefault(name, _Server(name))
        return found

    def answered(self, event: events.CallFinished) -> None:
        """Count a call, and its answer as a message to the client."""
        method = event.method if event.method in METHODS else OTHER
        outcome = event.outcome if event.outcome in OUTCOMES else OTHER
        calls = self._calls.get((event.server, method, outcome))
        if calls is None:
            calls = self._new(event.server, method, outcome)
        calls.count += 1
        ms = event.ms
        latency = calls.latency
        latency.sum_ms += ms
        latency.counts[bisect_left(_CALL_BUCKETS_MS, ms)] += 1
        flow = calls.flow
        flow.messages += 1
        flow.bytes += event.bytes_out

    def _new(self, name: str, method: str, outcome: str) -> _Calls:
        server = self.server(name)
        latency = self._latencies.setdefault((server.name, method), _Latency())
        calls = _Calls(latency, server.flows["client"])
        return self._calls.setdefault((server.name, method, outcome), calls)

    def describe(self) -> Iterable[Metric]:
        """Name the families without asking for figures."""
        return self.collect()

    def collect(self) -> Iterator[Metric]:
        """Give the figures to a scrape."""
        by = ("server", "to")
        messages = CounterMetricFamily("rendezvous_messages", "Messages passed", labels=by)
        size = CounterMetricFamily("rendezvous_message_bytes", "Their bytes", labels=by)
        for server in self._servers.values():
            for to, flow in server.flows.items():
                messages.add_metric((server.name, to), flow.messages)
                size.add_metric((server.name, to), flow.bytes)
        calls = CounterMetricFamily(
            "rendezvous_calls", "Calls answered", labels=("server", "method", "outcome")
        )
        for labels, answered in self._calls.items():
            calls.add_metric(labels, answered.count)
        latency = HistogramMetricFamily(
            "rendezvous_call_seconds", "From a call to its answer", labels=("server", "method")
        )
        for names, took in self._latencies.items():
            latency.add_metric(names, _cumulated(took), took.sum_ms / 1000)
        yield from (messages, size, calls, latency)


_CALL_BUCKETS_MS: Final = tuple(bound * 1000 for bound in CALL_BUCKETS_S)
_CALL_BUCKET_NAMES: Final = (*(str(bound) for bound in CALL_BUCKETS_S), "+Inf")


def _cumulated(latency: _Latency) -> list[tuple[str, float]]:
    total, buckets = 0, []
    for name, count in zip(_CALL_BUCKET_NAMES, latency.counts, strict=True):
        total += count
        buckets.append((name, float(total)))
    return buckets


class _Standing(Collector):
    """What stands right now, asked for at each scrape."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    def describe(self) -> Iterable[Metric]:
        """Name nothing: the registry need not ask before the first scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Look."""
        manager = self._manager
        running = sum(live.session.calls for live in manager.directory)
        yield _one("sessions_live", "Sessions that live", manager.sessions)
        yield _many("sessions", "They, by state", ("state",), self._states())
        yield _one("calls_running", "Calls that run", running)
        yield _one("queue_length", "Sessions in line", sum(manager.fleet.lines.values()))
        yield _one("pool_dynos", "Dynos of the pool", len(list(manager.pool)))
        yield _many("server_pool_dynos", "They, by server", ("server", "state"), self._parked())
        yield _one("store_away_seconds", "How long the store is away", manager.store.away_s)
        yield from self._money()

    def _states(self) -> Counts:
        found: Tally[tuple[str, ...]] = Tally({(state,): 0 for state in STATES})
        manager = self._manager
        queued = {id(live) for live, _ in manager.dynos.queue}
        for live in manager.directory:
            found["queued" if id(live) in queued else live.record.state.value,] += 1
        found[State.CLOSING.value,] += manager.dynos.closing
        return found

    def _parked(self) -> Counts:
        found: Tally[tuple[str, ...]] = Tally()
        for parked in self._manager.pool:
            state = "booting" if parked.ready is None else "parked"
            found[parked.server.name, "stopping" if parked.over else state] += 1
        return found

    def _money(self) -> Iterator[Metric]:
        fleet = self._manager.fleet
        entries = fleet.book.entries
        yield _one("dynos_running", "Dynos that are paid for", len(entries))
        rate = sum(entry.usd_per_hour for entry in entries)
        yield _one("running_usd_per_hour", "What they cost in an hour", rate)
        budgets = fleet.book.report(fleet.now(), bills=0)["budgets"]
        spent: dict[tuple[str, ...], float] = {}
        limits: dict[tuple[str, ...], float] = {}
        for name, standing in {ALL: budgets["overall"], **budgets["by_principal"]}.items():
            spent[name,] = standing["spent_usd"]
            if standing["budget_usd"] is not None:
                limits[name,] = standing["budget_usd"]
        yield _many("month_spent_usd", "Spent in this month", ("of",), spent)
        yield _many("month_budget_usd", "What may be spent in it", ("of",), limits)


def _one(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"rendezvous_{name}", text, value)


def _many(name: str, text: str, labels: tuple[str, ...], values: Counts) -> Metric:
    family = GaugeMetricFamily(f"rendezvous_{name}", text, labels=labels)
    for label_values, value in values.items():
        family.add_metric(label_values, value)
    return family
