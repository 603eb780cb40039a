"""What asyncio has had since Python 3.11, for older ones too: from the backport `taskgroup`.

`run` belongs to it: tasks made by the backport's count how often they were cancelled, which
`TaskGroup` and `timeout` need. This `timeout` raises the builtin TimeoutError on every version.
"""

from __future__ import annotations

import sys

if sys.version_info >= (3, 11):
    from asyncio import TaskGroup, run, timeout  # novermin
else:
    from taskgroup import TaskGroup, run, timeout

__all__ = ["TaskGroup", "run", "timeout"]
