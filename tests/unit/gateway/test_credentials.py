"""Proves that keys and tokens let in whom they were made for, once where that was promised.

Whatever else is presented is refused by name and never crashes the desk.
"""

import hashlib
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.fleet.desk import JoinDesk, TokenRefused, TokenReplayed, proof_of
from gateway.sessions.keys import SessionKeys

SECRET = b"a secret of this deployment, long enough"
EXPIRES = 100.0


class Draw:
    """Chance that can be foretold: the n-th draw is the letter n, repeated."""

    def __init__(self) -> None:
        self.drawn: list[str] = []

    def __call__(self, size: int) -> str:
        self.drawn.append(string.ascii_letters[len(self.drawn)] * size)
        return self.drawn[-1]


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# Session keys


def test_key_is_recognised_by_any_gateway_with_the_secret() -> None:
    key = SessionKeys(SECRET, Draw()).mint()
    assert SessionKeys(SECRET, Draw()).issued(key)


def test_key_of_another_secret_is_refused() -> None:
    key = SessionKeys(SECRET, Draw()).mint()
    assert not SessionKeys(SECRET + b"x", Draw()).issued(key)


def test_key_is_refused_with_any_one_character_changed() -> None:
    keys = SessionKeys(SECRET, Draw())
    key = keys.mint()
    tampered = [key[:n] + ("0" if key[n] != "0" else "1") + key[n + 1 :] for n in range(len(key))]
    assert [changed for changed in tampered if keys.issued(changed)] == []


@pytest.mark.parametrize("garbage", ["", ".", "a", "a.", ".a", "é.é", "a.b.c", "\udcff.\udcff"])
def test_garbage_is_no_key(garbage: str) -> None:
    assert not SessionKeys(SECRET, Draw()).issued(garbage)


def test_keys_differ_and_are_visible_ascii() -> None:
    keys = SessionKeys(SECRET, Draw())
    first, second = keys.mint(), keys.mint()
    assert first != second
    assert all(0x21 <= ord(char) <= 0x7E for char in first + second)


def test_public_id_tells_keys_apart_and_holds_nothing_of_them() -> None:
    fingerprint = SessionKeys.fingerprint("aaaa.bbbb")
    assert fingerprint == sha256("aaaa.bbbb")
    assert SessionKeys.public_id(fingerprint) == f"s-{sha256('aaaa.bbbb')[:12]}"


def test_repr_of_the_keys_shows_no_secret() -> None:
    assert SECRET.decode() not in repr(SessionKeys(SECRET, Draw()))


# Join tokens and resume credentials

RESUME = "the resume secret that the agent drew"
PROOF = sha256(RESUME)
OTHER = sha256("another process")


def joined() -> tuple[JoinDesk, str]:
    """Return a desk and a token that an agent has used."""
    desk = JoinDesk(Draw())
    token = desk.mint("launch", "key", EXPIRES)
    desk.burn(token, PROOF, "boot")
    return desk, token


def test_token_leads_to_its_session() -> None:
    desk = JoinDesk(Draw())
    first, second = desk.mint("one", "key-1", EXPIRES), desk.mint("two", "key-2", EXPIRES)
    assert [desk.recognise(token, 0.0) for token in (second, first)] == ["key-2", "key-1"]


def test_token_expires_at_its_deadline() -> None:
    desk = JoinDesk(Draw())
    token = desk.mint("launch", "key", EXPIRES)
    assert desk.recognise(token, EXPIRES - 0.001) == "key"
    with pytest.raises(TokenRefused):
        desk.recognise(token, EXPIRES)


def test_used_token_with_the_same_proof_is_taken_again() -> None:
    """A lost WELCOME must not kill a session, even when it is repeated after the deadline."""
    desk, token = joined()
    desk.burn(token, PROOF, "boot")
    assert desk.recognise(token, EXPIRES + 1) == "key"


@pytest.mark.parametrize(("proof", "boot_id"), [(OTHER, "boot"), (PROOF, "other"), (OTHER, "")])
def test_used_token_from_another_process_is_a_replay(proof: str, boot_id: str) -> None:
    desk, token = joined()
    with pytest.raises(TokenReplayed):
        desk.burn(token, proof, boot_id)


def test_replay_does_not_replace_the_first_process() -> None:
    desk, token = joined()
    with pytest.raises(TokenReplayed):
        desk.burn(token, OTHER, "boot")
    desk.burn(token, PROOF, "boot")
    assert desk.recognise(f"rr_launch.{RESUME}", 0.0) == "key"


def test_resume_credential_leads_to_the_session_without_a_deadline() -> None:
    desk, _ = joined()
    desk.burn(f"rr_launch.{RESUME}", PROOF, "boot")
    assert desk.recognise(f"rr_launch.{RESUME}", EXPIRES * 1000) == "key"


@pytest.mark.parametrize("credential", ["rr_launch.other", f"rr_launch.{PROOF}", "rr_other.x"])
def test_wrong_resume_credential_is_refused(credential: str) -> None:
    desk, _ = joined()
    with pytest.raises(TokenRefused):
        desk.recognise(credential, 0.0)


def test_resume_from_another_process_is_a_replay() -> None:
    desk, _ = joined()
    with pytest.raises(TokenReplayed):
        desk.burn(f"rr_launch.{RESUME}", PROOF, "other")


@pytest.mark.parametrize("secret", [RESUME, "", "x"])
def test_nobody_resumes_before_somebody_joined(secret: str) -> None:
    desk = JoinDesk(Draw())
    desk.mint("launch", "key", EXPIRES)
    with pytest.raises(TokenRefused):
        desk.recognise(f"rr_launch.{secret}", 0.0)


def test_nothing_is_recognised_after_the_session_was_forgotten() -> None:
    desk, token = joined()
    desk.forget("launch")
    for credential in (token, f"rr_launch.{RESUME}"):
        with pytest.raises(TokenRefused):
            desk.recognise(credential, 0.0)


def test_unknown_launch_can_be_forgotten() -> None:
    desk, token = joined()
    desk.forget("other")
    assert desk.recognise(token, 0.0) == "key"


def test_token_of_a_session_that_ended_during_the_handshake_is_refused() -> None:
    """It was recognised at the upgrade; the session ended before HELLO came."""
    desk = JoinDesk(Draw())
    token = desk.mint("launch", "key", EXPIRES)
    desk.recognise(token, 0.0)
    desk.forget("launch")
    with pytest.raises(TokenRefused):
        desk.burn(token, PROOF, "boot")


@pytest.mark.parametrize(
    "garbage",
    [
        "",
        ".",
        "rj_launch",
        "rj_launch.",
        "rj_.x",
        "rj.x",
        "xx_launch.x",
        "rj_launch.wrong",
        "rj_launch.é",
        "rj_é.x",
        "rj_launch.\udcff",
        "rj_other.aaaa",
        "\x00",
    ],
)
def test_garbage_is_refused(garbage: str) -> None:
    desk = JoinDesk(Draw())
    desk.mint("launch", "key", EXPIRES)
    with pytest.raises(TokenRefused):
        desk.recognise(garbage, 0.0)


@given(st.text(max_size=40) | st.text("rj_launch.", max_size=14))
@settings(deadline=None, derandomize=True, database=None)
def test_any_text_but_the_token_is_refused(text: str) -> None:
    desk = JoinDesk(Draw())
    desk.mint("launch", "key", EXPIRES)
    with pytest.raises(TokenRefused):
        desk.recognise(text, 0.0)


@pytest.mark.parametrize("proof", ["", "a" * 63, "a" * 65, "é" * 64])
def test_proof_that_is_no_sha256_is_refused(proof: str) -> None:
    desk = JoinDesk(Draw())
    token = desk.mint("launch", "key", EXPIRES)
    with pytest.raises(TokenRefused):
        desk.burn(token, proof, "boot")


def test_boot_id_in_any_alphabet_crashes_nothing() -> None:
    desk, token = joined()
    with pytest.raises((TokenRefused, TokenReplayed)):
        desk.burn(token, PROOF, "é")


def test_refused_proof_does_not_use_the_token_up() -> None:
    desk = JoinDesk(Draw())
    token = desk.mint("launch", "key", EXPIRES)
    with pytest.raises(TokenRefused):
        desk.burn(token, "short", "boot")
    desk.burn(token, PROOF, "boot")
    assert desk.recognise(f"rr_launch.{RESUME}", 0.0) == "key"


def adopted() -> JoinDesk:
    """Return a desk of a process that never minted the token of this launch."""
    desk = JoinDesk(Draw())
    desk.adopt("launch", "key", PROOF, "boot")
    return desk


def test_adopted_agent_resumes_with_the_secret_that_it_proved_elsewhere() -> None:
    desk = adopted()
    assert desk.recognise(f"rr_launch.{RESUME}", 0.0) == "key"
    desk.burn(f"rr_launch.{RESUME}", PROOF, "boot")


@pytest.mark.parametrize("secret", ["", RESUME, "a" * 32, PROOF])
def test_nobody_joins_a_launch_that_was_adopted(secret: str) -> None:
    with pytest.raises(TokenRefused):
        adopted().recognise(f"rj_launch.{secret}", 0.0)


@pytest.mark.parametrize(("proof", "boot_id"), [(OTHER, "boot"), (PROOF, "another boot")])
def test_adopted_agent_is_the_only_process_that_resumes(proof: str, boot_id: str) -> None:
    with pytest.raises(TokenReplayed):
        adopted().burn(f"rr_launch.{RESUME}", proof, boot_id)


def test_resume_credential_amounts_to_the_proof_that_the_join_told() -> None:
    assert proof_of(f"rr_launch.{RESUME}") == ("launch", PROOF)


@pytest.mark.parametrize("credential", ["", "rr_launch", "rr_launch.", "rj_launch.secret", "word"])
def test_what_is_no_resume_credential_amounts_to_no_proof(credential: str) -> None:
    with pytest.raises(TokenRefused):
        proof_of(credential)


def test_desk_keeps_no_token_and_shows_no_session_key() -> None:
    draw = Draw()
    desk = JoinDesk(draw)
    desk.mint("launch", "the-session-key", EXPIRES)
    shown = repr(desk) + repr(desk._passes)
    assert [secret for secret in (*draw.drawn, "the-session-key") if secret in shown] == []
