"""The MCP side: one tool, its schema, its progress and the shape of its result."""

from dataclasses import asdict
from typing import Annotated, Any, TypedDict

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import CallToolResult, ToolAnnotations
from pydantic import Field

from mcp_servers.code_exec.languages.base import Language
from mcp_servers.code_exec.session import Session
from mcp_servers.code_exec.settings import Limits
from mcp_servers.execution import Execution
from mcp_servers.tools import answer, teller


class Envelope(TypedDict):
    """The structured content: the result under one key, as Heroku's reference servers have it."""

    result: Execution


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


def build(session: Session, language: Language, limits: Limits) -> MCPServer:
    """A server whose tool runs code in the session.

    Args:
        session: What runs the code.
        language: What the tool is named for, and described by.
        limits: What its description says about them.
    """
    words = language.words
    server = MCPServer(
        f"code-exec-{language.name}",
        instructions=(
            f"Runs {words.title} code in a process of its own and returns what it printed."
        ),
        log_level="WARNING",  # stderr is the operator's; a call is no news
    )
    code_text = (
        f"A complete {words.title} program. It runs as a script in a new process, so variables of"
        " earlier calls are gone; files in the working directory are kept for the session."
        f" {words.show} what you want to see. There is no input: stdin is empty."
    )
    packages_text = (
        f"{words.packages} They stay installed for the session; naming them again costs nothing."
    )

    async def execute(
        code: Annotated[str, Field(description=code_text, examples=[words.code])],
        ctx: Context[Any, Any],
        packages: Annotated[
            list[str] | None, Field(description=packages_text, examples=words.requirements)
        ] = None,
        use_temp_dir: UseTempDir = False,
    ) -> Returned:
        try:
            execution = await session.execute(
                code, packages or (), use_temp_dir=use_temp_dir, tell=teller(ctx)
            )
        except OSError as error:  # no memory, no disk, no process left: the caller should know
            raise ToolError(f"The code could not be started: {error.strerror}") from error
        # isError stays false, as in the reference: that the code failed is a result.
        return answer(asdict(execution))

    execute.__name__ = f"code_exec_{language.name}"  # the schema's title is made of it
    server.add_tool(
        execute,
        description=(
            f"Run {words.title} code and return its exit status, stdout and stderr. Installs the"
            f" packages it needs first. The code may run for {limits.timeout_s:g} s; each stream is"
            f" cut at {limits.max_output_bytes} bytes. returncode 0 means success, -2 a time-out;"
            " if packages cannot be installed, the code is not run and stderr says why."
        ),
        annotations=ToolAnnotations(
            title=f"Run {words.title} code",
            read_only_hint=False,
            destructive_hint=True,
            idempotent_hint=False,
            open_world_hint=True,
        ),
    )
    return server
