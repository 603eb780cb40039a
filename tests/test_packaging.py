"""What is installed is what is meant: one wheel, and an agent that starts without the rest."""

import asyncio
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

from jsonschema import Draft7Validator

import dyno_agent
from gateway.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
BUILD_S = 120


def test_wheel_holds_the_four_packages_and_the_command(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path, ROOT],
        check=True,
        timeout=BUILD_S,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
        commands = archive.read(entry_points).decode()
    tops = {name.partition("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"gateway", "dyno_agent", "clients", "mcp_servers"}
    assert dyno_agent.__version__ in wheel.name
    assert {"gateway/ops/console/static/index.html", "gateway/store/engine.lua"} <= set(names)
    for command in ("dyno-gateway", "gateway"):
        assert f"{command} = gateway.__main__:main" in commands.splitlines()


async def test_agent_starts_with_nothing_but_websockets(tmp_path: Path) -> None:
    """Its import must not find anything else of ours or of the gateway's dependencies."""
    blocker = [
        "aiohttp",
        "msgspec",
        "pydantic",
        "structlog",
        "mcp",
        "typer",
        "rich",
        "gateway",
        "clients",
    ]
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({blocker!r}))\n"
        "from dyno_agent.__main__ import main\n"
        "raise SystemExit(main())\n"
    )
    agent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        code,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        _, complaint = await agent.communicate()
    assert agent.returncode == 78
    assert b"RENDEZVOUS_URL" in complaint


def test_every_direct_dependency_is_pinned_exactly() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    for file, groups in {
        "requirements.txt": ("gateway", "clients", "servers", "markdown"),
        "requirements-dev.txt": tuple(extras),
    }.items():
        wanted = [*project["dependencies"], *(name for group in groups for name in extras[group])]
        names = {re.split(r"[\[;<>= ]", spec)[0] for spec in wanted}
        pinned = (ROOT / file).read_text(encoding="utf-8")
        assert [name for name in names if f"\n{name}==" not in f"\n{pinned}"] == []
        assert "://" not in pinned


def _lines(name: str) -> list[str]:
    return (ROOT / name).read_text(encoding="utf-8").splitlines()


def test_procfile_starts_the_gateway_and_each_bundled_server() -> None:
    processes = dict(line.split(": ", 1) for line in _lines("Procfile"))
    assert processes == {
        "web": "python -m gateway serve",
        "mcp-python": "python -m mcp_servers.code_exec",
        "mcp-ruby": "python -m mcp_servers.code_exec ruby",
        "mcp-node": "python -m mcp_servers.code_exec node",
        "mcp-dyno": "python -m mcp_servers.dyno_run_command",
        "mcp-markdown": "python -m mcp_servers.markdown",
        "mcp-postgres": "python -m mcp_servers.postgres",
    }


APP_JSON = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name", "description", "stack", "buildpacks", "formation", "env"],
    "properties": {
        "name": {"type": "string", "pattern": r"^[a-zA-Z-_.]+$", "maxLength": 30},
        "description": {"type": "string", "maxLength": 140},
        "keywords": {"type": "array", "items": {"type": "string"}},
        "stack": {"enum": ["heroku-22", "heroku-24", "heroku-26"]},
        "buildpacks": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["url"],
                "properties": {"url": {"type": "string"}},
                "additionalProperties": False,
            },
        },
        "formation": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": ["quantity", "size"],
                "properties": {"quantity": {"type": "integer"}, "size": {"type": "string"}},
                "additionalProperties": False,
            },
        },
        "env": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": ["description"],
                "properties": {
                    "description": {"type": "string"},
                    "value": {"type": "string"},
                    "generator": {"const": "secret"},
                    "required": {"type": "boolean"},
                },
                "additionalProperties": False,
            },
        },
    },
}
"""What of Heroku's app.json (devcenter.heroku.com/articles/app-json-schema) is used here."""


def test_app_json_has_the_documented_shape_and_names_real_settings() -> None:
    document = json.loads((ROOT / "app.json").read_text(encoding="utf-8"))
    Draft7Validator(APP_JSON).validate(document)
    names = {name.upper() for name in Settings.model_fields}
    assert document["env"].keys() <= names
    generated = {name for name, entry in document["env"].items() if "generator" in entry}
    assert generated == {"API_KEY", "ADMIN_KEY", "GATEWAY_SECRET"}
    assert document["formation"].keys() <= {line.partition(":")[0] for line in _lines("Procfile")}


def test_python_version_is_one_that_the_project_says_it_runs_on() -> None:
    (version,) = _lines(".python-version")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"Programming Language :: Python :: {version}" in project["classifiers"]
