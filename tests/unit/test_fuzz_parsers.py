"""Every parser of what comes over a wire or from a disk, fed with what no honest side writes.

Each gives a value or one of edgeloop's own errors; nothing else may leave it. Examples are arbitrary bytes,
and genuine messages that were cut, spliced and bit-flipped, since those get further. The digest that guards a
manifest is made to fit, so that what lies behind it is reached. Each run takes a few hundred examples of each
from hypothesis; EDGELOOP_FUZZ_S=60 goes on for a minute with each family of parsers, shared among its
members, with mutations that cost little, so that most of the minute is the parsers'. What fails then is shown
as hexadecimal digits.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import random
import time
from collections.abc import Callable

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloud.services.convert import device_from_proto, status_from_proto
from cloud.services.report_check import ReportBounds, check_report
from edge_agent import fetch, journal
from edge_agent.deployment_gate import DeploymentGate
from edge_agent.known_time import KnownTime
from edge_agent.sensors.samples import parse_sample
from edge_agent.serving import grpc_messages, rest_messages
from edge_agent.serving.inference import grpc_service_pb2 as oip
from edge_agent.update_state import Slot, UpdateState
from edgeloop import artifact, rules, topics, trust
from edgeloop.artifact import BlockAssembler
from edgeloop.director_keys import TrustedKeys, add_change
from edgeloop.errors import EdgeloopError
from edgeloop.v1 import artifact_pb2, deployment_pb2, device_pb2, telemetry_pb2

FUZZ_S = float(os.environ.get("EDGELOOP_FUZZ_S", "0"))
NUM_EXAMPLES = 300
KEY = trust.DirectorKey.generate()
DATA = np.random.default_rng(0).bytes(5000)
TENSOR = artifact_pb2.TensorSpec(name="x", datatype="FP32", shape=[0, 2])
MANIFEST = artifact.encode_manifest(
    artifact.build_manifest(
        DATA,
        workload="tiny",
        profile="small",
        precision=artifact_pb2.PRECISION_FP32,
        inputs=[TENSOR],
        outputs=[TENSOR],
        golden=artifact.golden_set(np.zeros((1, 2)), np.ones((1, 2)), absolute_tolerance=0.1),
        accuracy=0.5,
        block_size_bytes=4096,
    )
)
DEPLOYMENT = deployment_pb2.Deployment(
    device_id="gw-1",
    workload="tiny",
    profile="small",
    generation=3,
    digest="a" * 64,
    manifest_digest="b" * 64,
    issue_time=trust.timestamp(5.0),
)
CHAIN = add_change(b"", KEY, [KEY.public_bytes], now_s=1.0)
REGISTRATION = device_pb2.Registration(
    device_id="gw-1",
    hardware=device_pb2.Hardware(architecture="x86_64", num_cores=2, memory_bytes=2**30),
    labels={"site": "a"},
    boot_id="boot",
    emulated_slowdown=1,
)
STATUS = deployment_pb2.DeploymentStatus(
    device_id="gw-1",
    generation=1,
    digest="a" * 64,
    state=deployment_pb2.DEPLOYMENT_STATE_ACTIVE,
    event_time=trust.timestamp(7.0),
)
REPORT = telemetry_pb2.LatencyReport(
    device_id="gw-1",
    boot_id="boot",
    sequence=1,
    digest="a" * 64,
    generation=1,
    start_time=trust.timestamp(10.0),
    end_time=trust.timestamp(20.0),
)
REST = json.dumps(
    {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0, 1, 2, 3]}], "id": "7"}
).encode()
GRPC = oip.ModelInferRequest(
    model_name="tiny",
    inputs=[oip.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 4])],
    raw_input_contents=[np.zeros(4, np.float32).tobytes()],
)


def _manifest(raw: bytes) -> None:
    artifact.parse_manifest(raw, expected_digest=artifact.sha256_hex(raw))


def _block(raw: bytes) -> None:
    manifest = artifact_pb2.Manifest.FromString(MANIFEST)
    assembler = BlockAssembler(manifest)
    slot = Slot(
        generation=1,
        digest=manifest.digest,
        manifest_digest=artifact.sha256_hex(MANIFEST),
        workload="tiny",
        profile="small",
        signed=b"",
    )
    fetcher = fetch.Fetcher(slot, fetch.FetchSettings(), random.Random(0))
    fetcher.begin_manifest(0.0)
    fetcher.on_message(topics.manifest(slot.manifest_digest), raw, 1.0)
    fetcher.begin_blocks(assembler, 1.0)
    fetcher.on_message(topics.block(slot.digest, 0), raw, 2.0)
    assert assembler.num_verified == (raw == DATA[:4096])


def _signed_deployment(raw: bytes) -> None:
    """Behind a good signature, where the fields are."""
    signed = deployment_pb2.SignedDeployment(
        deployment=raw, key_id=KEY.key_id, signature=KEY.sign(trust.SIGNING_PREFIX + raw)
    )
    trust.open_deployment(
        signed.SerializeToString(), {KEY.key_id: KEY.public_bytes}, device_id="gw-1", now_s=9.0
    )


def _journal(raw: bytes) -> None:
    try:
        journal.decode(raw)
    except (ValueError, RecursionError):
        return  # what Journal.load answers for


def _protobuf(kind: type, check: Callable[..., object]) -> Callable[[bytes], None]:
    def parse(raw: bytes) -> None:
        try:
            message = kind.FromString(raw)  # type: ignore[attr-defined]
        except DecodeError:
            return  # gRPC's own answer
        check(message)

    return parse


def _oip(message: oip.ModelInferRequest) -> None:
    grpc_messages.parse_inputs(message)
    grpc_messages.parse_output_names(message)
    grpc_messages.parse_timeout_s(message.parameters)


def _topic(raw: bytes) -> None:
    text = raw.decode("utf-8", "replace")
    for parse in (topics.device_of, topics.block_of, topics.manifest_of):
        try:
            parse(text)
        except EdgeloopError:
            continue


def _sample(sample_format: str) -> Callable[[bytes], object]:
    return functools.partial(parse_sample, sample_format=sample_format, sample_shape=(1, 2))


def _npy() -> bytes:
    file = io.BytesIO()
    np.save(file, np.ones((1, 2), np.float32))
    return file.getvalue()


def _rules() -> bytes:
    """Two tests, the first on a sum."""
    return rules.encode(
        rules.RuleModel(
            kind=rules.RulesKind.TREE,
            input_shape=(4,),
            num_classes=2,
            base=np.zeros(2, np.float32),
            roots=np.zeros(1, np.int32),
            num_terms=np.array([2, 1], np.int32),
            feature=np.array([1, 3, 0], np.int32),
            weight=np.array([1, -0.5, 1], np.float32),
            threshold=np.array([0.5, -0.25], np.float32),
            left=np.array([1, -1], np.int32),
            right=np.array([-3, -2], np.int32),
            leaves=np.array([[1, 2], [3, 4], [5, 6]], np.float32),
            names=("height", "breadth", "depth"),
        )
    )


PARSERS: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "manifest": (_manifest, MANIFEST),
    "block": (_block, DATA[:4096]),
    "deployment": (_signed_deployment, DEPLOYMENT.SerializeToString()),
    "director-keys": (TrustedKeys.configured(KEY.public_bytes).follow, CHAIN),
    "block-request": (
        functools.partial(artifact.parse_block_request, device_id="gw-1"),
        deployment_pb2.BlockRequest(device_id="gw-1", digest="a" * 64, blocks=[1, 2]).SerializeToString(),
    ),
    "topic": (_topic, topics.block("a" * 64, 7).encode()),
    "registration": (_protobuf(device_pb2.Registration, device_from_proto), REGISTRATION.SerializeToString()),
    "status": (_protobuf(deployment_pb2.DeploymentStatus, status_from_proto), STATUS.SerializeToString()),
    "report": (
        _protobuf(telemetry_pb2.LatencyReport, lambda message: check_report(message, ReportBounds(), 30.0)),
        REPORT.SerializeToString(),
    ),
    "oip-rest": (lambda raw: rest_messages.parse_infer(raw, None), REST),
    "oip-rest-binary": (lambda raw: rest_messages.parse_infer(raw, len(raw) // 2 or None), REST * 2),
    "oip-rest-gzip": (
        lambda raw: rest_messages.decompress(raw, "gzip", 1 << 16),
        b"\x1f\x8b\x08" + b"\0" * 40,
    ),
    "oip-grpc": (_protobuf(oip.ModelInferRequest, _oip), GRPC.SerializeToString()),
    "sample-json": (_sample("json"), b'{"inputs": [[1.5, 2]], "id": "n-1"}'),
    "sample-raw": (_sample("raw"), bytes(8)),
    "sample-npy": (_sample("npy"), _npy()),
    "rules": (rules.decode, _rules()),
    "journal": (_journal, journal.encode(UpdateState())),
}


#: What EDGELOOP_FUZZ_S is given to. The journal, which a checksum guards and only a disk can damage, has its
#: examples alone.
FAMILIES: dict[str, tuple[str, ...]] = {
    "manifest": ("manifest",),
    "artifact": ("rules",),
    "block": ("block",),
    "mqtt": (
        *("deployment", "director-keys", "block-request", "topic"),
        *("sample-json", "sample-raw", "sample-npy"),
    ),
    "report": ("report", "status", "registration"),
    "oip": ("oip-rest", "oip-rest-binary", "oip-rest-gzip", "oip-grpc"),
}


def seconds_of(name: str) -> float:
    """How long one parser is fed with mutations."""
    return next((FUZZ_S / len(members) for members in FAMILIES.values() if name in members), 0.0)


@st.composite
def mutated(draw: st.DrawFn, genuine: bytes) -> bytes:
    """Genuine bytes with a few places changed, cut or doubled."""
    data = bytearray(genuine)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        how = draw(st.sampled_from(("flip", "cut", "insert", "double")))
        if how == "flip" and at < len(data):
            data[at] ^= draw(st.integers(1, 255))
        elif how == "cut":
            del data[at : at + draw(st.integers(1, 16))]
        elif how == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=12))
        else:
            data[at:at] = data[: at % 64]
    return bytes(data)


class Mutations:
    """Endless variants of a genuine message: flips, cuts, doubles, splices with others, telling numbers."""

    #: Lengths and numbers that parsers get wrong, as varints, texts and words have them.
    TELLING = (
        *(bytes([n]) for n in (0, 1, 0x7F, 0x80, 0xFF, ord("["), ord("{"), ord('"'), ord("-"))),
        b"\xff\xff\xff\xff\x0f",
        b"\xff" * 9 + b"\x01",
        b"\x80" * 12,
        b"\0\0\0\x80",
        b"\xff" * 8,
        b"NaN",
        b"1e999",
        b"\xed\xa0\x80",
        b"-0",
        b"null",
        b"[" * 2000,
    )

    def __init__(self, genuine: bytes, others: list[bytes], seed: int) -> None:
        self._genuine, self._others = genuine, others
        self._rng = random.Random(seed)

    def next(self) -> bytes:
        rng = self._rng
        if rng.random() < 0.05:
            return rng.randbytes(rng.randrange(200))
        data = bytearray(self._genuine)
        for _ in range(rng.randrange(1, 6)):
            at, how = rng.randrange(len(data) + 1), rng.randrange(6)
            if how == 0 and at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            elif how == 1:
                del data[at : at + rng.randrange(1, 17)]
            elif how == 2:
                data[at:at] = rng.choice(self.TELLING)
            elif how == 3:
                telling = rng.choice(self.TELLING)
                data[at : at + len(telling)] = telling
            elif how == 4:
                data[at:at] = data[at : at + rng.randrange(1, 65)]
            else:
                other = rng.choice(self._others)
                start = rng.randrange(len(other) + 1)
                data[at : at + rng.randrange(33)] = other[start : start + rng.randrange(33)]
        return bytes(data)


@pytest.mark.timeout(180 + 3 * FUZZ_S)
@pytest.mark.parametrize("name", PARSERS)
def test_it_gives_a_value_or_an_error_of_ours(name: str) -> None:
    parse, genuine = PARSERS[name]
    # The genuine message passes: the others fail for what was done to them.
    if name not in ("oip-rest-binary", "oip-rest-gzip", "report"):
        parse(genuine)

    @settings(
        max_examples=NUM_EXAMPLES,
        deadline=None,
        database=None,
        derandomize=not FUZZ_S,
        suppress_health_check=list(HealthCheck),
    )
    @given(raw=st.one_of(st.binary(max_size=200), mutated(genuine)))
    def fuzz(raw: bytes) -> None:
        with contextlib.suppress(EdgeloopError):
            parse(raw)

    fuzz()
    fuzz_s = seconds_of(name)
    until_s = time.monotonic() + fuzz_s
    seed, num_tried = random.SystemRandom().getrandbits(32), 0
    mutations = Mutations(genuine, [other for _, other in PARSERS.values()], seed)
    while time.monotonic() < until_s:
        raw = mutations.next()
        try:
            parse(raw)
        except EdgeloopError:
            pass
        except Exception as error:
            raise AssertionError(f"{name} raised {error!r} for {raw.hex()} (seed {seed})") from error
        num_tried += 1
    if fuzz_s:
        print(f"fuzzed {name}: {num_tried} messages in {fuzz_s:.3g} s")


def test_every_parser_but_the_journal_has_its_share_of_a_family() -> None:
    shared = [name for members in FAMILIES.values() for name in members]
    assert sorted(shared) == sorted(PARSERS.keys() - {"journal"})


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(raw=st.one_of(st.binary(max_size=200), mutated(DEPLOYMENT.SerializeToString())), data=st.data())
def test_the_gate_survives_both_of_its_topics(tmp_path_factory, raw: bytes, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("gate")
    gate = DeploymentGate(
        folder,
        device_id="gw-1",
        configured_keys=(KEY.public_bytes,),
        known_time=KnownTime(folder),
        on_refused=lambda refusal: None,
        monotonic=time.monotonic,
    )
    gate.on_chain(data.draw(mutated(CHAIN)))
    assert gate.open(raw) is None
    assert set(gate.keys.ring) <= {KEY.key_id}
