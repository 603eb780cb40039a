"""What an operator is told instead of an answer, and how answers are written."""

from collections.abc import Mapping
from typing import Any

import msgspec
from aiohttp import web

from gateway.ops.admin.shapes import Error

JSON = "application/json"

HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
"""Of every answer: what an operator sees is for nobody's cache, and no page."""


class Problem(Exception):
    """Something that was not done.

    Args:
        status: of HTTP.
        message: a sentence with the next step.
        headers: of the answer.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers or {}

    def response(self) -> web.Response:
        """Return it as an answer."""
        return answer(Error(self.message), self.status, self.headers)


def answer(
    document: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Return a document as JSON."""
    return web.Response(
        body=msgspec.json.encode(document),
        status=status,
        content_type=JSON,
        headers={**HEADERS, **(headers or {})},
    )
