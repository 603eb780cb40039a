"""The examples of Heroku's documentation, kept as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parent / "examples"


def example(name: str) -> Any:
    return json.loads((EXAMPLES / f"{name}.json").read_text(encoding="utf-8"))


def events(raw: str) -> list[tuple[str, str]]:
    """Take a stream apart: the name and the data of each event, comments left out."""
    found = []
    for block in raw.split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        if lines:
            name, data = lines
            assert name.startswith("event:")
            assert data.startswith("data:")
            found.append((name.removeprefix("event:"), data.removeprefix("data:")))
    return found


def shape(value: Any) -> Any:
    """What of a document is the same in all of its kind: its keys, in order, and its types."""
    if isinstance(value, dict):
        return {key: shape(each) for key, each in value.items()}
    if isinstance(value, list):
        return [shape(each) for each in value[:1]]
    return type(value).__name__
