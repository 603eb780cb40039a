"""The OpenAPI document: it says all there is, and a tool that looks for lies in it finds none."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from jsonschema import Draft202012Validator

from gateway.fleet.ledger import Account
from gateway.ops.admin import openapi, shapes
from gateway.ops.admin.table import BASE, TABLE
from gateway.ops.story import Failure
from tests.edge.dynos_house import NOW
from tests.ops.admin_house import ADMIN, Office, office
from tests.test_docs import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES = 15
SEED = 7
SEARCH_S = 150.0
"""For a machine that does much else; the search itself takes some 10 s."""


@pytest.fixture
def document() -> Any:
    return openapi.document(TABLE, "1.2.3")


def described(document: Any) -> Iterator[tuple[str, Any]]:
    """Yield every property and parameter with its place."""
    for name, schema in document["components"]["schemas"].items():
        for key, value in schema["properties"].items():
            yield f"{name}.{key}", value
    for path, operations in document["paths"].items():
        for operation in operations.values():
            for parameter in operation["parameters"]:
                yield f"{path} {parameter['name']}", parameter


def test_document_has_every_operation_of_the_table(document: Any) -> None:
    there = {
        (method.upper(), path, operation["operationId"])
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    assert there == {(each.method, BASE + each.path, each.name) for each in TABLE}


def test_names_of_operations_differ() -> None:
    assert len({operation.name for operation in TABLE}) == len(TABLE)


def test_everything_in_the_document_is_described(document: Any) -> None:
    assert [place for place, value in described(document) if not value.get("description")] == []


def test_description_of_a_field_is_what_its_docstring_says(document: Any) -> None:
    schemas = document["components"]["schemas"]
    assert schemas["Killed"]["description"].startswith("A session that is being ended")
    assert schemas["Session"]["properties"]["warm"]["description"] == "its dyno was parked before."
    bill = schemas["Bill"]["properties"]
    assert (bill["ended"]["description"], bill["usd"]["description"]) == (
        "until when.",
        "what they cost.",
    )
    lines = schemas["Session"]["properties"]["state"]["description"]
    assert "\n" not in lines
    assert lines.endswith("is not kept.")


def test_every_field_of_an_answer_is_always_there(document: Any) -> None:
    schemas = document["components"]["schemas"]
    optional = [
        f"{name}.{key}"
        for name, schema in schemas.items()
        for key in schema["properties"]
        if key not in schema.get("required", ()) and "default" not in schema["properties"][key]
    ]
    assert optional == []


def test_schemas_are_schemas(document: Any) -> None:
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def test_references_lead_somewhere(document: Any) -> None:
    text = msgspec.json.encode(document).decode()
    names = set(re.findall(r'"#/components/schemas/(\w+)"', text))
    assert names
    assert names <= set(document["components"]["schemas"])


def test_every_shape_is_shown(document: Any) -> None:
    shown = {kind for kind in vars(shapes).values() if isinstance(kind, type)}
    structs = {kind for kind in shown if issubclass(kind, msgspec.Struct)}
    queries = {operation.query for operation in TABLE}
    bases = {base for kind in structs for base in kind.__mro__[1:]}
    unseen = {kind.__name__ for kind in structs - queries - bases}
    assert unseen - set(document["components"]["schemas"]) == {"SignIn", "SignedIn"}


def test_page_about_http_has_every_operation() -> None:
    page = (ROOT / "docs" / "http-api.md").read_text(encoding="utf-8")
    found = re.findall(rf"^\| `(\w+) {BASE}(\S+)` \|", page, re.MULTILINE)
    assert sorted(found) == sorted((each.method, each.path) for each in TABLE)


async def test_document_is_served() -> None:
    async with office() as at:
        document = await at.gets("/openapi.json")
        assert document["openapi"] == "3.1.0"
        assert set(document["paths"]) == {BASE + operation.path for operation in TABLE}


# The search


def furnish(at: Office) -> None:
    """Let there be something to answer with."""
    for number in range(3):
        at.records.have(f"s-{number}", launch=f"l-{number}", boot_s=1.0)
        at.records.tell(f"s-{number}", "requested", "ready", "closed")
        account = Account("test", "patient", f"s-{number}")
        at.manager.book.open(f"l-{number}", account, 1.0, "basic", NOW - 9, NOW + 5000)
    at.manager.book.close("l-2", NOW)
    at.records.close("s-2")
    at.records.brief = True
    at.here.update(at.records.known)
    at.records.failed.append(Failure(at=NOW, cause="error", server="patient", session="s-1"))


CONFIG = """
[parameters]
"path.session" = "s-0"
"path.server" = "patient"
"path.gateway" = "here"

[[operations]]
include-operation-id = "killSession"
parameters = { "path.session" = "s-1" }
"""


async def searches(at: Office, folder: Path, phases: str, *more: str) -> tuple[int | None, str]:
    """Let schemathesis look for what the document does not say; return its word."""
    program = str(Path(sys.executable).with_name("schemathesis"))
    process = await asyncio.create_subprocess_exec(
        *(program, *more, "run", f"{at.origin}{BASE}/openapi.json"),
        *("--header", f"Authorization: Bearer {ADMIN}"),
        *(
            "--phases",
            phases,
            "--checks",
            "all",
            "--max-examples",
            str(EXAMPLES),
            "--seed",
            str(SEED),
        ),
        *("--warnings", "off", "--suppress-health-check", "all"),
        *("--generation-database", "none", "--request-timeout", "30"),
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(SEARCH_S):
            out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    return process.returncode, out.decode()


@pytest.mark.timeout(2 * SEARCH_S)
async def test_search_with_all_kinds_of_parameters_finds_nothing(tmp_path: Path) -> None:
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG, encoding="utf-8")
    async with office() as at:
        furnish(at)
        status, said = await searches(at, tmp_path, "coverage", "--config-file", str(config))
        assert status == 0, said
        done = {action for action, _, _ in at.operated()}
        assert {"kill", "drain", "log_level"} <= done


@pytest.mark.timeout(2 * SEARCH_S)
async def test_search_with_whatever_comes_finds_nothing(tmp_path: Path) -> None:
    async with office() as at:
        furnish(at)
        status, said = await searches(at, tmp_path, "fuzzing,stateful")
        assert status == 0, said
        assert at.operated()
