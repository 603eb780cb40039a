"""The MCP side: two tools, their schemas, their progress and the shape of their result."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations
from pydantic import Field

from mcp_servers.markdown.reader import Reader, ReadError
from mcp_servers.markdown.settings import Limits
from mcp_servers.tools import teller


def build(reader: Reader, limits: Limits) -> MCPServer:
    """A server whose tools turn URLs into Markdown.

    Args:
        reader: What does it.
        limits: What the tools' descriptions say about them.
    """
    server = MCPServer(
        "markdown",
        instructions="Fetches pages and PDFs from the public internet, returns Markdown.",
        log_level="WARNING",  # stderr is the operator's; a call is no news
    )
    for name, title, what, pdf in (
        ("html_to_markdown", "Read a web page", "a web page, or a plain text,", False),
        ("pdf_to_markdown", "Read a PDF", "the text of a PDF", True),
    ):
        server.add_tool(
            _tool(name, what, reader, pdf=pdf),
            description=(
                f"Fetch {what} and return it as Markdown. Scripts are not run and nobody is logged"
                f" in. Up to {limits.max_download_bytes} bytes, within {limits.timeout_s:g} s;"
                f" Markdown longer than {limits.max_output_bytes} bytes is cut in the middle."
            ),
            annotations=ToolAnnotations(
                title=title,
                read_only_hint=True,
                destructive_hint=False,
                idempotent_hint=True,
                open_world_hint=True,
            ),
        )
    return server


def _tool(name: str, what: str, reader: Reader, *, pdf: bool) -> Callable[..., Awaitable[str]]:
    example = "https://arxiv.org/pdf/1706.03762" if pdf else "https://example.com"
    text = f"Where {what} is, with http:// or https://; a public address."

    async def read(
        url: Annotated[str, Field(description=text, examples=[example])], ctx: Context[Any, Any]
    ) -> str:
        try:
            return await reader.read(url, pdf=pdf, tell=teller(ctx))
        except ReadError as error:
            raise ToolError(str(error)) from error

    read.__name__ = name  # the schema's title is made of it
    return read
