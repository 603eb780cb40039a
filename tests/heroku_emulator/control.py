"""The strings to pull from another process: JSON under /_emulator, without a key.

| | |
|---|---|
| GET /_emulator/state | `dynos_left`, `ledger`, `violations`, `faults`, `requests`, `remaining` |
| POST /_emulator/deploy | `{"app", "processes"?: {type: command}, "slug"?: folder}` |
| POST /_emulator/config | `{"app", "vars": {name: value or null}}` |
| POST /_emulator/faults | `{"push"?: {operation: [word]}, "plan"?: {"seed", "rates"}}` |
| DELETE /_emulator/faults | nothing goes wrong any more |
| POST /_emulator/kill | `{"dyno": id}`: SIGKILL, answered when it has ended |
| POST /_emulator/options | `{name: value}` of `Options` |
| POST /_emulator/remaining | `{"requests": number}` of the quota |

Answers `{}`, or 422 with the reason.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import web

from tests.heroku_emulator.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.heroku_emulator.emulator import Emulator

    Act = Callable[[Emulator, Any], Awaitable[None]]


def state(emulator: Emulator) -> dict[str, Any]:
    """Return all that can be seen of an emulator, as JSON."""
    injected = emulator.faults.injected.items()
    return {
        "dynos_left": [dyno.entry() for dyno in emulator.dynos_left()],
        "ledger": [dyno.entry() for dyno in emulator.ledger],
        "violations": [asdict(each) for each in emulator.violations],
        "faults": {f"{operation} {word}": count for (operation, word), count in injected},
        "requests": Counter(seen.operation for seen in emulator.requests),
        "deliveries": Counter(str(each.outcome) for each in emulator.deliveries),
        "remaining": emulator.remaining,
    }


async def deploy(emulator: Emulator, body: Any) -> None:
    slug = body.get("slug")
    emulator.deploy(body["app"], body.get("processes"), None if slug is None else Path(slug))


async def config(emulator: Emulator, body: Any) -> None:
    emulator.set_config(body["app"], body["vars"])


async def faults(emulator: Emulator, body: Any) -> None:
    for operation, words in body.get("push", {}).items():
        emulator.faults.push(operation, *words)
    if "plan" in body:
        emulator.faults.plan(body["plan"]["seed"], body["plan"]["rates"])


async def clear_faults(emulator: Emulator, body: Any) -> None:
    emulator.faults.clear()


async def kill(emulator: Emulator, body: Any) -> None:
    await emulator.kill(body["dyno"])


async def options(emulator: Emulator, body: Any) -> None:
    known = {each.name for each in fields(emulator.options)}
    if unknown := body.keys() - known:
        raise ValueError(f"no such options: {sorted(unknown)}")
    for name, value in body.items():
        setattr(emulator.options, name, tuple(value) if isinstance(value, list) else value)


async def remaining(emulator: Emulator, body: Any) -> None:
    emulator.set_remaining(body["requests"])


ACTS: dict[tuple[str, str], Act] = {
    ("POST", "deploy"): deploy,
    ("POST", "config"): config,
    ("POST", "faults"): faults,
    ("DELETE", "faults"): clear_faults,
    ("POST", "kill"): kill,
    ("POST", "options"): options,
    ("POST", "remaining"): remaining,
}


def routes(application: web.Application, emulator: Emulator) -> None:
    """Enter the routes of the control surface."""

    async def tell(request: web.Request) -> web.Response:
        return web.json_response(state(emulator))

    def doing(act: Act) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            try:
                await act(emulator, await request.json() if request.can_read_body else {})
            except ApiError as error:
                return web.json_response(error.body, status=error.status)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                return web.json_response({"message": repr(error)}, status=422)
            return web.json_response({})

        return handle

    application.router.add_get("/_emulator/state", tell)
    for (method, name), act in ACTS.items():
        application.router.add_route(method, f"/_emulator/{name}", doing(act))
