"""Real agent processes against a real Mosquitto and a real gRPC server."""

from __future__ import annotations

import socket

import pytest
from agent_harness import make_model, ship
from machine import WAIT_S, wait_until

pytestmark = pytest.mark.mosquitto


def test_an_agent_fetches_tests_serves_and_reports_then_swaps_to_the_next_generation(cloud, agent) -> None:
    first, second = ship(make_model(1)), ship(make_model(2), packed=True)
    cloud.publish(first)
    cloud.deploy("gw-1", first, 1)
    agent.start()

    status = agent.wait_state("active", 1)
    assert status["serving_digest"] == first.digest
    wait_until(lambda: "ACTIVE" in cloud.fleet.states(1), what="the cloud to hear of generation 1")
    wait_until(lambda: cloud.presence.get("gw-1") == b"online", what="presence")
    assert cloud.fleet.registrations[0].hardware.num_cores >= 1

    cloud.publish(second)
    cloud.deploy("gw-1", second, 2)
    status = agent.wait_state("active", 2)
    assert status["serving_digest"] == second.digest
    wait_until(lambda: cloud.fleet.registrations[-1].serving_digest == second.digest, what="re-registration")
    wait_until(
        lambda: {first.digest, second.digest} <= {r.digest for r in cloud.fleet.reports.values()},
        what="reports of both digests",
    )
    # A window never spans two models: each report names one that was deployed under its generation.
    assert {(r.generation, r.digest) for r in cloud.fleet.reports.values()} == {
        (1, first.digest),
        (2, second.digest),
    }
    assert all(r.latency.counts and r.rss_bytes for r in cloud.fleet.reports.values())

    assert agent.stop() == 0
    wait_until(lambda: cloud.presence.get("gw-1") == b"offline", what="presence to end")
    # Every request that was answered is in exactly one report, those of the last moments included.
    agent.check_all_reported()
    # At least once, but only one ending.
    assert set(cloud.fleet.states(1)) & {"ACTIVE", "REJECTED", "ROLLED_BACK", "SUPERSEDED"} == {"ACTIVE"}


def test_it_serves_the_committed_model_without_broker_and_cloud(cloud, agent) -> None:
    model = ship(make_model(1))
    cloud.publish(model)
    cloud.deploy("gw-1", model, 1)
    agent.start().wait_state("active", 1)
    agent.kill()

    cloud.broker, cloud.server = "127.0.0.1:1", "127.0.0.1:1"
    agent.start()
    status = agent.wait(lambda status: status["first_inference_s"] > 0 and status["num_requests"] > 5)
    assert status["serving_digest"] == model.digest
    assert not status["broker_connected"]
    assert not status["server_connected"]
    wait_until(lambda: "cannot reach the broker" in agent.log, what="word of the broker")
    assert agent.stop() == 0
    assert agent.log.count("WARNING edgeloop.mqtt cannot reach the broker") == 1


def test_a_service_manager_hears_that_it_serves_lives_and_stops(cloud, agent, tmp_path, monkeypatch) -> None:
    path = str(tmp_path / "notify")
    heard: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.settimeout(WAIT_S)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        monkeypatch.setenv("WATCHDOG_USEC", "500000")
        agent.start()
        while len(heard) < 4:
            heard.append(manager.recv(4096).decode().partition("\n")[0])
        assert agent.stop() == 0
        while heard[-1] != "STOPPING=1":
            heard.append(manager.recv(4096).decode().partition("\n")[0])
    assert heard[0] == "READY=1"
    assert set(heard[1:-1]) == {"WATCHDOG=1"}
