"""From what a device should run to the signed message that tells it so.

Rules that this module keeps:

* A generation is issued by the database and nowhere else; the same wish is never issued twice.
* A deployment is signed once and its bytes are kept, so that publishing again gives the same message. It is
  signed again only when the director key is another one than it was signed with, or half of its life is over:
  what somebody holds back expires, what is still wanted never does.
* A deployment that is signed for the first time may offer a delta from what its device serves; signed again,
  it offers what it did for as long as the device has not ended it.
* Signatures are stored many in a transaction, and all of them before the first is published: a process that
  is killed in between has published nothing, and signs again.
* Nothing is named to a device before it was released (TUF), and every round says so again.
* Persist, then act: what is handed to the publisher has been committed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import islice
from typing import Final

from google.protobuf.message import DecodeError

from cloud.deltas import DeltaShelf
from cloud.domain.devices import Deployment, Device
from cloud.domain.fleet_device import deployments_by_host
from cloud.domain.rollout import DeploymentIntent
from cloud.shipment import Shipment
from cloud.store import Store
from edgeloop.errors import EdgeloopError, RejectedError
from edgeloop.trust import DirectorKey, sign_deployment, timestamp, timestamp_s
from edgeloop.v1 import deployment_pb2

logger = logging.getLogger(__name__)

#: How long a device that first sees a deployment may accept it.
DEFAULT_LIFETIME_S = 30 * 86_400.0
#: Signatures stored in one transaction: SQLite's other writers wait for it.
MAX_STORED_AT_ONCE: Final = 500


class Deployer:
    """Owned by the controller's thread."""

    def __init__(
        self,
        store: Store,
        director: Callable[[], DirectorKey],
        ship: Callable[[Mapping[str, Shipment]], None],
        lifetime_s: float = DEFAULT_LIFETIME_S,
        release: Callable[[Collection[tuple[str, str]], float], None] = lambda pairs, now_s: None,
        deltas: DeltaShelf | None = None,
    ) -> None:
        self._deltas = deltas
        self._store = store
        self._director = director
        self._ship = ship
        self._lifetime_s = lifetime_s
        self._release = release
        self._shipped: dict[str, Shipment] | None = None
        self._devices: dict[str, Device] | None = None

    def issue(self, intents: Iterable[DeploymentIntent], now_s: float) -> None:
        """Give each intent its generation. Call it within the transaction of what asked for it."""
        wanted = sorted(intents, key=lambda intent: (intent.device_id, intent.workload))
        for intent, outcome in zip(wanted, self._store.issue_deployments(wanted, now_s), strict=True):
            if isinstance(outcome, RejectedError):
                logger.warning("device %s gets no deployment: %s", intent.device_id, outcome)
                continue
            logger.info(
                "device %s should run %s (generation %d, rollout %s)",
                outcome.device_id,
                outcome.digest[:12],
                outcome.generation,
                outcome.rollout_id or "-",
            )

    def reissue_ignored(self, now_s: float) -> None:
        """A device that has accepted a higher generation than it was told obeys nothing at or under it.

        It happens when the database was restored from a backup: say the same again, above what it accepted.
        """
        ahead = self._store.devices_ahead()
        if not ahead:
            return
        with self._store.transaction():
            devices = [device for device in self._store.devices() if device.device_id in ahead]
            newest = deployments_by_host(self._store.deployments(), self._store.hosting_devices())
            ignored = [
                deployment
                for device in devices
                for host in device.hosts
                if (deployment := newest.get((device.device_id, host.workload))) is not None
                and host.generation > deployment.generation
            ]
            self.issue([_intent(deployment) for deployment in ignored], now_s)

    def ship(self, now_s: float) -> None:
        """Sign what is not signed yet and state the whole desired state to the publisher."""
        director = self._director()
        shipments: dict[str, Shipment] = {}
        unsaved: dict[tuple[str, int], bytes] = {}
        self._devices = None
        if self._deltas is not None:
            self._deltas.begin_round()
        newest = deployments_by_host(self._store.deployments(), self._store.hosting_devices())
        for (device_id, workload), deployment in sorted(newest.items()):
            try:
                payload, offer = self._signed(deployment, director, now_s)
            except EdgeloopError as error:
                logger.error("deployment of %s cannot be signed: %s", device_id, error)
                continue
            if payload != deployment.signed:
                unsaved[device_id, deployment.generation] = payload
            shipments[f"{device_id}/{workload}" if workload else device_id] = Shipment(
                device_id=device_id,
                workload=workload,
                digest=deployment.digest,
                manifest_digest=deployment.manifest_digest,
                payload=payload,
                delta="" if offer is None else self._noted(deployment.digest, offer),
            )
        self._save(unsaved)
        if self._deltas is not None:
            self._deltas.keep_only({shipment.delta for shipment in shipments.values()})
        # Also where nothing changed: what says that things are fresh must be renewed in time.
        pairs = {(shipment.digest, shipment.manifest_digest) for shipment in shipments.values()}
        self._release(pairs, now_s)
        if shipments != self._shipped:
            self._ship(shipments)
            self._shipped = shipments

    def _save(self, unsaved: Mapping[tuple[str, int], bytes]) -> None:
        waiting = iter(unsaved.items())
        while chunk := dict(islice(waiting, MAX_STORED_AT_ONCE)):
            self._store.set_signed(chunk)

    def _serving(self, device_id: str) -> Device | None:
        """As it was when this round first asked: one look for all devices."""
        if self._devices is None:
            self._devices = {device.device_id: device for device in self._store.devices()}
        return self._devices.get(device_id)

    def _noted(self, digest: str, offer: deployment_pb2.Delta) -> str:
        if self._deltas is None:
            return ""
        self._deltas.learn(digest, offer)
        return offer.digest

    def _offer(
        self, deployment: Deployment, before: deployment_pb2.Deployment | None
    ) -> deployment_pb2.Delta | None:
        if before is not None:
            keeps = before.HasField("delta") and not deployment.state.terminal
            return before.delta if keeps else None
        device = self._serving(deployment.device_id) if self._deltas is not None else None
        if self._deltas is None or device is None:
            return None
        serves = [host.serving_digest for host in device.hosts if host.workload in ("", deployment.workload)]
        return self._deltas.offer(serves[0], deployment.digest) if serves else None

    def _signed(
        self, deployment: Deployment, director: DirectorKey, now_s: float
    ) -> tuple[bytes, deployment_pb2.Delta | None]:
        key_id, before = _read(deployment.signed)
        if before is not None and _is_fresh(before, key_id, director.key_id, now_s + self._lifetime_s / 2):
            return deployment.signed, before.delta if before.HasField("delta") else None
        offer = self._offer(deployment, before)
        payload = sign_deployment(
            director,
            deployment_pb2.Deployment(
                device_id=deployment.device_id,
                workload=deployment.workload,
                profile=deployment.profile,
                generation=deployment.generation,
                digest=deployment.digest,
                manifest_digest=deployment.manifest_digest,
                issue_time=timestamp(now_s),
                expire_time=timestamp(now_s + self._lifetime_s),
                decision_id=deployment.decision_id,
                rollout_id=deployment.rollout_id,
                delta=offer,
            ),
        )
        return payload, offer


def _read(signed: bytes) -> tuple[str, deployment_pb2.Deployment | None]:
    """Key id and content of what this side signed before; None where there is none."""
    if not signed:
        return "", None
    try:
        outer = deployment_pb2.SignedDeployment.FromString(signed)
        return outer.key_id, deployment_pb2.Deployment.FromString(outer.deployment)
    except DecodeError:
        return "", None


def _is_fresh(inner: deployment_pb2.Deployment, signed_by: str, key_id: str, until_s: float) -> bool:
    """Whether it was signed with this key and holds until then."""
    return signed_by == key_id and timestamp_s(inner.expire_time) >= until_s


def _intent(deployment: Deployment) -> DeploymentIntent:
    return DeploymentIntent(
        device_id=deployment.device_id,
        workload=deployment.workload,
        profile=deployment.profile,
        digest=deployment.digest,
        manifest_digest=deployment.manifest_digest,
        rollout_id=deployment.rollout_id,
        decision_id=deployment.decision_id,
    )
