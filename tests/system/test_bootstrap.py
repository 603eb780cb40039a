"""Dynos that fetch the agent: the gateway's own command, run by a shell, on every Python there is.

The gateway is the real one, in this process; the dyno is `bash -c` in a home of its own, with an
environment of its own, and the session's child is one that looks wherever it can.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

import dyno_agent
from dyno_agent.link import Hello
from gateway import app as gateway_app
from gateway.registry.servers import ServerDefinition
from gateway.rendezvous.archive import Archive, build
from gateway.rendezvous.bootstrap import INSTALLED, Bootstrap, command
from tests.fakes.house import House, opened, token_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from gateway.launchers.base import LaunchOrder

BOUND = 20.0
"""Seconds for a dyno to come up or go, two interpreters and their imports on a busy machine."""

ROOT = Path(__file__).resolve().parents[2]
SNOOP = (ROOT / "tests" / "fixtures" / "snoop.py").read_text(encoding="utf-8")
DIFFERENCES = ROOT / "tests" / "fixtures" / "differences.py"
SERVER = ServerDefinition(
    name="patient", command="python3", args=["-I", "-c", SNOOP], era="legacy", catalogue=False
)
OPENING = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    },
}
CALL = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "look"}}

NEWEST, OLDEST = 14, 9
NOBODY = 65534
HIDDEN = "value-that-no-child-may-see"

ARCHIVE = build()


# -- interpreters --------------------------------------------------------------------------------


def _starts(python: Path, minor: int) -> bool:
    code = f"import sys; sys.exit(sys.version_info[:2] != (3, {minor}))"
    try:
        return subprocess.run([python, "-c", code], check=False, timeout=BOUND).returncode == 0
    except OSError:
        return False


def _real(python: Path) -> Path:
    """The interpreter behind a wrapper or a virtual environment: a dyno has neither."""
    code = "import os, sys; print(os.path.realpath(sys.executable))"
    told = subprocess.run([python, "-c", code], check=True, capture_output=True, timeout=BOUND)
    return Path(os.fsdecode(told.stdout.strip()))


def _anybodys(_: Path) -> bool:
    return True


def interpreter(minor: int, fits: Callable[[Path], bool] = _anybodys) -> Path | None:
    """A Python of this version that really starts: on the PATH, or one of pyenv's."""
    name = f"python3.{minor}"
    folders = [Path(folder) for folder in os.get_exec_path()]
    folders += (Path.home() / ".pyenv" / "versions").glob(f"3.{minor}.*/bin")
    for folder in folders:
        if (folder / name).is_file() and _starts(folder / name, minor):
            python = _real(folder / name)
            if fits(python):
                return python
    return None


FOUND = {minor: interpreter(minor) for minor in range(OLDEST, NEWEST + 1)}

every_python = pytest.mark.parametrize(
    "python",
    [
        pytest.param(
            python,
            id=f"3.{minor}",
            marks=[] if python else pytest.mark.skip(f"there is no Python 3.{minor} here"),
        )
        for minor, python in FOUND.items()
    ],
)


@pytest.fixture
def python() -> Path:
    """Any interpreter, for what is the same on all of them: the one of the tests."""
    return _real(Path(sys.executable))


# -- dynos ---------------------------------------------------------------------------------------


@dataclass
class Dyno:
    """A place where commands run as in a dyno.

    Attributes:
        home: its home, working directory and all that it may write to.
        environment: what the platform gives to its commands.
        user: as whom they run; None for the user of the tests.
    """

    home: Path
    environment: dict[str, str] = field(default_factory=dict)
    user: int | None = None

    @property
    def tmp(self) -> Path:
        return self.home / "tmp"

    def files(self) -> set[str]:
        """What lies in its home, and in its folder for temporary files."""
        return {path.name for folder in (self.home, self.tmp) for path in folder.iterdir()}

    @asynccontextmanager
    async def running(
        self, line: str, more: dict[str, str], shell: str = "bash"
    ) -> AsyncIterator[asyncio.subprocess.Process]:
        """Run a command as the platform does, and whatever becomes of it, end it."""
        process = await asyncio.create_subprocess_exec(
            shell,
            "-c",
            line,
            cwd=self.home,
            env={**self.environment, **more},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            user=self.user,
            extra_groups=None if self.user is None else [],
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()

    async def run(
        self, line: str, more: dict[str, str] | None = None, shell: str = "bash"
    ) -> tuple[int | None, str, str]:
        """Run a command to its end; return its exit code, stdout and stderr."""
        async with asyncio.timeout(BOUND), self.running(line, more or {}, shell) as process:
            said, complained = await process.communicate()
        return process.returncode, said.decode(), complained.decode()


def new_dyno(home: Path, python: Path, user: int | None = None) -> Dyno:
    """A home whose `python3` is this interpreter, and nothing else of ours."""
    (home / "bin").mkdir()
    (home / "bin" / "python3").symlink_to(python)
    (home / "tmp").mkdir()
    if user is not None:
        os.chown(home / "tmp", user, user)
    places = {"HOME": str(home), "TMPDIR": str(home / "tmp")}
    path = os.pathsep.join((str(home / "bin"), os.defpath))
    return Dyno(home, {"PATH": path, "LANG": "C.UTF-8", "DYNO": "rendezvous.1", **places}, user)


@pytest.fixture
def dyno(tmp_path: Path, python: Path) -> Dyno:
    return new_dyno(tmp_path, python)


@pytest.fixture
def hostile_dyno(dyno: Dyno) -> Dyno:
    """One of an app whose own modules are in the way of everything, by every way there is."""
    for name in ("websockets", "asyncio", "json", "urllib", "sitecustomize", "usercustomize"):
        module = dyno.home / f"{name}.py"
        module.write_text(f"raise SystemExit('the {name} of the app was imported')\n")
    app = {"PYTHONPATH": str(dyno.home), "PYTHONHOME": "/nowhere", "PYTHONSTARTUP": "json.py"}
    dyno.environment.update(app)
    return dyno


@pytest.fixture
def stranger(python: Path) -> Iterator[Dyno]:
    """A dyno whose user has no privilege: root could read the memory of every process."""
    user = None
    if os.geteuid() == 0:
        user = NOBODY
        found = (interpreter(minor, _open_to_all) for minor in FOUND)
        python = next(filter(None, found), Path())
        if python == Path():
            pytest.skip("no interpreter here that an unprivileged user may run")
    home = Path(tempfile.mkdtemp())  # tmp_path lies in a folder of this user alone
    try:
        home.chmod(0o755)
        yield new_dyno(home, python, user)
    finally:
        shutil.rmtree(home)


def _open_to_all(python: Path) -> bool:
    return all(folder.stat().st_mode & 0o001 for folder in (python, *python.parents))


# -- gateways ------------------------------------------------------------------------------------


@pytest.fixture
def hellos(monkeypatch: pytest.MonkeyPatch) -> list[Hello]:
    """What agents have said to gateways of this process."""
    heard: list[Hello] = []
    decode = Hello.decode

    def noted(text: str) -> Hello:
        heard.append(decode(text))
        return heard[-1]

    monkeypatch.setattr(Hello, "decode", noted)
    return heard


@pytest.fixture
async def house(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    """The real gateway, with the room that serves the agent."""
    made = gateway_app.build

    def with_bootstrap(*args: Any, **more: Any) -> web.Application:
        app = made(*args, **more)
        app.add_routes(Bootstrap(ARCHIVE).routes())
        return app

    monkeypatch.setattr("tests.fakes.house.build", with_bootstrap)
    async with opened(servers=(SERVER,)) as house:
        yield house


@asynccontextmanager
async def serving(*answers: web.Response | Archive) -> AsyncIterator[str]:
    """A gateway that gives these answers, one after the other and the last for ever: its URL."""
    left = list(answers)

    async def handle(request: web.Request) -> web.StreamResponse:
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Archive):
            return web.Response(body=answer.content)
        return web.Response(status=answer.status, text=answer.text)

    app = web.Application()
    app.router.add_get("/agent/v1/{name}", handle)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


def archive_of(code: str) -> Archive:
    """A file that can be fetched and run instead of the agent."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("__main__.py", code)
    return Archive(buffer.getvalue(), hashlib.sha256(buffer.getvalue()).hexdigest())


async def look_from(
    house: House,
    dyno: Dyno,
    line: str,
    more: dict[str, str] | None = None,
    meanwhile: Callable[[str, asyncio.subprocess.Process], None] | None = None,
) -> tuple[dict[str, Any], LaunchOrder, int]:
    """Have a session in a dyno; return what its child saw, the launch, and the command's pid.

    `meanwhile` is done before the child is called, with the session's key and the command.
    """
    async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
        opening = group.create_task(house.post(OPENING))
        order = await house.launcher.orders.get()
        given = {**order.environment, "RENDEZVOUS_URL": house.origin, **(more or {})}
        tagged = f"{line} --launch 0123456789ab.{order.launch_id}"
        async with dyno.running(tagged, given) as process:
            session = (await opening).headers["Mcp-Session-Id"]
            if meanwhile is not None:
                meanwhile(session, process)
            answer = await (await house.post(CALL, session)).json()
            assert await house.delete(session) in (200, 202, 204)
            _, complaint = await process.communicate()
            assert process.returncode in (0, 143), complaint.decode()
    return json.loads(answer["result"]["content"][0]["text"]), order, process.pid


# -- fetched agents ------------------------------------------------------------------------------


@every_python
async def test_fetched_agent_joins_and_relays_a_call(
    house: House, tmp_path: Path, python: Path, hellos: list[Hello]
) -> None:
    seen, _, _ = await look_from(house, new_dyno(tmp_path, python), command(ARCHIVE.sha256))
    assert [hello.dyno for hello in hellos] == ["rendezvous.1"]
    assert hellos[0].python.startswith("{}.{}.".format(*seen["python"]))


@every_python
async def test_fetched_agent_comes_back_over_a_new_connection(
    house: House, tmp_path: Path, python: Path, hellos: list[Hello]
) -> None:
    def cut(session: str, _: asyncio.subprocess.Process) -> None:
        attachment = house.live(session)._attachment
        assert attachment is not None
        attachment.abort()

    dyno = new_dyno(tmp_path, python)
    await look_from(house, dyno, command(ARCHIVE.sha256), meanwhile=cut)
    assert [hello.kind for hello in hellos] == ["join", "resume"]


@every_python
async def test_agent_behaves_alike_where_asyncio_differs(dyno: Dyno) -> None:
    (dyno.home / "agent.pyz").write_bytes(ARCHIVE.content)
    line = shlex.join(("exec", "python3", "-W", "error", "-I", str(DIFFERENCES), "agent.pyz"))
    code, said, complaint = await dyno.run(line)
    assert (code, complaint) == (0, "")
    assert said.splitlines() == [
        "stubborn child: SIGKILL",
        "silent gateway: Unreachable",
        "failed task: ExceptionGroup cancelled",
        "late block: TimeoutError",
        "cancelled block: True",
    ]


@every_python
async def test_modules_of_the_app_are_never_imported_by_the_agent(
    house: House, hostile_dyno: Dyno, python: Path
) -> None:
    seen, _, _ = await look_from(house, hostile_dyno, command(ARCHIVE.sha256))
    assert seen["environment"]["PYTHONPATH"] == str(hostile_dyno.home)


async def test_child_inherits_what_the_dyno_was_given_and_nothing_of_ours(
    house: House, dyno: Dyno
) -> None:
    app = {"DATABASE_URL": "postgres://app", "PYTHONUNBUFFERED": "1"}
    hidden = {"API_KEY": HIDDEN, "RENDEZVOUS_HIDE": "API_KEY"}
    seen, _, _ = await look_from(house, dyno, command(ARCHIVE.sha256), {**app, **hidden})
    of_bash_and_python = {"PWD", "OLDPWD", "SHLVL", "_", "LC_CTYPE"}
    inherited = {k: v for k, v in seen["environment"].items() if k not in of_bash_and_python}
    assert inherited == {**dyno.environment, **app}


async def test_fetched_file_is_gone_before_the_child_exists(house: House, dyno: Dyno) -> None:
    seen, _, _ = await look_from(house, dyno, command(ARCHIVE.sha256))
    assert seen["files"] == []


async def test_no_shell_stays_between_the_platform_and_the_agent(house: House, dyno: Dyno) -> None:
    seen, _, pid = await look_from(house, dyno, command(ARCHIVE.sha256))
    assert seen["parent"] == pid


async def test_fetched_file_is_private_and_runs_isolated(dyno: Dyno) -> None:
    tells = "import os, stat, sys; f = sys.flags; m = os.stat(sys.argv[0]).st_mode\n"
    tells += "print(stat.filemode(m), f.isolated, f.no_site, sys.argv[1:])"
    served = archive_of(tells)
    async with serving(served) as url:
        line = command(served.sha256) + " --launch realm.launch"
        code, said, _ = await dyno.run(line, {"RENDEZVOUS_URL": url})
    assert (code, said) == (0, "-rw------- 1 1 ['--launch', 'realm.launch']\n")


@pytest.mark.parametrize("shell", ["bash", "sh"])
async def test_gateway_that_restarts_is_waited_for(dyno: Dyno, shell: str) -> None:
    away = [web.Response(status=503), web.Response(status=404)]
    async with serving(*away, ARCHIVE) as url:
        line = command(ARCHIVE.sha256) + " --version"
        code, said, complaint = await dyno.run(line, {"RENDEZVOUS_URL": url}, shell)
    assert (code, said, complaint) == (0, f"{dyno_agent.__version__}\n", "")


async def test_gateway_that_stays_away_is_given_up_at_the_deadline(dyno: Dyno) -> None:
    async with serving(web.Response(status=503)) as url:
        given = {"RENDEZVOUS_URL": url, "RENDEZVOUS_START_DEADLINE_S": "0.5"}
        code, _, complaint = await dyno.run(command(ARCHIVE.sha256), given)
    assert (code, complaint) == (1, "agent: HTTP Error 503: Service Unavailable\n")


async def test_file_with_another_hash_is_refused_and_not_run(dyno: Dyno) -> None:
    async with serving(archive_of("print('it runs')")) as url:
        line = command(ARCHIVE.sha256)
        code, said, complaint = await dyno.run(line, {"RENDEZVOUS_URL": url})
    assert (code, said, complaint) == (78, "", "agent: the file has another SHA-256\n")
    assert dyno.files() == {"bin", "tmp"}


@pytest.mark.parametrize("url", ["", "gw.example.com", "http://gw.example.com", "file:///etc"])
async def test_gateway_without_encryption_is_not_asked(dyno: Dyno, url: str) -> None:
    code, _, complaint = await dyno.run(command(ARCHIVE.sha256), {"RENDEZVOUS_URL": url})
    assert (code, complaint) == (78, "agent: RENDEZVOUS_URL must be https\n")


def test_command_is_one_short_line_that_no_shell_can_misread() -> None:
    line = command(ARCHIVE.sha256)
    before, code, after = line.split("'")
    assert (before, after) == ("exec python3 -ISc ", f" {ARCHIVE.sha256}")
    assert not set(code) & set("\n$`!")
    assert len(code) < 720  # the program is below 700


@pytest.mark.parametrize("hash_", ["", "x" * 64, "A" * 64, f"{'a' * 64}; rm"])
def test_command_is_made_for_a_hash_only(hash_: str) -> None:
    with pytest.raises(ValueError, match="SHA-256"):
        command(hash_)


# -- secrets -------------------------------------------------------------------------------------


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is no /proc")
@pytest.mark.parametrize("way", ["fetched", "installed"])
async def test_no_secret_is_in_reach_of_the_child(
    house: House, stranger: Dyno, hellos: list[Hello], way: str
) -> None:
    line, more = command(ARCHIVE.sha256), {}
    if way == "installed":
        line, more = INSTALLED, {"PYTHONPATH": _installed(stranger)}
    hidden = {"GATEWAY_SECRET": HIDDEN, "RENDEZVOUS_HIDE": "GATEWAY_SECRET"}
    seen, order, agent = await look_from(house, stranger, line, {**more, **hidden})
    assert seen["parent"] == agent
    everything = json.dumps(seen)
    assert order.launch_id in seen["read"][f"/proc/{agent}/cmdline"]  # it has looked
    assert token_of(order).partition(".")[2] not in everything
    assert HIDDEN not in everything
    assert not _holds_secret_of(hellos[0].proof, everything)
    private = {f"/proc/{agent}/{name}" for name in ("environ", "mem", "maps", "cwd", "exe", "fd/0")}
    assert private <= set(seen["refused"])


def _installed(dyno: Dyno) -> str:
    """Unpack the agent and its library where the dyno's user can read them."""
    packages = dyno.home / "packages"
    with zipfile.ZipFile(io.BytesIO(ARCHIVE.content)) as archive:
        archive.extractall(packages)
    return str(packages)


def _holds_secret_of(proof: str, text: str) -> bool:
    """Whether the resume secret, of which only the hash is known, stands anywhere in a text."""
    size = len(base64.urlsafe_b64encode(bytes(32)).rstrip(b"="))
    return any(
        hashlib.sha256(run[start : start + size].encode()).hexdigest() == proof
        for run in re.findall(rf"[A-Za-z0-9_-]{{{size},}}", text)
        for start in range(len(run) - size + 1)
    )


def test_search_for_the_resume_secret_finds_it() -> None:
    secret = base64.urlsafe_b64encode(bytes(range(32))).rstrip(b"=").decode()
    proof = hashlib.sha256(secret.encode()).hexdigest()
    assert _holds_secret_of(proof, f"rr_launch.{secret}-more")
    assert not _holds_secret_of(proof, f"rr_launch.{secret[:-1]}")


# -- what is wrong is said -----------------------------------------------------------------------


async def test_agent_without_its_settings_says_in_one_line_what_is_missing(
    dyno: Dyno, tmp_path: Path
) -> None:
    (tmp_path / "agent.pyz").write_bytes(ARCHIVE.content)
    code, said, complaint = await dyno.run("exec python3 agent.pyz")
    assert (code, said, complaint.count("\n")) == (78, "", 1)
    assert complaint.startswith("RENDEZVOUS_URL must be")


async def test_agent_removes_no_file_but_the_one_it_was_fetched_into(
    dyno: Dyno, tmp_path: Path
) -> None:
    for name in ("agent.pyz", "another.pyz"):
        (tmp_path / name).write_bytes(ARCHIVE.content)
    await dyno.run("exec python3 agent.pyz")
    await dyno.run("exec python3 agent.pyz", {"RENDEZVOUS_FETCHED": "another.pyz"})
    assert {"agent.pyz", "another.pyz"} <= dyno.files()


# -- the route -----------------------------------------------------------------------------------


@pytest.fixture
async def client() -> AsyncIterator[TestClient[web.Request, web.Application]]:
    app = web.Application()
    app.add_routes(Bootstrap(ARCHIVE).routes())
    async with TestClient(TestServer(app)) as client:
        yield client


async def test_agent_is_served_for_ever_to_who_knows_its_hash(
    client: TestClient[web.Request, web.Application],
) -> None:
    response = await client.get(f"/agent/v1/agent-{ARCHIVE.sha256}.pyz")
    assert (response.status, response.content_type) == (200, "application/zip")
    assert "immutable" in response.headers["Cache-Control"]
    assert await response.read() == ARCHIVE.content


@pytest.mark.parametrize("name", ["0" * 64, ARCHIVE.sha256[:-1], "", ARCHIVE.sha256.upper()])
async def test_another_hash_is_not_found(
    client: TestClient[web.Request, web.Application], name: str
) -> None:
    response = await client.get(f"/agent/v1/agent-{name}.pyz")
    assert response.status == 404
    assert "Cache-Control" not in response.headers
