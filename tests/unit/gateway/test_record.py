"""Proves the life of a session as a table: what leads where, and that nothing else is possible."""

import pytest

from gateway.registry.servers import ServerDefinition
from gateway.sessions.record import TRANSITIONS, ImpossibleStep, SessionRecord, State, Step

MOVES = sorted(TRANSITIONS)
IMPOSSIBLE = [(state, step) for state in State for step in Step if (state, step) not in TRANSITIONS]


def record(state: State = State.REQUESTED) -> SessionRecord:
    server = ServerDefinition(name="everything", command="server")
    return SessionRecord("s-1", "fingerprint", "me", server, 0.0, state=state)


def test_every_state_can_be_reached_from_the_first() -> None:
    reached = {State.REQUESTED}
    for _ in State:
        reached |= {target for (state, _), target in TRANSITIONS.items() if state in reached}
    assert reached == set(State)


def test_every_session_can_be_closed() -> None:
    ended = {state: TRANSITIONS[state, Step.END] for state in State if state is not State.CLOSED}
    assert set(ended.values()) == {State.CLOSING}
    assert TRANSITIONS[State.CLOSING, Step.GONE] is State.CLOSED


def test_closed_is_terminal() -> None:
    assert [step for state, step in TRANSITIONS if state is State.CLOSED] == []


def test_nothing_leads_out_of_closing_but_the_end_of_the_dyno() -> None:
    out = {
        (step, target)
        for (state, step), target in TRANSITIONS.items()
        if state is State.CLOSING and target is not State.CLOSING
    }
    assert out == {(Step.GONE, State.CLOSED)}


@pytest.mark.parametrize(("state", "step"), MOVES)
def test_step_leads_where_the_table_says_and_tells_whether_it_changed(
    state: State, step: Step
) -> None:
    one = record(state)
    changed = one.move(step)
    assert one.state is TRANSITIONS[state, step]
    assert changed is (one.state is not state)


@pytest.mark.parametrize(("state", "step"), IMPOSSIBLE)
def test_impossible_step_names_state_and_step_and_changes_nothing(state: State, step: Step) -> None:
    one = record(state)
    with pytest.raises(ImpossibleStep) as caught:
        one.move(step)
    assert {state.value, step.value} <= set(str(caught.value).split())
    assert one.state is state


def test_ordinary_life_goes_through_the_states_in_order() -> None:
    one = record()
    seen = []
    for step in ("launch", "join", "spawned", "call", "quiet", "call", "part", "resume", "end"):
        one.move(Step(step))
        seen.append(one.state.value)
    assert seen == [
        "launching",
        "dialled_in",
        "ready",
        "ready",
        "idle",
        "ready",
        "parted",
        "ready",
        "closing",
    ]


@pytest.mark.parametrize("state", State)
def test_only_a_session_that_is_ending_is_over(state: State) -> None:
    assert record(state).over is (state in {State.CLOSING, State.CLOSED})
