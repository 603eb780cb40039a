"""What a client is told instead of an answer: errors in the shape that OpenAI gives them. Pure."""

from typing import Any, Final

from gateway.errors import GatewayError, StoreUnavailable
from gateway.jsonrpc import sound
from gateway.store.base import StoreAway

INVALID: Final = "invalid_request_error"

LIMITED: Final = "rate_limit_error"

OURS: Final = "server_error"


class Problem(Exception):
    """Something that was not done.

    Args:
        status: of HTTP.
        message: a sentence with the next step; it holds no secret.
        code: a stable word for programs.
        param: which part of the request it is about.
        retry_after_s: when to try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        *,
        param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s

    @property
    def document(self) -> dict[str, Any]:
        """The error object."""
        type_ = OURS if self.status >= 500 else LIMITED if self.status == 429 else INVALID
        error = {
            "message": sound(self.message),
            "type": type_,
            "param": sound(self.param),
            "code": self.code,
        }
        return {"error": error}


def problem_of(error: GatewayError | StoreAway) -> Problem:
    """Return a failure of the rooms below as these endpoints tell it."""
    if isinstance(error, StoreAway):
        error = StoreUnavailable("what the gateway processes share is away just now; ask again")
    code = "invalid_api_key" if error.status == 401 else error.reason
    return Problem(error.status, error.message, code, retry_after_s=error.retry_after_s)
