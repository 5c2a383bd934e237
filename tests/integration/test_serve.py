"""``edgeloop serve`` as a process: starts, answers, is killed, comes back."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from machine import dying_with_us, free_port, wait_until

from cloud.job_plans import train_job
from cloud.store import Store
from edgeloop import topics
from edgeloop.artifact import build_manifest, encode_manifest, golden_set
from edgeloop.backoff import Backoff
from edgeloop.errors import RejectedError, error_from_grpc
from edgeloop.mqtt import MqttSession, Will
from edgeloop.trust import key_ring, open_deployment
from edgeloop.v1 import artifact_pb2, device_pb2, fleet_service_pb2, fleet_service_pb2_grpc
from edgeloop.v1 import control_service_pb2 as pb
from edgeloop.v1.control_service_pb2_grpc import ControlServiceStub

WAIT_S = 60.0
DIGITS = {"kind": "Workload", "name": "digits", "dataset": "digits"}
FLEET = {
    "kind": "Fleet",
    "workload": "digits",
    "profiles": [
        {"name": "gateway", "match": {"labels": {"class": "gateway"}}, "rollout": {"canary_share": 1.0}}
    ],
}


class Served:
    """A control plane in a process of its own, without compute, on ports of its own choice."""

    def __init__(self, state_dir: Path, *flags: str) -> None:
        self.state_dir = state_dir
        self.said = state_dir.with_name(f"{state_dir.name}.stderr")
        self.flags = flags
        self.process: subprocess.Popen[bytes] | None = None
        self.info: dict[str, Any] = {}
        self._channels: list[grpc.Channel] = []

    def spawn(self, stderr: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "cloud.cli", "serve", "--state-dir", str(self.state_dir)]
        command += ["--fleet-port", "0", "--control-port", "0", "--broker-port", "0", "--compute", "none"]
        command += ["--step-interval-s", "0.2", *self.flags]
        self.process = subprocess.Popen(
            dying_with_us(command),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE if stderr is None else stderr,
        )
        return self.process

    def start(self) -> float:
        """Returns how long it took to be ready."""
        (self.state_dir / "server.json").unlink(missing_ok=True)
        began_s = time.monotonic()
        # Not into a pipe, which nobody reads while it runs.
        self.said.parent.mkdir(parents=True, exist_ok=True)
        with self.said.open("ab") as stderr:
            process = self.spawn(stderr)
        while time.monotonic() - began_s < WAIT_S:
            try:
                self.info = json.loads((self.state_dir / "server.json").read_text())
            except FileNotFoundError:
                assert process.poll() is None, self.said.read_text()
                time.sleep(0.02)
                continue
            return time.monotonic() - began_s
        raise AssertionError(f"not ready in {WAIT_S:g} s: {self.said.read_text()[-4000:]}")

    def channel(self, name: str = "control") -> grpc.Channel:
        channel = grpc.insecure_channel(self.info[name])
        self._channels.append(channel)
        return channel

    @property
    def control(self) -> ControlServiceStub:
        return ControlServiceStub(self.channel())

    def apply(self, *documents: dict[str, Any]) -> pb.ApplyResponse:
        messages = [pb.Document(kind=d["kind"], json=json.dumps(d), source="test.yaml") for d in documents]
        answer = self.control.Apply(pb.ApplyRequest(documents=messages), timeout=WAIT_S)
        assert isinstance(answer, pb.ApplyResponse)
        return answer

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        for channel in self._channels:
            channel.close()
        self._channels.clear()
        self.process.send_signal(how)
        status = self.process.wait(WAIT_S)
        if self.process.stderr is not None:
            self.process.stderr.close()
        return status


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path / "state")
    yield served
    if served.process is not None and served.process.poll() is None:
        served.end(signal.SIGKILL)


def await_that(condition: object, timeout_s: float = WAIT_S) -> bool:
    assert callable(condition)
    until_s = time.monotonic() + timeout_s
    while time.monotonic() < until_s:
        if condition():
            return True
        time.sleep(0.05)
    return False


def registration(device_id: str, boot_id: str = "b1") -> device_pb2.Registration:
    return device_pb2.Registration(
        device_id=device_id,
        hardware=device_pb2.Hardware(architecture="x86_64", num_cores=2, memory_bytes=1 << 32),
        labels={"class": "gateway"},
        boot_id=boot_id,
        emulated_slowdown=1,
    )


def add_candidate(state_dir: Path, *, now_s: float, database_url: str = "") -> str:
    """As if a student had been built: its files in the registry, its row in the database."""
    from cloud.domain.candidates import Candidate, CandidateMetrics
    from cloud.domain.specs import CompressionSpec, Precision
    from cloud.registry import Registry

    registry = Registry(str(state_dir / "registry"))
    data = os.urandom(300_000)
    tensor = artifact_pb2.TensorSpec(name="x", datatype="FP32", shape=[0, 2])
    manifest = build_manifest(
        data,
        workload="digits",
        profile="gateway",
        precision=artifact_pb2.PRECISION_INT8,
        inputs=[tensor],
        outputs=[tensor],
        golden=golden_set([[0.0, 0.0]], [[0.0, 0.0]], absolute_tolerance=0.1),
        accuracy=0.9,
    )
    metrics = CandidateMetrics(
        accuracy=0.9,
        test_accuracy=0.9,
        latency_p50_ms=1.0,
        latency_p95_ms=1.1,
        reference_p50_ms=0.1,
        artifact_bytes=len(data),
        peak_rss_bytes=1 << 26,
        macs=1,
        num_parameters=1,
    )
    candidate = Candidate(
        digest=registry.put(data),
        manifest_digest=registry.put(encode_manifest(manifest)),
        workload="digits",
        profile="gateway",
        parent_digest="",
        spec=CompressionSpec(),
        precision=Precision.INT8,
        metrics=metrics,
    )
    store = Store(database_url or f"sqlite:///{state_dir / 'edgeloop.db'}")
    store.save_candidate(candidate, now_s)
    store.close()
    return candidate.digest


def test_it_serves_with_health_and_reflection_and_ends_cleanly(served: Served) -> None:
    served.start()
    info = served.control.GetServerInfo(pb.GetServerInfoRequest(), timeout=WAIT_S)
    assert info.director_public_key.hex() == served.info["director_public_key"]
    assert (info.broker_embedded, info.compute) == (True, "none")
    assert info.broker_port == served.info["broker"]["port"]
    for name, service in (("control", "edgeloop.v1.ControlService"), ("fleet", "edgeloop.v1.FleetService")):
        health = health_pb2_grpc.HealthStub(served.channel(name))
        answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=WAIT_S)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        reflected = reflection_pb2_grpc.ServerReflectionStub(served.channel(name)).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=WAIT_S
        )
        assert service in {item.name for item in next(reflected).list_services_response.service}
    assert (served.state_dir / "director.key").stat().st_mode & 0o777 == 0o600
    assert served.end() == 0
    assert not (served.state_dir / "server.json").exists()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_what_was_applied_is_there_after_a_restart_and_so_are_key_and_ports(
    served: Served, how: signal.Signals
) -> None:
    # None that the system gives to others while this one is down; from then on it asks for any.
    names = ("fleet", "control", "broker")
    served.flags = tuple(word for name in names for word in (f"--{name}-port", str(free_port())))
    served.start()
    served.apply(DIGITS, FLEET)
    served.control.SetControllerPaused(pb.SetControllerPausedRequest(paused=True), timeout=WAIT_S)
    before = dict(served.info)
    served.end(how)
    served.flags = ()
    served.start()
    assert {**served.info, "pid": 0} == {**before, "pid": 0}
    answer = served.apply(DIGITS, FLEET)
    assert {item.change for item in answer.resources} == {pb.AppliedResource.CHANGE_UNCHANGED}
    assert served.control.GetServerInfo(pb.GetServerInfoRequest(), timeout=WAIT_S).controller_paused
    told = served.control.WatchLogs(pb.WatchLogsRequest(), timeout=WAIT_S)
    records = [record.message for answer in told for record in answer.records]
    assert sum(text.startswith("serving: agents ") for text in records) == 2, "records outlive a restart"


def test_errors_come_through_with_their_kind_and_code(served: Served) -> None:
    served.start()
    with pytest.raises(grpc.RpcError) as caught:
        served.control.TrainTeacher(pb.TrainTeacherRequest(workload="nope"), timeout=WAIT_S)
    error = error_from_grpc(caught.value)
    assert isinstance(error, RejectedError)
    assert error.code == "workload-unknown"


def test_a_job_is_watched_until_it_ends(served: Served) -> None:
    served.start()
    served.apply(DIGITS)
    with pytest.raises(grpc.RpcError) as refused:
        served.control.TrainTeacher(pb.TrainTeacherRequest(workload="digits"), timeout=WAIT_S)
    assert error_from_grpc(refused.value).code == "compute-none"
    assert "--compute none" in str(refused.value.details())
    store = Store(f"sqlite:///{served.state_dir}/edgeloop.db")
    (workload,) = store.workloads()
    job = train_job("left-by-another", workload, 1.0)
    store.create_job(job)
    store.close()
    seen = []
    for answer in served.control.WatchJob(pb.WatchJobRequest(job_id=job.job_id), timeout=WAIT_S):
        seen.append(answer.job)
        if "--compute none" in answer.job.message:
            served.control.CancelJob(pb.CancelJobRequest(job_id=job.job_id), timeout=WAIT_S)
    assert seen[-1].state == pb.JOB_STATE_CANCELLED
    with pytest.raises(grpc.RpcError) as caught:
        next(served.control.WatchJob(pb.WatchJobRequest(job_id="nope"), timeout=WAIT_S))
    assert error_from_grpc(caught.value).code == "job-unknown"


def test_a_second_one_on_the_same_folder_is_refused(served: Served) -> None:
    served.start()
    second = Served(served.state_dir)
    process = second.spawn()
    _, text = process.communicate(timeout=WAIT_S)
    assert process.returncode != 0
    assert f"process {served.info['pid']}" in text.decode()
    assert "Traceback" not in text.decode()
    assert served.control.GetServerInfo(pb.GetServerInfoRequest(), timeout=WAIT_S).version


@pytest.mark.parametrize("flag", ["--control-port", "--fleet-port", "--broker-port"])
def test_a_port_in_use_is_said_with_its_flag(tmp_path: Path, flag: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        served = Served(tmp_path / "state", flag, str(taken.getsockname()[1]))
        process = served.spawn()
        _, text = process.communicate(timeout=WAIT_S)
    assert process.returncode not in (0, None)
    assert flag in text.decode()
    assert "Traceback" not in text.decode()


def test_prometheus_reads_whether_it_acts(tmp_path: Path) -> None:
    port = free_port()
    served = Served(tmp_path / "state", "--metrics-port", str(port))
    try:
        served.start()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=WAIT_S) as answer:
            assert "\nedgeloop_controller_acts 1\n" in answer.read().decode()
    finally:
        served.end(signal.SIGKILL)


def test_people_look_at_the_fleet_on_a_port_that_must_be_asked_for(tmp_path: Path) -> None:
    port = free_port()
    served = Served(tmp_path / "state", "--web-port", str(port))
    try:
        served.start()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=WAIT_S) as answer:
            assert "0 of 0 devices connected" in answer.read().decode()
    finally:
        served.end(signal.SIGKILL)


def test_devices_are_told_what_to_run_whatever_is_killed_in_between(served: Served) -> None:
    served.flags = ("--broker-port", str(free_port()))  # which nobody else is given while it is down
    served.start()
    served.apply(DIGITS, FLEET)
    digest = add_candidate(served.state_dir, now_s=time.time())
    fleet = fleet_service_pb2_grpc.FleetServiceStub(served.channel("fleet"))
    reply = fleet.Register(
        fleet_service_pb2.RegisterRequest(registration=registration("gw-1")), timeout=WAIT_S
    )
    assert reply.profile == "gateway"
    served.control.StartRollout(pb.StartRolloutRequest(profile="gateway", request_id="r"), timeout=WAIT_S)
    heard: list[bytes] = []
    port = served.info["broker"]["port"]
    key = bytes.fromhex(served.info["director_public_key"])

    def generations() -> list[int]:
        ring = key_ring(key)
        return [
            open_deployment(raw, ring, device_id="gw-1", now_s=time.time()).generation for raw in heard if raw
        ]

    with MqttSession("127.0.0.1", port, "gw-1", backoff=Backoff(0.05, 0.3)) as device:
        device.subscribe(topics.deployment("gw-1"), lambda _, payload: heard.append(payload))
        # What is published while the subscription is being made may come for both reasons.
        assert await_that(lambda: set(generations()) == {1})
        opened = open_deployment(heard[0], key_ring(key), device_id="gw-1", now_s=time.time())
        assert opened.digest == digest
        served.end(signal.SIGKILL)
        assert await_that(lambda: not device.connected)
        num_heard = len(heard)
        served.start()
        # The embedded broker went with it and forgot everything; the deployment comes again as it was.
        assert await_that(lambda: len(heard) > num_heard)
        broker_pid = json.loads((served.state_dir / "broker.json").read_text())["pid"]
        num_heard = len(heard)
        os.kill(broker_pid, signal.SIGKILL)
        assert await_that(lambda: len(heard) > num_heard)
    assert set(generations()) == {1}
    assert len(set(heard)) == 1


def test_presence_follows_the_broker(served: Served) -> None:
    served.start()
    served.apply(DIGITS, FLEET)
    fleet = fleet_service_pb2_grpc.FleetServiceStub(served.channel("fleet"))
    fleet.Register(fleet_service_pb2.RegisterRequest(registration=registration("gw-1")), timeout=WAIT_S)

    def connected() -> bool:
        answer = served.control.ListDevices(pb.ListDevicesRequest(), timeout=WAIT_S)
        return bool(answer.devices[0].connected)

    topic = topics.presence("gw-1")
    will = Will(topic=topic, payload=topics.OFFLINE)
    with MqttSession("127.0.0.1", served.info["broker"]["port"], "gw-1", will=will) as device:
        assert device.wait_connected(WAIT_S)
        device.publish(topic, topics.ONLINE, retain=True).wait(WAIT_S)
        assert await_that(connected)
    assert await_that(lambda: not connected())


@pytest.mark.mosquitto
def test_it_waits_for_a_broker_that_is_not_there_yet_and_says_so_once(tmp_path: Path, mosquitto: Any) -> None:
    mosquitto.kill()
    served = Served(tmp_path / "state", "--broker", f"127.0.0.1:{mosquitto.port}")
    try:
        served.start()
        info = served.control.GetServerInfo(pb.GetServerInfoRequest(), timeout=WAIT_S)
        assert (info.broker_embedded, info.broker_connected) == (False, False)
        log = tmp_path / "state" / "logs" / "serve.log"
        wait_until(lambda: "cannot reach the broker" in log.read_text(), what=lambda: log.read_text()[-3000:])
        time.sleep(1.5)
        mosquitto.start()
        assert await_that(
            lambda: served.control.GetServerInfo(pb.GetServerInfoRequest(), timeout=WAIT_S).broker_connected
        )
    finally:
        served.end(signal.SIGKILL)
    assert log.read_text().count("cannot reach the broker") == 1
