"""Things of the platform as the API shows them: the schema's resources."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.heroku_emulator.model import ACCOUNT, CEDAR, Dyno, Moment, Process, Release, State

if TYPE_CHECKING:
    from tests.heroku_emulator.platform import App
    from tests.heroku_emulator.webhooks import Action

STACK = {"id": "69ef7f1e-1f0c-4f9b-a4ce-2f9d7c6a5b4e", "name": "heroku-24"}
REGION = {"id": "59accabd-516d-4f0e-83e6-6e3757701145", "name": "us"}

SINCE = Moment(0.0, 1_700_000_000.0)
"""When the account was made."""

ACTION_OF_STATE: dict[State, Action] = {
    "starting": "create",
    "up": "update",
    "crashed": "update",
    "down": "destroy",
}


def account() -> dict[str, Any]:
    """Return the schema's `account`."""
    nothing = (
        "country_of_residence",
        "default_organization",
        "default_team",
        "delinquent_at",
        "identity_provider",
        "last_login",
        "sms_number",
        "suspended_at",
    )
    return {
        **ACCOUNT,
        **dict.fromkeys(nothing),
        "allow_tracking": False,
        "beta": False,
        "created_at": SINCE.stamp,
        "federated": False,
        "name": "An operator",
        "two_factor_authentication": False,
        "updated_at": SINCE.stamp,
        "verified": True,
    }


def app(shown: App) -> dict[str, Any]:
    """Return the schema's `app`."""
    created, released = shown.created.stamp, shown.release.created.stamp
    return {
        "acm": False,
        "archived_at": None,
        "buildpack_provided_description": "Python",
        "build_stack": STACK,
        "created_at": created,
        "generation": CEDAR,
        "git_url": f"https://git.heroku.com/{shown.name}.git",
        "id": shown.id,
        "internal_routing": None,
        "maintenance": False,
        "name": shown.name,
        "owner": {"email": ACCOUNT["email"], "id": ACCOUNT["id"]},
        "organization": None,
        "team": None,
        "region": REGION,
        "released_at": released,
        "repo_size": None,
        "slug_size": None,
        "space": None,
        "stack": STACK,
        "updated_at": released,
        "web_url": f"https://{shown.name}-0123456789ab.herokuapp.com/",
    }


def dyno(shown: Dyno) -> dict[str, Any]:
    """Return the schema's `dyno`."""
    return {
        "app": {"id": shown.app_id, "name": shown.app},
        "attach_url": None,
        "command": shown.command,
        "created_at": shown.created.stamp,
        "id": shown.id,
        "name": shown.name,
        "release": {"id": shown.release.id, "version": shown.release.version},
        "size": shown.size.name,
        "state": shown.state,
        "type": shown.type,
        "updated_at": shown.updated.stamp,
    }


def dyno_event(shown: Dyno) -> dict[str, Any]:
    """Return `data` of a dyno webhook: the dyno, who manages it, and how it ended."""
    return {
        **dyno(shown),
        "management": "run:detached" if shown.one_off else "ps",
        "exit_status": shown.exit_status,
    }


def formation(owner: App, process: Process) -> dict[str, Any]:
    """Return the schema's `formation`, which is one process type."""
    return {
        "app": {"id": owner.id, "name": owner.name},
        "command": process.command,
        "created_at": process.created.stamp,
        "dyno_size": {"id": process.size.id, "name": process.size.name},
        "id": process.id,
        "quantity": process.quantity,
        "size": process.size.name,
        "type": process.type,
        "updated_at": process.updated.stamp,
    }


def release(owner: App, shown: Release) -> dict[str, Any]:
    """Return the schema's `release`."""
    return {
        "addon_plan_names": [],
        "artifacts": [{"type": "slug", "id": shown.slug_id}],
        "app": {"id": owner.id, "name": owner.name},
        "created_at": shown.created.stamp,
        "description": shown.description,
        "id": shown.id,
        "updated_at": shown.created.stamp,
        "slug": {"id": shown.slug_id},
        "status": "succeeded",
        "user": ACCOUNT,
        "version": shown.version,
        "current": shown is owner.release,
        "output_stream_url": None,
        "eligible_for_rollback": True,
    }
