"""What can go wrong with a request to the platform, as one tree.

Each class holds a sentence that a client may read and the next step of the operator. None holds a
secret: what the platform says is cut, put on one line, and freed of what was sent.
"""

from typing import ClassVar

import msgspec

from gateway.launchers.base import PlatformError

DETAIL_CHARACTERS = 200
"""How much of the platform's own words is told."""

LEAST_SECRET = 6
"""Shorter values are no secrets; hiding each `1` would make nonsense of a sentence."""


class Failure(PlatformError):
    """The platform did not do what it was asked.

    Args:
        detail: the platform's own words, or what else is known.
        retry_after_s: when the same request may succeed; None if nobody knows, or never.
        sent: it may have been done all the same.

    Attributes:
        advice: what the operator can do about it.
    """

    sentence: ClassVar[str] = "the platform refused the request"
    advice: ClassVar[str] = "The platform's own words in this line are all that is known."

    def __init__(
        self, detail: str = "", *, retry_after_s: float | None = None, sent: bool = False
    ) -> None:
        super().__init__(f"{self.sentence}: {detail}" if detail else self.sentence)
        self.retry_after_s = retry_after_s
        self.sent = sent


class Unauthorized(Failure):
    """401."""

    sentence = "the platform refused the gateway's key"
    advice = (
        "HEROKU_API_KEY was refused: it is wrong, revoked or expired. Draw one with "
        "`heroku authorizations:create` and set it."
    )


class PaymentRequired(Failure):
    """402."""

    sentence = "the platform wants the account's bill settled first"
    advice = "The account of HEROKU_API_KEY is delinquent or not verified: settle it there."


class Forbidden(Failure):
    """403."""

    sentence = "the platform does not let the gateway's key do this"
    advice = (
        "HEROKU_API_KEY may not do this: make its user a collaborator of the app and give the "
        "key the scopes `write` and `read-protected`, or `global`."
    )


class NotFound(Failure):
    """404."""

    sentence = "the platform knows no such thing"
    advice = "Compare the configured apps with `heroku apps`: names change when an app is renamed."


class Conflict(Failure):
    """409: just after an app's first release, above all."""

    sentence = "the app is being changed at this moment"
    advice = "Wait until the app's release is done."


class Invalid(Failure):
    """422, and any refusal that has no class of its own."""

    advice = "Check the server's size and environment against what the app allows."


class AtLimit(Failure):
    """The app runs as many one-off dynos as it may."""

    sentence = "the app runs as many one-off dynos as the platform allows"
    advice = "End sessions, spread the servers over several apps, or ask for a higher limit."


class RateLimited(Failure):
    """429, or refused by ourselves, so that requests are left for stopping dynos."""

    sentence = "the account's allowance of requests to the platform is used up"
    advice = "Requests come back at 75 a minute. Fewer apps, or an account of its own, need fewer."


class Unavailable(Failure):
    """5xx, no connection, no answer in time, or one that nobody understands."""

    sentence = "the platform does not answer"
    advice = "See the platform's status page, and whether HEROKU_API_URL is right."


class _Refusal(msgspec.Struct):
    """The platform's error document."""

    id: str = ""
    message: str = ""


_BY_STATUS: dict[int, type[Failure]] = {
    401: Unauthorized,
    402: PaymentRequired,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    422: Invalid,
    429: RateLimited,
}

_AT_LIMIT = "cannot_run_above_limit"
"""Told apart by its id: which status it has is not documented."""


def refusal(
    status: int, body: bytes, retry_after: str | None = None, secrets: tuple[str, ...] = ()
) -> Failure:
    """Return what an answer without success means.

    Args:
        status: of HTTP, not 2xx.
        body: the error document, or anything.
        retry_after: the header of that name; only a number of seconds counts.
        secrets: what must not be repeated.
    """
    try:
        document = msgspec.json.decode(body, type=_Refusal)
    except msgspec.DecodeError:
        document = _Refusal()
    detail = _told(document.message, secrets) or f"status {status}"
    wait_s = float(retry_after) if retry_after and retry_after.isdecimal() else None
    if document.id == _AT_LIMIT:
        return AtLimit(detail)
    if status >= 500:
        return Unavailable(detail, retry_after_s=wait_s, sent=True)
    return _BY_STATUS.get(status, Invalid)(detail, retry_after_s=wait_s)


def _told(message: str, secrets: tuple[str, ...]) -> str:
    for secret in secrets:
        if len(secret) >= LEAST_SECRET:
            message = message.replace(secret, "[hidden]")
    line = " ".join(message.split())
    return line if len(line) <= DETAIL_CHARACTERS else line[: DETAIL_CHARACTERS - 1] + "…"
