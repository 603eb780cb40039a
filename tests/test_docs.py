"""The documents say what the code does: every setting, error, event, reason and close code."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dyno_agent.link import CloseCode
from gateway import errors, events
from gateway.registry.servers import ServerDefinition
from gateway.sessions.record import Reason
from gateway.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def text(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def rows(name: str) -> list[list[str]]:
    """Return the cells of every table row of a page, back-ticks removed."""
    lines = [line for line in text(name).splitlines() if line.startswith("| ")]
    return [[cell.strip().strip("`") for cell in line.strip("|").split(" | ")] for line in lines]


def subclasses(root: type) -> Iterator[type]:
    child: type
    for child in root.__subclasses__():
        yield child
        yield from subclasses(child)


def test_configuration_lists_every_setting_with_its_description() -> None:
    documented = {row[0]: row[2] for row in rows("configuration.md") if row[0].isupper()}
    modelled = {
        name.upper(): " ".join((field.description or "").split())
        for name, field in Settings.model_fields.items()
    }
    assert documented == modelled


def test_errors_page_lists_every_error_with_its_status_and_code() -> None:
    documented = {(row[0], row[1], row[2]) for row in rows("errors.md")[1:]}
    classes = [errors.GatewayError, *subclasses(errors.GatewayError)]
    assert documented == {
        (error.reason, str(error.status), str(error.code))
        for error in classes
        if issubclass(error, errors.GatewayError)
    }


def test_logs_page_lists_every_event_with_its_fields() -> None:
    documented = {
        row[0]: set(re.findall(r"`?(\w+)`?", row[2]))
        for row in rows("logs.md")
        if row[0] != "Event"
    }
    kinds = [kind for kind in subclasses(events.Event) if "name" in vars(kind)]
    assert documented == {
        kind.name: {field.name for field in dataclasses.fields(kind)} - {"session", "payload"}
        for kind in kinds
        if issubclass(kind, events.Event)
    }


@pytest.mark.parametrize("reason", list(Reason))
def test_logs_page_names_every_reason(reason: Reason) -> None:
    assert f"`{reason}`" in text("logs.md")


@pytest.mark.parametrize("code", list(CloseCode))
def test_link_page_lists_every_close_code(code: CloseCode) -> None:
    assert f"| {code.value} |" in text("link.md")


def test_servers_page_lists_every_key() -> None:
    documented = {row[0] for row in rows("servers.md")[1:]}
    assert documented == set(ServerDefinition.__struct_fields__) - {
        *("name", "release", "app_id", "toolkit", "separator")
    }


@pytest.mark.parametrize("page", DOCS, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []
