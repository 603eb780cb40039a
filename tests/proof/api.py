"""The proof that who calls Heroku's documented endpoints can move over.

`python -m tests.proof.api` starts a real gateway with the bundled servers, one that crashes at its
start and one that hangs, a PostgreSQL, a site with a PDF, and a scripted model; then it does what
Heroku's documents and the seeds' READMEs do, and what models and clients do wrong. Each example is
a line; the last line holds the counts, and the exit code is 0 if every one held.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import sys
import tempfile
import time
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer
from mcp import Client
from mcp.client.sse import sse_client
from mcp.shared.exceptions import MCPError

from tests.fakes import inference
from tests.fakes.bundled import a_pdf
from tests.fakes.postgres import PostgresServer, unwanted
from tests.system.conftest import GatewayProcess
from tests.system.python_sdk import connected, text_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from tests.fakes.inference import Asked, Inference, Line

HERE = "127.0.0.1"

BOUND_S = 60.0
"""For any one example: some start two servers."""

LIST_S = 1.0
"""In this time a toolkit has to have answered, whatever its members do."""

PHRASE = "Purple Python"
DIGEST = hashlib.sha256(PHRASE.encode()).hexdigest()

SENTENCE = "Dynos dial back"
"""Stands in the documents that are read."""

ROUNDS = 40
"""Answers of a model that wants the same call for ever: more than any run takes."""

GARBAGE = b"data: {\x00 not JSON at all \xff\xfe\n\n" * 1000

WELL = ("markdown", "python", "shell")
BROKEN = ("crashes", "hangs")

HEADS, TAIL = (b"event:message\ndata:", b"event:error\ndata:"), b"event:done\ndata:[DONE]"


@dataclass
class Findings:
    """What came of it.

    Attributes:
        endpoints: those that were asked.
        examples: how many were done.
        failed: those that did not hold.
        digest: the agent's answer held the right one.
        toolkit_s: longest that a toolkit took for its lists.
    """

    endpoints: set[str] = field(default_factory=set)
    examples: int = 0
    failed: list[str] = field(default_factory=list)
    digest: bool = False
    toolkit_s: float = 0.0


class Proof:
    """What is done.

    Args:
        gateway: under test.
        model: behind it.
        http: a client of it.
        site: where documents are.

    Attributes:
        found: what came of it.
    """

    def __init__(
        self, gateway: GatewayProcess, model: Inference, http: aiohttp.ClientSession, site: str
    ) -> None:
        self.found = Findings()
        self._gateway = gateway
        self._model = model
        self._http = http
        self._site = site

    @asynccontextmanager
    async def example(self, endpoint: str, name: str) -> AsyncIterator[list[str]]:
        """Do one. What is put into the list is said with it."""
        self.found.endpoints.add(endpoint)
        self.found.examples += 1
        began, said = time.monotonic(), list[str]()
        try:
            async with asyncio.timeout(BOUND_S):
                yield said
        except (AssertionError, TimeoutError, aiohttp.ClientError, MCPError, ValueError) as error:
            self.found.failed.append(name)
            said.append(f"FAILED: {str(error)[:600] or error!r}")
        took = time.monotonic() - began
        say(f"  {endpoint:20} {name:58} {took:5.1f} s  {', '.join(said)}".rstrip())

    # GET /v1/mcp/servers

    async def servers(self) -> None:
        async with self.example("/v1/mcp/servers", "lists the servers as documented") as said:
            by_name = {each["process_type"]: each for each in await self._until_synced()}
            python = by_name["python"]
            assert python["server_status"] == "registered"
            assert python["primitives_status"] == "synced"
            (tool,) = python["tools"]
            assert tool["namespaced_name"] == "python/code_exec_python"
            assert {"code", "packages"} <= tool["input_schema"]["properties"].keys()
            assert set(by_name) >= {*WELL, *BROKEN}
            assert by_name["crashes"]["primitives_status"] in ("error", "syncing")
            tools = sum(len(each["tools"]) for each in by_name.values())
            said.append(f"{len(by_name)} servers, {tools} tools")
        async with self.example("/v1/mcp/servers", "tells the same ids again"):
            again = {each["process_type"]: each["id"] for each in await self._listed()}
            assert again == {name: each["id"] for name, each in by_name.items()}
        async with (
            self.example("/v1/mcp/servers", "lets nobody in without a key"),
            aiohttp.ClientSession() as stranger,
            stranger.get(f"{self._gateway.origin}/v1/mcp/servers") as response,
        ):
            assert response.status == 401

    async def _listed(self) -> list[Any]:
        async with self._http.get(f"{self._gateway.origin}/v1/mcp/servers") as response:
            assert response.status == 200, await response.text()
            listed = await response.json()
        assert isinstance(listed, list)
        return listed

    async def _until_synced(self) -> list[Any]:
        """Return the list once the servers that can be looked at have been."""
        while True:
            listed = await self._listed()
            synced = {e["process_type"] for e in listed if e["primitives_status"] == "synced"}
            if synced >= set(WELL):
                return listed
            await asyncio.sleep(0.1)

    # POST /v1/agents/heroku

    async def run(
        self, question: str, tools: Sequence[Any], *script: Line
    ) -> tuple[list[Any], list[str]]:
        """Run an agent; return its events, and what the model was told of its calls."""
        self._model.script.clear()
        self._model.script.extend(script)
        body = {
            "model": "claude-4-sonnet",
            "messages": [{"role": "user", "content": question}],
            "tools": list(tools),
        }
        headers = {"X-Forwarded-Proto": "https"}
        url = f"{self._gateway.origin}/v1/agents/heroku"
        async with self._http.post(url, json=body, headers=headers) as response:
            raw = await response.read()
            assert response.status == 200, raw
        assert response.content_type == "text/event-stream"
        told = self._model.asked[-1].results if self._model.asked else []
        return events_of(raw), told

    async def ask(self, question: str, tools: Sequence[Any], *script: Line) -> tuple[str, str]:
        """Run an agent to its answer; return that, and the last result that the model has seen."""
        events, told = await self.run(question, tools, *script)
        last = events[-1]
        assert last["object"] == "chat.completion", last
        assert last["choices"][0]["finish_reason"] == "stop", last
        return last["choices"][0]["message"]["content"], told[-1] if told else ""

    async def seeds(self) -> None:
        """The READMEs' requests, as they stand there."""
        where, tools = "/v1/agents/heroku", [{"type": "mcp", "name": "code_exec_python"}]
        async with self.example(where, "what is the input schema of the code exec tool?"):
            answer, _ = await self.ask(
                "What is the input schema to the code exec tool?", tools, inference.says(schema)
            )
            assert {"code", "packages"} <= json.loads(answer)["properties"].keys()
        async with self.example(where, "what is the sha256 of 'Purple Python'?") as said:
            code = f"import hashlib; print(hashlib.sha256({PHRASE!r}.encode()).hexdigest())"
            events, _ = await self.run(
                f"What is the sha256 of the string {PHRASE!r}?",
                tools,
                wants("code_exec_python", code=code),
                inference.says(lambda asked: f"It is {result_of(asked)['stdout']}."),
            )
            kinds = [event["object"] for event in events]
            assert kinds == ["chat.completion", "tool.completion", "chat.completion"], kinds
            content = events[1]["choices"][0]["message"]["content"]
            assert content.startswith("Tool 'python/code_exec_python' returned result: {")
            answer = events[-1]["choices"][0]["message"]["content"]
            self.found.digest = answer == f"It is {DIGEST}."
            assert self.found.digest, answer
            said.append(answer)
        heroku = [
            {"type": "heroku_tool", "name": name}
            for name in ("html_to_markdown", "pdf_to_markdown")
        ]
        for kind in ("pdf", "html"):
            async with self.example(where, f"tell me about this file ({kind})"):
                _, told = await self.ask(
                    f"Tell me about this file - {self._site}/{kind}",
                    heroku,
                    wants(f"{kind}_to_markdown", url=f"{self._site}/{kind}"),
                    inference.says("It is about dynos."),
                )
                assert SENTENCE in told, told

    async def tools(self) -> None:
        """Heroku's other tools."""
        where = "/v1/agents/heroku"
        async with self.example(where, "dyno_run_command with a parameter of the model's"):
            shown = {
                "cmd": 'printf "%s" "$greeting" | tr a-z A-Z',
                "description": "Shouts a greeting.",
                "parameters": {
                    "type": "object",
                    "properties": {"greeting": {"type": "string"}},
                    "required": ["greeting"],
                },
            }
            tool = {
                "type": "heroku_tool",
                "name": "dyno_run_command",
                "runtime_params": {"tool_params": shown},
            }
            _, told = await self.ask(
                "Shout!",
                [tool],
                wants("dyno_run_command", greeting="hi $(id); `id`"),
                inference.says("Done."),
            )
            assert "HI $(ID); `ID`" in told, told
        async with self.example(where, "several calls at once, of two servers"):
            both = [{"type": "mcp", "name": n} for n in ("code_exec_python", "html_to_markdown")]
            events, _ = await self.run(
                "Both, please.",
                both,
                wants_all(
                    ("code_exec_python", {"code": "print(6 * 7)"}),
                    ("code_exec_python", {"code": "print(6 * 8)"}),
                    ("html_to_markdown", {"url": f"{self._site}/html"}),
                ),
                inference.says("Done."),
            )
            contents = [
                e["choices"][0]["message"]["content"]
                for e in events
                if e["object"] == "tool.completion"
            ]
            assert len(contents) == 3, contents
            for each in ("42", "48", SENTENCE):
                assert any(each in content for content in contents), contents

    async def database(self) -> None:
        """A real PostgreSQL."""
        where = "/v1/agents/heroku"
        async with self.example(where, "postgres_get_schema"):
            _, told = await self.ask(
                "What is in there?",
                [{"type": "heroku_tool", "name": "postgres_get_schema"}],
                wants("postgres_get_schema"),
                inference.says("Dynos."),
            )
            assert "dynos" in told, told
            assert "size" in told, told
        async with self.example(where, "postgres_run_query, which may not write"):
            tool = [{"type": "heroku_tool", "name": "postgres_run_query"}]
            _, told = await self.ask(
                "How many?",
                tool,
                wants("postgres_run_query", query="SELECT count(*) AS many FROM dynos"),
                wants("postgres_run_query", query="DELETE FROM dynos"),
                inference.says("Three."),
            )
            assert 'isError": true' in told or told.startswith("Error"), told
            assert "to read" in told, told
            results = self._model.asked[-1].results
            assert '"rows"' in results[0].replace("\\", ""), results[0]

    async def contained(self) -> None:
        """Models and servers of models that do what they should not."""
        where, tools = "/v1/agents/heroku", [{"type": "mcp", "name": "code_exec_python"}]
        async with self.example(where, "a model that loops is stopped") as said:
            loop = wants("code_exec_python", code="print(1)")
            limited = [{**tools[0], "runtime_params": {"max_calls": 2}}]
            events, _ = await self.run("Go on.", limited, *[loop] * ROUNDS)
            assert "error" in events[-1], events[-1]
            done = [e for e in events if e.get("object") == "tool.completion"]
            real = [e for e in done if "stdout" in e["choices"][0]["message"]["content"]]
            assert len(real) == 2, f"{len(real)} real calls"
            said.append(f"{len(real)} calls, {len(self._model.script)} answers left unasked")
            assert self._model.script
        async with self.example(where, "a model mends an unknown tool and bad arguments"):
            answer, told = await self.ask(
                "Try.",
                tools,
                wants("no_such_tool"),
                wants_raw("code_exec_python", "{not json"),
                wants_raw("code_exec_python", '["a", "list"]'),
                wants("code_exec_python", code="print('mended')"),
                inference.says("It works."),
            )
            assert answer == "It works."
            assert "mended" in told, told
        for what, line in {
            "garbage": inference.sends(GARBAGE, Content_Type="text/event-stream"),
            "HTML": inference.sends("<html>Bad gateway</html>", Content_Type="text/html"),
            "a body without an end": inference.never_ends,
        }.items():
            async with self.example(where, f"a model that sends {what} ends its run") as said:
                status, raw = await self._failing(tools, line)
                said.append(f"status {status}")
                assert b'"error"' in raw, raw[:500]
                assert inference.KEY.encode() not in raw
        async with self.example(where, "the next run works"):
            answer, _ = await self.ask("Still there?", [], inference.says("Yes."))
            assert answer == "Yes."

    async def _failing(self, tools: Sequence[Any], line: Line) -> tuple[int, bytes]:
        self._model.script.clear()
        self._model.script.extend([line] * ROUNDS)
        body = {"model": "m", "messages": [{"role": "user", "content": "?"}], "tools": list(tools)}
        url = f"{self._gateway.origin}/v1/agents/heroku"
        async with self._http.post(url, json=body) as response:
            return response.status, await response.read()

    # Toolkits

    async def early(self) -> None:
        """Ask for the lists before anybody can know them."""
        async with (
            self.example("/toolkit/mcp", "answers lists as soon as the gateway serves"),
            self._toolkit("legacy") as client,
        ):
            await self._lists(client)

    async def toolkits(self) -> None:
        for mode, era in (("legacy", "a handshake"), ("2026-07-28", "2026-07-28")):
            async with self.example("/toolkit/mcp", f"all servers at one URL, by {era}") as said:
                async with self._toolkit(mode) as client:
                    tools = await self._lists(client)
                assert {"python/code_exec_python", "markdown/html_to_markdown"} <= tools, tools
                said.append(f"{len(tools)} tools")
                await self._use(mode)
        papers = "/toolkits/papers/mcp"
        async with (
            self.example(papers, "some of them, with names that every model takes") as said,
            connected(self._gateway, path=papers) as client,
        ):
            tools = await self._lists(client)
            assert tools == {"markdown__html_to_markdown", "markdown__pdf_to_markdown"}, tools
            said.extend(sorted(tools))
        async with self.example("/mcp/sse", "Heroku's own address of its toolkit"):
            url = f"{self._gateway.origin}/mcp/sse"
            async with Client(sse_client(url, headers=self._gateway.headers)) as client:
                await self._lists(client)
                result = await client.call_tool(
                    "python/code_exec_python", {"code": "print('by sse')"}
                )
                assert "by sse" in text_of(result)
                page = await client.call_tool(
                    "markdown/html_to_markdown", {"url": f"{self._site}/html"}
                )
                assert SENTENCE in text_of(page)

    async def _use(self, mode: str) -> None:
        """Call two members in one session, and find that no broken one is in the way."""
        async with self._toolkit(mode) as client:
            await client.list_tools()
            result = await client.call_tool("python/code_exec_python", {"code": "print(6 * 7)"})
            assert json.loads(text_of(result))["stdout"] == "42"
            page = await client.call_tool(
                "markdown/html_to_markdown", {"url": f"{self._site}/html"}
            )
            assert SENTENCE in text_of(page)
            try:
                await client.call_tool("nobody/has_this", {})
            except MCPError:
                return
        raise AssertionError("an unknown tool was called")

    def _toolkit(self, mode: str) -> Any:
        return connected(self._gateway, path="/toolkit/mcp", mode=mode)

    async def _lists(self, client: Client) -> set[str]:
        """Return the names of all tools, once every list was answered in time."""
        tools: set[str] = set()
        for ask in (client.list_tools, client.list_prompts, client.list_resources):
            began = time.monotonic()
            listed = await ask()
            took = time.monotonic() - began
            self.found.toolkit_s = max(self.found.toolkit_s, took)
            assert took < LIST_S, f"{took:.2f} s"
            tools |= {tool.name for tool in getattr(listed, "tools", ())}
        return tools


# What the scripted model does


def offered(asked: Asked, tool: str) -> str:
    """Return the name under which a tool is offered; itself if it is not."""
    names = [each["function"]["name"] for each in asked.body.get("tools", ())]
    return next((name for name in names if name.endswith(tool)), tool)


def wants_all(*wanted: tuple[str, Any]) -> Line:
    async def line(asked: Asked) -> web.StreamResponse:
        calls = [inference.call(offered(asked, name), given) for name, given in wanted]
        return await inference.calls(*calls)(asked)

    return line


def wants(tool: str, **arguments: Any) -> Line:
    return wants_all((tool, arguments))


def wants_raw(tool: str, arguments: str) -> Line:
    return wants_all((tool, arguments))


def schema(asked: Asked) -> str:
    return json.dumps(asked.body["tools"][0]["function"]["parameters"])


def result_of(asked: Asked) -> Any:
    """Return what the last call of code execution has come to."""
    told = asked.results[-1]
    start = told.index("{")
    document, _ = json.JSONDecoder().raw_decode(told[start:])
    return json.loads(document["content"][0]["text"]) if "content" in document else document


def events_of(raw: bytes) -> list[Any]:
    """Take a stream apart, of which every byte is as documented, or tells of a failure."""
    parts = [part for part in raw.split(b"\n\n") if part and not part.startswith(b":")]
    assert parts[-1] == TAIL, parts[-1][:200]
    assert all(part.startswith(HEADS) for part in parts[:-1]), raw[:500]
    return [json.loads(part.partition(b"\ndata:")[2]) for part in parts[:-1]]


# The stage


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def module(name: str, *arguments: str, **env: str) -> dict[str, Any]:
    args = ["-m", f"mcp_servers.{name}", *arguments]
    return {"command": sys.executable, "args": args, "env": env, "era": "legacy"}


def program(text: str) -> dict[str, Any]:
    return {"command": sys.executable, "args": ["-c", text]}


@asynccontextmanager
async def documents() -> AsyncIterator[str]:
    """Serve an HTML page and a PDF."""
    app = web.Application()
    pages = {
        "/html": (f"<html><body><h1>{SENTENCE}</h1></body></html>".encode(), "text/html"),
        "/pdf": (a_pdf(SENTENCE), "application/pdf"),
    }

    async def page(request: web.Request) -> web.Response:
        body, kind = pages[request.path]
        return web.Response(body=body, content_type=kind)

    for path in pages:
        app.router.add_get(path, page)
    async with TestServer(app, host=HERE) as server:
        yield str(server.make_url("")).rstrip("/")


@contextmanager
def a_database() -> Iterator[str | None]:
    """Start a PostgreSQL with a table; None if there need not be one."""
    if unwanted():
        yield None
        return
    with PostgresServer() as server:
        server.run(
            "CREATE TABLE dynos (name text PRIMARY KEY, size text NOT NULL)",
            "INSERT INTO dynos VALUES ('run.1', 'basic'), ('run.2', 'basic'), ('web.1', 'eco')",
        )
        yield server.url()


async def prove(folder: Path) -> Findings:
    """Do all of it, in an empty folder."""
    async with AsyncExitStack() as stack:
        database = stack.enter_context(a_database())
        site = await stack.enter_async_context(documents())
        model = await stack.enter_async_context(inference.playing())
        servers: dict[str, dict[str, Any]] = {
            "python": module("code_exec"),
            "markdown": module("markdown", MARKDOWN_ALLOW_PRIVATE=HERE),
            "shell": module("dyno_run_command"),
            "crashes": program("raise SystemExit('no good')"),
            "hangs": program("import sys; sys.stdin.read()"),
        }
        if database is not None:
            servers["postgres"] = module("postgres", DATABASE_URL=database)
        settings = {"INFERENCE_URL": model.url, "INFERENCE_KEY": inference.KEY}
        toolkits = {"papers": {"servers": ["markdown"], "separator": "__"}}
        gateway = await stack.enter_async_context(
            GatewayProcess(folder, servers, settings, toolkits=toolkits)
        )
        http = await stack.enter_async_context(aiohttp.ClientSession(headers=gateway.headers))
        proof = Proof(gateway, model, http, site)
        await proof.early()
        await proof.servers()
        await proof.toolkits()
        await proof.seeds()
        await proof.tools()
        if database is not None:
            await proof.database()
        await proof.contained()
    return proof.found


def main() -> int:
    """Prove it, and say so in the last line."""
    argparse.ArgumentParser(prog="python -m tests.proof.api", description=__doc__).parse_args()
    with tempfile.TemporaryDirectory(prefix="proof-api-") as folder:
        found = asyncio.run(prove(Path(folder)))
    for name in found.failed:
        say(f"  failed: {name}")
    say(
        f"proof-api: endpoints={len(found.endpoints)} examples={found.examples} "
        f"failed={len(found.failed)} agent_digest={'ok' if found.digest else 'wrong'} "
        f"toolkit_ms={found.toolkit_s * 1000:.0f}"
    )
    return 1 if found.failed or not found.digest else 0


if __name__ == "__main__":
    raise SystemExit(main())
