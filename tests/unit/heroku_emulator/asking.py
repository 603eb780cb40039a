"""A client of the Platform API that says nothing but what it is told to say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    import aiohttp

    from tests.heroku_emulator import Emulator

ACCEPT = "application/vnd.heroku+json; version=3"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    body: Any
    headers: Mapping[str, str]

    @property
    def said(self) -> tuple[int, str]:
        """Status and id of an error."""
        return self.status, self.body["id"]


class Api:
    """Asks one emulator."""

    def __init__(self, heroku: Emulator, http: aiohttp.ClientSession) -> None:
        self._heroku = heroku
        self._http = http

    async def __call__(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        told = {"Accept": ACCEPT, "Authorization": f"Bearer {self._heroku.api_key}"}
        url = path if path.startswith("http") else f"{self._heroku.url}{path}"
        async with self._http.request(
            method, url, json=body, headers={**told, **(headers or {})}
        ) as response:
            json_like = "json" in response.content_type
            content = await (response.json() if json_like else response.text())
            return Answer(response.status, content, dict(response.headers))

    async def create(self, command: str, **more: Any) -> Any:
        """Create a dyno of the app `runner`; return what the API shows of it."""
        answer = await self("POST", "/apps/runner/dynos", {"command": command, **more})
        assert answer.status == 201, answer.body
        return answer.body

    async def dynos(self) -> Any:
        """Return the dynos of the app `runner`."""
        return (await self("GET", "/apps/runner/dynos")).body
