"""What passes from a deployment topic, what does not, and what the cloud hears of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from edge_agent.deployment_gate import QUIET_S, DeploymentGate, Refusal
from edge_agent.known_time import STEADY_S, KnownTime
from edgeloop import trust
from edgeloop.director_keys import add_change
from edgeloop.trust import DirectorKey
from edgeloop.v1 import deployment_pb2

FIRST, SECOND, STRANGER = (DirectorKey.generate() for _ in range(3))
NOW_S = 1_000_000.0


def signed(
    key: DirectorKey = FIRST, *, device_id: str = "gw-1", generation: int = 3, expire_s: float = NOW_S + 60
) -> bytes:
    return trust.sign_deployment(
        key,
        deployment_pb2.Deployment(
            device_id=device_id,
            workload="tiny",
            profile="small",
            generation=generation,
            digest="a" * 64,
            manifest_digest="b" * 64,
            issue_time=trust.timestamp(expire_s - 100),
            expire_time=trust.timestamp(expire_s),
        ),
    )


class Device:
    """A restart is another one in the same folder."""

    def __init__(self, folder: Path, *, clock_s: float = NOW_S) -> None:
        self.refusals: list[Refusal] = []
        self.monotonic_s = 0.0
        self.clock_s = clock_s
        self.time = KnownTime(folder, clock=lambda: self.clock_s, monotonic=lambda: self.monotonic_s)
        self.gate = DeploymentGate(
            folder,
            device_id="gw-1",
            configured_keys=(FIRST.public_bytes,),
            known_time=self.time,
            on_refused=self.refusals.append,
            monotonic=lambda: self.monotonic_s,
        )

    @property
    def codes(self) -> list[str]:
        return [refusal.code for refusal in self.refusals]


def test_a_flood_on_the_topic_of_one_workload_hides_no_refusal_of_another(tmp_path: Path) -> None:
    device = Device(tmp_path)
    for number in range(20):
        device.gate.open(b"\xff" * (number + 1), topic="a", hosted=["eyes"])
    device.gate.open(b"\xff" * 50, topic="b", hosted=["ears"])
    device.gate.open(b"\xff" * 51, topic="b", hosted=["ears"])
    assert [refusal.workload for refusal in device.refusals] == ["eyes", "ears"]
    device.monotonic_s += QUIET_S
    device.gate.open(b"\xff" * 52, topic="b", hosted=["ears"])
    assert [refusal.workload for refusal in device.refusals] == ["eyes", "ears", "ears"]


def test_a_fresh_deployment_of_a_trusted_key_passes(tmp_path: Path) -> None:
    device = Device(tmp_path)
    slot = device.gate.open(signed())
    assert slot is not None
    assert (slot.generation, slot.signed, device.refusals) == (3, signed(), [])


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        pytest.param(signed(STRANGER), "signature-unknown-key", id="unknown-key"),
        pytest.param(signed(device_id="gw-2"), "deployment-wrong-device", id="wrong-device"),
        pytest.param(b"\xff" * 90, "deployment-field", id="noise"),
        pytest.param(signed()[:-1] + bytes([signed()[-1] ^ 1]), "signature-invalid", id="bit-flip"),
    ],
)
def test_what_nobody_trusted_said_is_told_without_believing_it(
    tmp_path: Path, payload: bytes, code: str
) -> None:
    device = Device(tmp_path)
    assert device.gate.open(payload) is None
    (refusal,) = device.refusals
    assert (refusal.code, refusal.generation) == (code, 0)
    assert refusal.digest == hashlib.sha256(payload).hexdigest()


def test_an_expired_one_is_named_by_its_generation_and_stays_expired_when_the_clock_is_lost(
    tmp_path: Path,
) -> None:
    device = Device(tmp_path)
    assert device.gate.open(signed(generation=4)) is not None
    lost = Device(tmp_path, clock_s=0.0)
    # Issued and expired before the one that this device knows of.
    assert lost.gate.open(signed(generation=9, expire_s=NOW_S - 50)) is None
    (refusal,) = lost.refusals
    assert (refusal.code, refusal.generation, refusal.digest) == ("deployment-expired", 9, "a" * 64)
    assert "the director signed at 1970-01-12T13:46:00Z" in refusal.message
    assert lost.gate.open(signed(generation=9)) is not None


YEAR_S = 365 * 86_400.0


def test_a_clock_that_was_ahead_for_a_while_costs_no_deployment(tmp_path: Path) -> None:
    device = Device(tmp_path)
    assert device.gate.open(signed(generation=4, expire_s=NOW_S + 60)) is not None
    device.clock_s += 60 * YEAR_S
    device.time.on_tick()
    device.monotonic_s += STEADY_S
    device.clock_s += STEADY_S
    device.time.on_tick()
    wanted = signed(generation=5, expire_s=NOW_S + 2 * STEADY_S + 60)
    assert device.gate.open(wanted, topic="t") is None
    assert "this device's clock says 2029-12-28" in device.refusals[-1].message

    device.clock_s = NOW_S + STEADY_S
    assert device.gate.fresh_again() == {}
    restarted = Device(tmp_path, clock_s=device.clock_s)
    assert restarted.gate.open(wanted, topic="t") is None
    assert "and said 2029-12-28" in restarted.refusals[-1].message
    assert "clock reset" in restarted.refusals[-1].message
    # What the broker retains is not sent again, and need not be.
    restarted.time.hear(restarted.clock_s)
    assert restarted.gate.fresh_again() == {"t": wanted}
    assert restarted.gate.open(wanted, topic="t") is not None
    assert restarted.gate.fresh_again() == {}


def test_a_clock_that_was_ahead_makes_nothing_fresh_that_was_held_back(tmp_path: Path) -> None:
    """Somebody on the way holds one back, and then all that follows; takes the clock ahead, and back."""
    device = Device(tmp_path)
    held_back = signed(generation=9, expire_s=NOW_S + 60)
    for clock_s in (NOW_S + YEAR_S, NOW_S + 60 * YEAR_S):
        device.clock_s = clock_s
        device.time.on_tick()
        device.clock_s += STEADY_S
        device.monotonic_s += STEADY_S
        device.time.on_tick()
    device.clock_s = 0.0
    assert device.gate.open(held_back, topic="t") is None
    # The one answer that lowers what is remembered says what time it is.
    device.time.hear(NOW_S + YEAR_S)
    assert device.gate.open(held_back, topic="t") is None
    assert device.gate.fresh_again() == {}
    assert Device(tmp_path, clock_s=0.0).gate.open(held_back) is None


def test_a_flood_of_refusals_is_told_a_few_times(tmp_path: Path) -> None:
    device = Device(tmp_path)
    for _ in range(50):
        device.gate.open(signed(STRANGER))
    for generation in range(50):
        device.gate.open(signed(STRANGER, generation=generation + 1))
    assert device.codes == ["signature-unknown-key"]
    device.gate.open(signed(device_id="gw-2"))
    device.monotonic_s = QUIET_S + 1
    device.gate.open(signed(STRANGER, generation=77))
    assert device.codes == ["signature-unknown-key", "deployment-wrong-device", "signature-unknown-key"]


def test_keys_rotate_and_what_the_new_key_signed_early_was_not_in_vain(tmp_path: Path) -> None:
    overlap = add_change(b"", FIRST, [FIRST.public_bytes, SECOND.public_bytes], now_s=NOW_S)
    ended = add_change(overlap, SECOND, [SECOND.public_bytes], now_s=NOW_S)
    device = Device(tmp_path)
    early = signed(SECOND)
    assert device.gate.open(early) is None
    assert device.gate.on_chain(overlap) == {"": early}
    assert device.gate.open(early) is not None
    assert device.gate.open(signed(FIRST, generation=4)) is not None

    assert Device(tmp_path).gate.on_chain(ended) == {}
    restarted = Device(tmp_path)
    assert restarted.gate.keys.version == 2
    assert restarted.gate.open(signed(FIRST, generation=5)) is None
    assert restarted.codes == ["signature-unknown-key"]
    assert restarted.gate.open(signed(SECOND, generation=5)) is not None


def test_of_each_workload_one_waits_for_the_new_key(tmp_path: Path) -> None:
    device = Device(tmp_path)
    early = {f"deployments/{number}": signed(SECOND, generation=number) for number in (3, 4)}
    for topic, payload in early.items():
        assert device.gate.open(payload, topic=topic) is None
    # What is heard on one topic says nothing about another.
    assert device.gate.open(signed(generation=9), topic="deployments/9") is not None
    overlap = add_change(b"", FIRST, [FIRST.public_bytes, SECOND.public_bytes], now_s=NOW_S)
    assert device.gate.on_chain(overlap) == early
    assert device.gate.on_chain(overlap) == {}


def test_keys_that_nobody_vouches_for_change_nothing_and_are_told(tmp_path: Path) -> None:
    device = Device(tmp_path)
    assert device.gate.on_chain(add_change(b"", STRANGER, [STRANGER.public_bytes], now_s=NOW_S)) == {}
    assert device.codes == ["keys-unknown-key"]
    assert device.gate.open(signed(STRANGER)) is None
    # A stored chain that was tampered with gives no trust either.
    (tmp_path / "director-keys.bin").write_bytes(
        add_change(b"", STRANGER, [STRANGER.public_bytes], now_s=NOW_S)
    )
    assert set(Device(tmp_path).gate.keys.ring) == {FIRST.key_id}
