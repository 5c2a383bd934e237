"""How director keys follow one another, and what may not make them."""

from __future__ import annotations

import pytest

from edgeloop import trust
from edgeloop.director_keys import MAX_CHANGES, TrustedKeys, add_change, newest_keys
from edgeloop.errors import ConfigError, EdgeloopError, RejectedError
from edgeloop.trust import DirectorKey
from edgeloop.v1 import deployment_pb2

FIRST, SECOND, THIRD, STRANGER = (DirectorKey.generate() for _ in range(4))


def ids(keys: TrustedKeys) -> set[str]:
    return set(keys.ring)


def chain_of(*changes: tuple[DirectorKey, list[DirectorKey]]) -> bytes:
    raw = b""
    for number, (signer, keys) in enumerate(changes):
        raw = add_change(raw, signer, [key.public_bytes for key in keys], now_s=1000.0 + number)
    return raw


ROTATED = ((FIRST, [FIRST, SECOND]), (SECOND, [SECOND]))


def test_a_device_follows_from_the_old_key_over_the_overlap_to_the_new() -> None:
    configured = TrustedKeys.configured(FIRST.public_bytes)
    overlap = configured.follow(chain_of(*ROTATED[:1]))
    assert (overlap.version, ids(overlap)) == (1, {FIRST.key_id, SECOND.key_id})
    ended = overlap.follow(chain_of(*ROTATED))
    assert (ended.version, ids(ended)) == (2, {SECOND.key_id})
    # What was accepted in earlier days can still be checked.
    assert set(ended.past) == {FIRST.key_id, SECOND.key_id}


def test_a_device_that_slept_through_several_rotations_arrives_where_the_others_are() -> None:
    raw = chain_of(*ROTATED, (SECOND, [SECOND, THIRD]), (THIRD, [THIRD]))
    assert ids(TrustedKeys.configured(FIRST.public_bytes).follow(raw)) == {THIRD.key_id}
    # One that was installed with the newest key has nothing to follow, and one in between joins there.
    assert ids(TrustedKeys.configured(SECOND.public_bytes).follow(raw)) == {THIRD.key_id}


def test_an_older_chain_brings_no_retired_key_back() -> None:
    ended = TrustedKeys.configured(FIRST.public_bytes).follow(chain_of(*ROTATED))
    assert ended.follow(chain_of(*ROTATED[:1])) is ended
    assert ended.follow(b"") is ended


def test_a_retired_key_vouches_for_nothing_more() -> None:
    ended = TrustedKeys.configured(FIRST.public_bytes).follow(chain_of(*ROTATED))
    with pytest.raises(RejectedError) as caught:
        ended.follow(chain_of(*ROTATED, (FIRST, [FIRST, STRANGER])))
    assert caught.value.code == "keys-unknown-key"


def altered(raw: bytes) -> bytes:
    chain = deployment_pb2.DirectorKeyChain.FromString(raw)
    keys = deployment_pb2.DirectorKeys.FromString(chain.changes[0].keys)
    keys.public_keys.append(STRANGER.public_bytes)
    chain.changes[0].keys = keys.SerializeToString()
    return chain.SerializeToString()


def signed_as_deployment() -> bytes:
    """The same bytes, signed by the right key as if they were a deployment."""
    keys = deployment_pb2.DirectorKeys(version=1, public_keys=[STRANGER.public_bytes]).SerializeToString()
    return deployment_pb2.DirectorKeyChain(
        changes=[
            deployment_pb2.SignedDirectorKeys(
                keys=keys, key_id=FIRST.key_id, signature=FIRST.sign(trust.SIGNING_PREFIX + keys)
            )
        ]
    ).SerializeToString()


def change(**fields: object) -> bytes:
    keys = deployment_pb2.DirectorKeys(**fields).SerializeToString()  # type: ignore[arg-type]
    changes = [deployment_pb2.SignedDirectorKeys(keys=keys, key_id=FIRST.key_id)]
    return deployment_pb2.DirectorKeyChain(changes=changes).SerializeToString()


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        pytest.param(chain_of((STRANGER, [STRANGER])), "keys-unknown-key", id="stranger"),
        pytest.param(altered(chain_of(*ROTATED[:1])), "keys-invalid", id="altered"),
        pytest.param(signed_as_deployment(), "keys-invalid", id="other-prefix"),
        pytest.param(b"\xff" * 64, "keys-field", id="noise"),
        pytest.param(b"\0" * (64 * 1024 + 1), "keys-field", id="oversized"),
        pytest.param(change(version=0, public_keys=[FIRST.public_bytes]), "keys-field", id="version-0"),
        pytest.param(change(version=1), "keys-field", id="no-keys"),
        pytest.param(change(version=1, public_keys=[FIRST.public_bytes] * 5), "keys-field", id="too-many"),
        pytest.param(change(version=1, public_keys=[b"short"]), "keys-field", id="no-key"),
    ],
)
def test_what_is_no_honest_change_is_refused(raw: bytes, code: str) -> None:
    with pytest.raises(RejectedError) as caught:
        TrustedKeys.configured(FIRST.public_bytes).follow(raw)
    assert caught.value.code == code


def test_nobody_writes_a_chain_that_devices_would_not_read() -> None:
    raw = b""
    for _ in range(MAX_CHANGES):
        raw = add_change(raw, FIRST, [FIRST.public_bytes], now_s=1.0)
    assert TrustedKeys.configured(FIRST.public_bytes).follow(raw).version == MAX_CHANGES
    assert newest_keys(raw) == (FIRST.public_bytes,)
    with pytest.raises(ConfigError) as caught:
        add_change(raw, FIRST, [FIRST.public_bytes], now_s=1.0)
    assert caught.value.code == "keys-limit"
    with pytest.raises(EdgeloopError):
        add_change(b"", FIRST, [], now_s=1.0)
