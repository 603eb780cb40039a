"""The same scripted conversation, directly and through the gateway, gives the same frames.

In the eras that a server speaks itself nothing may be added, lost, or written in another way: with
a handshake every line is the child's own; in 2026-07-28 all but the ids and what is sealed. In
translation the content is the same.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import pytest_asyncio

from tests.system.conftest import GatewayProcess, watched
from tests.system.transcript import (
    MIRROR_COMMAND,
    MODERN,
    SEALED,
    Ask,
    Recording,
    Script,
    direct,
    members,
    pairs,
    through,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [
    pytest.mark.timeout(300),  # the first test may have to wait for `npm install`
    pytest.mark.xdist_group("transcript"),  # one gateway and one set of recordings serve them all
]

SDK_FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "conformance_server.py"

HANDSHAKES = ("2025-06-18", "2025-11-25")

AT_ONCE = 3
"""Conversations at the same time: a child of each boots for a second."""

ABLE: dict[str, Any] = {"elicitation": {}, "sampling": {}}

ANSWERS = {
    "elicitation/create": {
        "action": "accept",
        "content": {"name": "Ada Ł", "username": "ada", "email": "a@example.org", "integer": 7}
        | {"colour": "blue", "color": "red", "ok": True},
    },
    "sampling/createMessage": {
        "role": "assistant",
        "model": "m",
        "content": {"type": "text", "text": "Päris\u2028 \U0001f600"},
    },
    "roots/list": {"roots": [{"uri": "file:///tmp", "name": "r"}]},
}


def call(tool: str, arguments: str = "{}", **more: Any) -> Ask:
    return Ask("tools/call", f'{{"name":"{tool}","arguments":{arguments}}}', **more)


LISTS = [Ask(f"{kind}/list") for kind in ("tools", "prompts", "resources", "resources/templates")]

ODD = (
    '{"z":1,"a":{"big":123456789012345678901234567890,"neg":-0.0,"exp":1E+2,"tiny":5e-324},'
    '"text":"\\u00e9\\/é\\u0000\u2028\U0001f600\\"\\\\","spaced" :  [ 1 ,\t2,{ } ] ,"z":2,'
    '"pair":"\\ud83d\\ude00","":null,"long":1.000000000000000000001}'
)
"""Arguments whose every byte says something to somebody."""

HUGE = '{"huge":1e999,"more":[-1e-999,1e400]}'
"""What a double cannot hold."""


def everything(revision: str) -> Script:
    """All that the TypeScript reference server has, for a client that can be asked."""
    return Script(
        revision,
        [
            call("echo", json.dumps({"message": 'ünïcode \U0001f600 \\ "q" \u2028 \n\t end'})),
            Ask("logging/setLevel", '{"level":"debug"}'),
            *LISTS,
            call("echo", '{ "message" : 12345678901234567890 }'),
            call("get-structured-content", '{"location":"Chicago"}'),
            call("get-tiny-image"),
            call("get-annotated-message", '{"messageType":"error","includeImage":true}'),
            call("get-resource-links", '{"count":2}'),
            call("get-sum", '{"a":1.5e1,"b":2}'),
            call("nope"),
            Ask("tools/call", '{"nome":"echo"}'),
            Ask("no/such/method"),
            call("trigger-long-running-operation", '{"duration":0.2,"steps":4}', token="t \u00e9"),
            call("trigger-long-running-operation", '{"duration":0.2,"steps":2}', token=0),
            call("trigger-elicitation-request"),
            call("trigger-sampling-request", '{"prompt":"what?","maxTokens":10}'),
            Ask("resources/read", '{"uri":"demo://resource/static/document/structure.md"}'),
            Ask("resources/read", '{"uri":"demo://no/such"}'),
            Ask("prompts/get", '{"name":"args-prompt","arguments":{"city":"Łódź"}}'),
            Ask("prompts/get", '{"name":"no such"}'),
            Ask(
                "completion/complete",
                '{"ref":{"type":"ref/prompt","name":"completable-prompt"},'
                '"argument":{"name":"department","value":"S"}}',
            ),
            Ask("resources/subscribe", '{"uri":"demo://resource/dynamic/text/1"}'),
            call("toggle-subscriber-updates"),
            call("toggle-subscriber-updates"),
            Ask("resources/unsubscribe", '{"uri":"demo://resource/dynamic/text/1"}'),
            Ask("ping"),
        ],
        ABLE,
        ANSWERS,
    )


PLAIN_CALLS = [
    call("test_simple_text"),
    call("test_image_content"),
    call("test_audio_content"),
    call("test_embedded_resource"),
    call("test_multiple_content_types"),
    call("test_error_handling"),
    Ask("resources/read", '{"uri":"test://static-text"}'),
    Ask("resources/read", '{"uri":"test://static-binary"}'),
    Ask("resources/read", '{"uri":"test://template/1%202/data"}'),
    Ask("prompts/get", '{"name":"test_simple_prompt"}'),
    Ask("prompts/get", '{"name":"test_prompt_with_arguments","arguments":{"arg1":"é","arg2":""}}'),
    Ask("prompts/get", '{"name":"test_prompt_with_image"}'),
]


def sdk(revision: str) -> Script:
    """The Python SDK's server, in either era."""
    modern = revision == MODERN
    level = {"io.modelcontextprotocol/logLevel": "info"} if modern else {}
    asking = [
        call(f"test_input_required_result_{name}")
        for name in ("elicitation", "sampling", "request_state", "multiple_inputs", "multi_round")
    ]
    asking += [call("test_streaming_elicitation", token="s")]
    asked = [
        call("test_elicitation", '{"message":"Who \\u00e9?"}'),
        call("test_sampling", '{"prompt":"say"}'),
    ]
    removed = [Ask("ping"), Ask("logging/setLevel", '{"level":"debug"}')]
    region = call("test_custom_header", '{"region":"Łódź \\u0041"}')
    return Script(
        revision,
        [
            *LISTS,
            *PLAIN_CALLS,
            *([] if modern else [*removed, region]),
            call("test_tool_with_progress", token=7),
            call("test_tool_with_logging", parts=level),
            call("nope"),
            call("test_sampling", '{"prompt":7}'),
            Ask("tools/call", '{"name":"test_simple_text","arguments":[]}'),
            Ask("resources/read", '{"uri":"test://nope"}'),
            Ask("no/such/method"),
            Ask(
                "completion/complete",
                '{"ref":{"type":"ref/prompt","name":"test_prompt_with_arguments"},'
                '"argument":{"name":"arg1","value":"par"}}',
            ),
            *(asking if modern else asked),
        ],
        {**ABLE, "roots": {}},
        ANSWERS,
    )


def mirror(revision: str) -> Script:
    """A server that says what no SDK would."""
    modern = revision == MODERN
    watched_uri = '"mirror://w\\u00e9"'
    wanted = f'{{"notifications":{{"resourceSubscriptions":[{watched_uri}]}}}}'
    watch = (
        [Ask("subscriptions/listen", wanted, until=1, during=call("touch"))]
        if modern
        else [Ask("resources/subscribe", f'{{"uri":{watched_uri}}}'), call("touch")]
    )
    return Script(
        revision,
        [
            Ask("tools/list"),
            Ask("resources/templates/list"),
            call("echo", ODD),
            call("echo", HUGE),
            call("unknown"),
            Ask("no/such"),
            Ask("resources/list", follow=True),
            *watch,
            call("hold", token="h\u00e9", until=1),
            call("cancelled"),
        ],
        ABLE,
    )


SCRIPTS = {"everything": everything, "sdk": sdk, "mirror": mirror}

DIRECT = [
    *(("everything", revision) for revision in HANDSHAKES),
    *(("sdk", revision) for revision in (HANDSHAKES[1], MODERN)),  # three seconds a revision
    *(("mirror", revision) for revision in (*HANDSHAKES, MODERN)),
]

TRANSLATED = [("everything", MODERN), ("sdk_as_legacy", MODERN), ("sdk_as_modern", HANDSHAKES[1])]


class Studio:
    """All recordings of the module, made once and at the same time."""

    def __init__(self) -> None:
        self.direct: dict[tuple[str, str], Recording] = {}
        self.through: dict[tuple[str, str, bool], Recording] = {}
        self.translated: dict[tuple[str, str], Recording] = {}
        self._seats = asyncio.Semaphore(AT_ONCE)

    async def record(
        self, http: aiohttp.ClientSession, gateway: GatewayProcess, servers: dict[str, Any]
    ) -> None:
        async with asyncio.TaskGroup() as tasks:
            for name, revision in DIRECT:
                tasks.create_task(self._pair(http, gateway, servers, name, revision))
            for name, revision in TRANSLATED:
                tasks.create_task(self._translate(http, gateway.url(name), name, revision))

    async def _pair(
        self,
        http: aiohttp.ClientSession,
        gateway: GatewayProcess,
        servers: dict[str, Any],
        name: str,
        revision: str,
    ) -> None:
        script, server = SCRIPTS[name](revision), servers[name]
        async with self._seats:
            heard = await direct((server["command"], *server["args"]), script)
        self.direct[name, revision] = heard
        for catalogue in (True, False):
            url = gateway.url(name if catalogue else f"{name}_uncatalogued")
            async with self._seats:
                again = await through(http, url, script, len(heard.loose))
            self.through[name, revision, catalogue] = again

    async def _translate(
        self, http: aiohttp.ClientSession, url: str, name: str, revision: str
    ) -> None:
        async with self._seats:
            self.translated[name, revision] = await through(http, url, plain(name, revision))


def plain(name: str, revision: str) -> Script:
    """What both eras have in common, and what comes out of it is its content alone."""
    steps = everything(revision).steps if name == "everything" else PLAIN_CALLS
    return Script(revision, [step for step in steps if is_plain(step)])


def is_plain(step: object) -> bool:
    methods = ("tools/call", "resources/read", "prompts/get")
    return (
        isinstance(step, Ask)
        and step.method in methods
        and not any(word in step.params for word in ("trigger", "toggle", "nome", "no such"))
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def studio(
    tmp_path_factory: pytest.TempPathFactory,
    running: list[GatewayProcess],
    reference_server: dict[str, Any],
) -> AsyncIterator[Studio]:
    """All conversations: with each server alone, and with it behind one gateway."""
    sdk_server = {"command": sys.executable, "args": [str(SDK_FIXTURE)]}
    servers = {
        "everything": reference_server,
        "sdk": sdk_server,
        "mirror": {"command": MIRROR_COMMAND[0], "args": list(MIRROR_COMMAND[1:])},
    }
    eras = {"everything": "legacy", "sdk": "dual", "mirror": "dual"}
    behind = {name: {**server, "era": eras[name]} for name, server in servers.items()}
    behind |= {
        f"{name}_uncatalogued": {**server, "catalogue": False} for name, server in behind.items()
    }
    for era in ("legacy", "modern"):
        behind[f"sdk_as_{era}"] = {**sdk_server, "era": era, "catalogue": False}
    gateway = GatewayProcess(tmp_path_factory.mktemp("transcript"), behind)
    headers = {**gateway.headers, "Accept": "application/json, text/event-stream"}
    async with (
        watched(gateway, running),
        aiohttp.ClientSession(headers=headers, read_bufsize=2**22) as http,
    ):
        studio = Studio()
        await studio.record(http, gateway, servers)
        yield studio


def words_hidden(document: Any) -> Any:
    """Hide what the gateway seals, wherever it stands; what is decoded by `pairs`."""
    if isinstance(document, tuple):
        return tuple(
            (key, "sealed" if key in SEALED else words_hidden(value)) for key, value in document
        )
    return [words_hidden(value) for value in document] if isinstance(document, list) else document


def comparable(frame: bytes) -> dict[str, Any]:
    """What of a frame has to be the same: a result's bytes, if nothing in them is sealed."""
    found: dict[str, Any] = dict(members(frame))
    if b"requestState" in frame or b"nextCursor" in frame:
        found["result"] = words_hidden(pairs(found["result"]))
    if "id" in found:
        found["id"] = json.loads(found["id"])  # é has two spellings
    if "params" in found:
        found["params"] = pairs(found["params"])
    return found


def results(turn: list[bytes]) -> list[bytes | None]:
    return [members(frame).get("result") for frame in turn]


def items(turn: list[bytes]) -> list[bytes]:
    """The items of a list on however many pages."""
    pages = [members(members(frame)["result"])["resources"] for frame in turn]
    return b",".join(page[1:-1] for page in pages if page != b"[]").split(b",{")


def same(heard: Recording, again: Recording, script: Script) -> None:
    """Compare two recordings of 2026-07-28, turn by turn."""
    steps = [step for step in (*script.opening(), *script.steps) if isinstance(step, Ask)]
    during = [each for step in steps for each in (step.during, step) if each is not None]
    assert len(heard.turns) == len(again.turns) == len(during)
    for step, ours, theirs in zip(during, heard.turns, again.turns, strict=True):
        if step.follow and len(ours) != len(theirs):
            assert items(ours) == items(theirs)
            continue
        assert [comparable(frame) for frame in theirs] == [comparable(frame) for frame in ours]


handshake = pytest.mark.parametrize(
    ("name", "revision"), [each for each in DIRECT if each[1] != MODERN]
)
modern = pytest.mark.parametrize("name", ["sdk", "mirror"])


@handshake
async def test_every_line_of_a_handshake_child_arrives_byte_for_byte(
    studio: Studio, name: str, revision: str
) -> None:
    heard, again = studio.direct[name, revision], studio.through[name, revision, False]
    assert again.turns == heard.turns


@handshake
async def test_catalogue_changes_no_byte_of_any_result(
    studio: Studio, name: str, revision: str
) -> None:
    heard, again = studio.direct[name, revision], studio.through[name, revision, True]
    taken = [[comparable(frame) for frame in turn] for turn in again.turns]
    assert taken == [[comparable(frame) for frame in turn] for turn in heard.turns]
    assert [results(turn) for turn in again.turns] == [results(turn) for turn in heard.turns]


@handshake
async def test_every_line_of_a_call_is_the_childs_own_behind_a_catalogue(
    studio: Studio, name: str, revision: str
) -> None:
    heard, again = studio.direct[name, revision], studio.through[name, revision, True]
    asked = [step for step in SCRIPTS[name](revision).steps if isinstance(step, Ask)]
    begun = 1 + next(n for n, step in enumerate(asked) if step.method == "tools/call")
    assert again.turns[begun:] == heard.turns[begun:]


@handshake
@pytest.mark.parametrize("catalogue", [True, False])
async def test_notifications_of_no_request_arrive_all_and_once(
    studio: Studio, name: str, revision: str, *, catalogue: bool
) -> None:
    heard, again = studio.direct[name, revision], studio.through[name, revision, catalogue]
    assert sorted(again.loose) == sorted(heard.loose)


@modern
@pytest.mark.parametrize("catalogue", [True, False])
async def test_frames_of_a_modern_child_differ_in_what_is_sealed_alone(
    studio: Studio, name: str, *, catalogue: bool
) -> None:
    script = SCRIPTS[name](MODERN)
    same(studio.direct[name, MODERN], studio.through[name, MODERN, catalogue], script)


@modern
async def test_modern_opening_and_lists_out_of_the_catalogue_are_the_childs_bytes(
    studio: Studio, name: str
) -> None:
    heard, again = studio.direct[name, MODERN], studio.through[name, MODERN, True]
    assert [results(turn) for turn in again.turns[:3]] == [
        results(turn) for turn in heard.turns[:3]
    ]


@pytest.mark.parametrize("catalogue", [True, False])
async def test_updates_of_a_modern_subscription_are_the_childs_own(
    studio: Studio, *, catalogue: bool
) -> None:
    (ours,) = studio.direct["mirror", MODERN].loose
    (theirs,) = studio.through["mirror", MODERN, catalogue].loose
    assert comparable(theirs) == comparable(ours)


@pytest.mark.parametrize(("name", "revision"), TRANSLATED)
async def test_translation_gives_the_content_that_the_child_gives_itself(
    studio: Studio, name: str, revision: str
) -> None:
    own = "everything" if name == "everything" else "sdk"
    spoken = MODERN if name == "sdk_as_modern" else HANDSHAKES[1]
    script = SCRIPTS[own](spoken)
    asked = [step for step in (*script.opening(), *script.steps) if isinstance(step, Ask)]
    heard = zip(asked, studio.direct[own, spoken].turns, strict=True)
    plain_steps = plain(name, revision).steps
    expected = [content(frames) for step, frames in heard if step in plain_steps]
    assert len(expected) == len(plain_steps) >= 10
    assert [content(frames) for frames in studio.translated[name, revision].turns[1:]] == expected


def content(frames: list[bytes]) -> Any:
    """What a person or a model gets to see of an answer."""
    answer = json.loads(frames[-1])
    if "error" in answer:
        return answer["error"]["message"]
    shown = ("content", "structuredContent", "contents", "messages", "isError")
    result = {key: answer["result"].get(key) for key in shown}
    return {**result, "isError": bool(result["isError"])}
