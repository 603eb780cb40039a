"""What happens in an agent's run, without a model's server or a session."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from gateway.v1.agents import loop
from gateway.v1.agents.loop import Answer, Ask, Call, Loop, Perform, Refuse, Step, Stop, Tell

QUESTION = Raw(b'{"role":"user","content":"how much is it?"}')


def ask(*calls: Call, text: str | None = None) -> Answer:
    return Answer(text, calls, "tool_calls" if calls else "stop")


def call(name: str = "add", arguments: str = "{}", call_id: str = "c1") -> Call:
    return Call(call_id, name, arguments)


def only(steps: list[Step], kind: type[Any]) -> list[Any]:
    return [step for step in steps if isinstance(step, kind)]


def begun(limit: int | None = None, rounds: int = 5) -> Loop:
    run = Loop([QUESTION], {"add": limit}, rounds)
    run.begin()
    return run


def sent(steps: list[Step]) -> list[Any]:
    """The messages that the model is asked with."""
    (step,) = only(steps, Ask)
    return [json.loads(bytes(message)) for message in step.messages]


def test_a_run_begins_with_the_conversation_as_it_came() -> None:
    (step,) = Loop([QUESTION], {}).begin()
    assert step == Ask((QUESTION,))


def test_an_answer_without_calls_is_the_last() -> None:
    answer = ask(text="42")
    assert begun().answered(answer) == [Tell(Answer("42"), last=True)]


def test_a_call_is_told_and_then_run() -> None:
    steps = begun().answered(ask(call(arguments='{"a": 1}')))
    assert [type(step) for step in steps] == [Tell, Perform]
    assert steps[0].last is False  # type: ignore[union-attr]
    assert steps[1].arguments == {"a": Raw(b"1")}  # type: ignore[union-attr]


def test_the_model_is_asked_again_once_every_call_has_its_result() -> None:
    run = begun()
    run.answered(ask(call(call_id="c1"), call(call_id="c2")))
    assert run.returned("c2", "two") == []
    messages = sent(run.returned("c1", "one"))
    assert [(each["tool_call_id"], each["content"]) for each in messages[2:]] == [
        ("c1", "one"),
        ("c2", "two"),
    ]


def test_the_model_reads_what_it_has_said_itself() -> None:
    run = begun()
    run.answered(ask(call(arguments='{"a":1}'), text="let me see"))
    messages = sent(run.returned("c1", "one"))
    assert messages[1] == {
        "role": "assistant",
        "content": "let me see",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}
        ],
    }


def test_a_call_of_an_unknown_tool_is_refused_and_the_model_told_which_there_are() -> None:
    steps = begun().answered(ask(call("subtract")))
    assert not only(steps, Perform)
    assert "there are: add" in sent(steps)[2]["content"]


@pytest.mark.parametrize("arguments", ["{", "[1]", '"text"', "1", "null", '{"a":1} {}', "[" * 5000])
def test_arguments_that_are_no_object_are_refused(arguments: str) -> None:
    steps = begun().answered(ask(call(arguments=arguments)))
    assert not only(steps, Perform)
    assert "must be one JSON object" in sent(steps)[2]["content"]


def test_arguments_that_are_no_object_are_not_sent_again() -> None:
    """A server that reads them would refuse the whole conversation."""
    messages = sent(begun().answered(ask(call(arguments="{nonsense"))))
    assert messages[1]["tool_calls"][0]["function"]["arguments"] == "{}"


@pytest.mark.parametrize("arguments", ["", "  "])
def test_no_arguments_are_an_empty_object(arguments: str) -> None:
    (step,) = only(begun().answered(ask(call(arguments=arguments))), Perform)
    assert step.arguments == {}


def test_a_call_beside_a_refused_one_is_run() -> None:
    run = begun()
    steps = run.answered(ask(call("subtract", call_id="c1"), call(call_id="c2")))
    assert [type(step) for step in steps] == [Tell, Refuse, Perform]
    assert len(sent(run.returned("c2", "two"))) == 4


def test_a_tool_is_called_no_more_than_it_may_be() -> None:
    run = begun(limit=2)
    steps = run.answered(ask(*(call(call_id=f"c{n}") for n in range(3))))
    assert [step.call.id for step in only(steps, Perform)] == ["c0", "c1"]
    (refused,) = only(steps, Refuse)
    assert "2 times" in refused.why


def test_a_call_that_is_refused_counts_for_nothing() -> None:
    run = begun(limit=1)
    run.answered(ask(call(arguments="{")))
    assert only(run.answered(ask(call(call_id="c2"))), Perform)


def test_calls_beyond_those_of_one_answer_are_refused() -> None:
    many = [call(call_id=f"c{n}") for n in range(loop.CALLS_OF_ONE_ANSWER + 1)]
    steps = begun().answered(ask(*many))
    assert len(only(steps, Perform)) == loop.CALLS_OF_ONE_ANSWER
    assert len(only(steps, Refuse)) == 1


def test_a_model_that_goes_on_for_ever_is_stopped() -> None:
    run = begun(rounds=2)
    assert only(run.answered(ask(call("x", call_id="c1"))), Ask)
    (stop,) = only(run.answered(ask(call("x", call_id="c2"))), Stop)
    assert stop.code == "too_many_rounds"


def test_a_conversation_that_grows_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CONVERSATION_BYTES", 300)
    run = begun()
    run.answered(ask(call()))
    (stop,) = run.returned("c1", "x" * 300)
    assert isinstance(stop, Stop)
    assert stop.code == "conversation_too_long"


def test_a_long_result_is_cut_and_says_so() -> None:
    told = loop.cut("é" * loop.RESULT_BYTES)
    kept, _, note = told.rpartition("\n")
    assert len(kept.encode()) == loop.RESULT_BYTES
    assert f"of {2 * loop.RESULT_BYTES} bytes" in note


def test_a_result_that_fits_is_whole() -> None:
    text = "x" * loop.RESULT_BYTES
    assert loop.cut(text) == text


@pytest.mark.parametrize("given", ["", "c1", "x" * 1000])
def test_ids_that_are_missing_or_used_or_long_are_replaced(given: str) -> None:
    run = begun()
    steps = run.answered(ask(call(call_id="c1"), call(call_id=given)))
    first, second = (step.call.id for step in only(steps, Perform))
    assert first == "c1"
    assert second not in {"c1", given}
    (told,) = only(steps, Tell)
    assert [each.id for each in told.answer.calls] == [first, second]


names = st.sampled_from(["add", "sub", "nope", ""])
arguments = st.sampled_from(["{}", "", "{", "[]", '{"a": {"b": 1e999}}', "null"])
wanted = st.lists(st.builds(Call, st.sampled_from(["", "a", "b"]), names, arguments), max_size=20)


@given(st.lists(wanted, max_size=8), st.integers(0, 4), st.integers(1, 6), st.randoms())
@settings(max_examples=150, deadline=None)
def test_every_call_gets_one_result_and_every_run_ends(
    answers: list[list[Call]], limit: int, rounds: int, chance: Any
) -> None:
    run = Loop([QUESTION], {"add": limit, "sub": None}, rounds)
    steps, asked, performed, script = run.begin(), 0, 0, iter(answers)
    while steps:
        asked += len(only(steps, Ask))
        running = only(steps, Perform)
        performed += sum(step.call.name == "add" for step in running)
        chance.shuffle(running)
        following: list[Step] = []
        for step in steps:
            if isinstance(step, Ask):
                check_conversation([json.loads(bytes(raw)) for raw in step.messages])
                following += run.answered(Answer("hm", next(script, [])))
        for n, step in enumerate(running):
            said = run.returned(step.call.id, f"result {n}")
            assert bool(said) == (n == len(running) - 1)
            following += said
        if only(steps, Stop):
            assert following == []
        steps = following
    assert asked <= rounds
    assert performed <= limit


def check_conversation(messages: list[Any]) -> None:
    """Every call is followed by exactly one result, before anything else is said."""
    expected: list[str] = []
    seen: set[str] = set()
    for message in messages[1:]:
        if message["role"] == "tool":
            assert message["tool_call_id"] == expected.pop(0)
            continue
        assert expected == []
        expected = [each["id"] for each in message["tool_calls"]]
        assert not seen & set(expected)
        assert len(set(expected)) == len(expected)
        seen |= set(expected)
        for each in message["tool_calls"]:
            assert isinstance(json.loads(each["function"]["arguments"]), dict)
    assert expected == []
