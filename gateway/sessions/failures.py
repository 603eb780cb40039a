"""What callers are told when the child cannot answer them. Pure."""

from gateway.errors import AnswerGone, AnswerTooBig, CallTimeout, ChildExited, ChildNotStarted
from gateway.sessions.chatter import number, text


def not_started(report: dict[str, object]) -> ChildNotStarted:
    """The agent could not start the server's command."""
    return ChildNotStarted(f"the server could not be started: {text(report, 'message')}")


def too_big(report: dict[str, object], limit: int) -> AnswerTooBig:
    """The child wrote a message over the limit; the bytes are gone and with them its id."""
    return AnswerTooBig(
        f"the server sent a message of {number(report, 'bytes')} bytes; the limit is {limit}. It "
        "was dropped, and with it possibly this call's answer: ask for less, or in parts."
    )


def timed_out(limit_s: float) -> CallTimeout:
    """The call ran longer than its server allows."""
    return CallTimeout(
        f"no answer after {limit_s:.0f} s, the longest a call of this server may take "
        "(call_timeout)"
    )


def gone() -> AnswerGone:
    """A client came back for a call that nobody remembers."""
    return AnswerGone(
        "the answer to this request is not held any more, or the request never reached the "
        "server; send it again with a new id",
        retriable=True,
    )


def exited(report: dict[str, object]) -> ChildExited:
    """Return what callers are told about the end of the child that an agent reports."""
    signal = text(report, "signal")
    code = None if signal else number(report, "code")
    how = f"by {signal}" if signal else f"with exit code {code}"
    tail = text(report, "stderr_tail").strip()
    last = f" Its last words on stderr:\n{tail}" if tail else " It wrote nothing on stderr."
    return ChildExited(
        f"the server process ended {how}.{last}", exit_code=code, signal=signal or None
    )
