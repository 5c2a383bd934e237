"""Two workloads in one real agent process, with a real broker: each served under its name, on its own."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_harness import AgentProcess, Cloud, Shipment, golden_inputs, make_model, ship
from machine import wait_until

from edge_agent.verify import check_state
from edgeloop import topics

pytestmark = pytest.mark.mosquitto

TABLES = """
[[workload]]
name = "eyes"

[[workload]]
name = "ears"
max_artifact_bytes = 1000000
"""


class TwoWorkloads(AgentProcess):
    """Without replay, with tables, and with REST on any free port."""

    def __init__(self, cloud: Cloud, folder: Path, **flags: str) -> None:
        super().__init__(cloud, folder, serve_rest="127.0.0.1:0", trial_s="0.5", **flags)
        del self._flags["replay"], self._flags["rate-hz"]
        config = folder / "agent.toml"
        config.write_text(TABLES)
        self._flags["config"] = str(config)

    def of(self, name: str, status: dict[str, Any] | None = None) -> dict[str, Any]:
        workloads = (self.status() if status is None else status).get("workloads", [])
        return next((one for one in workloads if one["workload"] == name), {})

    def wait_for(self, name: str, state: str, generation: int) -> dict[str, Any]:
        def there(status: dict[str, Any]) -> bool:
            one = self.of(name, status)
            return bool(one) and (one["state"], one["generation"]) == (state, generation)

        return self.of(name, self.wait(there))

    def ask(self, name: str) -> dict[str, Any]:
        row = golden_inputs(1).tolist()
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, len(row[0])], "data": row}
        request = urllib.request.Request(
            f"http://{self.status()['rest_address']}/v2/models/{name}/infer",
            data=json.dumps({"inputs": [tensor]}).encode(),
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            said: dict[str, Any] = json.load(answer)
        return said


@pytest.fixture
def agent(cloud: Cloud, tmp_path: Path) -> Iterator[TwoWorkloads]:
    agent = TwoWorkloads(cloud, tmp_path)
    yield agent
    if agent.process is not None and agent.process.poll() is None:
        agent.kill()


def send(cloud: Cloud, shipment: Shipment, generation: int, *, on: str = "") -> None:
    cloud.publish(shipment)
    cloud.deploy(
        "gw-1",
        shipment,
        generation,
        topic=topics.workload_deployment("gw-1", on or shipment.manifest.workload),
    )


def test_one_updates_fails_and_is_killed_while_the_other_answers_every_request(cloud, agent) -> None:
    eyes, ears = ship(make_model(1), workload="eyes"), ship(make_model(2), workload="ears")
    send(cloud, eyes, 1)
    send(cloud, ears, 2)
    agent.start()
    assert agent.wait_for("eyes", "active", 1)["serving_digest"] == eyes.digest
    assert agent.wait_for("ears", "active", 2)["serving_digest"] == ears.digest
    wait_until(lambda: bool(agent.status()["rest_address"]), what="the local API")
    for name, shipment in (("eyes", eyes), ("ears", ears)):
        said = agent.ask(name)
        assert (said["model_name"], said["model_version"]) == (name, shipment.digest[:12])
    with pytest.raises(urllib.error.HTTPError) as caught:
        agent.ask("nose")
    assert caught.value.code == 404
    assert b"'ears', 'eyes'" in caught.value.read()

    failures: list[Exception] = []
    num_answers = 0
    ended = threading.Event()

    def listen() -> None:
        nonlocal num_answers
        while not ended.is_set():
            try:
                assert agent.ask("ears")["model_version"] == ears.digest[:12]
                num_answers += 1
            except Exception as error:  # noqa: BLE001 - counted, and shown by the assertion below
                failures.append(error)
            time.sleep(0.005)

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        # One that fails its self-test, then a good one.
        send(cloud, ship(make_model(3), workload="eyes", golden_offset=1.0), 3)
        assert agent.wait_for("eyes", "rejected", 3)["serving_digest"] == eyes.digest
        newer = ship(make_model(4), workload="eyes")
        send(cloud, newer, 4)
        agent.wait_for("eyes", "active", 4)
        # What is too large for the limit of its own table, or for another workload, changes nothing.
        send(cloud, ship(make_model(5, num_hidden=16_384), workload="ears"), 5)
        assert agent.wait_for("ears", "rejected", 5)["code"] == "artifact-over-limit"
        send(cloud, ship(make_model(6), workload="eyes"), 6, on="ears")
        wait_until(lambda: "deployment-wrong-workload" in cloud.fleet.codes(6), what="the refusal")
        assert agent.of("ears")["serving_digest"] == ears.digest
    finally:
        ended.set()
        thread.join()
    assert not failures, failures[:3]
    assert num_answers > 20
    assert agent.of("eyes")["serving_digest"] == newer.digest

    agent.kill()
    agent.start()
    status = agent.wait(lambda said: all(one["serving_digest"] for one in said["workloads"]))
    assert [one["serving_digest"] for one in status["workloads"]] == [newer.digest, ears.digest]
    checks = check_state(agent.state_dir, (cloud.key.public_bytes,))
    assert all(check.good for check in checks)
    assert {"eyes: committed", "ears: committed"} <= {check.what.split(" deployment")[0] for check in checks}
    wait_until(
        lambda: (
            [(one.workload, one.generation) for one in cloud.fleet.registrations[-1].workloads]
            == [("eyes", 4), ("ears", 5)]
        ),
        what=lambda: f"both to be registered: {cloud.fleet.registrations[-1].workloads}",
    )


def test_a_device_that_gets_tables_goes_on_serving_what_it_has(cloud, agent, tmp_path) -> None:
    single = AgentProcess(cloud, tmp_path)
    eyes = ship(make_model(1), workload="eyes")
    cloud.publish(eyes)
    cloud.deploy("gw-1", eyes, 1)
    single.start()
    single.wait_state("active", 1)
    single.stop()
    # Nothing is left on the broker: what serves now comes from the disk.
    cloud.put(topics.deployment("gw-1"), b"")
    agent.start()
    assert agent.wait_for("eyes", "active", 1)["serving_digest"] == eyes.digest
    # The device's own topic reaches whichever workload the deployment names.
    ears = ship(make_model(2), workload="ears")
    cloud.publish(ears)
    cloud.deploy("gw-1", ears, 2)
    assert agent.wait_for("ears", "active", 2)["serving_digest"] == ears.digest
    assert agent.of("eyes")["serving_digest"] == eyes.digest
