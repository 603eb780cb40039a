"""What the API says when it does not do what it is asked."""

from typing import Any

LIMITS_URL = "https://devcenter.heroku.com/articles/platform-api-reference#rate-limits"


class ApiError(Exception):
    """An answer other than success: `{"id", "message", "url"?, "resource"?}` with its status."""

    def __init__(
        self,
        status: int,
        identity: str,
        message: str,
        *,
        url: str | None = None,
        resource: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        body = {"id": identity, "message": message, "url": url, "resource": resource}
        self.body: dict[str, Any] = {key: value for key, value in body.items() if value is not None}


def not_found(resource: str) -> ApiError:
    """There is no such thing, or it is not this account's."""
    return ApiError(404, "not_found", f"Couldn't find that {resource}.", resource=resource)


def invalid(message: str) -> ApiError:
    """The parameters break the schema or a rule beside it."""
    return ApiError(422, "invalid_params", message)


def of_status(status: int) -> ApiError:
    """Return what the API says along with a status, where nothing more is known."""
    identity, message = _SAID.get(status, ("internal_server_error", "Internal server error."))
    return ApiError(status, identity, message, url=LIMITS_URL if status == 429 else None)


_SAID = {
    400: ("bad_request", "Request invalid, validate usage and try again."),
    401: ("unauthorized", "Invalid credentials provided."),
    402: ("delinquent", "You need to clear a past due balance before you can do this."),
    403: ("forbidden", "You do not have access to the app."),
    404: ("not_found", "The requested API endpoint was not found."),
    409: ("conflict", "The release of this app isn't found yet."),
    422: ("invalid_params", "Parameters invalid, validate usage and try again."),
    429: (
        "rate_limit",
        "Your account reached the API rate limit. Please wait a few minutes before making new "
        "requests.",
    ),
    503: ("service_unavailable", "API is unavailable, please try again later."),
    504: ("gateway_timeout", "The request timed out."),
}
