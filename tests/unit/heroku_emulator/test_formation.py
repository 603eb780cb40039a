"""Apps: releases, config vars, the formation and its dynos."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.heroku_emulator import Dyno, Emulator
    from tests.unit.heroku_emulator.asking import Api

FORMATION = "/apps/runner/formation"


def places(heroku: Emulator) -> list[str]:
    return sorted(dyno.name for dyno in heroku.dynos_left())


def causes(dynos: list[Dyno]) -> list[str | None]:
    return [dyno.cause for dyno in dynos]


async def test_a_formation_runs_as_many_as_it_says(heroku: Emulator, api: Api) -> None:
    answer = await api("PATCH", f"{FORMATION}/worker", {"quantity": 3})
    assert (answer.status, answer.body["quantity"]) == (200, 3)
    assert places(heroku) == ["worker.1", "worker.2", "worker.3"]
    await api("PATCH", f"{FORMATION}/worker", {"quantity": 1})
    await heroku.until(lambda: places(heroku) == ["worker.1"])


async def test_another_size_restarts_the_dynos(heroku: Emulator, api: Api) -> None:
    body = {"updates": [{"type": "worker", "dyno_size": {"name": "standard-2x"}}]}
    [process] = (await api("PATCH", FORMATION, body)).body
    assert (process["size"], process["quantity"]) == ("Standard-2X", 1)
    await heroku.until(lambda: heroku.ledger[0].ended)
    assert heroku.ledger[0].cause == "restarted"
    assert [dyno.size.name for dyno in heroku.dynos_left()] == ["Standard-2X"]


async def test_a_batch_with_an_unknown_type_changes_nothing(heroku: Emulator, api: Api) -> None:
    updates = [{"type": "worker", "quantity": 3}, {"type": "nothing", "quantity": 1}]
    assert (await api("PATCH", FORMATION, {"updates": updates})).status == 404
    assert places(heroku) == ["worker.1"]


async def test_a_formation_dyno_that_exits_is_shown_as_crashed(heroku: Emulator, api: Api) -> None:
    await heroku.kill(heroku.ledger[0].id)
    [dyno] = await api.dynos()
    assert (dyno["name"], dyno["state"]) == ("worker.1", "crashed")


async def test_restarting_a_formation_dyno_makes_another_of_its_name(
    heroku: Emulator, api: Api
) -> None:
    [before] = await api.dynos()
    await api("DELETE", "/apps/runner/dynos/worker.1")
    await heroku.until(lambda: heroku.ledger[0].ended)
    [after] = await api.dynos()
    assert after["name"] == before["name"]
    assert after["id"] != before["id"]


async def test_restarting_all_leaves_one_off_dynos_alone(heroku: Emulator, api: Api) -> None:
    await api.create("exec sleep 600")
    await api("DELETE", "/apps/runner/dynos")
    await heroku.until(lambda: heroku.ledger[0].ended)
    assert causes(heroku.ledger) == ["restarted", None, None]


async def test_config_vars_are_set_and_removed(api: Api) -> None:
    body = {"COLOUR": "red", "SHAPE": None, "NEW": "1"}
    answer = await api("PATCH", "/apps/runner/config-vars", body)
    assert answer.body == {"COLOUR": "red", "NEW": "1"}
    assert (await api("GET", "/apps/runner/config-vars")).body == answer.body


async def test_a_config_change_is_a_release_and_restarts_the_formation_alone(
    heroku: Emulator, api: Api
) -> None:
    await api.create("exec sleep 600")
    heroku.set_config("runner", {"COLOUR": "red"})
    await heroku.until(lambda: heroku.ledger[0].ended)
    assert causes(heroku.ledger) == ["restarted", None, None]
    assert [dyno.release.version for dyno in heroku.ledger] == [1, 1, 2]
    assert [dyno.release.config["COLOUR"] for dyno in heroku.ledger] == ["blue", "blue", "red"]


async def test_the_last_release_is_the_current_one(heroku: Emulator, api: Api) -> None:
    heroku.deploy("runner")
    newest = {"Range": "version ..; max=1, order=desc"}
    [release] = (await api("GET", "/apps/runner/releases", headers=newest)).body
    assert (release["version"], release["current"], release["status"]) == (2, True, "succeeded")
    assert not (await api("GET", "/apps/runner/releases/1")).body["current"]


async def test_a_deploy_makes_the_formation_what_the_procfile_says(
    heroku: Emulator, api: Api
) -> None:
    heroku.deploy("runner", {"mcp-files": "cat other.txt", "mcp-new": "exec sleep 600"})
    shown = (await api("GET", FORMATION)).body
    assert {process["type"]: process["command"] for process in shown} == {
        "mcp-files": "cat other.txt",
        "mcp-new": "exec sleep 600",
    }
    await heroku.until(lambda: not heroku.dynos_left())
    assert causes(heroku.ledger) == ["scaled"]
    assert heroku.violations == []
