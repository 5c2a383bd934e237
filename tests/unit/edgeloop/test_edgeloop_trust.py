from __future__ import annotations

import base64
import os
import stat
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeloop import trust
from edgeloop.errors import ConfigError, RejectedError
from edgeloop.trust import DirectorKey
from edgeloop.v1 import deployment_pb2

GOLDEN = Path(__file__).parents[2] / "golden"
NOW_S = 1_800_000_000.0
KEY = DirectorKey(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
RING = trust.key_ring(KEY.public_bytes)


def deployment(**changes: object) -> deployment_pb2.Deployment:
    fields: dict[str, object] = {
        "device_id": "gateway-1",
        "workload": "digits",
        "profile": "slow",
        "generation": 7,
        "digest": "a" * 64,
        "manifest_digest": "b" * 64,
        "issue_time": trust.timestamp(NOW_S),
        "decision_id": "d-1",
        "rollout_id": "r-1",
    }
    return deployment_pb2.Deployment(**(fields | changes))  # type: ignore[arg-type]  # fields by name


def open_it(raw: bytes, *, device_id: str = "gateway-1", now_s: float = NOW_S) -> deployment_pb2.Deployment:
    return trust.open_deployment(raw, RING, device_id=device_id, now_s=now_s)


def signed_unchecked(message: deployment_pb2.Deployment) -> bytes:
    """What a director with a bug could publish."""
    raw = message.SerializeToString()
    return deployment_pb2.SignedDeployment(
        deployment=raw, key_id=KEY.key_id, signature=KEY.sign(trust.SIGNING_PREFIX + raw)
    ).SerializeToString()


def code_of(raw: bytes, **options: object) -> str:
    with pytest.raises(RejectedError) as caught:
        open_it(raw, **options)  # type: ignore[arg-type]  # options by name
    return caught.value.code


names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)


@given(names, names, st.integers(1, 2**63 - 1), st.binary(min_size=32, max_size=32))
def test_signed_deployment_is_read_back(device_id: str, name: str, generation: int, digest: bytes) -> None:
    sent = deployment(device_id=device_id, workload=name, generation=generation, digest=digest.hex())
    assert open_it(trust.sign_deployment(KEY, sent), device_id=device_id) == sent


def test_signing_is_deterministic() -> None:
    assert trust.sign_deployment(KEY, deployment()) == trust.sign_deployment(KEY, deployment())


@settings(max_examples=300)
@given(st.data())
def test_any_altered_byte_is_refused_or_changes_nothing(data: st.DataObject) -> None:
    raw = bytearray(trust.sign_deployment(KEY, deployment()))
    position = data.draw(st.integers(0, len(raw) - 1))
    raw[position] = data.draw(st.integers(0, 255).filter(lambda value: value != raw[position]))
    try:
        read = open_it(bytes(raw))
    except RejectedError:
        return
    assert read == deployment()  # damage to what nobody reads, as an unknown field of the envelope


def test_signature_of_another_key_is_refused() -> None:
    other = DirectorKey.generate()
    raw = trust.sign_deployment(other, deployment())
    assert code_of(raw) == "signature-unknown-key"
    forged = deployment_pb2.SignedDeployment.FromString(raw)
    forged.key_id = KEY.key_id
    assert code_of(forged.SerializeToString()) == "signature-invalid"


def test_signature_over_the_bytes_without_the_prefix_is_refused() -> None:
    raw = deployment().SerializeToString()
    for signature in (KEY.sign(raw), KEY.sign(b"edgeloop.v1.Manifest\0" + raw), b"", b"x" * 64):
        message = deployment_pb2.SignedDeployment(deployment=raw, key_id=KEY.key_id, signature=signature)
        assert code_of(message.SerializeToString()) == "signature-invalid"


def test_bytes_are_verified_as_they_came_and_not_as_they_would_be_written_again() -> None:
    # Fields in another order mean the same and serialise otherwise; only what was signed counts.
    first = deployment_pb2.Deployment(generation=7).SerializeToString()
    rest = deployment()
    rest.ClearField("generation")
    raw = first + rest.SerializeToString()
    assert raw != deployment().SerializeToString(deterministic=True)
    message = deployment_pb2.SignedDeployment(
        deployment=raw, key_id=KEY.key_id, signature=KEY.sign(trust.SIGNING_PREFIX + raw)
    )
    assert open_it(message.SerializeToString()) == deployment()


def test_deployment_of_another_device_is_refused() -> None:
    assert (
        code_of(trust.sign_deployment(KEY, deployment()), device_id="gateway-2") == "deployment-wrong-device"
    )


def test_deployment_expires_after_its_time_and_not_at_it() -> None:
    raw = trust.sign_deployment(KEY, deployment(expire_time=trust.timestamp(NOW_S)))
    assert open_it(raw, now_s=NOW_S).generation == 7
    assert code_of(raw, now_s=NOW_S + 0.001) == "deployment-expired"
    forever = trust.sign_deployment(KEY, deployment())
    assert open_it(forever, now_s=NOW_S * 5).generation == 7


BAD: dict[str, dict[str, object]] = {
    "no device": {"device_id": ""},
    "device a path": {"device_id": "../gateway"},
    "no workload": {"workload": ""},
    "profile with a slash": {"profile": "a/b"},
    "generation zero": {"generation": 0},
    "generation beyond what a database holds": {"generation": 2**63},
    "digest upper case": {"digest": "A" * 64},
    "no manifest": {"manifest_digest": ""},
    "decision with a newline": {"decision_id": "a\nb"},
    "rollout too long": {"rollout_id": "r" * 65},
    "time before 1970": {"issue_time": Timestamp(seconds=-1)},
    "time beyond the calendar": {"expire_time": Timestamp(seconds=2**62)},
    "nanoseconds over a second": {"expire_time": Timestamp(seconds=1, nanos=2**30)},
}


@pytest.mark.parametrize("changes", BAD.values(), ids=BAD.keys())
def test_deployment_out_of_bounds_is_neither_signed_nor_accepted(changes: dict[str, object]) -> None:
    message = deployment(**changes)
    with pytest.raises(RejectedError) as caught:
        trust.sign_deployment(KEY, message)
    assert caught.value.code == "deployment-field"
    assert code_of(signed_unchecked(message)) == "deployment-field"


@settings(max_examples=300)
@given(st.binary(max_size=300))
def test_any_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(RejectedError):
        open_it(raw)


@settings(max_examples=200)
@given(st.binary(max_size=300))
def test_any_signed_bytes_are_a_sound_deployment_or_refused(raw: bytes) -> None:
    message = deployment_pb2.SignedDeployment(
        deployment=raw, key_id=KEY.key_id, signature=KEY.sign(trust.SIGNING_PREFIX + raw)
    )
    with pytest.raises(RejectedError) as caught:
        open_it(message.SerializeToString())
    assert caught.value.code == "deployment-field"


def test_oversized_bytes_are_refused_unread() -> None:
    assert code_of(b"\0" * (trust.MAX_SIGNED_BYTES + 1)) == "deployment-field"


def test_key_comes_back_from_its_file_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "director.key"
    before = os.umask(0)
    try:
        KEY.save(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert DirectorKey.load(path).public_bytes == KEY.public_bytes
    assert [entry.name for entry in tmp_path.iterdir()] == ["director.key"]


def test_key_file_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "director.key"
    KEY.save(path)
    with pytest.raises(FileExistsError):
        DirectorKey.generate().save(path)
    assert DirectorKey.load(path).public_bytes == KEY.public_bytes
    assert [entry.name for entry in tmp_path.iterdir()] == ["director.key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610, 0o777], ids=oct)
def test_key_that_others_can_reach_is_refused_with_the_command_that_helps(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "director.key"
    KEY.save(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"chmod 600 {path}") as caught:
        DirectorKey.load(path)
    assert caught.value.code == "key-readable"
    path.chmod(0o400)
    assert DirectorKey.load(path).key_id == KEY.key_id


def test_missing_damaged_or_foreign_key_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "director.key"
    for target in (path, tmp_path):
        with pytest.raises(ConfigError) as caught:
            DirectorKey.load(target)
        assert caught.value.code == "key-missing"
    KEY.save(path)
    whole = path.read_bytes()
    foreign = generate_private_key(SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    for damaged in (b"", whole[:40], b"\xff" * 100, b"x" * 100_000, foreign):
        path.write_bytes(damaged)
        with pytest.raises(ConfigError) as caught:
            DirectorKey.load(path)
        assert caught.value.code == "key-damaged"


def test_first_start_makes_a_key_and_later_starts_find_it(tmp_path: Path) -> None:
    path = tmp_path / "director.key"
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(DirectorKey.load_or_generate(path).public_bytes))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert set(found) == {DirectorKey.load_or_generate(path).public_bytes}


def test_damaged_key_is_never_taken_for_a_first_start(tmp_path: Path) -> None:
    path = tmp_path / "director.key"
    path.touch(mode=0o600)
    with pytest.raises(ConfigError):
        DirectorKey.load_or_generate(path)
    assert path.read_bytes() == b""


def test_key_ring_takes_raw_and_hex_and_refuses_the_rest() -> None:
    assert trust.key_ring(KEY.public_bytes.hex()) == RING == {KEY.key_id: KEY.public_bytes}
    for wrong in (b"short", "zz" * 32, "", "ab" * 31):
        with pytest.raises(ConfigError, match="64 hex digits"):
            trust.key_ring(wrong)


def test_private_key_does_not_show_in_logs() -> None:
    assert KEY.key_id in repr(KEY)
    assert bytes(range(32)).hex() not in repr(KEY)


@given(st.floats(0, 253_402_300_799))
def test_times_survive_the_wire(at_s: float) -> None:
    assert trust.timestamp_s(trust.timestamp(at_s)) == pytest.approx(at_s, abs=1e-4)
    assert 0 <= trust.timestamp(at_s).nanos < 10**9


def test_format_version_1_is_still_read_and_written() -> None:
    raw = (GOLDEN / "signed_deployment_v1.bin").read_bytes()
    assert open_it(raw) == deployment()
    assert trust.sign_deployment(KEY, deployment()) == raw


def test_key_file_of_version_1_is_still_read(tmp_path: Path) -> None:
    path = tmp_path / "director.key"
    path.touch(mode=0o600)
    # PKCS#8 of a published seed (0, 1, 2, ...), put together here: no key lies in the repository.
    der = bytes.fromhex("302e020100300506032b657004220420") + bytes(range(32))
    begin, end = (f"-----{word} {'PRIVATE'} KEY-----" for word in ("BEGIN", "END"))
    path.write_text(f"{begin}\n{base64.b64encode(der).decode()}\n{end}\n")
    assert DirectorKey.load(path).public_bytes == KEY.public_bytes
