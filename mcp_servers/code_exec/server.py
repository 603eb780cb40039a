"""The MCP side: one tool, its schema, its progress and the shape of its result."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import CallToolResult, TextContent, ToolAnnotations
from pydantic import Field

from mcp_servers.code_exec.session import Execution  # noqa: TC001 - pydantic reads it

if TYPE_CHECKING:
    from mcp_servers.code_exec.session import Session
    from mcp_servers.code_exec.settings import Limits


class Envelope(TypedDict):
    """The structured content: the result under one key, as Heroku's reference servers have it."""

    result: Execution


Code = Annotated[
    str,
    Field(
        description=(
            "A complete Python program. It runs as a script in a new process, so variables of"
            " earlier calls are gone; files in the working directory are kept for the session."
            " print() what you want to see. There is no input: stdin is empty."
        ),
        examples=["import numpy as np; print(np.random.rand(50).tolist())"],
    ),
]

Packages = Annotated[
    list[str] | None,
    Field(
        description=(
            "PyPI packages that the code imports and the standard library lacks, as pip"
            " requirements: a name, with extras and versions if need be. They stay installed for"
            " the session; naming them again costs nothing."
        ),
        examples=[["numpy"], ["pandas>=2,<3", "httpx[http2]"]],
    ),
]

UseTempDir = Annotated[
    bool,
    Field(
        description=(
            "Run in a new, empty working directory that is deleted when the call ends, instead of"
            " the session's own."
        ),
    ),
]

Returned = Annotated[CallToolResult, Envelope]


def build(session: Session, limits: Limits) -> MCPServer:
    """A server whose tool runs code in the session."""
    server = MCPServer(
        "code-exec-python",
        instructions="Runs Python code in a process of its own and returns what it printed.",
        log_level="WARNING",  # stderr is the operator's; a call is no news
    )

    @server.tool(
        description=(
            "Run Python code and return its exit status, stdout and stderr. Installs the packages"
            f" it needs first. The code may run for {limits.timeout_s:g} s; each stream is cut at"
            f" {limits.max_output_bytes} bytes. returncode 0 means success, -2 a time-out; if"
            " packages cannot be installed, the code is not run and stderr says why."
        ),
        annotations=ToolAnnotations(
            title="Run Python code",
            read_only_hint=False,
            destructive_hint=True,
            idempotent_hint=False,
            open_world_hint=True,
        ),
    )
    async def code_exec_python(
        code: Code,
        ctx: Context[Any, Any],
        packages: Packages = None,
        use_temp_dir: UseTempDir = False,
    ) -> Returned:
        steps = itertools.count(1)

        async def tell(what: str) -> None:
            await ctx.report_progress(next(steps), message=what)  # no-op unless it was asked for

        try:
            execution = await session.execute(
                code, packages or (), use_temp_dir=use_temp_dir, tell=tell
            )
        except OSError as error:  # no memory, no disk, no process left: the caller should know
            raise ToolError(f"The code could not be started: {error.strerror}") from error
        result = asdict(execution)
        # isError stays false, as in the reference: that the code failed is a result.
        return CallToolResult(
            content=[TextContent(type="text", text=json.dumps(result, ensure_ascii=False))],
            structured_content={"result": result},
        )

    return server
