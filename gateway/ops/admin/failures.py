"""What went wrong, grouped by cause, each with what to look at."""

from collections.abc import Iterable
from typing import Final

import msgspec

from gateway.ops.admin.desk import Call, Desk
from gateway.ops.admin.shapes import FailureGroup, Failures, FailuresQuery, SingleFailure
from gateway.ops.story import Failure

SESSIONS = 5
"""Of a group, named."""

HINTS: Final = {
    # Ends of sessions
    "initialize_failed": "The child refused `initialize`: its answer is in the story. Try the "
    "server's command by hand, with the same environment.",
    "process_exit": "The child ended by itself: exit code and last stderr lines are in the story. "
    "Code 137 is a kill, as for too much memory: take a larger size.",
    "boot_timeout": "The agent did not dial in time. See whether the dyno reached the gateway's "
    "URL (GATEWAY_URL) at all, and whether the server needs a longer boot_timeout.",
    "boot_failed": "The launcher got no dyno: the detail says what the platform answered. "
    "`gateway doctor` checks key, apps and sizes.",
    "no_room": "As many dynos ran as may: see /queue. Raise MAX_SESSIONS or the platform's limit, "
    "or shorten idle_timeout.",
    "link_lost": "The agent was away for longer than LINK_GRACE_S: its dyno died or lost its "
    "network. Look for the dyno's end in the story.",
    "breach": "The agent broke the link protocol, or its token was used twice. Unless agent and "
    "gateway are of different versions, take the server's code for hostile.",
    # Ends that are no failures by themselves, and are shown if somebody asks for them
    "client_delete": "The client has ended the session: nothing to do.",
    "client_gone": "The client hung up before its session was initialized: its time-out may be "
    "shorter than a boot. Keep dynos warm, or use the catalogue.",
    "idle": "Nobody used the session for idle_timeout: nothing to do.",
    "lifetime": "The session was as old as max_lifetime lets it be: nothing to do.",
    "drained": "The gateway process left and could not hand the session over: set GATEWAY_SECRET.",
    "evicted": "Too many sessions without a dyno: a client opens them and does not come back.",
    "answered": "A throw-away run that has taught what it should: nothing to do.",
    "operator": "An operator has ended the session: `operated` in the log says when.",
    # Calls that the child has answered
    "error": "The server answers with a JSON-RPC error: its code and the call are in the story.",
    "tool_error": "The tool says by itself that it failed. Record payloads at this server to see "
    "what it says.",
    # Calls that were answered in its place
    "bad_json": "A client sends what is no JSON-RPC message: see which one in the story.",
    "bad_message": "A client sends JSON that is no JSON-RPC 2.0: see which one in the story.",
    "duplicate_id": "A client uses a request id again before it is answered: a fault of its.",
    "missing_session": "A client sends requests without Mcp-Session-Id: a fault of the client.",
    "unsupported_revision": "A client speaks a revision that is not served: docs/eras.md has those "
    "that are.",
    "header_mismatch": "A client's headers say other than its body: a fault of the client, or a "
    "proxy that rewrites.",
    "bad_params": "A client's params lack what its revision demands: a fault of the client.",
    "stale_state": "A client brings back state of a dyno that is gone: it should start over.",
    "missing_handle": "The server has isolation `handle` and a client names none: docs/eras.md.",
    "missing_capability": "The server asks for what the client cannot do: a client without it "
    "cannot use this tool.",
    "bad_key": "Somebody has no key or a wrong one: see API_KEY.",
    "foreign_origin": "A page of a foreign origin: add its host to ALLOWED_ORIGINS if it is yours.",
    "unknown_server": "A client asks for a server that is not registered (any more): see /servers.",
    "unknown_session": "A client goes on with a session that has ended: it should initialize "
    "again. `stale: rebuild` serves clients that never do.",
    "unknown_method": "A client uses a method that its revision does not have.",
    "unknown_item": "A client of a toolkit names a tool or prompt that no member has, or several "
    "have: it should use the names of the toolkit's lists.",
    "unknown_resource": "A client of a toolkit wants a resource that no member lists or has a "
    "template for.",
    "wrong_method": "A client uses an HTTP method that the endpoint does not take.",
    "not_acceptable": "A client's Accept leaves no answer: it must list both media types.",
    "body_timeout": "A request body took over 30 s: the client's network is slow.",
    "message_too_big": "A message over 16 MiB: let the server page its results.",
    "elsewhere": "A gateway process lost the one that has the session: see /gateways and the log.",
    "unsupported_media": "A client sends other than application/json, or encodes it.",
    "quota_reached": "A key has as many sessions as it may: MAX_SESSIONS_PER_KEY, "
    "OPENS_PER_MINUTE. A client may open them in a loop.",
    "internal": "A fault of the gateway: `internal_error` in its log has the trace. Report it.",
    "busy": "The gateway or the session holds as much as it may: see MAX_SESSIONS, and whether a "
    "client does not read.",
    "queue_full": "More sessions wait for a dyno than may: raise QUEUE_LENGTH, or what makes them "
    "wait.",
    "budget_spent": "The month's budget is spent: /ledger shows by whom. Raise MONTHLY_BUDGET_USD "
    "or KEY_BUDGETS_USD.",
    "session_away": "A session's agent had not dialled back when its client came: wait, or look "
    "for parted sessions.",
    "not_ready": "Nothing is known of this server yet: look for not_learned.",
    "restarting": "A gateway process left meanwhile: clients send the request again.",
    "store_unavailable": "The engine did not answer: see its memory, its connections and its log.",
    "session_lost": "The session ended while the call ran: its own end says why.",
    "launch_failed": "The launcher got no dyno: the detail says what the platform answered. "
    "`gateway doctor` checks key, apps and sizes.",
    "start_timeout": "The child did not start in time: see how far the boot came in the story, "
    "and raise boot_timeout if it is just slow.",
    "child_not_started": "The agent could not start the server's command: see whether it is in "
    "the slug and on the PATH.",
    "child_exited": "The child ended under the call: exit code and last stderr lines are in the "
    "story.",
    "session_ended": "The session was ended while the call ran: its own end says why.",
    "call_timeout": "The child did not answer within call_timeout: follow the session to see "
    "whether it is stuck or slow.",
    "answer_gone": "A client came back too late for an answer: it is kept for 5 minutes.",
    "answer_too_big": "An answer over 16 MiB: let the server page its results.",
    # What befell dynos and the deployment
    "not_parked": "The pool got no dyno: the detail says what the platform answered.",
    "not_stopped": "A dyno could not be stopped and costs on: the stop is repeated. If it goes on, "
    "stop it by hand.",
    "not_listed": "The platform could not be asked which dynos run: is it up, and the key good?",
    "not_discovered": "An app could not be looked at: is its name right, and may the key see it?",
    "not_learned": "A throw-away run came to nothing: the server fails, or does not speak that "
    "era; set `era` if so.",
    "orphan_gone": "A dyno ran without a session: it was stopped. Many of them mean that gateway "
    "processes crash.",
    "contradicted": "The child says other than its catalogue: let it answer by itself "
    "(`catalogue: false`) if its lists depend on the client.",
    "store_away": "The engine was out of reach: see its memory, its connections and its log.",
}
"""What to look at, by cause."""

NO_HINT = "Look at the story of one of these sessions."


async def failures(desk: Desk, call: Call) -> Failures:
    """Return what went wrong of late."""
    query: FailuresQuery = call.query
    wanted = query.q.casefold()
    found = [
        failure
        for failure in await desk.recorder.failures()
        if (query.server is msgspec.UNSET or failure.server == query.server)
        and (not wanted or _has(failure, wanted))
    ]
    return Failures(
        groups=_groups(found), failures=[_single(failure) for failure in found[: query.limit]]
    )


def _has(failure: Failure, wanted: str) -> bool:
    texts = msgspec.structs.astuple(failure)
    return any(isinstance(text, str) and wanted in text.casefold() for text in texts)


def _groups(found: Iterable[Failure]) -> list[FailureGroup]:
    """Return them by cause and server; they come the newest first."""
    by: dict[tuple[str, str], list[Failure]] = {}
    for failure in found:
        by.setdefault((failure.cause, failure.server), []).append(failure)
    return [
        FailureGroup(
            cause=cause,
            server=server,
            count=len(each),
            first=each[-1].at,
            last=each[0].at,
            sessions=list(dict.fromkeys(one.session for one in each if one.session))[:SESSIONS],
            example=next((one.detail for one in each if one.detail), ""),
            hint=HINTS.get(cause, NO_HINT),
        )
        for (cause, server), each in by.items()
    ]


def _single(failure: Failure) -> SingleFailure:
    return SingleFailure(
        **{
            name: getattr(failure, name) or ""
            for name in SingleFailure.__struct_fields__
            if name != "at"
        },
        at=failure.at,
    )
