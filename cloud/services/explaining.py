"""Gathers what explains one device, and has ``explain`` put it into words."""

from __future__ import annotations

from cloud.domain.devices import Device, HostedWorkload
from cloud.domain.jobs import JobKind
from cloud.services import views
from cloud.services.convert import status_to_proto
from cloud.services.explain import Situation, explain
from cloud.services.queries import Queries
from cloud.store import LedgerEntry, Store
from edgeloop.v1 import control_service_pb2 as pb

_NUM_DECISIONS = 10
_NUM_HISTORY = 20


def explain_device(store: Store, queries: Queries, device_id: str) -> pb.ExplainDeviceResponse:
    """Raises ``RejectedError`` for an unknown device.

    Of one that hosts several workloads, each has its sentences and decisions; profile, candidate and rollout
    are those of the first that has them.
    """
    device = queries.device(device_id)
    info = queries.devices(pb.ListDevicesRequest(device_id=device_id)).devices[0]
    response = pb.ExplainDeviceResponse(
        device=info,
        history=[status_to_proto(status) for status in store.history(device_id, limit=_NUM_HISTORY)],
    )
    p95s_ms = {hosted.workload: hosted.p95_ms for hosted in info.workloads}
    for host in device.hosts:
        situation, newest = _situation(store, device, host, p95s_ms.get(host.workload, info.p95_ms))
        before = f"{host.workload}: " if host.workload else ""
        response.sentences.extend(before + sentence for sentence in explain(situation))
        response.decisions.extend(views.decision_info(entry) for entry in newest)
        profile, candidate, rollout = situation.profile, situation.candidate, situation.rollout
        if profile is not None and not response.HasField("profile"):
            response.profile.CopyFrom(queries.profile_info(profile, store.devices(profile.name)))
        if candidate is not None and not response.HasField("candidate"):
            known = store.candidates(candidate.profile, candidate.workload)
            infos = queries.candidate_infos(candidate.profile, known)
            response.candidate.CopyFrom(next(item for item in infos if item.digest == candidate.digest))
        if rollout is not None and not response.HasField("rollout"):
            response.rollout.CopyFrom(views.rollout_info(rollout))
    return response


def _situation(
    store: Store, device: Device, host: HostedWorkload, p95_ms: float
) -> tuple[Situation, list[LedgerEntry]]:
    """With the decisions that are shown beside it, newest first."""
    profile = store.profile(host.profile) if host.profile else None
    deployment = store.deployment(device.device_id, host.workload or None)
    candidate = store.candidate(deployment.digest, deployment.profile) if deployment else None
    rollout = store.rollout(deployment.rollout_id) if deployment and deployment.rollout_id else None
    newest_rollout = next(iter(store.rollouts(profile.name, limit=1)), None) if profile is not None else None
    is_newer = newest_rollout is not None and (
        rollout is None or newest_rollout.rollout_id != rollout.rollout_id
    )
    asked_by = (deployment.decision_id if deployment else "") or (rollout.decision_id if rollout else "")
    led_here = store.decision(asked_by) if asked_by else None
    newest: list[LedgerEntry] = []
    jobs = []
    if profile is not None:
        newest = store.decisions(profile.name, limit=_NUM_DECISIONS, changes_only=True)
        latest = store.decisions(profile.name, limit=1)
        newest = [*latest, *(entry for entry in newest if entry.decision_id != latest[0].decision_id)]
        jobs = [
            job
            for job in store.jobs(unfinished_only=True)
            if job.profile == profile.name or (job.kind is JobKind.TRAIN and job.workload == profile.workload)
        ]
    if led_here is not None and all(entry.decision_id != led_here.decision_id for entry in newest):
        newest.append(led_here)
    situation = Situation(
        device=device.as_host(host),
        profile=profile,
        deployment=deployment,
        candidate=candidate,
        rollout=rollout,
        newer_rollout=newest_rollout if is_newer else None,
        led_here=led_here,
        latest=newest[0] if newest else None,
        jobs=tuple(jobs),
        p95_ms=p95_ms,
    )
    return situation, newest
