"""The judge: what the published schema says, and what its strictness adds."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.heroku_emulator import contract
from tests.heroku_emulator.model import SIZES
from tests.heroku_emulator.operations import OPERATIONS
from tests.heroku_emulator.reduce_schema import reduce

CREATE = contract.links()["dyno", "Create"]
SIZE = contract.links()["dyno-size", "Info"]


def size() -> dict[str, Any]:
    return SIZES["basic"].as_json()


def test_every_operation_is_one_of_the_published_schema() -> None:
    served = {(operation.resource, operation.title) for operation in OPERATIONS}
    assert served == contract.links().keys()


def test_method_and_path_are_the_published_ones() -> None:
    stop = contract.links()["dyno", "Stop"]
    assert (stop.method, stop.path) == ("POST", "/apps/{app}/dynos/{dyno}/actions/stop")


def test_the_schema_file_needs_nothing_beyond_itself() -> None:
    whole = json.loads(contract.SCHEMA_FILE.read_text(encoding="utf-8"))
    assert reduce(whole)["definitions"] == whole["definitions"]


@pytest.mark.parametrize(
    "body",
    [
        {"command": "bash"},
        {"command": "bash", "env": {"A_1": "x"}, "size": "basic", "time_to_live": 60},
        {"command": "bash", "attach": False, "force_no_tty": None, "type": "rendezvous"},
    ],
)
def test_a_right_request_has_no_fault(body: dict[str, Any]) -> None:
    assert CREATE.fault_of_request(body) is None


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        {"command": 1},
        {"command": "bash", "size": None},
        {"command": "bash", "time_to_live": "60"},
        {"command": "bash", "env": {"A-1": "x"}},
        {"command": "bash", "env": {"A": 1}},
        {"command": "bash", "colour": "red"},
    ],
)
def test_a_wrong_request_has_a_fault(body: object) -> None:
    assert CREATE.fault_of_request(body) is not None


def test_what_only_the_vendors_client_sends_is_let_through() -> None:
    log_session = contract.links()["log-session", "Create"]
    assert log_session.fault_of_request({"dyno": "run.1"}) is None
    assert log_session.fault_of_request({"colour": "red"}) is not None


def test_a_request_without_parameters_has_no_body() -> None:
    assert contract.links()["dyno", "Stop"].fault_of_request({"now": True}) is not None


def test_a_whole_response_has_no_fault() -> None:
    assert SIZE.fault_of_response(size()) is None


def test_a_response_that_lacks_a_property_has_a_fault() -> None:
    lacking = size()
    del lacking["memory"]
    assert SIZE.fault_of_response(lacking) is not None


def test_a_response_with_a_property_too_many_has_a_fault() -> None:
    assert SIZE.fault_of_response({**size(), "colour": "red"}) is not None


def test_an_id_that_is_no_uuid_is_a_fault() -> None:
    assert SIZE.fault_of_response({**size(), "id": "basic"}) is not None


def test_a_time_without_a_zone_is_a_fault() -> None:
    webhook = contract.links()["app-webhook", "Info"]
    right = {"created_at": "2026-01-01T00:00:00Z"}
    assert webhook.fault_of_response(right) is None
    assert webhook.fault_of_response({"created_at": "2026-01-01T00:00:00"}) is not None
