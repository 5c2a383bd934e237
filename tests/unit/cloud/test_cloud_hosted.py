"""Several workloads on one device: each is told, judged, measured and shown by itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from control_plane_fakes import HARDWARE, SETTINGS, build, digest_of
from test_cloud_publisher import Scene, ask, make_artifact, request

from cloud.cli.columns import hosted_lines
from cloud.controller import Controller, fleet
from cloud.domain.devices import DeploymentState, DeploymentStatus, Device, HostedWorkload, matched
from cloud.domain.fleet_device import DeploymentIntent
from cloud.domain.profiles import Constraints, DeviceProfile, MatchRule
from cloud.domain.rollout import RolloutState, abort, plan_rollout
from cloud.domain.workloads import Workload
from cloud.services.convert import device_from_proto, registration_to_proto
from cloud.services.explaining import explain_device
from cloud.services.queries import Queries
from cloud.services.summary import summarise
from cloud.shipment import Shipment
from cloud.store import ReportRow, Store
from edgeloop import topics
from edgeloop.errors import RejectedError
from edgeloop.sketch import LatencySketch
from edgeloop.trust import DirectorKey, key_ring, open_deployment
from edgeloop.v1 import control_service_pb2 as pb
from edgeloop.v1 import deployment_pb2

GATEWAY = MatchRule(labels={"class": "gateway"})
EYES = DeviceProfile(name="eyes-gateway", workload="eyes", match=GATEWAY, constraints=Constraints())
EARS = DeviceProfile(name="ears-gateway", workload="ears", match=GATEWAY, constraints=Constraints())
HOSTED = (HostedWorkload(workload="eyes"), HostedWorkload(workload="ears"))
#: Hosts both, and one that runs one workload, whichever.
TWO, ONE = "gw-two", "gw-one"


def device(device_id: str, *hosted: HostedWorkload, **more: object) -> Device:
    return Device(
        device_id=device_id,
        hardware=HARDWARE,
        labels={"class": "gateway"},
        boot_id="boot",
        hosted=hosted,
        **more,  # type: ignore[arg-type]
    )


class Plane:
    """The controller over a database, with devices that obey the topics that they listen to."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.now_s = 1_000_000.0
        self.director = DirectorKey.generate()
        self.shipped: dict[str, Shipment] = {}
        self.controller = Controller(
            store, director=lambda: self.director, ship=self._ship, settings=SETTINGS
        )
        for profile in (EYES, EARS):
            store.apply_workload(Workload(name=profile.workload, dataset="digits"), self.now_s)
            store.apply_profile(profile, self.now_s)
        self._sequence = 0

    def _ship(self, shipments: object) -> None:
        assert isinstance(shipments, dict)
        self.shipped = {shipment.topic: shipment for shipment in shipments.values()}

    def register(self, said: Device) -> Device:
        found = matched(said, self.store.profiles())
        return self.store.register_device(found, found.profile or None, found.message, self.now_s)

    def serve(self, profile: DeviceProfile, width: float) -> str:
        """What the profile's devices are to run from now on."""
        (candidate,) = build(self.store, profile, width)
        self.store.set_current(
            profile.name,
            candidate.digest,
            manifest_digest=candidate.manifest_digest,
            rollout_id="",
            now_s=self.now_s,
        )
        return candidate.digest

    def roll_out(self, profile: DeviceProfile, width: float) -> str:
        (candidate,) = build(self.store, profile, width)
        target = self.store.targets()[profile.name]
        rollout = plan_rollout(
            rollout_id=f"r-{profile.workload}",
            profile=profile,
            digest=candidate.digest,
            manifest_digest=candidate.manifest_digest,
            previous_digest=target.digest,
            previous_manifest_digest=target.manifest_digest,
            devices=fleet(self.store),
            now_s=self.now_s,
        )
        self.store.save_rollout(rollout, self.now_s)
        return candidate.digest

    def step(self, num: int = 1) -> None:
        for _ in range(num):
            self.now_s += 1
            self.controller.step(self.now_s)

    def told(self, device_id: str, workload: str = "") -> deployment_pb2.Deployment:
        topic = topics.deployment(device_id)
        if workload:
            topic = topics.workload_deployment(device_id, workload)
        ring = key_ring(self.director.public_bytes)
        return open_deployment(self.shipped[topic].payload, ring, device_id=device_id, now_s=self.now_s)

    def obey(self, device_id: str, workload: str = "") -> None:
        told = self.told(device_id, workload)
        self.say(device_id, told.generation, told.digest)

    def say(self, device_id: str, generation: int, digest: str) -> None:
        status = DeploymentStatus(
            device_id=device_id,
            generation=generation,
            digest=digest,
            state=DeploymentState.ACTIVE,
            event_time_s=self.now_s,
        )
        self.store.record_status(status, self.now_s)

    def measure(self, device_id: str, workload: str, digest: str, p95_ms: float) -> None:
        self._sequence += 1
        latency = LatencySketch.of([p95_ms] * 100)
        row = ReportRow(
            device_id=device_id,
            boot_id="boot",
            sequence=self._sequence,
            digest=digest,
            generation=1,
            workload=workload,
            start_s=self.now_s - 1,
            end_s=self.now_s,
            num_samples=latency.count,
            latency=latency.to_proto().SerializeToString(),
            reference=LatencySketch.of([0.2] * 20).to_proto().SerializeToString(),
        )
        self.store.insert_reports([row], self.now_s)

    def hosts(self, device_id: str) -> dict[str, HostedWorkload]:
        found = self.store.device(device_id)
        assert found is not None
        return {host.workload: host for host in found.hosted}


@pytest.fixture
def plane(store: Store) -> Plane:
    plane = Plane(store)
    plane.register(device(TWO, *HOSTED))
    return plane


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    scene.publisher.on_connected(True)
    yield scene
    scene.publisher.stop()


def test_each_workload_has_the_profile_of_its_own_workload_and_says_when_it_has_none() -> None:
    found = matched(device(TWO, *HOSTED, HostedWorkload(workload="nose")), [EARS, EYES])
    assert {host.workload: host.profile for host in found.hosted} == {
        "eyes": EYES.name,
        "ears": EARS.name,
        "nose": "",
    }
    assert found.profile == EYES.name
    assert found.message.startswith("workload nose: ")
    assert found.profiles == {EYES.name, EARS.name}
    # A device that runs one, whichever, has the first that fits, as ever.
    alone = matched(device(ONE), [EARS, EYES])
    assert (alone.profile, alone.message, alone.hosted) == (EARS.name, "", ())


def test_one_is_deployed_anew_and_the_other_is_not_touched(plane: Plane) -> None:
    eyes, ears = plane.serve(EYES, 1.0), plane.serve(EARS, 0.5)
    plane.step()
    first = {name: plane.told(TWO, name) for name in ("eyes", "ears")}
    assert {name: told.digest for name, told in first.items()} == {"eyes": eyes, "ears": ears}
    # One sequence for the device: no two deployments of it share a generation.
    assert sorted(told.generation for told in first.values()) == [1, 2]
    for name in first:
        plane.obey(TWO, name)
    before = dict(plane.shipped)
    newer = plane.serve(EYES, 0.25)
    plane.step(3)
    assert (plane.told(TWO, "eyes").digest, plane.told(TWO, "eyes").generation) == (newer, 3)
    ears_topic = topics.workload_deployment(TWO, "ears")
    assert plane.shipped[ears_topic] == before[ears_topic]
    assert set(plane.shipped) == {ears_topic, topics.workload_deployment(TWO, "eyes")}
    plane.obey(TWO, "eyes")
    assert {name: host.serving_digest for name, host in plane.hosts(TWO).items()} == {
        "eyes": newer,
        "ears": ears,
    }
    assert [deployment.generation for deployment in plane.store.deployments()] == [
        plane.told(TWO, "ears").generation,
        3,
    ]


def test_two_rollouts_on_one_device_end_each_on_its_own(plane: Plane) -> None:
    old = {name: plane.serve(profile, 1.0) for name, profile in (("eyes", EYES), ("ears", EARS))}
    plane.step()
    for name in old:
        plane.obey(TWO, name)
    new = {name: plane.roll_out(profile, 0.5) for name, profile in (("eyes", EYES), ("ears", EARS))}
    plane.step()
    assert {name: plane.told(TWO, name).digest for name in new} == new
    plane.obey(TWO, "eyes")
    rollout = plane.store.rollout("r-ears")
    assert rollout is not None
    plane.store.save_rollout(abort(rollout, plane.now_s), plane.now_s)
    plane.step(2)
    assert {name: plane.told(TWO, name).digest for name in new} == {"eyes": new["eyes"], "ears": old["ears"]}
    told = plane.store.statuses_since(0.0, profile=EYES.name, limit=10)
    assert {status.digest for _, status in told} == {old["eyes"], new["eyes"]}
    states = {rollout.rollout_id: rollout.state for rollout in plane.store.rollouts()}
    assert states == {"r-eyes": RolloutState.SUCCEEDED, "r-ears": RolloutState.ABORTED}


def test_a_device_that_knows_a_higher_generation_of_one_is_told_that_one_again(plane: Plane) -> None:
    plane.serve(EYES, 1.0)
    plane.serve(EARS, 0.5)
    plane.step()
    eyes = plane.told(TWO, "eyes")
    said = (replace(HOSTED[0], generation=2), replace(HOSTED[1], generation=9))
    plane.register(device(TWO, *said, generation=9))
    plane.step()
    assert plane.told(TWO, "ears").generation == 10
    # The eyes accepted nothing above what they were told.
    assert plane.told(TWO, "eyes") == eyes
    # It never goes down, whatever a later registration says.
    plane.register(device(TWO, *HOSTED))
    assert plane.hosts(TWO)["ears"].generation == 9


def test_what_a_device_does_not_host_is_not_deployed_to_it(plane: Plane) -> None:
    intent = DeploymentIntent(
        device_id=TWO, workload="nose", profile="p", digest=digest_of("d"), manifest_digest=digest_of("m")
    )
    with pytest.raises(RejectedError) as caught:
        plane.store.issue_deployment(intent, plane.now_s)
    assert caught.value.code == "workload-not-hosted"


def test_a_device_may_begin_to_host_several_and_cease_to(plane: Plane) -> None:
    eyes = plane.serve(EYES, 1.0)
    plane.serve(EARS, 0.5)
    plane.store.remove_profile(EARS.name)
    plane.register(device(ONE))
    plane.step()
    plane.obey(ONE)
    assert (plane.told(ONE).digest, plane.told(ONE).generation) == (eyes, 1)
    plane.store.apply_profile(EARS, plane.now_s)
    plane.register(device(ONE, replace(HOSTED[0], generation=1, serving_digest=eyes), HOSTED[1]))
    plane.step()
    # What it runs already is not said again; what it lacks is, under the device's next generation.
    assert (plane.told(ONE, "eyes").digest, plane.told(ONE, "eyes").generation) == (eyes, 1)
    assert plane.told(ONE, "ears").generation == 2
    assert topics.deployment(ONE) not in plane.shipped
    plane.register(device(ONE, generation=2, serving_digest=eyes))
    plane.step()
    assert topics.workload_deployment(ONE, "eyes") not in plane.shipped
    assert plane.told(ONE).generation >= 2
    assert plane.store.forget_device(TWO, plane.now_s)
    assert plane.store.device(TWO) is None


def test_measurements_count_in_the_profile_of_their_own_workload(plane: Plane) -> None:
    eyes, ears = plane.serve(EYES, 1.0), plane.serve(EARS, 0.5)
    plane.register(device(ONE))
    plane.step()
    for name in ("eyes", "ears"):
        plane.obey(TWO, name)
    plane.now_s += 1
    plane.measure(TWO, "eyes", eyes, 4.0)
    plane.measure(TWO, "ears", ears, 9.0)
    plane.measure(ONE, "ears", ears, 7.0)
    for profile, seen in ((EYES, {TWO}), (EARS, {TWO, ONE})):
        windows = plane.store.windows(profile=profile.name)
        assert {window.device_id for window in windows} == seen
        assert {window.workload for window in windows} == {profile.workload}
    queries = Queries(plane.store, settings=SETTINGS, now_s=lambda: plane.now_s)
    found = {info.registration.device_id: info for info in queries.devices(pb.ListDevicesRequest()).devices}
    assert not found[ONE].workloads
    assert [info.workload for info in found[TWO].workloads] == ["eyes", "ears"]
    measured = [info.p95_ms for info in found[TWO].workloads]
    assert measured == [pytest.approx(4.0, rel=0.1), pytest.approx(9.0, rel=0.1)]
    assert [info.generation for info in found[TWO].workloads] == [1, 1]
    # A line for each, and for the other device its own.
    lines = {
        (line.registration.device_id, line.registration.workloads[0].workload): line
        for line in hosted_lines(found.values())
    }
    assert {key: (line.profile, line.serving_digest) for key, line in lines.items()} == {
        (TWO, "eyes"): (EYES.name, eyes),
        (TWO, "ears"): (EARS.name, ears),
        (ONE, ""): (EARS.name, ears),
    }
    summary = summarise(plane.store, queries, pb.GetFleetSummaryRequest(), plane.now_s)
    assert {item.name: item.num_devices for item in summary.profiles} == {EYES.name: 1, EARS.name: 2}
    assert {item.name: item.requests_per_s for item in summary.profiles} == {EYES.name: 100, EARS.name: 200}
    sentences = explain_device(plane.store, queries, TWO).sentences
    for name, digest in (("eyes", eyes), ("ears", ears)):
        assert any(line.startswith(f"{name}: {TWO} runs {digest[:12]}") for line in sentences)
    only = queries.devices(pb.ListDevicesRequest(profile=EARS.name)).devices
    assert {info.registration.device_id for info in only} == {ONE, TWO}


def test_other_labels_give_each_workload_its_profile_anew(plane: Plane) -> None:
    found = plane.store.device(TWO)
    assert found is not None
    plane.store.set_device_labels(TWO, {"class": "other"})
    plane.store.set_device_match(matched(replace(found, labels={"class": "other"}), plane.store.profiles()))
    assert {host.profile for host in plane.hosts(TWO).values()} == {""}
    assert all("label class is other" in host.message for host in plane.hosts(TWO).values())
    assert plane.store.devices(EYES.name) == []


def test_a_registration_of_several_comes_back_as_it_was_sent() -> None:
    said = device(TWO, replace(HOSTED[0], generation=3, serving_digest="a" * 64), HOSTED[1], generation=3)
    message = registration_to_proto(said)
    assert device_from_proto(message) == said
    for spoil in (
        lambda: message.workloads.add(workload="eyes"),
        lambda: message.workloads.add(workload="../up"),
        lambda: message.workloads.add(workload="nose", serving_digest="x"),
        lambda: message.workloads.extend([message.workloads[0]] * 20),
    ):
        spoil()
        with pytest.raises(RejectedError):
            device_from_proto(message)
        del message.workloads[2:]


def test_the_publisher_speaks_on_the_topic_of_each_workload_and_clears_what_it_left(scene: Scene) -> None:
    first, second = make_artifact(scene.blobs, 1), make_artifact(scene.blobs, 2)

    def shipment(artifact: tuple[str, str], payload: bytes, workload: str = "") -> Shipment:
        return Shipment(
            device_id="gw-1",
            workload=workload,
            digest=artifact[0],
            manifest_digest=artifact[1],
            payload=payload,
        )

    def ship(*shipments: Shipment) -> dict[str, bytes]:
        scene.publisher.set_desired({item.topic: item for item in shipments})
        scene.settle()
        return {topic: raw for topic, raw in scene.bus.retained.items() if "/deployment" in topic and raw}

    eyes, ears = (topics.workload_deployment("gw-1", name) for name in ("eyes", "ears"))
    assert ship(shipment(first, b"one")) == {topics.deployment("gw-1"): b"one"}
    # A restart knows nothing of the topic that it once filled.
    scene.restart()
    scene.publisher.on_connected(True)
    both = (shipment(first, b"see", "eyes"), shipment(second, b"hear", "ears"))
    assert ship(*both) == {eyes: b"see", ears: b"hear"}
    for artifact in (first, second):
        assert ask(scene, "gw-1", request("gw-1", artifact, [0])) == [topics.block(artifact[0], 0)]
    scene.now_s += 10
    stale = make_artifact(scene.blobs, 3)
    assert sorted(ask(scene, "gw-1", request("gw-1", stale, [0]))) == [ears, eyes]
    assert ship(shipment(second, b"two")) == {topics.deployment("gw-1"): b"two"}
