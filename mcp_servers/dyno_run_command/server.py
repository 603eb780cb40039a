"""The MCP side: one tool, its schema, its progress and the shape of its result."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypedDict

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import CallToolResult, ToolAnnotations
from pydantic import Field

from mcp_servers.dyno_run_command.parameters import BadParameterError, variables_from
from mcp_servers.dyno_run_command.settings import Settings
from mcp_servers.execution import Execution, executed, tell_beat
from mcp_servers.processes import Runner
from mcp_servers.tools import answer, teller


class Envelope(TypedDict):
    """The structured content: the result under one key, as that of the code execution tools."""

    result: Execution


Parameters = Annotated[
    dict[str, Any] | None,
    Field(
        description=(
            "What the command needs to be told: an object whose members it gets as environment"
            ' variables of the same names, so that its line can use "$name". Values are text,'
            " numbers or booleans; objects and arrays arrive as JSON, null is left out."
        ),
        examples=[{"since": "2026-01-31", "limit": 10}],
    ),
]

Returned = Annotated[CallToolResult, Envelope]


def build(runner: Runner, settings: Settings, variables: dict[str, str]) -> MCPServer:
    """A server whose tool runs commands in the server's working directory.

    Args:
        runner: What runs them.
        settings: What may be run, and what a run may use.
        variables: The environment of every command.
    """
    server = MCPServer(
        "dyno-run-command",
        instructions="Runs a command in the dyno and returns what it printed.",
        log_level="WARNING",  # stderr is the operator's; a call is no news
    )
    commands, allowance, directory = settings.commands, settings.allowance, Path.cwd()
    if commands is None:
        about = "The command line, for /bin/sh."
        known: dict[str, Any] = {}
    else:
        about = "The name of the command: " + ", ".join(commands) + "."
        known = {"enum": list(commands)}

    async def dyno_run_command(
        cmd: Annotated[str, Field(min_length=1, description=about, json_schema_extra=known)],
        ctx: Context[Any, Any],
        parameters: Parameters = None,
    ) -> Returned:
        line = cmd if commands is None else commands.get(cmd)
        if line is None:
            raise ToolError(f"There is no command {cmd[:100]!r}. {about} Nothing was run.")
        try:
            environment = {**variables, **variables_from(parameters or {}, variables)}
        except BadParameterError as error:
            raise ToolError(f"{error}. Nothing was run.") from error
        tell = teller(ctx)
        await tell("running")
        try:
            finished = await runner.run(
                ["/bin/sh", "-c", line],
                cwd=directory,
                environment=environment,
                seconds=allowance.seconds,
                memory_bytes=allowance.memory_bytes,
                beat=partial(tell_beat, "running", tell),
            )
        except OSError as error:  # no memory, no process left, or too much to hand on
            raise ToolError(f"The command could not be started: {error.strerror}") from error
        except ValueError as error:  # what JSON can hold and a command line cannot
            raise ToolError(f"The command could not be started: {error}") from error
        # isError stays false, as for code: that the command failed is a result.
        return answer(asdict(executed(finished, "The command", allowance)))

    server.add_tool(
        dyno_run_command,
        description=(
            "Run a command in the app's dyno, in the app's directory, and return its exit status,"
            f" stdout and stderr. It may run for {allowance.seconds:g} s; each stream is cut at"
            f" {settings.max_output_bytes} bytes. returncode 0 means success, -2 a time-out."
        ),
        annotations=ToolAnnotations(
            title="Run a command",
            read_only_hint=False,
            destructive_hint=True,
            idempotent_hint=False,
            open_world_hint=True,
        ),
    )
    return server
