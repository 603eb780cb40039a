"""The agent with a face between the link and a real child: the handshake, asks, ends.

What a face makes of single messages is in `test_modern_face.py` and `test_legacy_face.py`; here is
what can only go wrong with pipes and processes.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from dyno_agent.link import Channel, ChildSpec
from tests.unit.dyno_agent.test_agent import BEATING, LIMITS, STUBBORN, Gateway, joined, python

if TYPE_CHECKING:
    from pathlib import Path

    from dyno_agent.link import Face

ASKS = 10_000
"""They and their answers, 1.5 MB each, are more than all pipes and buffers on the way hold."""

MEANT = {"legacy": "server/discover", "modern": "initialize"}
"""What a child hears first, by the face that stands before it."""

CHILD = """
import json, os, select, sys, time
FACE, HERE = sys.argv[1], sys.argv[2]
OPENINGS = {
    "modern": {"protocolVersion": "2025-11-25", "capabilities": {},
               "serverInfo": {"name": "c", "version": "1"}},
    "legacy": {"resultType": "complete", "supportedVersions": ["2026-07-28"], "capabilities": {}},
}
heard = []
def say(**message):
    data = json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\\n"
    while data:
        data = data[os.write(1, data):]
unread = b""
def next_line():
    global unread
    while b"\\n" not in unread:
        chunk = os.read(0, 65536)
        if not chunk:
            sys.exit(0)
        unread += chunk
    line, _, unread = unread.partition(b"\\n")
    return json.loads(line)
def greet():
    first = next_line()
    heard.append(first["method"])
    return first["id"]
def welcome(request):
    say(id=request, result=OPENINGS[FACE])
def next_call():
    while True:
        message = next_line()
        heard.append(message.get("method", "answer"))
        if "method" in message and "id" in message:
            return message
def answer(request, **facts):
    say(id=request["id"], result={"resultType": "complete", "content": [], **facts})
"""

SLOW_TO_GREET = """
request = greet()
say(method="notifications/waiting", params={})
while not os.path.exists(HERE + "/go"):
    time.sleep(0.01)
early = bool(unread) or bool(select.select([0], [], [], 0)[0])
welcome(request)
while True:
    answer(next_call(), structuredContent={"heard": heard, "early": early})
"""

ASKING = """
welcome(greet())
call = next_call()
for number in range(int(sys.argv[3])):
    say(id="ask %d " % number + "x" * 100, method="ping" if FACE == "modern" else "roots/list")
say(method="notifications/asked", params={})
answers = []
while len(answers) < int(sys.argv[3]):
    message = next_line()
    if "method" not in message:
        answers.append(message)
order = [int(each["id"].split()[1]) for each in answers]
answer(call, structuredContent={"in order": order == list(range(len(order)))})
next_call()
"""

SILENT = f"""
{STUBBORN}
greet()
say(method="notifications/waiting", params={{}})
while True:
    time.sleep(1)
"""

LEAVES = """
greet()
say(method="notifications/waiting", params={})
while not os.path.exists(HERE + "/go"):
    time.sleep(0.01)
sys.exit(7)
"""

faces = pytest.mark.parametrize("face", ["modern", "legacy"])


@pytest.fixture(autouse=True)
def unhardened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the process of the tests as it is."""
    monkeypatch.setattr("dyno_agent.agent.harden", lambda: None)


def wearing(face: Face, code: str, here: Path, *more: str) -> ChildSpec:
    return replace(python(CHILD + code, face, str(here), *more), face=face)


def requests(face: Face) -> list[bytes]:
    """What a gateway of the face's era says: whatever opens it, and two calls."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    own = {"_meta": meta} if face == "modern" else {}
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}}
    hello["clientInfo"] = {"name": "g", "version": "1"}
    opening: list[dict[str, Any]] = [
        {"id": 0, "method": "initialize", "params": hello},
        {"method": "notifications/initialized"},
    ]
    calls: list[dict[str, Any]] = [
        {"id": n, "method": "tools/call", "params": {"name": "t", "arguments": {}, **own}}
        for n in (1, 2)
    ]
    said = calls if face == "modern" else [*opening, *calls]
    return [json.dumps({"jsonrpc": "2.0", **each}).encode() for each in said]


async def ask(gateway: Gateway) -> None:
    """Say everything at once."""
    await gateway.until_spawned()
    assert gateway.child is not None
    for line in requests(gateway.child.face):
        await gateway.send(Channel.RPC, line)


def told(gateway: Gateway, method: str) -> bool:
    return any(json.loads(line).get("method") == method for line in gateway.rpc())


def answers(gateway: Gateway) -> dict[int, Any]:
    """Results by id of the request."""
    found = [json.loads(line) for line in gateway.rpc()]
    return {each["id"]: each.get("result") for each in found if "method" not in each}


@faces
async def test_child_hears_nothing_of_calls_before_it_has_answered_its_handshake(
    face: Face, tmp_path: Path
) -> None:
    gateway = Gateway(wearing(face, SLOW_TO_GREET, tmp_path), BEATING)
    async with joined(gateway) as running:
        await ask(gateway)
        await gateway.until(lambda: told(gateway, "notifications/waiting"))
        await gateway.until(lambda: gateway.beats_in_a_row > 2)
        (tmp_path / "go").touch()
        await gateway.until(lambda: {1, 2} <= answers(gateway).keys())
        assert await running.stop() == 0
    seen = [answers(gateway)[n]["structuredContent"] for n in (1, 2)]
    opening = [MEANT[face]] + ["notifications/initialized"] * (face == "modern")
    assert seen[0] == {"heard": [*opening, "tools/call"], "early": False}
    assert seen[1] == {"heard": [*opening, "tools/call", "tools/call"], "early": False}


@faces
async def test_messages_that_a_face_holds_are_not_acknowledged(face: Face, tmp_path: Path) -> None:
    gateway = Gateway(wearing(face, SLOW_TO_GREET, tmp_path), BEATING)
    async with joined(gateway) as running:
        await ask(gateway)
        await gateway.until(lambda: told(gateway, "notifications/waiting"))
        await gateway.until(lambda: gateway.beats_in_a_row > 2)
        assert gateway.endpoint.taken(Channel.RPC) == 1
        (tmp_path / "go").touch()
        await gateway.until(lambda: gateway.endpoint.taken(Channel.RPC) == len(requests(face)))
        assert await running.stop() == 0


@faces
async def test_messages_held_during_a_redial_reach_the_child_once(
    face: Face, tmp_path: Path
) -> None:
    gateway = Gateway(wearing(face, SLOW_TO_GREET, tmp_path))
    async with joined(gateway) as running:
        await ask(gateway)
        await gateway.until(lambda: told(gateway, "notifications/waiting"))
        await gateway.cut_and_taken_back()
        (tmp_path / "go").touch()
        await gateway.until(lambda: {1, 2} <= answers(gateway).keys())
        assert await running.stop() == 0
    assert answers(gateway)[2]["structuredContent"]["heard"].count("tools/call") == 2


@faces
async def test_child_that_asks_without_reading_its_answers_does_not_stop_the_agent(
    face: Face, tmp_path: Path
) -> None:
    gateway = Gateway(wearing(face, ASKING, tmp_path, str(ASKS)))
    async with joined(gateway) as running:
        await ask(gateway)
        await gateway.until(lambda: told(gateway, "notifications/asked"))
        await gateway.until(lambda: 1 in answers(gateway))
        await running.stop()
    assert answers(gateway)[1]["structuredContent"] == {"in order": True}


@faces
async def test_child_that_never_answers_its_handshake_is_killed(face: Face, tmp_path: Path) -> None:
    gateway = Gateway(wearing(face, SILENT, tmp_path))
    gateway.grace_s = 0.1
    async with joined(gateway) as running:
        await ask(gateway)
        await gateway.until(lambda: told(gateway, "notifications/waiting"))
        await gateway.tell(do="stop")
        assert await running.status() == 137
    exited = gateway.event("exited")
    assert (exited["why"], exited["signal"], exited["asked"]) == ("stop", "SIGKILL", True)


@faces
async def test_child_that_leaves_in_its_handshake_is_reported_with_its_code(
    face: Face, tmp_path: Path
) -> None:
    gateway = Gateway(wearing(face, LEAVES, tmp_path), LIMITS)
    async with joined(gateway) as running:
        await ask(gateway)
        await gateway.until(lambda: told(gateway, "notifications/waiting"))
        (tmp_path / "go").touch()
        assert await running.status() == 7
    exited = gateway.event("exited")
    assert (exited["why"], exited["code"], exited["asked"]) == ("exit", 7, False)
    assert answers(gateway) == {}
