"""What ships: the manifest that describes an artifact, and the blocks that carry it.

Rules kept here:

- A manifest is known by the sha256 of its serialised bytes; an artifact by the sha256 of its own. The signed
  deployment names both, so nothing in here needs a signature of its own.
- ``parse_manifest`` compares the digest before it parses, and returns only what has passed every bound. A
  reader refuses a ``format_version`` or ``format`` that it does not know.
- ``build_manifest`` holds to the same checks, so that whatever is published can be read.
- ``BlockAssembler`` does no I/O: it says which blocks are missing, and whether bytes are the block they claim
  to be. Blocks may come twice and in any order.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from typing import Final

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import ArrayLike, NDArray

from edgeloop import topics
from edgeloop.errors import RejectedError
from edgeloop.formats import FORMATS, ONNX_FORMAT, PACKED_FORMATS
from edgeloop.v1 import artifact_pb2, deployment_pb2

FORMAT_VERSION: Final = 1
BLOCK_SIZE_BYTES: Final = 256 * 1024
MIN_BLOCK_SIZE_BYTES: Final = 4 * 1024
MAX_BLOCK_SIZE_BYTES: Final = 1024 * 1024
MAX_ARTIFACT_BYTES: Final = 512 * 1024 * 1024
#: A packed artifact is refused before more than this would be allocated for it.
MAX_EXECUTABLE_BYTES: Final = MAX_ARTIFACT_BYTES
MAX_BLOCKS: Final = 16_384
MAX_MANIFEST_BYTES: Final = 2 * 1024 * 1024
#: For the inputs, and again for the outputs.
MAX_GOLDEN_BYTES: Final = 256 * 1024
MAX_GOLDEN_SAMPLES: Final = 1024
MAX_DIMENSIONS: Final = 8
MAX_DIMENSION: Final = 65_536
MAX_SPEC_CHARS: Final = 16 * 1024
MAX_METRIC_CHARS = 32
MAX_BLOCKS_PER_REQUEST: Final = 64
MAX_REQUEST_BYTES: Final = 1024

_SHA256_BYTES: Final = 32
_FP32_BYTES: Final = 4
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_TENSOR_NAME = re.compile(r"[A-Za-z0-9_./:-]{1,128}", re.ASCII)


def sha256_hex(data: bytes) -> str:
    """The digest that everything is addressed by."""
    return hashlib.sha256(data).hexdigest()


def split_blocks(data: bytes, block_size_bytes: int = BLOCK_SIZE_BYTES) -> list[bytes]:
    """The bytes in blocks; only the last may be shorter."""
    return [data[start : start + block_size_bytes] for start in range(0, len(data), block_size_bytes)]


def golden_set(inputs: ArrayLike, outputs: ArrayLike, *, absolute_tolerance: float) -> artifact_pb2.GoldenSet:
    """Pack samples (first axis) with the outputs that they gave where the artifact was built."""
    packed_inputs, packed_outputs = np.asarray(inputs, dtype="<f4"), np.asarray(outputs, dtype="<f4")
    if not packed_inputs.ndim or not packed_outputs.ndim or len(packed_inputs) != len(packed_outputs):
        raise _field("golden", "inputs and outputs of different length", "one output for each input")
    return artifact_pb2.GoldenSet(
        inputs=packed_inputs.tobytes(),
        outputs=packed_outputs.tobytes(),
        num_samples=len(packed_inputs),
        absolute_tolerance=absolute_tolerance,
    )


def golden_arrays(manifest: artifact_pb2.Manifest) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Golden inputs and outputs of a checked manifest, one sample along the first axis."""
    arrays = []
    for raw, spec in (
        (manifest.golden.inputs, manifest.inputs[0]),
        (manifest.golden.outputs, manifest.outputs[0]),
    ):
        shape = (manifest.golden.num_samples, *_sample_shape(spec))
        arrays.append(np.frombuffer(raw, dtype="<f4").astype(np.float32).reshape(shape))
    return arrays[0], arrays[1]


def build_manifest(
    data: bytes,
    *,
    workload: str,
    profile: str,
    precision: artifact_pb2.Precision,
    inputs: Sequence[artifact_pb2.TensorSpec],
    outputs: Sequence[artifact_pb2.TensorSpec],
    golden: artifact_pb2.GoldenSet,
    accuracy: float,
    metric: str = "",
    artifact_format: str = ONNX_FORMAT,
    executable: bytes = b"",
    parent_digest: str = "",
    spec_json: str = "",
    block_size_bytes: int = BLOCK_SIZE_BYTES,
) -> artifact_pb2.Manifest:
    """Describe an artifact. Raises ``RejectedError`` when a device would refuse the result.

    ``executable`` is what a packed artifact unpacks to, and is left out for other formats.
    """
    manifest = artifact_pb2.Manifest(
        format_version=FORMAT_VERSION,
        digest=sha256_hex(data),
        size_bytes=len(data),
        block_size_bytes=block_size_bytes,
        block_digests=[hashlib.sha256(block).digest() for block in split_blocks(data, block_size_bytes)],
        workload=workload,
        profile=profile,
        format=artifact_format,
        precision=precision,
        inputs=inputs,
        outputs=outputs,
        golden=golden,
        parent_digest=parent_digest,
        spec_json=spec_json,
        accuracy=accuracy,
        executable_digest=sha256_hex(executable) if executable else "",
        executable_size_bytes=len(executable),
        metric=metric,
    )
    check_manifest(manifest)
    return manifest


def encode_manifest(manifest: artifact_pb2.Manifest) -> bytes:
    """The bytes to publish; their ``sha256_hex`` is the manifest digest."""
    return manifest.SerializeToString(deterministic=True)


def parse_manifest(raw: bytes, *, expected_digest: str) -> artifact_pb2.Manifest:
    """Read a manifest that a signed deployment named.

    Raises ``RejectedError``: "manifest-altered", "manifest-version" or "manifest-field".
    """
    if len(raw) > MAX_MANIFEST_BYTES:
        raise _field("size", f"{len(raw)} bytes", f"at most {MAX_MANIFEST_BYTES}")
    if sha256_hex(raw) != expected_digest:
        raise RejectedError(
            f"the manifest is not the one that was signed for ({expected_digest[:12]}): ask for it again",
            code="manifest-altered",
        )
    try:
        manifest = artifact_pb2.Manifest.FromString(raw)
    except DecodeError:
        raise _field("message", "no protobuf message", "a Manifest") from None
    check_manifest(manifest)
    return manifest


def check_manifest(manifest: artifact_pb2.Manifest) -> None:
    """Check every bound. Raises ``RejectedError``: "manifest-version" or "manifest-field"."""
    if manifest.format_version != FORMAT_VERSION:
        raise RejectedError(
            f"manifest format_version {manifest.format_version} is not known here: this side reads "
            f"{FORMAT_VERSION}; update the older side",
            code="manifest-version",
        )
    if manifest.format not in FORMATS:
        raise _field("format", repr(manifest.format[:40]), f"one of {', '.join(sorted(FORMATS))}")
    _check_bytes(manifest)
    _check_executable(manifest)
    for field, value in (("workload", manifest.workload), ("profile", manifest.profile)):
        if not _NAME.fullmatch(value):
            raise _field(field, repr(value[:80]), "1 to 64 letters, digits, '.', '_' or '-'")
    if manifest.precision not in (artifact_pb2.PRECISION_FP32, artifact_pb2.PRECISION_INT8):
        raise _field("precision", str(manifest.precision), "FP32 or INT8")
    if manifest.parent_digest:
        _check_digest("parent_digest", manifest.parent_digest)
    if len(manifest.spec_json) > MAX_SPEC_CHARS:
        raise _field("spec_json", f"{len(manifest.spec_json)} characters", f"at most {MAX_SPEC_CHARS}")
    if not 0 <= manifest.accuracy <= 1:
        raise _field("accuracy", str(manifest.accuracy), "0 to 1")
    if len(manifest.metric) > MAX_METRIC_CHARS:
        raise _field("metric", f"{len(manifest.metric)} characters", f"at most {MAX_METRIC_CHARS}")
    for field, specs in (("inputs", manifest.inputs), ("outputs", manifest.outputs)):
        if len(specs) != 1:
            raise _field(field, f"{len(specs)} tensors", "exactly one")
        _check_tensor(field, specs[0])
    _check_golden(manifest)


def check_target(manifest: artifact_pb2.Manifest, workload: str, profile: str) -> None:
    """Refuse what was built for others. Raises ``RejectedError`` ("manifest-wrong-profile")."""
    if (manifest.workload, manifest.profile) != (workload, profile):
        raise RejectedError(
            f"the manifest is for workload {manifest.workload}, profile {manifest.profile}, the deployment "
            f"for {workload}, {profile}: publish the artifact that was built for this profile",
            code="manifest-wrong-profile",
        )


def check_artifact(manifest: artifact_pb2.Manifest, data: bytes) -> None:
    """Whether these are the bytes. Raises ``RejectedError`` ("artifact-altered")."""
    if len(data) != manifest.size_bytes or sha256_hex(data) != manifest.digest:
        raise altered(manifest)


def altered(manifest: artifact_pb2.Manifest) -> RejectedError:
    """What is said where other bytes lie in the place of an artifact."""
    return RejectedError(
        f"the artifact's bytes are not {manifest.digest[:12]}: fetch it again", code="artifact-altered"
    )


class BlockAssembler:
    """Which blocks of one artifact are verified. The bytes themselves are the caller's to keep."""

    def __init__(self, manifest: artifact_pb2.Manifest) -> None:
        self._digests: tuple[bytes, ...] = tuple(manifest.block_digests)
        self._size_bytes = manifest.size_bytes
        self._block_size_bytes = manifest.block_size_bytes
        self._missing = set(range(len(self._digests)))

    @property
    def num_blocks(self) -> int:
        return len(self._digests)

    @property
    def size_bytes(self) -> int:
        """Of the whole artifact."""
        return self._size_bytes

    @property
    def num_verified(self) -> int:
        return len(self._digests) - len(self._missing)

    @property
    def progress(self) -> float:
        """Share of the blocks that are verified, 0 to 1."""
        return self.num_verified / self.num_blocks

    @property
    def complete(self) -> bool:
        return not self._missing

    def missing(self) -> list[int]:
        """What is still to be fetched, ascending."""
        return sorted(self._missing)

    def size_of(self, n: int) -> int:
        """How many bytes block ``n`` has. Raises ``RejectedError`` ("block-unknown")."""
        self._check_index(n)
        return min(self._block_size_bytes, self._size_bytes - n * self._block_size_bytes)

    def accept(self, n: int, data: bytes) -> bool:
        """Verify a block. True when it was missing until now, False when it was there already.

        Raises ``RejectedError`` ("block-unknown" or "block-altered"); what was verified stays so.
        """
        if len(data) != self.size_of(n) or hashlib.sha256(data).digest() != self._digests[n]:
            raise RejectedError(
                f"block {n} ({len(data)} bytes) is not what the manifest says: ask for it again",
                code="block-altered",
            )
        if n not in self._missing:
            return False
        self._missing.discard(n)
        return True

    def forget(self, n: int) -> None:
        """The caller lost a block: fetch it again. Raises ``RejectedError`` ("block-unknown")."""
        self._check_index(n)
        self._missing.add(n)

    def _check_index(self, n: int) -> None:
        if not 0 <= n < len(self._digests):
            raise RejectedError(
                f"block {n} does not exist: the artifact has {len(self._digests)}", code="block-unknown"
            )


def parse_block_request(raw: bytes, *, device_id: str) -> deployment_pb2.BlockRequest:
    """Read what a device sent on its own request topic. Raises ``RejectedError`` ("request-field")."""
    if len(raw) > MAX_REQUEST_BYTES:
        raise _request("size", f"{len(raw)} bytes", f"at most {MAX_REQUEST_BYTES}")
    try:
        request = deployment_pb2.BlockRequest.FromString(raw)
    except DecodeError:
        raise _request("message", "no protobuf message", "a BlockRequest") from None
    if request.device_id != device_id:
        raise _request("device_id", repr(request.device_id[:80]), f"{device_id}, whose topic it came on")
    for field, digest, needed in (
        ("digest", request.digest, bool(request.blocks)),
        ("manifest_digest", request.manifest_digest, request.manifest),
    ):
        if digest or needed:
            try:
                topics.check_digest(digest, field=field)
            except RejectedError:
                raise _request(field, repr(digest[:80]), "a sha256 in lower-case hex") from None
    if len(request.blocks) > MAX_BLOCKS_PER_REQUEST or any(n >= MAX_BLOCKS for n in request.blocks):
        raise _request(
            "blocks", f"{len(request.blocks)} of them", f"at most {MAX_BLOCKS_PER_REQUEST} in range"
        )
    return request


def _check_bytes(manifest: artifact_pb2.Manifest) -> None:
    _check_digest("digest", manifest.digest)
    if not 1 <= manifest.size_bytes <= MAX_ARTIFACT_BYTES:
        raise _field("size_bytes", str(manifest.size_bytes), f"1 to {MAX_ARTIFACT_BYTES}")
    size = manifest.block_size_bytes
    if not MIN_BLOCK_SIZE_BYTES <= size <= MAX_BLOCK_SIZE_BYTES or size & (size - 1):
        raise _field(
            "block_size_bytes", str(size), f"a power of two, {MIN_BLOCK_SIZE_BYTES} to {MAX_BLOCK_SIZE_BYTES}"
        )
    num_blocks = -(-manifest.size_bytes // size)
    if num_blocks > MAX_BLOCKS:
        raise _field("block_size_bytes", f"{num_blocks} blocks of {size}", f"at most {MAX_BLOCKS} blocks")
    if len(manifest.block_digests) != num_blocks:
        raise _field("block_digests", f"{len(manifest.block_digests)} of them", f"{num_blocks}, one a block")
    if any(len(digest) != _SHA256_BYTES for digest in manifest.block_digests):
        raise _field("block_digests", "one of another length", "32 bytes each")


def _check_executable(manifest: artifact_pb2.Manifest) -> None:
    if manifest.format in PACKED_FORMATS:
        _check_digest("executable_digest", manifest.executable_digest)
        if not 1 <= manifest.executable_size_bytes <= MAX_EXECUTABLE_BYTES:
            raise _field(
                "executable_size_bytes", str(manifest.executable_size_bytes), f"1 to {MAX_EXECUTABLE_BYTES}"
            )
    elif manifest.executable_digest or manifest.executable_size_bytes:
        raise _field("executable_digest", "given", f"left out: {manifest.format!r} runs as it is")


def _check_tensor(field: str, spec: artifact_pb2.TensorSpec) -> None:
    if not _TENSOR_NAME.fullmatch(spec.name):
        raise _field(f"{field}.name", repr(spec.name[:80]), "1 to 128 letters, digits and _./:-")
    if spec.datatype != "FP32":
        raise _field(f"{field}.datatype", repr(spec.datatype[:40]), "FP32")
    if not 1 <= len(spec.shape) <= MAX_DIMENSIONS:
        raise _field(f"{field}.shape", f"{len(spec.shape)} dimensions", f"1 to {MAX_DIMENSIONS}")
    for position, dimension in enumerate(spec.shape):
        if not (0 if position == 0 else 1) <= dimension <= MAX_DIMENSION:
            raise _field(
                f"{field}.shape", str(dimension), f"1 to {MAX_DIMENSION}, or 0 for a free first dimension"
            )


def _check_golden(manifest: artifact_pb2.Manifest) -> None:
    golden = manifest.golden
    if not 1 <= golden.num_samples <= MAX_GOLDEN_SAMPLES:
        raise _field("golden.num_samples", str(golden.num_samples), f"1 to {MAX_GOLDEN_SAMPLES}")
    if not (0 < golden.absolute_tolerance < math.inf):
        raise _field("golden.absolute_tolerance", str(golden.absolute_tolerance), "a number over 0")
    for field, raw, spec in (
        ("golden.inputs", golden.inputs, manifest.inputs[0]),
        ("golden.outputs", golden.outputs, manifest.outputs[0]),
    ):
        wanted = golden.num_samples * math.prod(_sample_shape(spec)) * _FP32_BYTES
        if len(raw) != wanted or wanted > MAX_GOLDEN_BYTES:
            raise _field(field, f"{len(raw)} bytes", f"{wanted} by its shape, and at most {MAX_GOLDEN_BYTES}")
        if not np.isfinite(np.frombuffer(raw, dtype="<f4")).all():
            raise _field(field, "not finite", "finite numbers")


def _sample_shape(spec: artifact_pb2.TensorSpec) -> tuple[int, ...]:
    """The shape of one sample: the batch dimension, free or 1, left out."""
    return tuple(spec.shape[1:]) if spec.shape[0] in (0, 1) else tuple(spec.shape)


def _check_digest(field: str, digest: str) -> None:
    try:
        topics.check_digest(digest, field=field)
    except RejectedError:
        raise _field(field, repr(digest[:80]), "a sha256 in lower-case hex") from None


def _field(field: str, found: str, wanted: str) -> RejectedError:
    return RejectedError(f"manifest {field}: {found}, wanted {wanted}", code="manifest-field")


def _request(field: str, found: str, wanted: str) -> RejectedError:
    return RejectedError(f"block request {field}: {found}, wanted {wanted}", code="request-field")
