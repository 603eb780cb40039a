"""Keep the agent's memory out of its child's reach (Linux; a no-op elsewhere).

A child of the same user may read its parent's `/proc/<pid>/environ` and memory. The kernel keeps
the initial environment even after `os.environ.pop`, so the join token is also burnt before the
child exists.
"""

from __future__ import annotations

import ctypes
import resource
import signal
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def harden() -> None:
    """Make this process not dumpable and forbid core files (prctl(2), getrlimit(2))."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_DUMPABLE, 0)


def die_with_parent() -> None:
    """Run in the child before exec: SIGKILL it when the agent dies, however the agent dies."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
