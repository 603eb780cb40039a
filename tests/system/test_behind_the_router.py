"""The gateway behind an emulator of Heroku's router, as it is deployed: clients and agents alike.

Real processes and unmodified clients; the router (tests/fakes/router) is the platform's, with its
own numbers unless a test shortens them, and says what it had to cut. Silences of minutes are in
tests/proof/router_scenarios.py.
"""

from __future__ import annotations

import asyncio
import io
import signal
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from tests.fakes.router import Limits, Router
from tests.proof.router_scenarios import call, idle_link, idle_stream, sdk_client, silent_call
from tests.system.conftest import PLAIN as AT_ONCE
from tests.system.conftest import GatewayProcess
from tests.system.talking import (
    BOUND,
    PLAIN,
    PUPPET,
    RESUMES,
    Stream,
    Talk,
    http_for,
    open_session,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    import aiohttp

    MakeGateway = Callable[..., GatewayProcess]

pytestmark = pytest.mark.timeout(120)

MODES = ["legacy", "auto", "2026-07-28"]

CLIENT_S = 60.0
"""For all that a client says, boots on a busy machine included."""

FIRST_BYTE_S = 2.0
"""A router that is less patient than the slow call takes."""

SLOW_S = 3.0

DOWN = {"H19", "H21", "H99"}
"""What the router says while there is nobody to connect to."""


@dataclass(frozen=True)
class House:
    """A gateway and the router that everybody comes through."""

    router: Router
    gateway: GatewayProcess

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.gateway.port

    def links(self) -> int:
        """How many connections of agents have ended."""
        return sum(record.upgraded for record in self.router.records)


@asynccontextmanager
async def behind_the_router(
    make_gateway: MakeGateway, servers: Mapping[str, Any]
) -> AsyncIterator[House]:
    """A running gateway; its `url` is the router's, where its agents dial, too."""
    async with Router() as router:
        gateway = make_gateway(servers, {"GATEWAY_URL": router.url}, defaults=AT_ONCE)
        house = House(router, gateway)
        own = gateway.origin
        async with gateway:
            router.backends.append(house.address)
            gateway.origin = router.url
            yield house
            gateway.origin = own


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(
    tmp_path_factory: pytest.TempPathFactory,
    running: list[GatewayProcess],
    fixture_server: dict[str, Any],
) -> AsyncIterator[House]:
    """The gateway of all unmodified clients; their server speaks both eras."""
    folder = tmp_path_factory.mktemp("behind")

    def make(*args: Any, **more: Any) -> GatewayProcess:
        return GatewayProcess(folder, *args, **more)

    servers = {"everything": {**fixture_server, "era": "dual"}}
    async with behind_the_router(make, servers) as house:
        running.append(house.gateway)
        yield house
        running.remove(house.gateway)


async def restart(house: House) -> None:
    """Start the next process; its health is asked for directly, so that no code is ours."""
    gateway = house.gateway
    gateway.origin = f"http://127.0.0.1:{gateway.port}"
    await gateway.restart()
    gateway.origin = house.router.url


@asynccontextmanager
async def talking(house: House, revision: str = RESUMES) -> AsyncIterator[Talk]:
    async with http_for(house.gateway) as http:
        yield await open_session(http, house.gateway, revision)


# -- while all is well -----------------------------------------------------------------------------


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("mode", MODES)
async def test_client_lists_and_calls_tools_through_the_router(house: House, mode: str) -> None:
    url, key = house.router.url, house.gateway.key
    async with sdk_client(url, key, "everything", mode=mode, bound_s=CLIENT_S) as client:
        assert "add" in {tool.name for tool in (await client.list_tools()).tools}
        assert await call(client, "add", a=2, b=40) == "42"
        text = "grüße, 世界 " * 30_000
        assert await call(client, "echo", text=text) == text
    assert not house.router.codes


async def test_agent_dials_through_the_router_and_hangs_up_without_a_code(
    make_gateway: MakeGateway,
) -> None:
    async with behind_the_router(make_gateway, {"puppet": PUPPET}) as house:
        async with talking(house) as talk:
            await talk.state(1)
            async with asyncio.timeout(BOUND):
                await house.router.until(lambda: house.router.active == 1)
            assert house.links() == 0
            async with talk.http.delete(house.gateway.url(), headers=talk.headers) as ended:
                assert ended.status == 204
        async with asyncio.timeout(BOUND):
            await house.router.until(lambda: house.links() == 1)
        assert not house.router.codes


async def test_get_stream_is_held_across_a_call_and_hears_what_follows_it(
    make_gateway: MakeGateway,
) -> None:
    async with (
        behind_the_router(make_gateway, {"puppet": PUPPET}) as house,
        talking(house) as talk,
        talk.listening() as stream,
    ):
        await talk.call(1, "announce", count=2)
        heard = [event.message["params"]["number"] for event in await stream.take(2)]
        assert heard == [1, 2]
        assert not house.router.codes


async def test_many_requests_at_once_share_the_connections_of_the_router(
    make_gateway: MakeGateway,
) -> None:
    async with (
        behind_the_router(make_gateway, {"puppet": PUPPET}) as house,
        talking(house) as talk,
    ):
        for turn in range(3):
            async with asyncio.TaskGroup() as asking:
                for number in range(20):
                    asking.create_task(talk.call(100 * turn + number, "state"))
        assert not house.router.codes
        assert house.router.opened < 60


# -- slow calls ------------------------------------------------------------------------------------


async def answered_in_time(house: House, talk: Talk, revision: str) -> int:
    """Hold a call for SLOW_S behind an impatient router; return the status it came with."""
    async with Router([house.address], Limits(first_byte_s=FIRST_BYTE_S)) as impatient:
        house.gateway.origin = impatient.url
        async with asyncio.TaskGroup() as group:

            async def release() -> None:
                await talk.until_held(1)
                await asyncio.sleep(SLOW_S)  # what is tested is that this silence is too long
                await talk.call(2, "release")

            group.create_task(release())
            async with talk.calling(1, "hold") as response:
                status: int = response.status
                if status == 200:
                    (answer,) = await Stream(response).rest()
                    assert answer["result"] == {"released": 1}
        assert dict(impatient.codes) == ({} if status == 200 else {"H12": 1})
        return status


async def test_call_that_outlasts_the_routers_patience_is_a_stream_before_that(
    make_gateway: MakeGateway,
) -> None:
    async with (
        behind_the_router(make_gateway, {"puppet": PUPPET}) as house,
        talking(house, RESUMES) as talk,
    ):
        assert await answered_in_time(house, talk, RESUMES) == 200


async def test_router_that_is_less_patient_than_the_gateway_knows_cuts_the_call(
    make_gateway: MakeGateway,
) -> None:
    """The counterpart: an older revision has its answer plain for 20 s, so 2 s cannot do."""
    async with (
        behind_the_router(make_gateway, {"puppet": PUPPET}) as house,
        talking(house, PLAIN) as talk,
    ):
        assert await answered_in_time(house, talk, PLAIN) == 503


async def test_call_goes_on_in_the_dyno_when_its_client_hangs_up(
    make_gateway: MakeGateway,
) -> None:
    async with (
        behind_the_router(make_gateway, {"puppet": PUPPET}) as house,
        talking(house, PLAIN) as talk,
    ):
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(talk.call(1, "hold"))
            await talk.until_held(1)
            waiting.cancel()
        async with asyncio.timeout(BOUND):
            await house.router.until(lambda: bool(house.router.codes))
        assert house.router.codes == {"H27": 1}
        assert (await talk.call(2, "release"))["result"] == {"released": [1]}


# -- requests that are refused ---------------------------------------------------------------------


async def test_refusal_of_a_body_that_is_still_being_sent_reaches_the_client(
    make_gateway: MakeGateway,
) -> None:
    async with (
        behind_the_router(make_gateway, {"puppet": PUPPET}) as house,
        http_for(house.gateway) as http,
    ):
        wrong = {"Authorization": "Bearer wrong", "Content-Type": "application/json"}
        body = io.BytesIO(b"x" * (20 * 1024 * 1024))
        async with http.post(house.gateway.url(), data=body, headers=wrong) as response:
            assert response.status == 401
            assert (await response.json())["error"]["data"]["reason"] == "bad_key"
        assert not house.router.codes


# -- a restart behind the router -------------------------------------------------------------------


async def test_restart_lets_the_router_cut_nothing(make_gateway: MakeGateway) -> None:
    """While nobody listens the router cannot connect; everything else ends or goes on cleanly."""
    async with (
        behind_the_router(make_gateway, {"puppet": PUPPET}) as house,
        talking(house) as talk,
    ):
        async with talk.listening() as stream, talk.calling(1, "hold") as response:
            running = Stream(response)
            await talk.until_held(1)
            await talk.call(2, "step", id=1, count=1)
            (seen,) = await running.take(1)
            await house.gateway.stop(signal.SIGTERM)
            assert (await running.rest(), await stream.rest()) == ([], [])
        assert house.router.codes.keys() <= DOWN
        await while_down(talk.http, house)
        await restart(house)
        async with talk.listening(after=seen.identity) as rest:
            await talk.call(3, "release")
            (answer,) = await rest.rest()
        assert (answer["id"], answer["result"]) == (1, {"released": 1})
        assert house.router.codes.keys() <= DOWN


async def while_down(http: aiohttp.ClientSession, house: House) -> None:
    """A client that comes meanwhile is told by the router to come again, as is the agent."""
    async with http.get(house.gateway.url()) as response:
        assert response.status == 503
    async with asyncio.timeout(BOUND):
        await house.router.until(
            lambda: any(record.path == "/agent/v1/link" for record in house.router.errors)
        )


# -- the long scenarios, in small ------------------------------------------------------------------


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_scenarios_of_the_proof_pass_in_small(house: House, mode: str) -> None:
    way = house.router.url, house.gateway.key, "everything", 1.0
    async with asyncio.TaskGroup() as scenarios:
        stream = scenarios.create_task(idle_stream(*way))
        scenarios.create_task(silent_call(*way, mode=mode))
        scenarios.create_task(idle_link(*way, mode=mode))
    assert (stream.result().reads, house.router.cuts) == (1, 0)
