"""``edgeloop serve``, Mosquitto and a real agent that hosts two workloads.

One is deployed anew, and the other serves on under its own generation. Released by TUF, as ever.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from agent_harness import Shipment, make_model, ship
from machine import free_port, wait_until
from test_agent_workloads import TwoWorkloads
from test_serve import WAIT_S, Served

from cloud.domain.candidates import Candidate, CandidateMetrics
from cloud.domain.specs import CompressionSpec, Precision
from cloud.registry import Registry
from cloud.store import Store
from edgeloop.v1 import control_service_pb2 as pb

pytestmark = pytest.mark.mosquitto

NAMES = ("eyes", "ears")
METRICS = CandidateMetrics(
    accuracy=0.9,
    test_accuracy=0.9,
    latency_p50_ms=1.0,
    latency_p95_ms=1.1,
    reference_p50_ms=0.1,
    artifact_bytes=1000,
    peak_rss_bytes=1 << 26,
    macs=1,
    num_parameters=1,
)


class Site:
    def __init__(self, folder: Path, mosquitto: Any) -> None:
        flags = ("--broker", f"127.0.0.1:{mosquitto.port}", "--fleet-port", str(free_port()))
        self.plane = Served(folder / "plane", *flags)
        self.plane.start()
        for name in NAMES:
            profile = {
                "name": f"{name}-gateway",
                "match": {"labels": {"class": "gateway"}},
                "rollout": {"canary_share": 1.0},
            }
            self.plane.apply(
                {"kind": "Workload", "name": name, "dataset": "digits"},
                {"kind": "Fleet", "workload": name, "profiles": [profile]},
            )
        self.store = Store(f"sqlite:///{self.plane.state_dir / 'edgeloop.db'}")
        cloud: Any = SimpleNamespace(
            server=self.plane.info["fleet"],
            broker=f"127.0.0.1:{mosquitto.port}",
            key=SimpleNamespace(public_bytes=bytes.fromhex(self.plane.info["director_public_key"])),
        )
        more = {"label": "class=gateway", "tuf_root": self.plane.info["tuf_root"]}
        self.agent = TwoWorkloads(cloud, folder, **more)

    def close(self) -> None:
        with contextlib.suppress(AssertionError):
            self.agent.kill()
        self.store.close()
        if self.plane.process is not None and self.plane.process.poll() is None:
            self.plane.end(signal.SIGKILL)

    def roll_out(self, name: str, seed: int) -> Shipment:
        """A student as if it had been built, and a person who wants it."""
        shipment = ship(make_model(seed), workload=name, profile=f"{name}-gateway")
        registry = Registry(str(self.plane.state_dir / "registry"))
        registry.put(shipment.data)
        registry.put(shipment.raw_manifest)
        candidate = Candidate(
            digest=shipment.digest,
            manifest_digest=shipment.manifest_digest,
            workload=name,
            profile=f"{name}-gateway",
            parent_digest="",
            spec=CompressionSpec(),
            precision=Precision.FP32,
            metrics=METRICS,
        )
        self.store.save_candidate(candidate, time.time())
        request = pb.StartRolloutRequest(
            profile=f"{name}-gateway", digest=shipment.digest, request_id=f"r{seed}"
        )
        self.plane.control.StartRollout(request, timeout=WAIT_S)
        return shipment

    def device(self) -> pb.DeviceInfo:
        found = self.plane.control.ListDevices(pb.ListDevicesRequest(), timeout=WAIT_S).devices
        return found[0] if found else pb.DeviceInfo()

    def states(self) -> dict[str, str]:
        rollouts = self.plane.control.ListRollouts(pb.ListRolloutsRequest(), timeout=WAIT_S).rollouts
        return {rollout.rollout_id: pb.RolloutState.Name(rollout.state) for rollout in rollouts}

    def says(self, *words: str) -> str:
        command = [sys.executable, "-m", "cloud.cli", *words, "--state-dir", str(self.plane.state_dir)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=True)
        return done.stdout


@pytest.fixture
def site(tmp_path: Path, mosquitto: Any) -> Iterator[Site]:
    site = Site(tmp_path, mosquitto)
    yield site
    site.close()


def test_one_workload_is_deployed_anew_and_the_other_is_not_touched(site: Site) -> None:
    site.agent.start()
    wait_until(lambda: len(site.device().workloads) == 2, what="the agent to register")
    assert [item.profile for item in site.device().workloads] == ["eyes-gateway", "ears-gateway"]
    first = {name: site.roll_out(name, seed) for seed, name in enumerate(NAMES, start=1)}

    def serves(said: dict[str, Any], wanted: dict[str, Shipment]) -> bool:
        found = {name: site.agent.of(name, said) for name in NAMES}
        return all(
            one.get("state") == "active" and one["serving_digest"] == wanted[name].digest
            for name, one in found.items()
        )

    said = site.agent.wait(lambda said: serves(said, first))
    generations = {name: site.agent.of(name, said)["generation"] for name in NAMES}
    assert sorted(generations.values()) == [1, 2]
    assert "released digest=" in site.agent.log
    wait_until(lambda: set(site.states().values()) == {"ROLLOUT_STATE_SUCCEEDED"}, what="both rollouts")

    newer = {**first, "eyes": site.roll_out("eyes", 7)}
    said = site.agent.wait(lambda said: serves(said, newer))
    assert site.agent.of("eyes", said)["generation"] == 3
    assert site.agent.of("ears", said)["generation"] == generations["ears"]
    assert site.agent.ask("ears")["model_version"] == first["ears"].digest[:12]
    wait_until(lambda: set(site.states().values()) == {"ROLLOUT_STATE_SUCCEEDED"}, what="the third rollout")
    history = site.store.history("gw-1")
    assert {status.digest for status in history if status.generation == generations["ears"]} == {
        first["ears"].digest
    }
    assert not [status for status in history if status.code]
    serving = {item.workload: (item.generation, item.serving_digest) for item in site.device().workloads}
    assert serving == {
        "eyes": (3, newer["eyes"].digest),
        "ears": (generations["ears"], first["ears"].digest),
    }

    told = {one["workload"]: one["profile"] for one in site.agent.status()["workloads"]}
    assert told == {"eyes": "eyes-gateway", "ears": "ears-gateway"}

    # What people see: a line for each.
    header, *lines = site.says("get", "devices").splitlines()
    assert "WORKLOAD" in header
    assert [line.split()[:3] for line in lines] == [
        ["gw-1", "eyes", "eyes-gateway"],
        ["gw-1", "ears", "ears-gateway"],
    ]
    told = json.loads(site.says("describe", "device", "gw-1", "-o", "json"))
    assert [item["serving_digest"] for item in told["workloads"]] == [
        newer["eyes"].digest,
        first["ears"].digest,
    ]
    assert f"ears: gw-1 runs {first['ears'].digest[:12]}" in site.says("why", "gw-1")

    # A restart of both sides changes nothing.
    site.plane.end(signal.SIGKILL)
    site.agent.kill()
    site.plane.start()
    site.agent.start()
    said = site.agent.wait(lambda said: serves(said, newer) and said["server_connected"])
    wait_until(lambda: site.device().connected, what="the agent to come back")
    assert {name: site.agent.of(name, said)["generation"] for name in NAMES} == {**generations, "eyes": 3}
    assert not [status for status in site.store.history("gw-1") if status.code]
