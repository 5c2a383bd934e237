"""The updater with a delta on offer: taken where it can be, given up for the artifact in every other case."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from updater_device import Device, Shipment, make_model, ship

import edge_agent.blobs as blobs_module
from edge_agent.delta_source import offer_of
from edge_agent.update_events import DeploymentSeen
from edge_agent.update_state import Slot, State
from edgeloop import artifact, delta, topics, trust
from edgeloop.v1 import deployment_pb2

GOOD = make_model(1)
FIRST = ship(GOOD)
# The last tensor changed a little: what a new calibration does.
CHANGED = bytearray(GOOD)
CHANGED[-900:-892] = np.float64(1e-3).tobytes()
SECOND = ship(bytes(CHANGED))
THIRD = ship(make_model(3))
KEY = trust.DirectorKey.generate()
DELTA = delta.make_delta(FIRST.data, SECOND.data)
OFFER = delta.make_offer(FIRST.digest, DELTA)
UNFIT = "ab" * 32


def offered(generation: int, offer: deployment_pb2.Delta = OFFER, shipment: Shipment = SECOND) -> Slot:
    """As the gate makes one of a signed deployment."""
    deployment = deployment_pb2.Deployment(
        device_id="gw-1",
        workload="tiny",
        profile="small",
        generation=generation,
        digest=shipment.digest,
        manifest_digest=shipment.manifest_digest,
        delta=offer,
    )
    return Slot(
        generation=generation,
        digest=shipment.digest,
        manifest_digest=shipment.manifest_digest,
        workload="tiny",
        profile="small",
        signed=trust.sign_deployment(KEY, deployment),
    )


def changed(**fields: object) -> deployment_pb2.Delta:
    offer = deployment_pb2.Delta()
    offer.CopyFrom(OFFER)
    for name, value in fields.items():
        setattr(offer, name, value)
    return offer


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device(tmp_path, monkeypatch)
    device.install(FIRST, 1)
    return device


def codes(device: Device, generation: int = 2) -> set[str]:
    device.tick()
    return {note.code for note in device.delivered if note.generation == generation} - {""}


def give_delta(device: Device, data: bytes = DELTA, digest: str = OFFER.digest) -> None:
    """Manifest and delta; whatever else is subscribed is left alone."""
    where = topics.manifest(SECOND.manifest_digest)
    if where in device.subscribed:
        device.updater.on_message(where, SECOND.raw_manifest)
    for n, block in enumerate(artifact.split_blocks(data)):
        if topics.block(digest, n) in device.subscribed:
            device.updater.on_message(topics.block(digest, n), block)


def finish(device: Device, shipment: Shipment = SECOND) -> None:
    device.fetch(shipment)
    device.pass_test()
    device.serve()
    assert device.serving == shipment.digest
    assert device.updater.state.state is State.ACTIVE
    # Nothing is left of the way by which it came.
    assert list((device.folder / "blobs" / "partial").iterdir()) == []


def test_an_artifact_is_made_of_a_delta_and_tested_like_any_other(device: Device) -> None:
    device.updater.handle(DeploymentSeen(slot=offered(2)))
    give_delta(device)
    assert device.updater.state.state is State.TESTING
    assert (device.folder / "blobs" / "artifacts" / SECOND.digest).read_bytes() == SECOND.data
    assert device.subscribed == set()
    finish(device)
    assert (device.updater.deltas.num_applied, device.updater.deltas.num_given_up) == (1, 0)
    assert codes(device) == set()


def test_one_whose_self_test_fails_is_rejected_like_any_other(device: Device) -> None:
    from edge_agent.selftest import SelfTestResult

    device.updater.handle(DeploymentSeen(slot=offered(2)))
    give_delta(device)
    device.updater.on_self_test(device.tests[-1], SelfTestResult(code="self-test-output", message="m"))
    assert (device.updater.state.state, device.serving) == (State.REJECTED, FIRST.digest)


def test_what_came_of_it_outlives_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta, "BLOCK_SIZE_BYTES", 4096)
    monkeypatch.setattr(delta, "split_blocks", lambda data: artifact.split_blocks(data, 4096))
    device = Device(tmp_path, monkeypatch)
    device.install(FIRST, 1)
    # Half of it new, so that there are many blocks.
    mixed = ship(GOOD[:-80_000] + make_model(5)[-80_000:])
    data = delta.make_delta(FIRST.data, mixed.data)
    blocks, offer = artifact.split_blocks(data, 4096), delta.make_offer(FIRST.digest, data)
    assert len(blocks) > 8
    device.updater.handle(DeploymentSeen(slot=offered(2, offer, mixed)))
    device.updater.on_message(topics.manifest(mixed.manifest_digest), mixed.raw_manifest)
    for n in range(len(blocks) // 2):
        device.updater.on_message(topics.block(offer.digest, n), blocks[n])
    device.restart()
    assert topics.block(offer.digest, 0) not in device.subscribed
    assert topics.block(offer.digest, len(blocks) // 2) in device.subscribed
    for n in range(len(blocks) // 2, len(blocks)):
        device.updater.on_message(topics.block(offer.digest, n), blocks[n])
    assert device.updater.state.state is State.TESTING
    assert device.updater.deltas.num_applied == 1


@pytest.mark.parametrize(
    ("offer", "code"),
    [
        (changed(base_digest=UNFIT), "delta-base"),
        (changed(base_digest="../../state.json"), "delta-field"),
        (changed(digest="../../../../etc/passwd"), "delta-field"),
        (changed(digest=""), "delta-field"),
        (changed(size_bytes=2**62), "delta-field"),
        (changed(format="zstd-prefix-v9"), "delta-unsupported"),
        (deployment_pb2.Delta(), "delta-unsupported"),
    ],
)
def test_an_offer_that_cannot_be_used_costs_nothing_but_its_saving(
    device: Device, offer: deployment_pb2.Delta, code: str
) -> None:
    device.updater.handle(DeploymentSeen(slot=offered(2, offer)))
    finish(device)
    assert (codes(device), device.updater.deltas.num_given_up) == ({code}, 1)


def test_a_base_that_is_damaged_on_the_disk_is_no_base(device: Device) -> None:
    path = device.folder / "blobs" / "artifacts" / FIRST.digest
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    device.updater.handle(DeploymentSeen(slot=offered(2)))
    finish(device)
    assert codes(device) == {"delta-base"}


def bomb() -> bytes:
    import zstandard

    prefix = zstandard.ZstdCompressionDict(FIRST.data, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    return zstandard.ZstdCompressor(dict_data=prefix).compress(bytes(1 << 28))


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (bomb(), {"delta-size"}),
        (delta.make_delta(FIRST.data, THIRD.data)[:100_000], {"delta-malformed", "delta-size"}),
        (delta.make_delta(THIRD.data, SECOND.data), {"delta-malformed", "delta-result"}),
        (delta.make_delta(FIRST.data, FIRST.data), {"delta-size", "delta-result"}),
        (b"no delta at all", {"delta-malformed"}),
    ],
    ids=["bomb", "truncated", "wrong base", "foreign", "nonsense"],
)
def test_a_signed_delta_that_is_a_lie_is_given_up_for_the_artifact(
    device: Device, data: bytes, code: set[str]
) -> None:
    """As whoever stole the director's key would send it."""
    if len(data) >= len(SECOND.data):
        data = data[: len(SECOND.data) - 1]
    offer = delta.make_offer(FIRST.digest, data)
    device.updater.handle(DeploymentSeen(slot=offered(2, offer)))
    give_delta(device, data, offer.digest)
    assert device.updater.state.state is State.FETCHING
    assert topics.block(SECOND.digest, 0) in device.subscribed
    device.restart()
    # Also the next start knows that it is of no use.
    assert topics.block(SECOND.digest, 0) in device.subscribed
    finish(device)
    assert codes(device) <= code
    assert len(codes(device)) == 1


def test_blocks_that_stay_altered_are_given_up_for_the_artifact(device: Device) -> None:
    device.updater.handle(DeploymentSeen(slot=offered(2)))
    for _ in range(5):
        give_delta(device, DELTA[:-1] + bytes([DELTA[-1] ^ 1]))
    assert {request.digest for request in device.requests if request.blocks} == {OFFER.digest}
    finish(device)
    assert codes(device) == {"delta-block-altered"}


def test_a_delta_that_never_comes_is_asked_for_and_then_given_up(device: Device) -> None:
    device.updater.on_broker(True)
    device.updater.handle(DeploymentSeen(slot=offered(2)))
    device.updater.on_message(topics.manifest(SECOND.manifest_digest), SECOND.raw_manifest)
    device.tick(599.0)
    assert topics.block(OFFER.digest, 0) in device.subscribed
    assert device.requests[-1].digest == OFFER.digest
    # While there is no broker nobody is silent.
    device.updater.on_broker(False)
    device.tick(10_000.0)
    device.updater.on_broker(True)
    device.tick(599.0)
    assert topics.block(OFFER.digest, 0) in device.subscribed
    device.tick(1.0)
    finish(device)
    assert codes(device) == {"delta-missing"}


def test_an_agent_that_ended_while_it_applied_one_does_not_apply_it_again(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PowerCutError(BaseException):
        pass

    def cut(*_: object) -> bytes:
        raise PowerCutError

    device.updater.handle(DeploymentSeen(slot=offered(2)))
    with monkeypatch.context() as patch:
        patch.setattr(delta, "apply_delta", cut)
        with pytest.raises(PowerCutError):
            give_delta(device)
    device.restart()
    assert device.serving == FIRST.digest
    device.tick()
    finish(device)
    assert codes(device) == {"delta-interrupted"}


def test_a_disk_that_takes_no_note_of_it_does_not_make_it_try_for_ever(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = blobs_module.write_atomically

    def full(path: Path, data: bytes, **options: bool) -> None:
        if path.name == blobs_module.NOTE_FILE:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, data, **options)

    monkeypatch.setattr(blobs_module, "write_atomically", full)
    device.updater.handle(DeploymentSeen(slot=offered(2)))
    give_delta(device)
    finish(device)
    assert codes(device) == {"delta-storage-full"}


def test_a_delta_under_way_counts_once_against_the_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(tmp_path, monkeypatch)
    device.install(FIRST, 1)
    kept = sum(path.stat().st_size for path in (tmp_path / "blobs").rglob("*") if path.is_file())
    device.quota_bytes = kept + 2 * len(SECOND.data) + len(SECOND.raw_manifest) + 10
    device.restart()
    device.updater.handle(DeploymentSeen(slot=offered(2)))
    device.updater.on_message(topics.manifest(SECOND.manifest_digest), SECOND.raw_manifest)
    # As much as a delta can be: it is this one's room, not somebody's beside it.
    partial = tmp_path / "blobs" / "partial" / OFFER.digest
    partial.mkdir()
    (partial / "note").write_bytes(b"")
    (partial / "0.part").write_bytes(bytes(len(SECOND.data) // 2))
    device.restart()
    give_delta(device)
    assert device.updater.state.state is State.TESTING


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=200))
def test_no_bytes_in_place_of_a_deployment_make_the_offer_fail(raw: bytes) -> None:
    slot = Slot(generation=1, digest=UNFIT, manifest_digest=UNFIT, workload="w", profile="p", signed=raw)
    offer = offer_of(slot)
    assert offer is None or isinstance(offer, deployment_pb2.Delta)
