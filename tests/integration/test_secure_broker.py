"""Mosquitto with the configuration that ships, and real agents over mutual TLS on both connections."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from machine import missing, wait_until
from secure_harness import Device, SecureAgent, SecureBroker, SecurePlane, device, mosquitto_program, new_keys

from cloud.pki.authority import Authority
from cloud.pki.key_folder import KeyFolder, control_name, write_file
from edgeloop import topics
from edgeloop.backoff import Backoff
from edgeloop.identity import client_context, facts, read_certificate
from edgeloop.mqtt import MqttSession, Will
from edgeloop.v1 import control_service_pb2 as pb

pytestmark = pytest.mark.mosquitto


@dataclass
class Broker:
    """The broker of this module, and whose certificates it takes."""

    running: SecureBroker
    keys: KeyFolder
    folder: Path

    def device(self, name: str, authority: Authority | None = None, **life: float) -> Device:
        return device(authority or self.keys.load_device_authority(), self.folder, name, **life)

    def session(
        self, who: Device | Path | None, client_id: str = "", will: Will | None = None
    ) -> MqttSession:
        """A connection; the client id is the certificate's name unless another is given."""
        path = who.path if isinstance(who, Device) else who
        name = who.name if isinstance(who, Device) else control_name(1)
        return MqttSession(
            self.running.host,
            self.running.port,
            client_id or name,
            tls=client_context(ca_file=self.keys.control_ca, identity_file=path),
            will=will,
            backoff=Backoff(0.05, 0.5),
        )


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    if mosquitto_program() is None:
        missing("mosquitto")
    folder = tmp_path_factory.mktemp("broker")
    keys = new_keys(folder)
    running = SecureBroker(folder, keys)
    yield Broker(running, keys, folder)
    running.stop()


@pytest.fixture
def control(broker: Broker) -> Iterator[MqttSession]:
    """What a control plane is at the broker."""
    with broker.session(broker.keys.mqtt(1)) as session:
        assert session.wait_connected(60), session.last_error
        yield session


def test_a_device_reads_and_writes_its_own_topics_and_what_is_for_all(
    broker: Broker, control: MqttSession
) -> None:
    heard: queue.Queue[tuple[str, bytes]] = queue.Queue()
    control.subscribe(topics.ALL_REQUESTS, lambda topic, payload: heard.put((topic, payload)))
    control.subscribe(topics.ALL_PRESENCE, lambda topic, payload: heard.put((topic, payload)))
    readable = {
        topics.deployment("gw-1"): b"deployment",
        topics.workload_deployment("gw-1", "eyes"): b"deployment of eyes",
        topics.block("0" * 64, 3): b"block",
        topics.manifest("1" * 64): b"manifest",
        topics.DIRECTOR_KEYS: b"keys",
    }
    for topic, payload in readable.items():
        control.publish(topic, payload, retain=True).wait(60)
    got: queue.Queue[tuple[str, bytes]] = queue.Queue()
    will = Will(topic=topics.presence("gw-1"), payload=topics.OFFLINE)
    with broker.session(broker.device("gw-1"), will=will) as session:
        assert session.wait_connected(60), session.last_error
        for topic in readable:
            session.subscribe(topic, lambda topic, payload: got.put((topic, payload)))
        assert dict(got.get(timeout=60) for _ in readable) == readable
        session.publish(topics.requests("gw-1"), b"please").wait(60)
        assert heard.get(timeout=60) == (topics.requests("gw-1"), b"please")
    assert heard.get(timeout=60) == (topics.presence("gw-1"), topics.OFFLINE)


def test_a_device_cannot_publish_or_subscribe_as_another(broker: Broker, control: MqttSession) -> None:
    heard: queue.Queue[str] = queue.Queue()
    for topic in (topics.ALL_REQUESTS, topics.ALL_PRESENCE, "edgeloop/v1/#"):
        control.subscribe(topic, lambda topic, payload: heard.put(topic) if payload == b"forged" else None)
    control.publish(topics.deployment("gw-2"), b"of gw-2", retain=True).wait(60)
    control.publish(topics.workload_deployment("gw-2", "eyes"), b"eyes of gw-2", retain=True).wait(60)
    control.publish(topics.deployment("gw-1"), b"of gw-1", retain=True).wait(60)
    control.publish(topics.workload_deployment("gw-1", "eyes"), b"eyes of gw-1", retain=True).wait(60)
    got: queue.Queue[bytes] = queue.Queue()
    forged = [
        topics.requests("gw-2"),
        topics.presence("gw-2"),
        topics.deployment("gw-1"),  # not even its own: that is the director's to say
        topics.deployment("gw-2"),
        topics.workload_deployment("gw-1", "eyes"),
        topics.workload_deployment("gw-2", "eyes"),
        topics.block("0" * 64, 0),
        topics.manifest("0" * 64),
        topics.DIRECTOR_KEYS,
        topics.SENTINEL,
    ]
    with broker.session(broker.device("gw-1")) as session:
        assert session.wait_connected(60), session.last_error
        eyes = topics.workload_deployment("gw-2", "eyes")
        for topic in (topics.deployment("gw-2"), eyes, "edgeloop/v1/devices/#"):
            session.subscribe(topic, lambda topic, payload: got.put(payload))
        for topic in forged:
            session.publish(topic, b"forged", retain=True).wait(60)
        session.publish(topics.requests("gw-1"), b"forged").wait(60)  # the last, and allowed
        published = {heard.get(timeout=60)}
        session.subscribe(topics.deployment("gw-1"), lambda topic, payload: got.put(payload))
        session.subscribe(topics.workload_deployment("gw-1", "eyes"), lambda topic, payload: got.put(payload))
        received = {got.get(timeout=60), got.get(timeout=60)}
        time.sleep(0.2)
        while not got.empty():
            received.add(got.get_nowait())
    while not heard.empty():
        published.add(heard.get_nowait())
    assert received == {b"of gw-1", b"eyes of gw-1"}
    assert published == {topics.requests("gw-1")}


def test_a_device_cannot_take_the_client_id_of_another(broker: Broker) -> None:
    lost: list[bool] = []
    with broker.session(broker.device("victim")) as victim:
        victim.on_state(lost.append)
        assert victim.wait_connected(60), victim.last_error
        with broker.session(broker.device("mallory"), client_id="victim") as mallory:
            assert mallory.wait_connected(60), mallory.last_error
            mallory.publish(topics.requests("mallory"), b"x").wait(60)
        victim.publish(topics.requests("victim"), b"still here").wait(60)
    assert False not in lost[:-1]


def gets_in(broker: Broker, who: Device | Path | None) -> bool:
    with broker.session(who, client_id="gw-1") as session:
        wait_until(lambda: session.connected or session.last_error, what="the broker's word")
        return session.connected


@pytest.mark.parametrize("kind", ["none", "expired", "foreign", "server", "revoked"])
def test_without_a_good_certificate_nobody_gets_in(broker: Broker, kind: str, tmp_path: Path) -> None:
    who: Device | Path | None = None
    if kind == "expired":
        who = broker.device("gw-1", begin_s=-7200, life_s=3600)
    elif kind == "foreign":
        who = broker.device("gw-1", Authority.create("edgeloop devices", time.time())[0])
    elif kind == "server":
        who = tmp_path / "server.pem"
        folder = broker.keys.control
        who.write_bytes((folder / "server.key").read_bytes() + (folder / "server.crt").read_bytes())
    elif kind == "revoked":
        who = broker.device("revoked")
        with broker.session(who) as session:
            assert session.wait_connected(60), session.last_error
        serial = facts(read_certificate(who.certificate_pem)).serial
        authority = broker.keys.load_device_authority()
        write_file(
            broker.keys.revoked, authority.revocation_list([(serial, time.time())], time.time()), 0o644
        )
        # run.sh looks each second, and the broker then reads it when it comes to that.
        wait_until(lambda: not gets_in(broker, who), what="the revocation to count")
    assert not gets_in(broker, who)
    if kind == "revoked":
        with broker.session(broker.device("another")) as session:
            assert session.wait_connected(60), session.last_error


@pytest.fixture
def agents() -> Iterator[list[SecureAgent]]:
    started: list[SecureAgent] = []
    yield started
    for agent in started:
        agent.stop()


def connected(agent: SecureAgent) -> bool:
    status = agent.status()
    return bool(status.get("broker_connected")) and bool(status.get("server_connected"))


@pytest.mark.slow  # four programs start one after the other
@pytest.mark.timeout(420)
def test_from_token_to_revoked(broker: Broker, tmp_path: Path, agents: list[SecureAgent]) -> None:
    """The whole way of a device, with the programs that people use."""
    plane = SecurePlane(tmp_path / "plane", broker=broker.running, keys=broker.keys).start()
    try:
        token = plane.edgeloop("device", "enroll", "gw-9", "--label", "class=gateway").strip()
        agent = SecureAgent(plane, "gw-9")
        assert "enrolled as gw-9" in agent.enroll(token)
        assert "nothing was changed" in agent.enroll(token)
        assert "used before" in agent.enroll(token, "--force", status=3)
        agents.append(agent.run())
        wait_until(lambda: connected(agent), what=lambda: f"both connections: {agent.log[-4000:]}")
        with plane.control() as control:
            (found,) = control.ListDevices(pb.ListDevicesRequest(device_id="gw-9")).devices
            assert found.identity_state == "valid"
            control.RevokeDevice(pb.RevokeDeviceRequest(device_id="gw-9"))
        wait_until(
            lambda: not agent.status()["broker_connected"] and not agent.status()["server_connected"],
            what=lambda: f"both connections to end: {agent.log[-4000:]}",
        )
        wait_until(lambda: "certificate-revoked" in agent.log, what="the reason in the agent's log")
        with plane.control() as control:
            entries = control.ListAudit(pb.ListAuditRequest(refused_only=True)).entries
        assert any(entry.actor == "device:gw-9" and "was revoked" in entry.message for entry in entries)
        pid = agent.status()["pid"]
        token = plane.edgeloop("device", "enroll", "gw-9").strip()
        assert "enrolled as gw-9" in agent.enroll(token, "--force")
        wait_until(lambda: connected(agent), what=lambda: f"both anew, not restarted: {agent.log[-4000:]}")
        assert agent.status()["pid"] == pid
    finally:
        plane.stop()


@pytest.mark.slow  # it waits for a certificate to be renewed, and for one to expire
@pytest.mark.timeout(420)
def test_a_certificate_is_renewed_and_an_expired_one_is_turned_in(
    broker: Broker, tmp_path: Path, agents: list[SecureAgent]
) -> None:
    # The second control plane of this broker, whose devices' certificates last 15 s: a busy machine may take
    # most of that to start an agent.
    flags = ("--control-index", "2", "--certificate-ttl-s", "15")
    plane = SecurePlane(tmp_path / "plane", *flags, broker=broker.running, keys=broker.keys).start()
    try:
        agent = SecureAgent(plane, "gw-8")
        with plane.control() as control:
            agent.enroll(control.EnrolDevice(pb.EnrolDeviceRequest(device_id="gw-8")).token)
        path = agent.state_dir / "identity" / "identity.pem"
        first = path.read_bytes()
        agents.append(agent.run())
        wait_until(lambda: connected(agent), what=lambda: f"both connections: {agent.log[-4000:]}")
        wait_until(lambda: path.read_bytes() != first, what=lambda: f"a new certificate: {agent.log[-4000:]}")
        wait_until(lambda: "certificate renewed" in agent.log, what="the word of it")
        assert "enrolling again" not in agent.log.partition("certificate renewed")[2]
        wait_until(lambda: connected(agent), what=lambda: f"both connections after it: {agent.log[-4000:]}")
        agent.stop()
        last = path.read_bytes()
        # It is away until its certificate expired.
        time.sleep(max(0.0, facts(read_certificate(last)).not_after_s - time.time()) + 0.5)
        agent.run()
        wait_until(lambda: path.read_bytes() != last, what=lambda: f"a new certificate: {agent.log[-4000:]}")
        wait_until(lambda: connected(agent), what=lambda: f"both connections again: {agent.log[-4000:]}")
        assert "has expired: enrolling again" in agent.log
    finally:
        plane.stop()
