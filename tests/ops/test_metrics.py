"""What operators' metrics systems get: what is counted, under which labels, and what reads it."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import random
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml  # type: ignore[import-untyped]
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_families
from prometheus_client.parser import text_string_to_metric_families

from gateway import events
from gateway.fleet.ledger import Budgets
from gateway.ops import metrics
from gateway.ops.metrics import CALL_BUCKETS_S, METHODS, OUTCOMES, REASONS, TROUBLES, Metrics
from gateway.registry.servers import Registry
from gateway.sessions.manager import Manager
from gateway.sessions.terms import Terms
from tests.edge.dynos_house import booted, happens, hurry, running
from tests.fakes.house import BOUND, INITIALIZE, eventually
from tests.fakes.launchers import RecordingLauncher, Scripted

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
OPERATE = ROOT / "docs" / "operate"

HOSTILE = 'x"} 1\n# EOF\n\x1b[2J\ud83d'
KINDS = [
    kind
    for kind in vars(events).values()
    if isinstance(kind, type)
    and issubclass(kind, events.Event)
    and kind not in (events.Event, events.SessionEvent)
]


def manager(**terms: Any) -> Manager:
    agreed = Terms("http://127.0.0.1", b"s" * 32, 10, **terms)
    return Manager(RecordingLauncher(), Registry([]), agreed, lambda _event: None)


def heard(*told: events.Event) -> Metrics:
    made = Metrics(manager())
    for event in told:
        made.hear(event)
    return made


def figures(made: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in made.families()
        for sample in family.samples
    }


def figure(made: Metrics, name: str, **labels: str) -> float | None:
    return figures(made).get((f"rendezvous_{name}", frozenset(labels.items())))


def requested(session: str = "s", server: str = "srv") -> events.Requested:
    return events.Requested(session=session, server=server, principal="p", client="c")


def passed(session: str = "s", to: str = "child", size: int = 7) -> events.Passed:
    return events.Passed(
        session=session, to=to, kind="request", method="m", tool=None, call="1", bytes=size
    )


def call(**more: Any) -> events.CallFinished:
    usual: dict[str, Any] = {"session": "s", "server": "srv", "call": "1", "method": "tools/call"}
    usual |= {"tool": "t", "outcome": "ok", "ms": 5.0, "bytes_in": 10, "bytes_out": 20}
    return events.CallFinished(**{**usual, **more})


def closed(session: str = "s", **more: Any) -> events.Closed:
    usual: dict[str, Any] = {"reason": "idle", "seconds": 1.0, "calls": 1, "dropped": 0}
    return events.Closed(session=session, **{**usual, "peak_buffer_bytes": 0, **more})


def ready(session: str = "s", boot_s: float = 4.0) -> events.Ready:
    return events.Ready(session=session, pid=1, boot_s=boot_s)


def adopted(session: str = "s") -> events.Adopted:
    return events.Adopted(
        session=session, launch="l", dyno="d", parked_s=1.0, pool_dyno_s=50.0, pool_usd=0.5
    )


def sample_of(kind: type[events.Event], text: str) -> events.Event:
    """Return an event whose every text is this one, but for those that the gateway itself picks."""
    values: dict[str, Any] = {"server": "srv", "session": "s", "to": "child"}
    for field in dataclasses.fields(kind):
        if field.name not in values:
            known = {"str": text, "int": 1, "float": 1.5, "bool": True, "bytes": b"x"}
            of = field.type.__name__ if isinstance(field.type, type) else str(field.type)
            values[field.name] = known[of.split(" ")[0]]
    names = {field.name for field in dataclasses.fields(kind)}
    return kind(**{name: value for name, value in values.items() if name in names})


def played(text: str = "text") -> Metrics:
    """Return metrics of a gateway where everything has happened."""
    made = Metrics(manager(budgets=Budgets(10.0, {"p": 5.0})))
    made.hear(requested())
    for kind in sorted(KINDS, key=lambda kind: kind in (events.Closed, events.HandedOver)):
        made.hear(sample_of(kind, text))
    return made


# Labels


def test_no_label_has_a_value_that_came_from_outside() -> None:
    values = {value for _, labels in figures(played(HOSTILE)) for _, value in labels}
    assert "srv" in values
    assert not [value for value in values if "EOF" in value or "\x1b" in value]


def test_number_of_series_does_not_grow_with_what_clients_send() -> None:
    made = heard(requested())
    made.hear(call(method="x0", outcome="y0"))
    before = len(figures(made))
    for number in range(50):
        made.hear(call(method=f"x{number}", outcome=f"y{number}", tool=f"t{number}"))
        made.hear(passed())
    assert len(figures(made)) == before


@pytest.mark.parametrize("method", sorted(METHODS))
def test_method_of_the_specification_has_figures_of_its_own(method: str) -> None:
    made = heard(call(method=method))
    assert figure(made, "calls_total", server="srv", method=method, outcome="ok") == 1


@pytest.mark.parametrize("method", ["", "tools/call ", "Tools/Call", "rendezvous/x", HOSTILE])
def test_method_that_is_none_of_them_counts_as_other(method: str) -> None:
    made = heard(call(method=method))
    assert figure(made, "calls_total", server="srv", method="other", outcome="ok") == 1


@pytest.mark.parametrize("outcome", sorted(OUTCOMES))
def test_outcome_that_is_known_has_figures_of_its_own(outcome: str) -> None:
    made = heard(call(outcome=outcome))
    assert figure(made, "calls_total", server="srv", method="tools/call", outcome=outcome) == 1


@pytest.mark.parametrize("reason", ["session_lost", "call_timeout", "answer_too_big", "internal"])
def test_reasons_of_the_gateways_own_errors_are_outcomes(reason: str) -> None:
    assert reason in OUTCOMES


def test_servers_beyond_the_most_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MAX_SERVERS", 3)
    made = heard(*(requested(f"s{n}", f"srv{n}") for n in range(5)))
    opened = "server_sessions_opened_total"
    assert figure(made, opened, server="srv1") == 1
    assert figure(made, opened, server="(others)") == 3
    made.hear(passed("s4"))
    assert figure(made, "messages_total", server="(others)", to="child") == 1


def test_calls_of_servers_beyond_the_most_are_counted_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "MAX_SERVERS", 1)
    made = heard(call(server="a"), call(server="b"), call(server="a"))
    labels = {"server": "(others)", "method": "tools/call"}
    assert figure(made, "calls_total", outcome="ok", **labels) == 3
    assert figure(made, "call_seconds_count", **labels) == 3


def test_oldest_session_is_forgotten_beyond_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MAX_SESSIONS", 2)
    made = heard(*(requested(f"s{n}") for n in range(3)))
    made.hear(passed("s0"))
    made.hear(passed("s1"))
    assert figure(made, "messages_total", server="(unknown)", to="child") == 1
    assert figure(made, "messages_total", server="srv", to="child") == 1


# Messages and calls


@pytest.mark.parametrize("to", ["child", "client"])
def test_message_counts_for_the_server_of_its_session_and_its_direction(to: str) -> None:
    made = heard(requested("a", "one"), requested("b", "two"), passed("b", to, 100))
    made.hear(passed("b", to, 11))
    other = "client" if to == "child" else "child"
    assert figure(made, "messages_total", server="two", to=to) == 2
    assert figure(made, "message_bytes_total", server="two", to=to) == 111
    assert figure(made, "messages_total", server="two", to=other) == 0
    assert figure(made, "messages_total", server="one", to=to) == 0


def test_answer_of_a_call_is_a_message_to_the_client() -> None:
    made = heard(call(bytes_in=10, bytes_out=20))
    assert figure(made, "messages_total", server="srv", to="client") == 1
    assert figure(made, "message_bytes_total", server="srv", to="client") == 20
    assert figure(made, "messages_total", server="srv", to="child") == 0


@pytest.mark.parametrize("gone", [closed(), events.HandedOver(session="s", calls=0)])
def test_session_that_is_gone_is_forgotten(gone: events.Event) -> None:
    made = heard(requested(), gone, passed())
    assert figure(made, "messages_total", server="(unknown)", to="child") == 1


def test_session_that_another_process_had_is_known_again() -> None:
    came = events.Hydrated(session="s", server="srv", principal="p", launch="l", age_s=1.0)
    made = heard(came, passed())
    assert figure(made, "messages_total", server="srv", to="child") == 1
    assert figure(made, "sessions_moved_total", way="came") == 1
    assert figure(made, "sessions_opened_total") == 0


@pytest.mark.parametrize("bound", CALL_BUCKETS_S)
def test_call_that_took_as_long_as_a_bound_is_below_it(bound: float) -> None:
    made = heard(call(ms=bound * 1000))
    labels = {"server": "srv", "method": "tools/call"}
    assert figure(made, "call_seconds_bucket", le=str(bound), **labels) == 1
    at = CALL_BUCKETS_S.index(bound)
    if at:
        below = str(CALL_BUCKETS_S[at - 1])
        assert figure(made, "call_seconds_bucket", le=below, **labels) == 0


@pytest.mark.parametrize("seed", range(5))
def test_latencies_are_counted_as_the_library_counts_them(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - no secret
    registry = CollectorRegistry()
    theirs = Histogram(
        "rendezvous_call_seconds",
        "x",
        ["server", "method"],
        buckets=CALL_BUCKETS_S,
        registry=registry,
    )
    ours = Metrics(manager())
    for _ in range(200):
        ms = round(10 ** chance.uniform(-2, 7), 3)
        ours.hear(call(ms=ms))
        theirs.labels("srv", "tools/call").observe(ms / 1000)
    found = figures(ours)
    for sample in next(iter(registry.collect())).samples:
        if not sample.name.endswith("_created"):
            key = (sample.name, frozenset(sample.labels.items()))
            assert found[key] == pytest.approx(sample.value)


# Lives, boots, dynos


def test_boot_of_an_adopted_dyno_is_warm_and_any_other_is_cold() -> None:
    made = heard(requested("a"), requested("b"), adopted("a"), ready("a", 0.4), ready("b", 9.0))
    assert figure(made, "boot_seconds_sum", server="srv", start="warm") == 0.4
    assert figure(made, "boot_seconds_sum", server="srv", start="cold") == 9.0


def test_next_life_of_a_session_is_cold_though_the_last_one_was_warm() -> None:
    made = heard(requested(), adopted(), closed(), requested(), ready())
    assert figure(made, "boot_seconds_count", server="srv", start="cold") == 1
    assert figure(made, "boot_seconds_count", server="srv", start="warm") is None


def test_boot_of_a_dyno_of_the_pool_is_told_apart() -> None:
    made = heard(events.DynoParked(server="srv", launch="l", dyno="d", boot_s=8.0))
    assert figure(made, "boot_seconds_sum", server="srv", start="pool") == 8.0


def test_end_is_counted_by_reason_and_server() -> None:
    made = heard(requested("a", "one"), requested("b", "two"), closed("b", reason="link_lost"))
    assert figure(made, "sessions_ended_total", reason="link_lost") == 1
    ended = "server_sessions_ended_total"
    assert figure(made, ended, server="two", reason="link_lost") == 1
    assert figure(made, ended, server="one", reason="link_lost") == 0


def test_every_reason_of_a_server_begins_at_zero() -> None:
    made = heard(requested())
    for reason in REASONS:
        assert figure(made, "server_sessions_ended_total", server="srv", reason=reason) == 0


def test_losses_and_resumptions_of_a_link_are_counted_by_server() -> None:
    parted = events.Parted(session="s", epoch=1, cause="x")
    made = heard(requested(), parted, parted, events.Resumed(session="s", epoch=2, parted_s=1.0))
    assert figure(made, "link_parts_total", server="srv") == 2
    assert figure(made, "link_resumes_total", server="srv") == 1


@pytest.mark.parametrize("kind", TROUBLES)
def test_trouble_is_counted_under_the_name_of_its_event(kind: type[events.Event]) -> None:
    made = heard(sample_of(kind, "x"))
    for other in TROUBLES:
        assert figure(made, "troubles_total", event=other.name) == (other is kind)
    failed = figure(made, "dyno_stops_failed_total")
    assert failed == (kind is events.NotStopped)


def test_outages_of_the_store_that_are_over_are_summed_up() -> None:
    made = heard(*(events.StoreBack(store="valkey", seconds=s) for s in (2.0, 3.5)))
    assert figure(made, "store_outage_seconds_total") == 5.5


@pytest.mark.parametrize(("stopped", "label"), [(True, "yes"), (False, "no")])
def test_orphan_counts_though_it_has_cost_nothing(stopped: bool, label: str) -> None:
    gone = events.OrphanGone(launch="l", dyno="d", stopped=stopped, dyno_s=0.0, usd=0.0)
    made = heard(gone)
    assert figure(made, "orphans_gone_total", stopped=label) == 1
    assert figure(made, "dynos_ended_total", was="orphan") is None


def paid_for() -> Iterator[events.Event]:
    for number, server in enumerate(["one", "two", "one"]):
        session = f"s{number}"
        yield requested(session, server)
        yield adopted(session)
        yield closed(session, dyno_s=7.0 + number, usd=0.25)
    yield events.DynoUnparked(server="two", launch="l", dyno_s=3.0, usd=0.5)
    yield events.OrphanGone(launch="l", dyno="d", stopped=True, dyno_s=4.0, usd=1.0)


@pytest.mark.parametrize("what", ["dynos_ended_total", "dyno_seconds_total", "dyno_usd_total"])
def test_figures_of_all_servers_make_up_the_figure_of_all(what: str) -> None:
    found = figures(heard(*paid_for()))
    total, by_server = 0, 0.0
    for (name, labels), value in found.items():
        if name == f"rendezvous_{what}":
            parts = [
                part
                for (other, more), part in found.items()
                if other == f"rendezvous_server_{what}" and labels < more
            ]
            assert sum(parts) == pytest.approx(value)
            total, by_server = total + 1, by_server + sum(parts)
    assert total == 3
    assert by_server > 0


def test_dollars_go_to_the_server_whose_dyno_it_was() -> None:
    made = heard(*paid_for())
    usd = "server_dyno_usd_total"
    assert figure(made, usd, server="one", was="session") == 0.5
    assert figure(made, usd, server="two", was="parked") == 1.0
    assert figure(made, usd, server="(unknown)", was="orphan") == 1.0


# What stands


def test_every_state_is_shown_from_the_start() -> None:
    found = {
        dict(labels)["state"]: value
        for (name, labels), value in figures(heard()).items()
        if name == "rendezvous_sessions"
    }
    assert set(found) == {
        *("requested", "queued", "launching", "dialled_in", "ready", "idle", "parted", "closing")
    }
    assert set(found.values()) == {0}


async def test_sessions_are_told_by_state(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    async with running() as (house, launcher):
        made = Metrics(house.manager)
        _, session = await booted(house, launcher)
        live = next(iter(house.manager.directory))
        assert figure(made, "sessions", state=live.record.state.value) == 1
        assert figure(made, "sessions_live") == 1
        assert figure(made, "dynos_running") == 1
        await house.delete(session)
        await happens(house, events.Closed)
        assert figure(made, "sessions_live") == 0
        assert sum(figure(made, "sessions", state=state) or 0 for state in metrics.STATES) == 0


async def test_session_in_line_is_queued_whatever_its_record_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hurry(monkeypatch)
    async with running(Scripted(limit=0)) as (house, _):
        made = Metrics(house.manager)
        async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
            client = group.create_task(house.post(INITIALIZE))
            await eventually(lambda: len(house.manager.dynos.queue) == 1)
            assert figure(made, "sessions", state="queued") == 1
            assert figure(made, "sessions", state="launching") == 0
            assert figure(made, "queue_length") == 1
            assert figure(made, "calls_running") == 1
            client.cancel()


class Slow(Scripted):
    """A platform whose stops wait for a test."""

    def __init__(self) -> None:
        super().__init__()
        self.stops = asyncio.Event()

    async def stop(self, dyno_id: str) -> float | None:
        await self.stops.wait()
        return await super().stop(dyno_id)


async def test_session_is_closing_until_its_dyno_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    slow = Slow()
    async with running(slow) as (house, launcher):
        made = Metrics(house.manager)
        _, session = await booted(house, launcher)
        await house.delete(session)
        await happens(house, events.Closing)
        assert figure(made, "sessions", state="closing") == 1
        assert figure(made, "sessions_live") == 1
        slow.stops.set()
        await happens(house, events.Closed)
        assert figure(made, "sessions", state="closing") == 0


def test_budget_is_told_where_there_is_one() -> None:
    made = Metrics(manager(budgets=Budgets(None, {"p": 5.0})))
    budgets = {
        dict(labels)["of"]: value
        for (name, labels), value in figures(made).items()
        if name == "rendezvous_month_budget_usd"
    }
    assert budgets == {"p": 5.0}
    assert figure(made, "month_spent_usd", of="(all)") == 0
    assert figure(made, "month_spent_usd", of="p") == 0


# The page


async def scraped(made: Metrics, accept: str) -> tuple[str, str]:
    app = web.Application()
    app.add_routes(made.routes(lambda handler: handler))
    async with (
        TestClient(TestServer(app)) as client,
        client.get("/metrics", headers={"Accept": accept}) as response,
    ):
        assert response.status == 200
        return response.headers["Content-Type"], await response.text()


async def test_prometheus_text_is_served_by_default_and_can_be_read() -> None:
    made = played(HOSTILE)
    kind, text = await scraped(made, "*/*")
    assert kind.startswith("text/plain; version=0.0.4")
    names = {
        sample.name for family in text_string_to_metric_families(text) for sample in family.samples
    }
    assert {"rendezvous_calls_total", "rendezvous_call_seconds_bucket"} <= names


async def test_open_metrics_are_served_to_who_asks_and_can_be_read() -> None:
    kind, text = await scraped(played(HOSTILE), "application/openmetrics-text;version=1.0.0")
    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    families = {family.name: family.type for family in open_families(text)}  # type: ignore[no-untyped-call]
    assert families["rendezvous_calls"] == "counter"
    assert families["rendezvous_call_seconds"] == "histogram"


async def test_process_and_build_are_told_too() -> None:
    names = {sample.name for family in heard().families() for sample in family.samples}
    assert {"process_resident_memory_bytes", "python_info", "rendezvous_build_info"} <= names


def test_no_series_says_when_it_began() -> None:
    assert [name for name, _ in figures(played()) if name.endswith("_created")] == []


# The documents


def exposed() -> dict[str, tuple[str, frozenset[str]]]:
    """Return type and labels of each metric, by the name under which one asks for it."""
    shown = {}
    for family in played().families():
        name = family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
        kind = "gauge" if family.type == "info" else family.type
        labels = frozenset(itertools.chain(*(sample.labels for sample in family.samples)))
        shown[name] = (kind, labels - {"le"})
    return shown


def samples() -> dict[str, frozenset[str]]:
    """Return the labels of each series that a query may name."""
    found: dict[str, frozenset[str]] = {}
    for name, (kind, labels) in exposed().items():
        if kind == "histogram":
            found |= {f"{name}_count": labels, f"{name}_sum": labels}
            found[f"{name}_bucket"] = labels | {"le"}
        else:
            found[name] = labels
    return found


def test_page_lists_every_metric_with_its_type_and_labels() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = [line.strip("|").split(" | ") for line in page.splitlines() if "| `rendezvous_" in line]
    documented = {}
    for row in rows:
        if "`rendezvous_" in row[0] and "_" in row[0] and "." not in row[0]:
            name, kind = row[0].strip().strip("`"), row[1].strip()
            documented[name] = (kind, frozenset(re.findall(r"`(\w+)`", row[2])))
    ours = {name: facts for name, facts in exposed().items() if name.startswith("rendezvous_")}
    # Not every server has dynos of the pool, and only those show the labels.
    ours["rendezvous_server_pool_dynos"] = ("gauge", frozenset({"server", "state"}))
    assert documented == ours


def test_page_names_every_trouble() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if "rendezvous_troubles_total" in line)
    named = set(re.findall(r"`(\w+)`", row)) - {"rendezvous_troubles_total", "event"}
    assert named == {kind.name for kind in TROUBLES}


SELECTOR = re.compile(r"\b((?:rendezvous|process|python)_\w+)(?:\{([^}]*)\})?")
OUTSIDE = {"job", "instance"}


def wrong(query: str) -> list[str]:
    """Return what a query asks for that there is not."""
    known = samples() | {"rendezvous_server_pool_dynos": frozenset({"server", "state"})}
    problems, there = [], set(OUTSIDE)
    for name, matchers in SELECTOR.findall(query):
        if name not in known:
            problems.append(name)
            continue
        there |= known[name]
        asked = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
        problems += [f"{name}{{{label}}}" for label in asked - known[name] - OUTSIDE]
    for group in re.findall(r"\b(?:by|without|on) \(([^)]*)\)", query):
        problems += [label for label in re.split(r",\s*", group) if label not in there]
    if query.count("(") != query.count(")") or not SELECTOR.search(query):
        problems.append("no query")
    return problems


@pytest.mark.parametrize(
    "query",
    [
        "rendezvous_nothing",
        'rendezvous_calls_total{tool="x"}',
        "sum by (principal) (rendezvous_calls_total)",
        "sum(rendezvous_calls_total",
        "1",
    ],
)
def test_query_for_what_is_not_there_is_found(query: str) -> None:
    assert wrong(query) != []


def dashboard() -> dict[str, Any]:
    text = (OPERATE / "grafana-dashboard.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


PANELS = [panel for panel in dashboard()["panels"] if panel["type"] != "row"]
QUERIES = [
    pytest.param(target["expr"], id=f"{panel['title']} {target['refId']}")
    for panel in PANELS
    for target in panel["targets"]
]


@pytest.mark.parametrize("query", QUERIES)
def test_panel_asks_for_what_there_is(query: str) -> None:
    assert wrong(query) == []


def test_dashboard_can_be_imported() -> None:
    board = dashboard()
    assert board["uid"] == "dyno-gateway"
    assert board["schemaVersion"] >= 36
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    variables = {variable["name"] for variable in board["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(board["panels"])))
    assert used - variables == {"__rate_interval"}
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            assert wrong(variable["query"]["query"]) == []


def test_dashboard_has_a_row_for_each_question_and_no_panel_lies_on_another() -> None:
    board = dashboard()
    titles = [panel["title"] for panel in board["panels"] if panel["type"] == "row"]
    assert titles == [
        *("Now", "Sessions", "Boots", "Calls", "Link", "Pool and spend", "Failures"),
    ]
    cells = [
        (x, y)
        for panel in board["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert all(panel["description"] for panel in PANELS)


def rules() -> list[dict[str, Any]]:
    document = yaml.safe_load((OPERATE / "alerts.yml").read_text(encoding="utf-8"))
    return [rule for group in document["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_alert_asks_for_what_there_is_and_says_what_to_do(rule: dict[str, Any]) -> None:
    assert wrong(rule["expr"]) == []
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert set(rule["annotations"]) == {"summary", "description"}
    told = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
    grouped = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", rule["expr"]))))
    assert told <= grouped


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_alert_names_values_that_a_label_may_have(rule: dict[str, Any]) -> None:
    known = {
        "reason": REASONS,
        "outcome": OUTCOMES,
        "event": {kind.name for kind in TROUBLES},
        "start": {"cold", "warm", "pool"},
    }
    for label, value in re.findall(r'(\w+)(?:=~|!~|!=|=)"([^"]*)"', rule["expr"]):
        assert set(value.split("|")) <= set(known[label])


def test_every_alert_has_a_name_of_its_own() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names)) > 10
