"""A dyno is a process with a folder and an environment of its own, and it ends completely."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.heroku_emulator import AppSpec, Emulator, Options
from tests.heroku_emulator.errors import ApiError
from tests.heroku_emulator.platform import DynoOrder

if TYPE_CHECKING:
    from tests.heroku_emulator import Dyno
    from tests.unit.heroku_emulator.asking import Api


def last(heroku: Emulator) -> Dyno:
    return heroku.ledger[-1]


async def said(heroku: Emulator, dyno: Dyno) -> list[str]:
    """What a dyno has written until its end."""
    await heroku.until(lambda: dyno.ended)
    mark = f" app[{dyno.name}]: "
    return [line.split(mark)[1] for line in heroku.log(dyno.app) if mark in line]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except OSError:
        return False
    return state != b"Z"


async def test_a_dyno_runs_its_command_and_is_gone(heroku: Emulator, api: Api) -> None:
    made = await api.create("echo one; echo two; exit 3")
    assert made["state"] == "starting"
    assert await said(heroku, last(heroku)) == ["one", "two"]
    assert (last(heroku).cause, last(heroku).exit_status) == ("exited", 3)
    assert (await api("GET", f"/apps/runner/dynos/{made['id']}")).said == (404, "not_found")


async def test_a_dyno_has_its_own_environment_and_nothing_of_ours(
    heroku: Emulator, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_THE_EMULATOR", "1")
    made = await api.create("env", env={"SHAPE": "square", "EXTRA": "1"})
    seen = dict(line.split("=", 1) for line in await said(heroku, last(heroku)))
    of_bash = {"PWD", "SHLVL", "_", "OLDPWD"}
    expected = {"PATH", "LANG", "HOME", "DYNO", "COLOUR", "SHAPE", "EXTRA"}
    assert seen.keys() - of_bash == expected
    assert (seen["DYNO"], seen["COLOUR"], seen["SHAPE"]) == (made["name"], "blue", "square")


async def test_a_dyno_works_in_a_copy_of_the_slug(heroku: Emulator, api: Api, slug: Path) -> None:
    await api.create('cat greeting.txt; echo; echo changed > greeting.txt; [ "$PWD" = "$HOME" ]')
    assert await said(heroku, last(heroku)) == ["hello from the slug"]
    assert last(heroku).exit_status == 0
    assert (slug / "greeting.txt").read_text(encoding="utf-8") == "hello from the slug"


async def test_a_dyno_has_a_session_of_its_own(heroku: Emulator, api: Api) -> None:
    await api.create("cut -d' ' -f6 /proc/$$/stat; echo $$")
    session, leader = await said(heroku, last(heroku))
    assert session == leader


async def test_a_profile_in_the_slug_is_read_first(heroku: Emulator, api: Api, slug: Path) -> None:
    (slug / ".profile.d").mkdir()
    (slug / ".profile.d" / "node.sh").write_text('NODE="at $HOME"\n', encoding="utf-8")
    await api.create("""[ "$NODE" = "at $HOME" ] && echo "it's so"; exit 4""")
    assert await said(heroku, last(heroku)) == ["it's so"]
    assert last(heroku).exit_status == 4


async def test_a_bare_process_type_runs_what_the_procfile_says(heroku: Emulator, api: Api) -> None:
    made = await api.create("mcp-files")
    await heroku.until(lambda: any("hello from the slug" in line for line in heroku.log("runner")))
    assert made["command"] == "mcp-files"


async def test_arguments_follow_the_process_types_command(heroku: Emulator, api: Api) -> None:
    heroku.deploy("runner", {"speak": "echo I say"})
    await api.create("speak up ; exit 5")
    assert await said(heroku, last(heroku)) == ["I say up"]
    assert last(heroku).exit_status == 5


async def test_stop_ends_a_dyno_of_any_type_with_sigterm(heroku: Emulator, api: Api) -> None:
    made = await api.create(
        "trap 'echo bye; exit 9' TERM; echo in; read -r < <(sleep 600)", type="x"
    )
    await heroku.until(lambda: any("]: in" in line for line in heroku.log("runner")))
    answer = await api("POST", f"/apps/runner/dynos/{made['id']}/actions/stop")
    assert (answer.status, answer.body) == (202, {})
    assert await said(heroku, last(heroku)) == ["in", "bye"]
    assert (last(heroku).cause, last(heroku).exit_status) == ("stopped", 9)


async def test_who_ignores_sigterm_is_killed_after_the_grace(heroku: Emulator, api: Api) -> None:
    heroku.options.stop_grace = 0.2
    made = await api.create("trap '' TERM; echo in; while true; do sleep 600; done")
    await heroku.until(lambda: any("]: in" in line for line in heroku.log("runner")))
    await api("POST", f"/apps/runner/dynos/{made['name']}/actions/stop")
    await heroku.until(lambda: last(heroku).ended)
    assert last(heroku).exit_status == 128 + signal.SIGKILL
    assert any("R12" in line for line in heroku.log("runner"))


@pytest.mark.parametrize(
    "escape",
    [
        "setsid bash -c 'cd /; trap \"\" TERM; echo $$; exec sleep 600' & wait",  # by its HOME
        "env -i setsid bash -c 'echo $$; exec sleep 600' & wait",  # by where it works
        "cd /; env -i setsid bash -c 'echo $$; exec sleep 600' & wait",  # by its parent
    ],
    ids=["environment", "folder", "descent"],
)
async def test_nothing_of_a_killed_dyno_lives_on(heroku: Emulator, api: Api, escape: str) -> None:
    made = await api.create(escape)
    mark = f" app[{made['name']}]: "
    await heroku.until(lambda: any(mark in line for line in heroku.log("runner")))
    [pid] = [int(line.split(mark)[1]) for line in heroku.log("runner") if mark in line]
    assert alive(pid)
    await heroku.kill(made["id"])
    assert not alive(pid)
    assert (last(heroku).cause, last(heroku).exit_status) == ("killed", 128 + signal.SIGKILL)


async def test_what_a_dyno_leaves_behind_when_it_exits_is_killed(
    heroku: Emulator, api: Api
) -> None:
    leave = "setsid bash -c 'cd /; echo $$; touch $HOME/left; exec sleep 600' &"
    await api.create(f"{leave} until [ -e left ]; do sleep 0.01; done")
    [pid] = await said(heroku, last(heroku))
    assert not alive(int(pid))
    assert last(heroku).exit_status == 0


async def test_time_to_live_ends_a_dyno(heroku: Emulator, api: Api) -> None:
    await api.create("exec sleep 600", time_to_live=1)
    await heroku.until(lambda: last(heroku).ended)
    assert last(heroku).cause == "time_to_live"
    assert last(heroku).seconds >= 1.0


async def test_no_dyno_lives_longer_than_a_day(heroku: Emulator, api: Api) -> None:
    heroku.options.longest_life = 0.1
    await api.create("exec sleep 600", time_to_live=86_400)
    await heroku.until(lambda: last(heroku).ended)
    assert last(heroku).cause == "cycled"


async def test_a_dyno_that_boots_can_be_stopped(heroku: Emulator, api: Api) -> None:
    heroku.options.boot_delay = (600.0, 600.0)
    made = await api.create("echo never")
    await api("POST", f"/apps/runner/dynos/{made['id']}/actions/stop")
    await heroku.until(lambda: last(heroku).ended)
    assert (last(heroku).started, last(heroku).exit_status) == (None, None)


async def test_a_boot_takes_its_delay(heroku: Emulator, api: Api) -> None:
    heroku.options.boot_delay = (0.2, 0.3)
    await api.create("exec sleep 600")
    dyno = last(heroku)
    await heroku.until(lambda: dyno.started)
    assert dyno.started is not None
    assert dyno.started.monotonic - dyno.created.monotonic >= 0.2
    assert dyno.state == "up"


async def test_above_its_limit_an_app_gets_no_dyno(heroku: Emulator, api: Api) -> None:
    for _ in range(5):
        await api.create("exec sleep 600")
    body = {"command": "exec sleep 600"}
    refused = await api("POST", "/apps/runner/dynos", body)
    assert refused.said == (422, "cannot_run_above_limit")
    await heroku.kill(last(heroku).id)
    assert (await api("POST", "/apps/runner/dynos", body)).status == 201


async def test_large_sizes_have_a_lower_limit() -> None:
    async with Emulator({"runner": AppSpec(size="performance-m")}) as heroku:
        platform, app = heroku._platform, heroku._platform.app("runner")
        for _ in range(5):
            platform.create(app, DynoOrder("exec sleep 600"))
        with pytest.raises(ApiError, match="more than 5 Performance-M"):
            platform.create(app, DynoOrder("exec sleep 600"))


async def test_leaving_the_emulator_ends_every_dyno() -> None:
    async with Emulator({"runner": AppSpec()}, Options(stop_grace=600)) as heroku:
        order = DynoOrder("trap '' TERM; echo $$; sleep 600; :")
        dyno = heroku._platform.create(heroku._platform.app("runner"), order)
        await heroku.until(lambda: any(" app[" in line for line in heroku.log("runner")))
        pid = int(heroku.log("runner")[-1].rpartition(" ")[2])
    assert not alive(pid)
    assert (dyno.cause, heroku.dynos_left()) == ("shutdown", [])


async def test_a_failing_test_is_told_its_own_failure() -> None:
    with pytest.raises(ZeroDivisionError):
        async with Emulator({"runner": AppSpec()}):
            raise ZeroDivisionError


async def test_the_ledger_counts_the_seconds(heroku: Emulator, api: Api) -> None:
    await api.create("exec sleep 0.3")
    dyno = last(heroku)
    await heroku.until(lambda: dyno.ended)
    assert 0 < dyno.seconds_up <= dyno.seconds
    assert dyno.ended is not None
    assert dyno.seconds == dyno.ended.monotonic - dyno.created.monotonic
