"""The fetch window, in virtual time."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.fetch import (
    Complete,
    FetchEffect,
    Fetcher,
    FetchSettings,
    KeepBlock,
    KeepManifest,
    Refuse,
    Request,
    Subscribe,
    Unsubscribe,
)
from edge_agent.update_state import Slot
from edgeloop import artifact, topics
from edgeloop.artifact import BlockAssembler
from edgeloop.v1 import artifact_pb2

SETTINGS = FetchSettings(window=4, block_timeout_s=5.0, max_altered=3)
BLOCK = 4096
NUM_BLOCKS = 11
DATA = np.random.default_rng(0).bytes(BLOCK * (NUM_BLOCKS - 1) + 17)
BLOCKS = artifact.split_blocks(DATA, BLOCK)


def manifest_for(
    data: bytes = DATA, profile: str = "small", workload: str = "tiny", *, block_size: int = BLOCK
) -> artifact_pb2.Manifest:
    tensor = artifact_pb2.TensorSpec(name="x", datatype="FP32", shape=[0, 2])
    return artifact.build_manifest(
        data,
        workload=workload,
        profile=profile,
        precision=artifact_pb2.PRECISION_FP32,
        inputs=[tensor],
        outputs=[tensor],
        golden=artifact.golden_set(np.zeros((1, 2)), np.zeros((1, 2)), absolute_tolerance=0.1),
        accuracy=0.5,
        block_size_bytes=block_size,
    )


MANIFEST = manifest_for()
RAW = artifact.encode_manifest(MANIFEST)
SLOT = Slot(
    generation=1,
    digest=MANIFEST.digest,
    manifest_digest=artifact.sha256_hex(RAW),
    workload="tiny",
    profile="small",
    signed=b"",
)


def fetcher(slot: Slot = SLOT) -> Fetcher:
    return Fetcher(slot, SETTINGS, random.Random(0))


def with_blocks(have: int = 0) -> tuple[Fetcher, list[FetchEffect]]:
    found = fetcher()
    assembler = BlockAssembler(MANIFEST)
    for n in range(have):
        assembler.accept(n, BLOCKS[n])
    return found, found.begin_blocks(assembler, 0.0)


def topic(n: int) -> str:
    return topics.block(SLOT.digest, n)


def of(kind: type, effects: list[FetchEffect]) -> list[FetchEffect]:
    return [effect for effect in effects if isinstance(effect, kind)]


def test_the_manifest_comes_first_and_its_topic_is_left_once_it_is_there() -> None:
    found = fetcher()
    where = topics.manifest(SLOT.manifest_digest)
    assert found.begin_manifest(0.0) == [Subscribe(topic=where)]
    assert found.on_message(where, RAW, 1.0) == [
        Unsubscribe(topic=where),
        KeepManifest(raw=RAW, manifest=MANIFEST),
    ]


@settings(deadline=None)
@given(order=st.randoms(use_true_random=False), have=st.integers(0, NUM_BLOCKS))
def test_any_order_of_delivery_gets_each_missing_block_once_through_a_window_of_four(
    order: random.Random, have: int
) -> None:
    found, effects = with_blocks(have)
    subscribed: list[str] = []
    kept: list[int] = []
    ever: list[str] = []
    while True:
        for effect in effects:
            match effect:
                case Subscribe(topic=name):
                    subscribed.append(name)
                    ever.append(name)
                case Unsubscribe(topic=name):
                    subscribed.remove(name)
                case KeepBlock(n=n, data=data):
                    assert data == BLOCKS[n]
                    kept.append(n)
        assert len(subscribed) <= SETTINGS.window
        if Complete() in effects:
            break
        name = order.choice(subscribed)
        effects = found.on_message(name, BLOCKS[topics.block_of(name)[1]], 0.0)
    assert subscribed == []
    assert sorted(kept) == list(range(have, NUM_BLOCKS))
    assert len(ever) == len(set(ever)) == NUM_BLOCKS - have
    assert found.deadline_s is None


def test_late_doubled_foreign_and_empty_messages_do_nothing() -> None:
    found, _ = with_blocks()
    assert found.on_message(topic(0), BLOCKS[0], 0.0)
    assert found.on_message(topic(0), BLOCKS[0], 0.0) == []
    assert found.on_message(topic(9), BLOCKS[9], 0.0) == []
    assert found.on_message(topics.block("0" * 64, 1), BLOCKS[1], 0.0) == []
    assert found.on_message(topic(1), b"", 0.0) == []
    found.stop()
    assert found.on_message(topic(1), BLOCKS[1], 0.0) == []
    assert found.on_tick(1e9) == []


def test_what_does_not_come_is_asked_for_with_growing_pauses_and_a_limit() -> None:
    found, _ = with_blocks()
    now_s, asked = 0.0, []
    assert found.on_tick(4.9) == []
    while now_s < 7200:
        assert found.deadline_s is not None
        now_s = found.deadline_s
        (request,) = found.on_tick(now_s)
        assert isinstance(request, Request)
        assert request.blocks[:4] == (0, 1, 2, 3)
        assert set(request.blocks) == set(range(NUM_BLOCKS))
        assert found.on_tick(now_s) == []
        asked.append(now_s)
    # Neither silent for long nor a flood: full jitter over at most 300 s, plus the wait itself.
    assert 7200 / 306 <= len(asked) < 200
    assert asked[0] == 5.0
    # A block that comes ends the pause.
    found.on_message(topic(0), BLOCKS[0], now_s)
    assert found.deadline_s == now_s + 5.0


def test_what_is_on_its_way_is_not_asked_for_until_it_stalls() -> None:
    found, _ = with_blocks()
    now_s = 0.0
    while now_s < 60.0:  # a block that takes a minute
        assert found.deadline_s is not None
        now_s = found.deadline_s
        assert found.on_tick(now_s, fed_at_s=now_s - 1.0) == []
        assert found.deadline_s == now_s + 4.0
    found.on_message(topic(0), BLOCKS[0], now_s)
    assert found.deadline_s == now_s + 5.0
    # The link stalls in the middle of the next one.
    (request,) = found.on_tick(now_s + 5.0, fed_at_s=now_s)
    assert isinstance(request, Request)


def test_what_comes_on_and_on_and_never_is_a_block_is_something_else() -> None:
    found, _ = with_blocks()
    longest_s = SETTINGS.slow_grace_s + BLOCK / SETTINGS.min_rate_bytes_s
    for second in range(5, int(longest_s), 5):
        assert found.on_tick(float(second), fed_at_s=float(second)) == []
    assert of(Request, found.on_tick(longest_s + 5.0, fed_at_s=longest_s + 5.0))


@pytest.mark.parametrize("rate", [64.0, 65.0, 80.0])
def test_a_block_at_the_least_rate_takes_over_an_hour_and_comes_once(rate: float) -> None:
    """256 KiB, in virtual time; each second some bytes of it come."""
    block_size = 256 * 1024
    data = np.random.default_rng(1).bytes(2 * block_size)
    manifest = manifest_for(data, block_size=block_size)
    slot = replace(SLOT, digest=manifest.digest)
    found = Fetcher(slot, SETTINGS, random.Random(0))
    found.begin_blocks(BlockAssembler(manifest), 0.0)
    assert block_size / rate > 3000.0
    now_s, effects = 0.0, []
    for n, block in enumerate(artifact.split_blocks(data, block_size)):
        until_s = now_s + block_size / rate
        while now_s < until_s:
            assert found.on_tick(now_s, fed_at_s=now_s) == []
            now_s += 1.0
        effects = found.on_message(topics.block(slot.digest, n), block, now_s)
    assert Complete() in effects


def test_a_manifest_that_does_not_come_is_asked_for() -> None:
    found = fetcher()
    found.begin_manifest(0.0)
    assert found.on_tick(5.0) == [Request(manifest=True)]


def test_an_altered_block_is_asked_for_again_then_the_deployment_is_refused() -> None:
    found, _ = with_blocks()
    bad = b"\x00" * BLOCK
    for _ in range(SETTINGS.max_altered):
        assert found.on_message(topic(2), bad, 0.0) == [Request(blocks=(2,))]
    effects = found.on_message(topic(2), bad, 0.0)
    assert [effect.code for effect in of(Refuse, effects)] == ["block-altered"]  # type: ignore[attr-defined]
    assert len(of(Unsubscribe, effects)) == SETTINGS.window


def test_a_block_that_was_altered_once_and_then_comes_whole_is_taken() -> None:
    found, _ = with_blocks()
    found.on_message(topic(2), BLOCKS[2][:-1], 0.0)
    assert KeepBlock(n=2, data=BLOCKS[2]) in found.on_message(topic(2), BLOCKS[2], 0.0)


def test_an_altered_manifest_is_asked_for_again_then_refused() -> None:
    found = fetcher()
    found.begin_manifest(0.0)
    where = topics.manifest(SLOT.manifest_digest)
    for _ in range(SETTINGS.max_altered):
        assert found.on_message(where, RAW + b"x", 0.0) == [Request(manifest=True)]
    effects = found.on_message(where, RAW + b"x", 0.0)
    assert [effect.code for effect in of(Refuse, effects)] == ["manifest-altered"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("manifest", "code"),
    [
        (manifest_for(profile="large"), "manifest-wrong-profile"),
        (manifest_for(workload="other"), "manifest-wrong-profile"),
        (manifest_for(data=b"other" * 100), "manifest-wrong-artifact"),
    ],
    ids=["profile", "workload", "artifact"],
)
def test_a_manifest_that_is_not_what_the_deployment_says_is_refused_at_once(
    manifest: artifact_pb2.Manifest, code: str
) -> None:
    raw = artifact.encode_manifest(manifest)
    slot = replace(SLOT, manifest_digest=artifact.sha256_hex(raw))
    found = fetcher(slot)
    found.begin_manifest(0.0)
    effects = found.on_message(topics.manifest(slot.manifest_digest), raw, 0.0)
    assert [effect.code for effect in of(Refuse, effects)] == [code]  # type: ignore[attr-defined]
    assert not of(KeepManifest, effects)


def begun(settings: FetchSettings = SETTINGS) -> Fetcher:
    fetcher = Fetcher(SLOT, settings, random.Random(0))
    fetcher.begin_manifest(0.0)
    fetcher.on_message(topics.manifest(SLOT.manifest_digest), RAW, 0.0)
    fetcher.begin_blocks(BlockAssembler(MANIFEST), 0.0)
    return fetcher


def codes(effects: list[FetchEffect]) -> list[str]:
    return [effect.code for effect in effects if isinstance(effect, Refuse)]


def test_an_endless_sender_is_cut_off_by_bytes_and_topics_are_left() -> None:
    fetcher = begun()
    found: list[FetchEffect] = []
    received = 0
    # The same block again and again: nothing is wrong with any of the messages.
    while not found or not codes(found):
        found = fetcher.on_message(topics.block(SLOT.digest, 0), BLOCKS[0], 1.0)
        received += len(BLOCKS[0])
        assert received < 32 << 20
    assert codes(found) == ["fetch-too-much"]
    assert fetcher.topics == ()
    assert fetcher.on_message(topics.block(SLOT.digest, 1), BLOCKS[1], 1.0) == []


SLOW = FetchSettings(slow_grace_s=600.0, min_rate_bytes_s=BLOCK / 600.0)


def test_a_sender_that_trickles_is_cut_off_by_the_minimum_rate() -> None:
    fetcher = begun(SLOW)
    # One block in half an hour, at a rate of a block in ten minutes.
    ended_s = None
    for minute in range(400):
        found = fetcher.on_tick(minute * 60.0)
        if minute % 30 == 29:
            found += fetcher.on_message(
                topics.block(SLOT.digest, minute // 30), BLOCKS[minute // 30], minute * 60.0
            )
        if codes(found):
            assert codes(found) == ["fetch-too-slow"]
            ended_s = minute * 60.0
            break
    assert ended_s is not None


def test_a_link_that_is_slow_but_fast_enough_arrives() -> None:
    fetcher = begun(SLOW)
    for n in range(NUM_BLOCKS):
        now_s = 590.0 * (n + 1)
        assert codes(fetcher.on_tick(now_s)) == []
        found = fetcher.on_message(topics.block(SLOT.digest, n), BLOCKS[n], now_s)
    assert Complete() in found


def test_silence_and_time_without_a_broker_are_nobodys_slowness() -> None:
    fetcher = begun(SLOW)
    # Nothing has ever come: a broker that forgot, a cloud that is away.
    assert codes(fetcher.on_tick(1e6)) == []
    fetcher.on_message(topics.block(SLOT.digest, 0), BLOCKS[0], 1e6)
    fetcher.on_connected(False, 1e6)
    assert codes(fetcher.on_tick(2e6)) == []
    fetcher.on_connected(True, 2e6)
    assert codes(fetcher.on_tick(2e6 + 600)) == []
    assert codes(fetcher.on_tick(2e6 + 6000)) == ["fetch-too-slow"]
