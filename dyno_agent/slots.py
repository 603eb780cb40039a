"""Slots for dataclasses, where the interpreter can make them. Pure.

An agent runs on whatever Python a stranger's app has; `dataclass(slots=True)` is new in 3.10.
"""

from __future__ import annotations

import sys

SLOTS: dict[str, bool] = {"slots": True} if sys.version_info >= (3, 10) else {}
"""Keyword arguments of `dataclass`. On 3.9 instances take a little more memory, and that is all."""
