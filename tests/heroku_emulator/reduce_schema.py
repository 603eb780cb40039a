"""Cut Heroku's Platform API schema down to the resources that the emulator serves.

    python -m tests.heroku_emulator.reduce_schema SCHEMA.json

SCHEMA.json is the whole of it, as in github.com/heroku/platform-api (schema.json) or as
https://api.heroku.com/schema gives it out. Nothing of what is kept is changed; what is dropped is
resources nobody refers to, and links that have no operation here.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from tests.heroku_emulator.contract import SCHEMA_FILE
from tests.heroku_emulator.operations import OPERATIONS

NOTE = (
    "Reduced from Heroku's Platform API schema (github.com/heroku/platform-api, schema.json of "
    "2026-02-19), Copyright (c) Heroku, MIT licence; made by tests/heroku_emulator/reduce_schema.py"
)

_REFERENCE = re.compile(r'"#/definitions/([\w-]+)/definitions/([\w-]+)"')


def reduce(whole: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of the operations served, and of what they refer to."""
    served = {(operation.resource, operation.title) for operation in OPERATIONS}
    kept: dict[str, Any] = {}
    for resource in sorted({resource for resource, _ in served}):
        definition = whole["definitions"][resource]
        links = [link for link in definition["links"] if (resource, link["title"]) in served]
        kept[resource] = {**definition, "links": links}
    while missing := _missing(kept):
        for resource, name in missing:
            definition = whole["definitions"][resource]["definitions"][name]
            kept.setdefault(resource, {"definitions": {}})["definitions"][name] = definition
    return {"$comment": NOTE, "$schema": whole["$schema"], "definitions": kept}


def _missing(kept: dict[str, Any]) -> set[tuple[str, str]]:
    return {
        (resource, name)
        for resource, name in _REFERENCE.findall(json.dumps(kept))
        if name not in kept.get(resource, {}).get("definitions", {})
        and (resource, name) != ("dyno_size", name)  # a slip of theirs in an unused definition
    }


def main(source: str) -> None:
    whole = json.loads(Path(source).read_text(encoding="utf-8"))
    reduced = json.dumps(reduce(whole), indent=1, sort_keys=True)
    SCHEMA_FILE.write_text(reduced + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
