"""Several workloads on one device: settings, folders, topics, turns, subscriptions, refusals."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "integration"))

from agent_harness import make_model, ship

from edge_agent.blobs import BlobStore
from edge_agent.config import AgentConfig, Endpoint, load_config
from edge_agent.inbox import BrokerWire
from edge_agent.journal import Journal
from edge_agent.self_test_bench import SelfTestBench
from edge_agent.update_state import Slot, State, UpdateState
from edge_agent.workload_set import state_folders
from edge_agent.workload_settings import WorkloadSettings
from edgeloop import topics
from edgeloop.errors import ConfigError, RejectedError
from edgeloop.v1 import artifact_pb2

REQUIRED = """
device_id = "gw-1"
state_dir = "state"
server = "localhost:1"
broker = "localhost:2"
director_key = "{}"
""".format("ab" * 32)


def read(folder: Path, text: str) -> AgentConfig:
    path = folder / "agent.toml"
    path.write_text(REQUIRED + text)
    return load_config(config_file=path, environment={}, flags={})


def test_tables_name_workloads_and_their_limits(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        '[[workload]]\nname = "eyes"\nmax_pending = 4\nmax_artifact_bytes = 1000\n'
        '[[workload]]\nname = "ears"\n',
    )
    assert config.workloads == (
        WorkloadSettings(name="eyes", max_pending=4, max_artifact_bytes=1000),
        WorkloadSettings(name="ears"),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[workload]]\nname = "../up"\n', "workload[1].name"),
        ('[[workload]]\nname = "a"\n[[workload]]\nname = "a"\n', "workload[2].name"),
        ("[[workload]]\nmax_pending = 3\n", "workload[1].name"),
        ('[[workload]]\nname = "a"\nmax_pending = 0\n', "workload[1].max_pending"),
        (
            '[[workload]]\nname = "a"\n[[bridge]]\ninput_topic = "i"\noutput_topic = "o"\n',
            "names one of them",
        ),
        ('[[bridge]]\ninput_topic = "i"\noutput_topic = "o"\nworkload = "a"\n', "no [[workload]]"),
    ],
    ids=["path", "twice", "nameless", "limit", "source-without", "source-alone"],
)
def test_a_mistake_in_the_settings_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert said in caught.value.message


def slot(workload: str, generation: int = 1) -> Slot:
    return Slot(
        generation=generation,
        digest="a" * 64,
        manifest_digest="b" * 64,
        workload=workload,
        profile="p",
        signed=b"s",
    )


def config_of(folder: Path, *names: str) -> AgentConfig:
    return AgentConfig(
        device_id="gw-1",
        state_dir=folder,
        server=Endpoint(host="h", port=1),
        broker=Endpoint(host="h", port=1),
        director_keys=(),
        workloads=tuple(WorkloadSettings(name=name) for name in names),
    )


def test_each_workload_has_its_own_folder_and_an_older_journal_stays_where_it_is(tmp_path: Path) -> None:
    assert [path for _, path in state_folders(config_of(tmp_path))] == [tmp_path]
    both = config_of(tmp_path, "a", "b")
    assert [path for _, path in state_folders(both)] == [tmp_path / "workloads/a", tmp_path / "workloads/b"]
    journal = Journal(tmp_path)
    journal.save(replace(UpdateState(), state=State.ACTIVE, target=slot("b"), committed=slot("b")))
    assert [path for _, path in state_folders(both)] == [tmp_path / "workloads/a", tmp_path]


def test_names_enter_topics_checked() -> None:
    assert topics.workload_deployment("gw-1", "eyes") == "edgeloop/v1/devices/gw-1/deployments/eyes"
    for name in ("", "a/b", "+", "#", ".x", "a" * 101):
        with pytest.raises(RejectedError):
            topics.workload_deployment("gw-1", name)


class Session:
    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    def subscribe(self, topic: str, handler: object) -> None:
        self.calls.append(("subscribe", topic))

    def unsubscribe(self, topic: str) -> None:
        self.calls.append(("unsubscribe", topic))


def test_a_topic_stays_subscribed_until_its_last_user_leaves() -> None:
    wire, session = BrokerWire("gw-1", SimpleQueue()), Session()
    eyes, ears = wire.port(), wire.port()
    eyes.subscribe("t")
    wire.attach(session)  # type: ignore[arg-type]
    # Asked for once more, so that what is retained comes again: still one user.
    eyes.subscribe("t")
    ears.subscribe("t")
    eyes.unsubscribe("t")
    eyes.unsubscribe("t")
    assert ("unsubscribe", "t") not in session.calls
    ears.unsubscribe("t")
    assert session.calls == [("subscribe", "t")] * 3 + [("unsubscribe", "t")]


class Test:
    __test__ = False

    def __init__(self) -> None:
        self.started = self.stopped = False

    def start(self) -> None:
        self.started = True


def test_self_tests_run_one_after_the_other() -> None:
    bench = SelfTestBench()
    first, second, third, fourth = tests = [Test() for _ in range(4)]
    begin: Any = bench.begin
    ended: Any = bench.ended
    for test in tests:
        begin(test)
    assert [test.started for test in tests] == [True, False, False, False]
    second.stopped = True
    ended(first)
    assert [test.started for test in tests] == [True, False, True, False]
    third.stopped = True
    bench.tick()
    assert fourth.started


def test_a_fetch_under_way_holds_its_part_of_the_quota_against_another(tmp_path: Path) -> None:
    size_bytes = len(ship(make_model(1)).data)
    blobs = BlobStore(tmp_path, reserve_bytes=0, quota_bytes=3 * size_bytes)
    eyes, ears = (ship(make_model(seed)).manifest for seed in (1, 2))

    def fetch(manifest: artifact_pb2.Manifest) -> None:
        blobs.keep_within_quota(manifest, keep_artifacts=(), keep_manifests=())

    fetch(eyes)
    with pytest.raises(RejectedError) as caught:
        fetch(ears)
    assert caught.value.code == "storage-quota"
    # The same again needs no more, and what ended leaves its room.
    fetch(eyes)
    blobs.end_fetch(eyes.digest)
    fetch(ears)


def test_what_another_workload_has_fetched_meanwhile_is_whole(tmp_path: Path) -> None:
    blobs, shipment = BlobStore(tmp_path, reserve_bytes=0), ship(make_model(1))
    for n, block in enumerate(shipment.blocks):
        blobs.keep_block(shipment.digest, n, block)
    blobs.assemble(shipment.manifest)
    # The other one's last block comes after that.
    blobs.keep_block(shipment.digest, 0, shipment.blocks[0])
    blobs.assemble(shipment.manifest)
    assert blobs.read_artifact(shipment.manifest) == shipment.data
    assert list((tmp_path / "partial").iterdir()) == []
