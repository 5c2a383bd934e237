"""Agents that are killed, lied to or left alone, against a real Mosquitto."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from agent_harness import AgentProcess, Cloud, make_model, ship
from machine import wait_until

from edge_agent.journal import Journal
from edge_agent.update_state import Slot, State
from edgeloop import topics, trust
from edgeloop.v1 import deployment_pb2

pytestmark = pytest.mark.mosquitto

TERMINAL = {"ACTIVE", "REJECTED", "ROLLED_BACK", "SUPERSEDED"}


@pytest.fixture
def good(cloud: Cloud, agent: AgentProcess):
    """The model of generation 1, which the running agent serves."""
    shipment = ship(make_model(1))
    cloud.publish(shipment)
    cloud.deploy("gw-1", shipment, 1)
    agent.start().wait_state("active", 1)
    return shipment


def kept_blocks(agent: AgentProcess, digest: str) -> int:
    folder = agent.state_dir / "blobs" / "partial" / digest
    return len(list(folder.iterdir())) if folder.exists() else 0


def test_killed_while_fetching_it_goes_on_with_the_blocks_it_has(cloud, agent) -> None:
    model = ship(make_model(1))
    held_back = frozenset(range(len(model.blocks) // 2, len(model.blocks)))
    cloud.publish(model, without=held_back)
    cloud.deploy("gw-1", model, 1)
    agent.start()
    num_published = len(model.blocks) - len(held_back)
    wait_until(lambda: kept_blocks(agent, model.digest) == num_published, what="the first half")
    agent.kill()

    # Half of the broker's store is emptied: what the agent has must not be needed again.
    for n in range(num_published):
        cloud.put(topics.block(model.digest, n), b"")
    for n in sorted(held_back):
        cloud.put(topics.block(model.digest, n), model.blocks[n])
    agent.start()
    assert agent.wait_state("active", 1)["serving_digest"] == model.digest
    assert "fetch goes on" in agent.log


def test_a_broker_that_forgot_everything_is_asked_for_it_again(cloud, agent) -> None:
    model = ship(make_model(1))
    cloud.publish(model)
    cloud.deploy("gw-1", model, 1)
    cloud.put(topics.manifest(model.manifest_digest), b"")
    for n in (0, 3, 17):
        cloud.put(topics.block(model.digest, n), b"")
    cloud.answers_requests = True
    agent.start().wait_state("active", 1)
    assert any(request.manifest for request in cloud.requests)
    assert {n for request in cloud.requests for n in request.blocks} >= {0, 3, 17}


def test_killed_at_random_moments_it_converges_and_never_goes_back(cloud, agent) -> None:
    """Six generations, a kill -9 every few hundred milliseconds, a restart each time."""
    rng = random.Random(5)
    models = [ship(make_model(seed)) for seed in (1, 2, 3)]
    for model in models:
        cloud.publish(model)
    agent.start()
    seen, had_good = 0, False
    for generation in range(1, 7):
        cloud.deploy("gw-1", models[generation % 3], generation)
        time.sleep(rng.uniform(0.02, 0.9))
        agent.kill()
        state = Journal(agent.state_dir).load()
        assert state.generation >= seen
        seen = state.generation
        assert not (had_good and state.committed is None)
        had_good = state.committed is not None
        assert not list(agent.state_dir.glob("*unreadable*"))
        agent.start()
    status = agent.wait_state("active", 6, timeout_s=90)
    assert status["serving_digest"] == models[0].digest
    agent.stop()
    for generation in range(1, 7):
        endings = TERMINAL & set(cloud.fleet.states(generation))
        assert len(endings) <= 1, (generation, endings)
    wait_until(lambda: "ACTIVE" in cloud.fleet.states(6), what="the cloud to hear of the last one")
    # Each report that arrived was of a deployed pair; none was made up by a restart.
    for report in cloud.fleet.reports.values():
        assert report.digest == models[report.generation % 3].digest


@pytest.mark.parametrize("state", [State.VERIFYING, State.TESTING, State.TRIAL])
def test_a_process_that_dies_in_one_state_again_and_again_returns_to_the_good_model(
    cloud, agent, good, state: State
) -> None:
    agent.stop()
    bad = ship(make_model(2))
    cloud.publish(bad)
    signed = cloud.deploy("gw-1", bad, 2)
    # The journal as a process that died there twice leaves it.
    journal = Journal(agent.state_dir)
    before = journal.load()
    target = Slot(
        generation=2,
        digest=bad.digest,
        manifest_digest=bad.manifest_digest,
        workload="tiny",
        profile="small",
        signed=signed,
    )
    journal.save(replace(before, state=state, target=target, num_starts=2))
    ending = "rolled-back" if state is State.TRIAL else "rejected"
    status = agent.start().wait_state(ending, 2)
    assert status["code"] == "crash-loop"
    assert status["serving_digest"] == good.digest
    wait_until(lambda: cloud.fleet.codes(2) == {"crash-loop"}, what="the cloud to hear of it")


def test_an_altered_block_is_refused_while_the_old_model_serves(cloud, agent, good) -> None:
    model = ship(make_model(2))
    cloud.publish(model)
    wrong = bytes([model.blocks[5][0] ^ 1]) + model.blocks[5][1:]
    cloud.put(topics.block(model.digest, 5), wrong)
    # The publisher is taken over too: whoever asks gets the same bytes again.
    cloud.session.subscribe(
        topics.requests("gw-1"), lambda topic, payload: _post_again(cloud, model.digest, wrong)
    )
    cloud.deploy("gw-1", model, 2)
    status = agent.wait_state("rejected", 2)
    assert status["code"] == "block-altered"
    assert status["serving_digest"] == good.digest
    wait_until(lambda: cloud.fleet.codes(2) == {"block-altered"}, what="the cloud to hear of it")
    # Nothing of it stays on the disk.
    wait_until(lambda: kept_blocks(agent, model.digest) == 0, what="the blocks to go")


def _post_again(cloud: Cloud, digest: str, wrong: bytes) -> None:
    cloud.session.publish(topics.block(digest, 5), wrong, retain=True)


def test_a_manifest_for_another_profile_is_refused_while_the_old_model_serves(cloud, agent, good) -> None:
    other = ship(make_model(2), profile="large")
    cloud.publish(other)
    cloud.deploy("gw-1", other, 2)
    status = agent.wait_state("rejected", 2)
    assert status["code"] == "manifest-wrong-profile"
    assert status["serving_digest"] == good.digest


def test_a_model_that_computes_otherwise_here_is_refused(cloud, agent, good) -> None:
    other = ship(make_model(2), golden_offset=1.0)
    cloud.publish(other)
    cloud.deploy("gw-1", other, 2)
    status = agent.wait_state("rejected", 2)
    assert status["code"] == "self-test-output"
    assert status["serving_digest"] == good.digest


def test_deployments_that_nobody_trusted_signed_change_nothing(cloud, agent, good) -> None:
    model = ship(make_model(2))
    cloud.publish(model)
    stranger = trust.DirectorKey.generate()

    def deployment(device_id: str = "gw-1", expire_s: float | None = None) -> deployment_pb2.Deployment:
        return deployment_pb2.Deployment(
            device_id=device_id,
            workload="tiny",
            profile="small",
            generation=9,
            digest=model.digest,
            manifest_digest=model.manifest_digest,
            expire_time=trust.timestamp(expire_s) if expire_s else None,
        )

    where = topics.deployment("gw-1")
    cloud.put(where, trust.sign_deployment(stranger, deployment()))
    cloud.put(where, trust.sign_deployment(cloud.key, deployment("gw-2")))
    cloud.put(where, trust.sign_deployment(cloud.key, deployment(expire_s=1000)))
    cloud.put(where, b"\xff" * 100)
    cloud.put(where, b"")
    wait_until(lambda: agent.log.count("deployment refused") == 4, what="four refusals in the log")
    assert [
        line.split("code=")[1].split()[0] for line in agent.log.splitlines() if "deployment refused" in line
    ] == ["signature-unknown-key", "deployment-wrong-device", "deployment-expired", "deployment-field"]
    status = agent.status()
    assert (status["state"], status["generation"]) == ("active", 1)
    # The device is not stuck either.
    cloud.deploy("gw-1", model, 2)
    agent.wait_state("active", 2)


def test_an_older_generation_and_a_doubled_one_change_nothing(cloud, agent, good) -> None:
    model = ship(make_model(2))
    cloud.publish(model)
    cloud.deploy("gw-1", model, 5)
    agent.wait_state("active", 5)
    cloud.deploy("gw-1", good, 4)
    cloud.deploy("gw-1", good, 5)
    wait_until(lambda: agent.log.count("generation-old") == 2, what="both to be ignored")
    assert agent.status()["serving_digest"] == model.digest


def test_a_committed_file_that_was_damaged_is_fetched_again_while_the_one_before_serves(
    cloud, agent, good
) -> None:
    model = ship(make_model(2))
    cloud.publish(model)
    cloud.deploy("gw-1", model, 2)
    agent.wait_state("active", 2)
    agent.kill()
    path = agent.state_dir / "blobs" / "artifacts" / model.digest
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    for n in range(len(model.blocks)):
        cloud.put(topics.block(model.digest, n), b"")
    agent.start()
    status = agent.wait(lambda status: status["num_requests"] > 3)
    assert (status["state"], status["serving_digest"]) == ("fetching", good.digest)
    cloud.answers_requests = True
    assert agent.wait_state("active", 2)["serving_digest"] == model.digest


def test_a_disk_without_room_is_said_and_the_old_model_serves(cloud, tmp_path: Path) -> None:
    agent = AgentProcess(cloud, tmp_path)
    agent.start()
    environment = {**os.environ, "EDGELOOP_AGENT_RESERVE_BYTES": str(2**49)}
    agent.stop()
    model = ship(make_model(1))
    cloud.publish(model)
    cloud.deploy("gw-1", model, 1)
    with (tmp_path / "gw-1.log").open("ab") as log:
        agent.process = subprocess.Popen(agent.command(), stdout=log, stderr=log, env=environment)
    try:
        assert agent.wait_state("rejected", 1)["code"] == "storage-full"
        wait_until(lambda: cloud.fleet.codes(1) == {"storage-full"}, what="the cloud to hear of it")
    finally:
        agent.kill()


def test_a_broker_that_restarts_empty_loses_nothing(cloud, agent, good, mosquitto) -> None:
    mosquitto.kill()
    time.sleep(0.3)
    mosquitto.start()
    assert cloud.session.wait_connected(60)
    model = ship(make_model(2))
    cloud.publish(model)
    cloud.deploy("gw-1", model, 2)
    assert agent.wait_state("active", 2, timeout_s=90)["serving_digest"] == model.digest


def test_verify_passes_beside_a_running_agent(cloud, agent, good) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "edge_agent.cli", "verify", "-o", "json"),
            *("--state-dir", str(agent.state_dir), "--director-key", cloud.key.public_bytes.hex()),
        ],
        capture_output=True,
        check=True,
    )
    assert json.loads(done.stdout)["good"]


def test_a_committed_model_that_ends_the_agent_at_its_starts_gives_way_to_the_one_before(
    cloud, agent, good
) -> None:
    """Whatever a model does to its process, that dies: here of SIGKILL, as soon as it serves this model."""
    bad = ship(make_model(2))
    cloud.publish(bad)
    cloud.deploy("gw-1", bad, 2)
    agent.wait_state("active", 2)
    wait_until(lambda: "ACTIVE" in cloud.fleet.states(2), what="the cloud to hear that it was committed")
    agent.kill()
    for _ in range(3):
        agent.start().wait(lambda status: status["serving_digest"] == bad.digest)
        agent.kill()
    status = agent.start().wait_state("rolled-back", 2)
    assert (status["code"], status["serving_digest"]) == ("crash-loop", good.digest)
    assert status["num_quarantined"] == 1
    wait_until(lambda: "crash-loop" in cloud.fleet.codes(2), what="the cloud to hear of it")
    assert cloud.fleet.states(2)[-1] == "ROLLED_BACK"
    # The device is not stuck: it refuses that artifact by name, and takes another.
    cloud.deploy("gw-1", bad, 3)
    assert agent.wait_state("rejected", 3)["code"] == "digest-quarantined"
    other = ship(make_model(3))
    cloud.publish(other)
    cloud.deploy("gw-1", other, 4)
    agent.wait_state("active", 4)


def test_with_all_of_its_identity_damaged_it_serves_says_so_once_and_connects_when_that_is_mended(
    cloud, agent, good
) -> None:
    """Nothing tells it any more who it is and where its cloud is. It waits half a minute to read it again."""
    agent.stop()
    folder, settings = agent.state_dir / "identity", agent.state_dir.parent / "agent.toml"
    folder.mkdir()
    for name in ("enrolment.json", "enrolment.copy.json", "identity.pem"):
        (folder / name).write_bytes(b"\x00 half of what was here")
    settings.write_text("")
    agent.left_out = frozenset({"device-id", "server", "broker", "director-key"})
    agent.add_flag("config", str(settings))
    status = agent.start().wait(lambda status: status["num_requests"] > 3 and status["identity_problem"])
    assert (status["serving_digest"], status["device_id"]) == (good.digest, "gw-1")
    assert "enrolment.json is damaged" in status["identity_problem"]
    assert "so is its copy" in status["identity_problem"]
    assert not status["broker_connected"]
    # Somebody writes by hand what was lost, for a cloud that asks for no certificate, and restarts nothing.
    key = cloud.key.public_bytes.hex()
    settings.write_text(
        f'device_id = "gw-1"\nserver = "{cloud.server}"\nbroker = "{cloud.broker}"\ndirector_key = "{key}"\n'
    )
    for path in folder.iterdir():
        path.unlink()
    status = agent.wait(lambda status: status["broker_connected"], timeout_s=120)
    assert status["identity_problem"] == ""
    assert agent.log.count("no connection to broker and control plane") == 1
    # It obeys again.
    newer = ship(make_model(2))
    cloud.publish(newer)
    cloud.deploy("gw-1", newer, 2)
    agent.wait_state("active", 2)
