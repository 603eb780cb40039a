"""Every refusal and failure that a client can see, as one tree.

Each class carries the HTTP status, the JSON-RPC code, a stable slug for machines, and a sentence
for people that names the limit and the next step. `docs/errors.md` lists them; a test keeps both
equal. JSON-RPC has no assigned codes for failures of a gateway, so those use -32603 (internal
error) and are told apart by `data.reason`.
"""

from typing import Any, ClassVar

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
RESOURCE_NOT_FOUND = -32002
"""MCP up to 2025-11-25, server/resources, "Error Handling"."""
SESSION_NOT_FOUND = -32001
"""What the TypeScript SDK answers for an unknown session; clients in the field know it."""
HEADER_MISMATCH = -32020
MISSING_CAPABILITY = -32021
UNSUPPORTED_REVISION = -32022
"""MCP 2026-07-28, UnsupportedProtocolVersion: makes dual-era clients fall back to `initialize`."""


class GatewayError(Exception):
    """Something the client must be told.

    Args:
        message: for people; never holds a secret or a payload.
        retry_after_s: when to try again, if another time than the class says.
        data: further machine-readable facts, merged beside `reason`.
    """

    status: ClassVar[int] = 500
    code: ClassVar[int] = INTERNAL_ERROR
    reason: ClassVar[str] = "internal"
    retry_after_s: int | None = None

    def __init__(self, message: str, retry_after_s: int | None = None, **data: Any) -> None:
        super().__init__(message)
        self.message = message
        self.data = data
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s


class BadJson(GatewayError):
    """The body is not one JSON-RPC message: not UTF-8, not JSON, or nested too deeply."""

    status, code, reason = 400, PARSE_ERROR, "bad_json"


class BadMessage(GatewayError):
    """JSON, but no JSON-RPC 2.0 message; or a batch in a revision that has none."""

    status, code, reason = 400, INVALID_REQUEST, "bad_message"


class DuplicateId(GatewayError):
    """A request with this id is already in flight in this session."""

    status, code, reason = 400, INVALID_REQUEST, "duplicate_id"


class MissingSession(GatewayError):
    """Only `initialize` may come without `Mcp-Session-Id`."""

    status, code, reason = 400, INVALID_REQUEST, "missing_session"


class UnsupportedRevision(GatewayError):
    """`MCP-Protocol-Version` names a revision that is not served here."""

    status, code, reason = 400, UNSUPPORTED_REVISION, "unsupported_revision"


class HeaderMismatch(GatewayError):
    """A header that MCP 2026-07-28 demands is missing, doubled, or says other than the body."""

    status, code, reason = 400, HEADER_MISMATCH, "header_mismatch"


class BadParams(GatewayError):
    """Params without what the revision demands of every request, or of another shape."""

    status, code, reason = 400, INVALID_PARAMS, "bad_params"


class StaleState(GatewayError):
    """A `requestState`, cursor or task id that is not this principal's, or whose dyno is gone."""

    status, code, reason = 400, INVALID_PARAMS, "stale_state"


class MissingHandle(GatewayError):
    """The server is shared by nobody: its requests must name a handle."""

    status, code, reason = 400, INVALID_REQUEST, "missing_handle"


class MissingCapability(GatewayError):
    """The server needs to ask what the client's request does not say it can answer."""

    status, code, reason = 400, MISSING_CAPABILITY, "missing_capability"


class BadKey(GatewayError):
    """No API key, or an unknown one."""

    status, code, reason = 401, INVALID_REQUEST, "bad_key"


class ForeignOrigin(GatewayError):
    """A web page of another origin, or a request for another host (DNS rebinding)."""

    status, code, reason = 403, INVALID_REQUEST, "foreign_origin"


class UnknownServer(GatewayError):
    """No server of this name is registered."""

    status, code, reason = 404, INVALID_REQUEST, "unknown_server"


class UnknownSession(GatewayError):
    """Never existed, has ended, or belongs to somebody else: deliberately all the same."""

    status, code, reason = 404, SESSION_NOT_FOUND, "unknown_session"


class UnknownMethod(GatewayError):
    """The revision has no such method (any more)."""

    status, code, reason = 404, METHOD_NOT_FOUND, "unknown_method"


class WrongMethod(GatewayError):
    """An HTTP method that this revision's endpoint does not take."""

    status, code, reason = 405, INVALID_REQUEST, "wrong_method"


class NotAcceptable(GatewayError):
    """`Accept` leaves no answer that the transport allows."""

    status, code, reason = 406, INVALID_REQUEST, "not_acceptable"


class BodyTimeout(GatewayError):
    """The request body did not arrive in time."""

    status, code, reason = 408, INVALID_REQUEST, "body_timeout"


class MessageTooBig(GatewayError):
    """A message over the limit, from the client (413) or from the child (in the answer)."""

    status, code, reason = 413, INVALID_REQUEST, "message_too_big"


class UnsupportedMedia(GatewayError):
    """`Content-Type` is not JSON, or the body is encoded."""

    status, code, reason = 415, INVALID_REQUEST, "unsupported_media"


class Busy(GatewayError):
    """The gateway or the session holds as much as it may; repeat later."""

    status, code, reason, retry_after_s = 503, INTERNAL_ERROR, "busy", 5


class QuotaReached(GatewayError):
    """This key has as many sessions, or opens them as quickly, as it may; repeat later."""

    status, code, reason, retry_after_s = 429, INTERNAL_ERROR, "quota_reached", 5


class QueueFull(GatewayError):
    """The platform runs as many dynos as it may, and as many sessions wait for one as may."""

    status, code, reason, retry_after_s = 503, INTERNAL_ERROR, "queue_full", 30


class BudgetSpent(GatewayError):
    """Another dyno could cost more than is left of a monthly budget, the key's or the overall."""

    status, code, reason, retry_after_s = 503, INTERNAL_ERROR, "budget_spent", 3600


class SessionAway(GatewayError):
    """The session's agent has not dialled this gateway process yet; the session lives on."""

    status, code, reason, retry_after_s = 503, INTERNAL_ERROR, "session_away", 5


class NotReady(GatewayError):
    """Nothing is known of this server yet: a throw-away run is on its way."""

    status, code, reason, retry_after_s = 503, INTERNAL_ERROR, "not_ready", 5


class Restarting(GatewayError):
    """This gateway process leaves; the session lives on, and the request may be sent again."""

    status, code, reason, retry_after_s = 503, INTERNAL_ERROR, "restarting", 2


class Moved(Restarting):
    """The session has left this process while its client waited, and lives on at another one."""


class Elsewhere(GatewayError):
    """Another gateway process holds the session; a client sees this only if that one is lost too.

    Args:
        message: for people.
        gateway: id of that process.
        session: fingerprint of the session's key.
        fence: under which that process holds it.
    """

    status, code, reason, retry_after_s = 421, INTERNAL_ERROR, "elsewhere", 2

    def __init__(self, message: str, gateway: str, session: str, fence: int = 0) -> None:
        super().__init__(message)
        self.gateway = gateway
        self.session = session
        self.fence = fence


class StoreUnavailable(GatewayError):
    """What the gateway processes share cannot be reached just now."""

    status, code, reason, retry_after_s = 503, INTERNAL_ERROR, "store_unavailable", 2


class SessionFailure(GatewayError):
    """A call that a session can no longer answer. Answered in place of the child."""

    status, code, reason = 502, INTERNAL_ERROR, "session_lost"


class LaunchFailed(SessionFailure):
    """The launcher could not get a dyno."""

    reason = "launch_failed"


class NoRoom(SessionFailure):
    """The platform ran as many dynos as it may for as long as a session may wait in line."""

    status, reason, retry_after_s = 503, "no_room", 30


class StartTimeout(SessionFailure):
    """The agent did not dial back, or the child did not start, before the boot deadline."""

    status, reason = 504, "start_timeout"


class ChildNotStarted(SessionFailure):
    """The agent could not start the server's command."""

    reason = "child_not_started"


class ChildExited(SessionFailure):
    """The child is gone; the message holds its exit code and last stderr lines."""

    reason = "child_exited"


class LinkLostError(SessionFailure):
    """The agent was out of reach for longer than the grace period."""

    reason = "link_lost"


class SessionEnded(SessionFailure):
    """The session was ended (by the client, a limit, the operator or a shutdown)."""

    reason = "session_ended"


class CallTimeout(SessionFailure):
    """The child did not answer within the longest time a call may take."""

    status, reason = 504, "call_timeout"


class AnswerGone(SessionFailure):
    """A client came back for an answer that is not held any more, or for a call nobody knows."""

    reason = "answer_gone"


class AnswerTooBig(SessionFailure):
    """The child's answer was over the message limit and was thrown away."""

    reason = "answer_too_big"


class UnknownItem(GatewayError):
    """A toolkit has no tool or prompt of this name, or several members have it.

    Its status is the one that servers answer it with where HTTP says nothing of methods: clients
    with a handshake take a 404 for the end of their session. MCP 2026-07-28 has 400 for its code.
    """

    status, code, reason = 200, INVALID_PARAMS, "unknown_item"


class UnknownResource(UnknownItem):
    """No member of a toolkit can be told that has this resource; to clients with a handshake.

    MCP 2026-07-28 has no such code any more: there it is an `UnknownItem`.
    """

    code, reason = RESOURCE_NOT_FOUND, "unknown_resource"
