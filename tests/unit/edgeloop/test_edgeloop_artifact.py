from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeloop import artifact
from edgeloop.artifact import BlockAssembler
from edgeloop.errors import RejectedError
from edgeloop.v1 import artifact_pb2, deployment_pb2

GOLDEN = Path(__file__).parents[2] / "golden"

Spoil = Callable[[artifact_pb2.Manifest], object]


def tensor(name: str = "image", shape: tuple[int, ...] = (0, 1, 2, 2)) -> artifact_pb2.TensorSpec:
    return artifact_pb2.TensorSpec(name=name, datatype="FP32", shape=shape)


def manifest(data: bytes = b"onnx bytes", **changes: object) -> artifact_pb2.Manifest:
    fields: dict[str, object] = {
        "workload": "digits",
        "profile": "slow",
        "precision": artifact_pb2.PRECISION_INT8,
        "inputs": [tensor()],
        "outputs": [tensor("logits", (0, 3))],
        "golden": artifact.golden_set(
            np.arange(8, dtype=np.float32).reshape(2, 1, 2, 2),
            np.array([[0.5, -1, 2], [3, 0, -0.25]]),
            absolute_tolerance=0.05,
        ),
        "accuracy": 0.975,
        "parent_digest": "ab" * 32,
        "spec_json": '{"road":"pruned"}',
        "block_size_bytes": 4096,
    }
    return artifact.build_manifest(data, **(fields | changes))  # type: ignore[arg-type]  # fields by name


def parse(message: artifact_pb2.Manifest) -> artifact_pb2.Manifest:
    raw = message.SerializeToString(deterministic=True)
    return artifact.parse_manifest(raw, expected_digest=artifact.sha256_hex(raw))


@given(st.integers(1, 70_000), st.sampled_from([4096, 8192, 65536]))
def test_built_manifest_is_read_back_and_carries_the_bytes(size: int, block_size_bytes: int) -> None:
    data = random.Random(size).randbytes(size)
    built = manifest(data, block_size_bytes=block_size_bytes)
    read = parse(built)
    assert read == built
    blocks = artifact.split_blocks(data, block_size_bytes)
    assembler = BlockAssembler(read)
    assert [assembler.size_of(n) for n in assembler.missing()] == [len(block) for block in blocks]
    for n in random.Random(1).sample(range(len(blocks)), len(blocks)):
        assembler.accept(n, blocks[n])
    assert assembler.complete
    artifact.check_artifact(read, b"".join(blocks))


def test_default_blocks_are_what_the_broker_was_measured_with() -> None:
    assert artifact.BLOCK_SIZE_BYTES == 256 * 1024
    assert [len(block) for block in artifact.split_blocks(b"x" * 600_000)] == [262_144, 262_144, 75_712]


def test_same_manifest_gives_the_same_bytes() -> None:
    assert artifact.encode_manifest(manifest()) == artifact.encode_manifest(manifest())


def test_golden_arrays_come_back_in_shape() -> None:
    inputs, outputs = artifact.golden_arrays(parse(manifest()))
    assert inputs.shape == (2, 1, 2, 2)
    assert outputs.tolist() == [[0.5, -1.0, 2.0], [3.0, 0.0, -0.25]]
    assert (inputs.dtype, outputs.dtype) == (np.float32, np.float32)


def test_golden_set_needs_one_output_for_each_input() -> None:
    with pytest.raises(RejectedError, match="one output for each input"):
        artifact.golden_set([[1.0]], [[1.0], [2.0]], absolute_tolerance=1)


def test_manifest_that_was_not_signed_for_is_refused_unparsed() -> None:
    raw = artifact.encode_manifest(manifest())
    with pytest.raises(RejectedError) as caught:
        artifact.parse_manifest(raw + b"\x00", expected_digest=artifact.sha256_hex(raw))
    assert caught.value.code == "manifest-altered"


def test_newer_format_version_is_refused_with_advice() -> None:
    newer = manifest()
    newer.format_version = 2
    with pytest.raises(RejectedError, match="update") as caught:
        parse(newer)
    assert caught.value.code == "manifest-version"


def put(field: str, value: object) -> Spoil:
    return lambda message: setattr(message, field, value)


def change_shape(*shape: int) -> Spoil:
    def spoil(message: artifact_pb2.Manifest) -> None:
        message.inputs[0].shape[:] = shape

    return spoil


BAD: dict[str, Spoil] = {
    "digest upper case": put("digest", "AB" * 32),
    "digest missing": put("digest", ""),
    "size zero": put("size_bytes", 0),
    "size beyond the bound": put("size_bytes", artifact.MAX_ARTIFACT_BYTES + 1),
    "size enormous": put("size_bytes", 2**64 - 1),
    "size needs more blocks": put("size_bytes", 4097),
    "block size not a power of two": put("block_size_bytes", 5000),
    "block size too small": put("block_size_bytes", 2048),
    "block size too large": put("block_size_bytes", 2 * 1024 * 1024),
    "block size zero": put("block_size_bytes", 0),
    "block digest too many": lambda message: message.block_digests.append(b"x" * 32),
    "block digest missing": lambda message: message.ClearField("block_digests"),
    "block digest short": lambda message: message.block_digests.__setitem__(0, b"x"),
    "workload empty": put("workload", ""),
    "workload a path": put("workload", "../digits"),
    "profile too long": put("profile", "p" * 65),
    "format unknown": put("format", "pickle"),
    "precision unset": put("precision", 0),
    "precision unknown": put("precision", 99),
    "no input": lambda message: message.ClearField("inputs"),
    "two inputs": lambda message: message.inputs.append(tensor("second")),
    "no output": lambda message: message.ClearField("outputs"),
    "input name empty": lambda message: setattr(message.inputs[0], "name", ""),
    "input datatype": lambda message: setattr(message.inputs[0], "datatype", "INT64"),
    "shape empty": change_shape(),
    "shape with nine dimensions": change_shape(0, *[1] * 8),
    "shape negative": change_shape(0, -1, 2, 2),
    "shape free in the middle": change_shape(0, 0, 2, 2),
    "shape enormous": change_shape(0, 2**62, 2, 2),
    "shape of another size": change_shape(0, 1, 2, 3),
    "golden missing": lambda message: message.ClearField("golden"),
    "golden no samples": lambda message: setattr(message.golden, "num_samples", 0),
    "golden samples enormous": lambda message: setattr(message.golden, "num_samples", 2**32 - 1),
    "golden short": lambda message: setattr(message.golden, "inputs", message.golden.inputs[:-4]),
    "golden not finite": lambda message: setattr(
        message.golden, "outputs", np.full(6, np.nan, "<f4").tobytes()
    ),
    "tolerance zero": lambda message: setattr(message.golden, "absolute_tolerance", 0.0),
    "tolerance NaN": lambda message: setattr(message.golden, "absolute_tolerance", math.nan),
    "tolerance infinite": lambda message: setattr(message.golden, "absolute_tolerance", math.inf),
    "accuracy over one": put("accuracy", 1.01),
    "accuracy NaN": put("accuracy", math.nan),
    "parent no digest": put("parent_digest", "teacher"),
    "spec too long": put("spec_json", "x" * (artifact.MAX_SPEC_CHARS + 1)),
}


@pytest.mark.parametrize("spoil", BAD.values(), ids=BAD.keys())
def test_manifest_out_of_bounds_is_refused(spoil: Spoil) -> None:
    message = manifest()
    spoil(message)
    with pytest.raises(RejectedError) as caught:
        parse(message)
    assert caught.value.code == "manifest-field"
    assert "wanted" in caught.value.message


def test_golden_set_beyond_its_bound_is_refused() -> None:
    size = artifact.MAX_GOLDEN_BYTES // 4
    for values, good in ((size, True), (size + 2, False)):
        golden = artifact.golden_set(np.zeros((1, values)), np.zeros((1, 3)), absolute_tolerance=1)
        if good:
            manifest(inputs=[tensor(shape=(0, 2, values // 2))], golden=golden)
        else:
            with pytest.raises(RejectedError, match=r"golden\.inputs"):
                manifest(inputs=[tensor(shape=(0, 2, values // 2))], golden=golden)


def test_largest_artifact_makes_a_manifest_that_is_accepted() -> None:
    message = manifest()
    message.size_bytes = artifact.MAX_ARTIFACT_BYTES
    for size, good in ((256 * 1024, True), (64 * 1024, True), (4096, False)):
        message.block_size_bytes = size
        message.block_digests[:] = [b"d" * 32] * (artifact.MAX_ARTIFACT_BYTES // size)
        if good:
            parse(message)
        else:
            with pytest.raises(RejectedError, match="block_size_bytes"):
                artifact.check_manifest(message)


def test_an_empty_artifact_cannot_be_described() -> None:
    with pytest.raises(RejectedError, match="size_bytes"):
        manifest(b"")


def test_manifest_for_another_profile_or_workload_is_refused() -> None:
    message = manifest()
    artifact.check_target(message, "digits", "slow")
    for workload, profile in (("digits", "fast"), ("fashion", "slow")):
        with pytest.raises(RejectedError) as caught:
            artifact.check_target(message, workload, profile)
        assert caught.value.code == "manifest-wrong-profile"


@pytest.mark.parametrize("altered", [b"onnx byteS", b"onnx bytes ", b"onnx byte", b""])
def test_altered_artifact_is_refused(altered: bytes) -> None:
    with pytest.raises(RejectedError) as caught:
        artifact.check_artifact(manifest(b"onnx bytes"), altered)
    assert caught.value.code == "artifact-altered"


def assembler(num_blocks: int = 3) -> tuple[BlockAssembler, list[bytes]]:
    data = random.Random(0).randbytes(4096 * (num_blocks - 1) + 100)
    return BlockAssembler(manifest(data)), artifact.split_blocks(data, 4096)


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["good", "altered", "short", "long", "other"]))))
def test_any_order_of_good_doubled_and_bad_blocks_keeps_exactly_the_good(
    events: list[tuple[int, str]],
) -> None:
    under_test, blocks = assembler(5)
    verified: set[int] = set()
    for n, kind in events:
        data = {
            "good": blocks[n],
            "altered": b"\x00" + blocks[n][1:],
            "short": blocks[n][:-1],
            "long": blocks[n] + b"\x00",
            "other": blocks[(n + 1) % 4],
        }[kind]
        if kind == "good" or data == blocks[n]:
            assert under_test.accept(n, data) is (n not in verified)
            verified.add(n)
        else:
            with pytest.raises(RejectedError) as caught:
                under_test.accept(n, data)
            assert caught.value.code == "block-altered"
        assert under_test.missing() == sorted(set(range(5)) - verified)
        assert under_test.complete is (len(verified) == 5)
        assert under_test.progress == len(verified) / 5


@pytest.mark.parametrize("n", [-1, 3, 2**40])
def test_block_that_the_artifact_does_not_have_is_refused(n: int) -> None:
    under_test, blocks = assembler()
    for call in (lambda: under_test.accept(n, blocks[0]), lambda: under_test.forget(n)):
        with pytest.raises(RejectedError) as caught:
            call()
        assert caught.value.code == "block-unknown"


def test_forgotten_block_is_missing_again() -> None:
    under_test, blocks = assembler()
    for n, data in enumerate(blocks):
        under_test.accept(n, data)
    under_test.forget(1)
    assert under_test.missing() == [1]
    assert not under_test.complete


def request(**changes: object) -> bytes:
    fields: dict[str, object] = {
        "device_id": "gateway-1",
        "digest": "a" * 64,
        "manifest_digest": "b" * 64,
        "manifest": True,
        "blocks": [0, 7],
    }
    message = deployment_pb2.BlockRequest(**(fields | changes))  # type: ignore[arg-type]  # fields by name
    return message.SerializeToString()


def test_block_request_is_read() -> None:
    read = artifact.parse_block_request(request(), device_id="gateway-1")
    assert (read.digest, list(read.blocks), read.manifest) == ("a" * 64, [0, 7], True)
    artifact.parse_block_request(request(digest="", blocks=[]), device_id="gateway-1")
    artifact.parse_block_request(request(manifest=False, manifest_digest=""), device_id="gateway-1")
    artifact.parse_block_request(request(blocks=[16_383] * 64), device_id="gateway-1")


@pytest.mark.parametrize(
    "changes",
    [
        {"device_id": "gateway-2"},
        {"digest": ""},
        {"digest": "../x"},
        {"manifest_digest": ""},
        {"blocks": range(65)},
        {"blocks": [16_384]},
    ],
    ids=str,
)
def test_impossible_block_request_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(RejectedError) as caught:
        artifact.parse_block_request(request(**changes), device_id="gateway-1")
    assert caught.value.code == "request-field"


@settings(max_examples=300)
@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_refused(raw: bytes) -> None:
    with pytest.raises(RejectedError):  # random bytes are never a complete manifest
        artifact.parse_manifest(raw, expected_digest=artifact.sha256_hex(raw))
    try:
        artifact.parse_block_request(raw, device_id="gateway-1")
    except RejectedError:
        return


def test_a_packed_artifact_is_described_by_both_of_its_sizes() -> None:
    packed = manifest(b"small", artifact_format="onnx-packed-v1", executable=b"much larger")
    read = parse(packed)
    assert (read.digest, read.size_bytes) == (artifact.sha256_hex(b"small"), 5)
    assert (read.executable_digest, read.executable_size_bytes) == (artifact.sha256_hex(b"much larger"), 11)


@pytest.mark.parametrize(
    ("artifact_format", "field", "value"),
    [
        ("onnx-packed-v1", "executable_digest", ""),
        ("onnx-packed-v1", "executable_digest", "AB" * 32),
        ("onnx-packed-v1", "executable_size_bytes", 0),
        ("onnx-packed-v1", "executable_size_bytes", artifact.MAX_EXECUTABLE_BYTES + 1),
        ("onnx", "executable_digest", "ab" * 32),
        ("onnx", "executable_size_bytes", 11),
    ],
)
def test_an_executable_that_does_not_fit_the_format_is_refused(
    artifact_format: str, field: str, value: object
) -> None:
    executable = b"much larger" if artifact_format == "onnx-packed-v1" else b""
    message = manifest(b"small", artifact_format=artifact_format, executable=executable)
    setattr(message, field, value)
    with pytest.raises(RejectedError, match="executable"):
        parse(message)


@settings(max_examples=300)
@given(st.data())
def test_any_damage_to_a_manifest_is_refused_or_leaves_it_usable(data: st.DataObject) -> None:
    raw = bytearray(artifact.encode_manifest(manifest()))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        # As if whoever signs had signed the damage: every bound must hold all the same.
        read = artifact.parse_manifest(bytes(raw), expected_digest=artifact.sha256_hex(bytes(raw)))
    except RejectedError:
        return
    inputs, outputs = artifact.golden_arrays(read)
    assert len(inputs) == len(outputs) > 0
    assert BlockAssembler(read).missing()


def test_oversized_bytes_are_refused_unread() -> None:
    for read in (
        lambda: artifact.parse_manifest(b"\0" * (artifact.MAX_MANIFEST_BYTES + 1), expected_digest=""),
        lambda: artifact.parse_block_request(b"\0" * (artifact.MAX_REQUEST_BYTES + 1), device_id="a"),
    ):
        with pytest.raises(RejectedError, match="at most"):
            read()


def test_format_version_1_is_still_read_and_written() -> None:
    raw = (GOLDEN / "manifest_v1.bin").read_bytes()
    read = artifact.parse_manifest(raw, expected_digest=hashlib.sha256(raw).hexdigest())
    assert read == manifest()
    assert artifact.encode_manifest(manifest()) == raw
