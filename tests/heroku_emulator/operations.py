"""The operations served, each by the resource and title that the published schema has for it.

Method, path, parameters and answer come from the schema; here is what is done. A handler returns
the answer's body; a list is paged by whoever called it.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.heroku_emulator import logs, views
from tests.heroku_emulator.errors import not_found
from tests.heroku_emulator.model import ACCOUNT, SIZES, Moment
from tests.heroku_emulator.platform import App, DynoOrder, Platform
from tests.heroku_emulator.webhooks import Subscription

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.heroku_emulator.faults import Fault


@dataclass(slots=True)
class Call:
    """One request that was let in, and the headers that its answer gets.

    Attributes:
        body: judged by the schema already.
        origin: the emulator's own URL.
        remaining: of the request quota.
    """

    platform: Platform
    places: Mapping[str, str]
    body: Any
    origin: str
    remaining: int
    sessions: dict[str, logs.LogSession]
    fault: Fault | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def app(self) -> App:
        """The app that the path names."""
        return self.platform.app(self.places["app"])


# -- dynos -----------------------------------------------------------------------------------------


def create_dyno(call: Call) -> object:
    known = ("command", "env", "size", "type", "time_to_live")
    order = DynoOrder(**{name: call.body[name] for name in known if name in call.body})
    dyno = call.platform.create(call.app, order, call.fault)
    shown = views.dyno(dyno)
    if call.body.get("attach"):  # nobody listens there: attaching is not emulated
        shown["attach_url"] = f"rendezvous://rendezvous.runtime.heroku.com:5000/{dyno.id}"
    return shown


def list_dynos(call: Call) -> object:
    return [views.dyno(running.dyno) for running in call.app.visible()]


def dyno_info(call: Call) -> object:
    dyno = call.app.running(call.places["dyno"]).dyno
    age = Moment.now().monotonic - dyno.created.monotonic
    if age < call.platform.options.invisible_s:
        raise not_found("dyno")
    return views.dyno(dyno)


def stop_dyno(call: Call) -> object:
    call.app.running(call.places["dyno"]).end("stopped")
    return {}


def stop_type(call: Call) -> object:
    for running in call.app.of_type(call.places["formation_type"]):
        running.end("stopped")
    return {}


def restart_dyno(call: Call) -> object:
    call.platform.restart(call.app, call.app.running(call.places["dyno"]))
    return {}


def restart_type(call: Call) -> object:
    call.platform.restart_all(call.app, call.places["formation_type"])
    return {}


def restart_all(call: Call) -> object:
    call.platform.restart_all(call.app)
    return {}


# -- apps, releases, config ------------------------------------------------------------------------


def list_apps(call: Call) -> object:
    return [views.app(app) for app in call.platform.apps.values()]


def list_apps_of_user(call: Call) -> object:
    _check_self(call)
    return list_apps(call)


def app_info(call: Call) -> object:
    return views.app(call.app)


def list_releases(call: Call) -> object:
    return [views.release(call.app, release) for release in call.app.releases]


def release_info(call: Call) -> object:
    wanted = call.places["release"]
    for release in call.app.releases:
        if wanted in (release.id, str(release.version), f"v{release.version}"):
            return views.release(call.app, release)
    raise not_found("release")


def config_vars(call: Call) -> object:
    return dict(call.app.config)


def set_config_vars(call: Call) -> object:
    call.platform.set_config(call.app, call.body)
    return dict(call.app.config)


# -- formation -------------------------------------------------------------------------------------


def list_formation(call: Call) -> object:
    return [views.formation(call.app, process) for process in call.app.formation.values()]


def formation_info(call: Call) -> object:
    return views.formation(call.app, call.app.process(call.places["formation"]))


def update_formation(call: Call) -> object:
    return _update(call, call.places["formation"], call.body)


def batch_update_formation(call: Call) -> object:
    for update in call.body["updates"]:
        call.app.process(update["type"])  # all or none
    return [_update(call, update["type"], update) for update in call.body["updates"]]


def _update(call: Call, identity: str, update: Mapping[str, Any]) -> dict[str, Any]:
    process = call.app.process(identity)
    size = update.get("dyno_size", {})
    name = size.get("name", size.get("id"))
    call.platform.scale(call.app, process, update.get("quantity"), name)
    return views.formation(call.app, process)


# -- account, sizes --------------------------------------------------------------------------------


def account(call: Call) -> object:
    return views.account()


def account_of_user(call: Call) -> object:
    _check_self(call)
    return views.account()


def rate_limit(call: Call) -> object:
    return {"remaining": call.remaining}


def list_sizes(call: Call) -> object:
    return [size.as_json() for size in SIZES.values()]


def list_app_sizes(call: Call) -> object:
    call.platform.app(call.places["app"])
    return list_sizes(call)


def size_info(call: Call) -> object:
    wanted = call.places["dyno_size"]
    for size in SIZES.values():
        if wanted.lower() == size.name.lower() or wanted == size.id:
            return size.as_json()
    raise not_found("dyno size")


def _check_self(call: Call) -> None:
    if call.places["account"] not in ("~", ACCOUNT["id"], ACCOUNT["email"]):
        raise not_found("user")


# -- logs ------------------------------------------------------------------------------------------


def create_log_session(call: Call) -> object:
    asked = call.body
    session = logs.LogSession(
        app=call.app.name,
        source=asked.get("source"),
        dyno=asked.get("dyno_name", asked.get("dyno")),
        type=asked.get("type"),
        lines=asked.get("lines", logs.SHOWN),
        tail=asked.get("tail", False),
        opened=Moment.now(),
    )
    call.sessions[session.id] = session
    return {
        "created_at": session.opened.stamp,
        "id": session.id,
        "logplex_url": f"{call.origin}/_logplex/sessions/{session.id}",
        "updated_at": session.opened.stamp,
    }


# -- webhooks --------------------------------------------------------------------------------------


def create_webhook(call: Call) -> object:
    asked = call.body
    subscription = Subscription(
        app=call.app.name,
        app_id=call.app.id,
        include=list(asked["include"]),
        level=asked["level"],
        url=asked["url"],
        secret=asked.get("secret") or secrets.token_hex(30),
        authorization=asked.get("authorization"),
    )
    call.platform.webhooks.add(subscription)
    if not asked.get("secret"):
        call.headers["Heroku-Webhook-Secret"] = subscription.secret
    return subscription.as_json()


def list_webhooks(call: Call) -> object:
    return [each.as_json() for each in call.platform.webhooks.of(call.app.name)]


def webhook_info(call: Call) -> object:
    return _subscription(call).as_json()


def delete_webhook(call: Call) -> object:
    subscription = _subscription(call)
    call.platform.webhooks.remove(subscription)
    return subscription.as_json()


def _subscription(call: Call) -> Subscription:
    for each in call.platform.webhooks.of(call.app.name):
        if each.id == call.places["app_webhook"]:
            return each
    raise not_found("webhook")


# -- the table -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation served.

    Attributes:
        name: ours, for faults, counts and requests.
        resource: where the schema has it.
        title: of its link there.
        status: of a success.
        metered: whether it uses up the request quota.
    """

    name: str
    resource: str
    title: str
    do: Callable[[Call], object]
    status: int = 200
    metered: bool = True


OPERATIONS = (
    Operation("create", "dyno", "Create", create_dyno, 201),
    Operation("list", "dyno", "List", list_dynos),
    Operation("info", "dyno", "Info", dyno_info),
    Operation("stop", "dyno", "Stop", stop_dyno, 202),
    Operation("stop-type", "dyno", "Stop formation", stop_type, 202),
    Operation("restart", "dyno", "Restart", restart_dyno, 202),
    Operation("restart-type", "dyno", "Restart formation", restart_type, 202),
    Operation("restart-all", "dyno", "Restart all", restart_all, 202),
    Operation("apps", "app", "List", list_apps),
    Operation("apps-of-user", "app", "List Owned and Collaborated", list_apps_of_user),
    Operation("app", "app", "Info", app_info),
    Operation("releases", "release", "List", list_releases),
    Operation("release", "release", "Info", release_info),
    Operation("config", "config-var", "Info for App", config_vars),
    Operation("set-config", "config-var", "Update", set_config_vars),
    Operation("formation", "formation", "List", list_formation),
    Operation("process", "formation", "Info", formation_info),
    Operation("scale", "formation", "Update", update_formation),
    Operation("scale-many", "formation", "Batch Update", batch_update_formation),
    Operation("account", "account", "Info", account),
    Operation("user", "account", "Info By User", account_of_user),
    Operation("rate-limits", "rate-limit", "Info", rate_limit, metered=False),
    Operation("sizes", "dyno-size", "List", list_sizes),
    Operation("size", "dyno-size", "Info", size_info),
    Operation("app-sizes", "dyno-size", "List App Dyno Sizes", list_app_sizes),
    Operation("log-session", "log-session", "Create", create_log_session, 201),
    Operation("add-webhook", "app-webhook", "Create", create_webhook, 201),
    Operation("webhooks", "app-webhook", "List", list_webhooks),
    Operation("webhook", "app-webhook", "Info", webhook_info),
    Operation("remove-webhook", "app-webhook", "Delete", delete_webhook),
)
