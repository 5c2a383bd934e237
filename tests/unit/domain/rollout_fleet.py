"""A fleet that does as a test says, and a rollout over it, one step at a time."""

from __future__ import annotations

from dataclasses import replace

from domain_values import digest_of, profile

from cloud.domain.devices import Deployment, DeploymentState
from cloud.domain.profiles import RolloutPlan
from cloud.domain.reconcile import ProfileTarget, reconcile
from cloud.domain.rollout import (
    FleetDevice,
    Rollout,
    RolloutDeviceState,
    advance,
    plan_rollout,
)

OLD, NEW = digest_of("old"), digest_of("new")
PROFILE = profile()


def manifest(digest: str) -> str:
    return digest_of(f"manifest {digest}")


class Fleet:
    """Devices that are told things; a test says what they answer."""

    def __init__(self, num_devices: int = 4, *, digest: str = OLD) -> None:
        self.devices: dict[str, FleetDevice] = {}
        for i in range(num_devices):
            self.join(f"device-{i}", digest=digest)

    def join(
        self, device_id: str, *, digest: str = "", connected: bool = True, name: str = "gateway"
    ) -> None:
        told = None
        if digest:
            told = Deployment(
                device_id=device_id,
                workload="digits",
                profile=name,
                generation=1,
                digest=digest,
                manifest_digest=manifest(digest),
                rollout_id="r0",
                state=DeploymentState.ACTIVE,
            )
        self.devices[device_id] = FleetDevice(
            device_id=device_id, profile=name, connected=connected, deployment=told
        )

    def tell(self, intents) -> None:
        for intent in intents:
            device = self.devices[intent.device_id]
            generation = (device.deployment.generation if device.deployment else 0) + 1
            self.devices[intent.device_id] = replace(
                device,
                deployment=Deployment(
                    device_id=intent.device_id,
                    workload=intent.workload,
                    profile=intent.profile,
                    generation=generation,
                    digest=intent.digest,
                    manifest_digest=intent.manifest_digest,
                    rollout_id=intent.rollout_id,
                    decision_id=intent.decision_id,
                ),
            )

    def answer(self, device_id: str, state: DeploymentState, message: str = "") -> None:
        device = self.devices[device_id]
        assert device.deployment is not None
        self.devices[device_id] = replace(
            device, deployment=replace(device.deployment, state=state, message=message)
        )

    def all(self) -> list[FleetDevice]:
        return list(self.devices.values())

    def runs(self, digest: str) -> set[str]:
        return {d.device_id for d in self.all() if d.deployment and d.deployment.digest == digest}


def planned(fleet: Fleet, *, previous: str = OLD, rollout_id: str = "r1", **plan) -> Rollout:
    return plan_rollout(
        rollout_id=rollout_id,
        profile=PROFILE,
        digest=NEW,
        manifest_digest=manifest(NEW),
        previous_digest=previous,
        previous_manifest_digest=manifest(previous) if previous else "",
        devices=fleet.all(),
        now_s=100.0,
        decision_id="d1",
        plan=RolloutPlan(**plan),
    )


def step(rollout, fleet, now_s=101.0, evidence=None):
    rollout, intents = advance(rollout, fleet.all(), now_s, evidence=evidence)
    fleet.tell(intents)
    again, more = advance(rollout, fleet.all(), now_s, evidence=evidence)
    assert more == []
    return again


def canaries(rollout: Rollout) -> list[str]:
    return [record.device_id for record in rollout.groups[0].devices]


def states(rollout: Rollout) -> dict[str, RolloutDeviceState]:
    return {record.device_id: record.state for group in rollout.groups for record in group.devices}


PROFILES = (PROFILE, profile(name="other"))
TARGETS = {"gateway": ProfileTarget(digest=OLD, manifest_digest=manifest(OLD), rollout_id="r0")}


def reconciled(fleet, rollouts=(), targets=TARGETS, profiles=PROFILES):
    intents = reconcile(profiles=profiles, devices=fleet.all(), rollouts=rollouts, targets=targets)
    fleet.tell(intents)
    assert reconcile(profiles=profiles, devices=fleet.all(), rollouts=rollouts, targets=targets) == []
    return intents
