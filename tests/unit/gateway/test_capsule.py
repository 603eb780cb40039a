"""A capsule is read as it was sealed, by its own deployment, and by nobody else."""

import base64
import hmac

import msgspec
import pytest
from cryptography.fernet import Fernet
from hypothesis import given, settings
from hypothesis import strategies as st

from dyno_agent.link.limits import CAPSULE_BYTES
from gateway.sessions.capsule import PURPOSE, Capsule
from gateway.sessions.sealing import BadSeal, Sealer

SECRET = b"a secret of this deployment, long enough"
CAPSULE = Capsule(
    launch_id="launch",
    fingerprint="f" * 64,
    principal="me",
    server="everything",
    created=1_700_000_000.25,
    proof="p" * 64,
    boot_id="b" * 32,
    epoch=3,
    dyno_id="run.4711",
)
SHAPES = {
    "nothing": b"",
    "no JSON": b"{",
    "no text": b"\xff",
    "another value": b"[]",
    "an empty object": b"{}",
    "a key less": msgspec.json.encode({**msgspec.to_builtins(CAPSULE), "proof": None}),
    "a number for a text": msgspec.json.encode({**msgspec.to_builtins(CAPSULE), "server": 1}),
    "a text for a number": msgspec.json.encode({**msgspec.to_builtins(CAPSULE), "epoch": "3"}),
}


@pytest.fixture
def sealer() -> Sealer[Capsule]:
    return Sealer(SECRET, PURPOSE, Capsule)


def sealed(plain: bytes) -> str:
    """Seal any bytes with the key that the deployment's capsules have."""
    key = hmac.digest(SECRET, b"rendezvous capsule v1", "sha256")
    return Fernet(base64.urlsafe_b64encode(key)).encrypt(plain).decode()


@pytest.mark.parametrize("dyno_id", ["run.4711", None])
def test_capsule_is_read_as_it_was_sealed(sealer: Sealer[Capsule], dyno_id: str | None) -> None:
    capsule = msgspec.structs.replace(CAPSULE, dyno_id=dyno_id)
    assert sealer.open(sealer.seal(capsule)) == capsule


def test_another_process_with_the_same_secret_reads_it(sealer: Sealer[Capsule]) -> None:
    assert Sealer(SECRET, PURPOSE, Capsule).open(sealer.seal(CAPSULE)) == CAPSULE


@pytest.mark.parametrize("secret", [b"", SECRET[:-1], SECRET + b" ", SECRET.upper()])
def test_deployment_with_another_secret_does_not_read_it(
    sealer: Sealer[Capsule], secret: bytes
) -> None:
    with pytest.raises(BadSeal):
        Sealer(secret, PURPOSE, Capsule).open(sealer.seal(CAPSULE))


def test_capsule_tells_its_bearer_nothing(sealer: Sealer[Capsule]) -> None:
    text = sealer.seal(CAPSULE)
    plain = base64.urlsafe_b64decode(text)
    assert not any(word in plain for word in (b"launch", b"everything", b"ffff", b"pppp"))


def test_no_two_capsules_are_alike(sealer: Sealer[Capsule]) -> None:
    assert sealer.seal(CAPSULE) != sealer.seal(CAPSULE)


def test_capsule_with_the_longest_names_fits_its_header(sealer: Sealer[Capsule]) -> None:
    long = msgspec.structs.replace(
        CAPSULE, principal="é" * 128, server="s" * 128, dyno_id="d" * 256, boot_id="b" * 64
    )
    assert len(sealer.seal(long)) <= CAPSULE_BYTES


def test_every_changed_character_is_noticed(sealer: Sealer[Capsule]) -> None:
    text = sealer.seal(CAPSULE)
    for index in range(len(text.rstrip("=")) - 1):  # the last may hold unused bits
        changed = text[:index] + ("A" if text[index] != "A" else "B") + text[index + 1 :]
        with pytest.raises(BadSeal):
            sealer.open(changed)


@pytest.mark.parametrize("cut", [1, 10, 100])
def test_capsule_cut_short_is_refused(sealer: Sealer[Capsule], cut: int) -> None:
    with pytest.raises(BadSeal):
        sealer.open(sealer.seal(CAPSULE)[:-cut])


@pytest.mark.parametrize("plain", SHAPES.values(), ids=SHAPES)
def test_sealed_text_of_another_shape_is_refused(sealer: Sealer[Capsule], plain: bytes) -> None:
    with pytest.raises(BadSeal):
        sealer.open(sealed(plain))


def test_capsule_of_a_later_version_with_more_keys_is_read(sealer: Sealer[Capsule]) -> None:
    later = {**msgspec.to_builtins(CAPSULE), "later": [1]}
    assert sealer.open(sealed(msgspec.json.encode(later))) == CAPSULE


@settings(deadline=None, derandomize=True)
@given(st.text() | st.binary(max_size=200).map(lambda raw: base64.urlsafe_b64encode(raw).decode()))
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(BadSeal):
        Sealer(SECRET, PURPOSE, Capsule).open(text)
