"""What ControlService lists: the database, joined for people.

Everything is read in one go per call and nothing is changed. Names that are given and do not exist are an
error that lists those that do, since an empty table would hide a typing mistake.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import TypeVar

from cloud.domain.candidates import Candidate, pareto_front
from cloud.domain.codec import encode
from cloud.domain.decisions import Verdict
from cloud.domain.devices import Device, HostedWorkload
from cloud.domain.evidence import Window
from cloud.domain.fleet_device import deployments_by_host
from cloud.domain.prediction import Predictor
from cloud.domain.profiles import DeviceProfile
from cloud.domain.settings import PolicySettings
from cloud.domain.workloads import Workload
from cloud.services import views
from cloud.services.convert import registration_to_proto, seconds, timestamp
from cloud.services.fit import why_nothing_fits
from cloud.store import Store, sketch_of
from edgeloop.errors import RejectedError
from edgeloop.sketch import LatencySketch
from edgeloop.v1 import control_service_pb2 as pb

T = TypeVar("T")

_DEFAULT_NUM_DECISIONS = 100
_MAX_NUM_DECISIONS = 10_000
#: Each is about 300 bytes; a client takes 64 MiB.
_MAX_NUM_MEASUREMENTS = 100_000
#: What a device's p95 is merged over: enough to be steady, few enough to be of now.
_NUM_DEVICE_WINDOWS = 4


def named(found: T | None, kind: str, name: str, known: Iterable[str]) -> T:
    """What was found. Raises ``RejectedError`` that lists the known names."""
    if found is not None:
        return found
    names = sorted(known)
    listed = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    raise RejectedError(
        f"{kind} {name[:100]!r} is not known: known are {listed}"
        if names
        else f"{kind} {name[:100]!r} is not known, and none exists yet",
        code=f"{kind}-unknown",
    )


class Queries:
    """Safe to call from any thread."""

    def __init__(self, store: Store, *, settings: PolicySettings, now_s: Callable[[], float]) -> None:
        self._store = store
        self._settings = settings
        self._now_s = now_s

    def workload(self, name: str) -> Workload:
        """Raises ``RejectedError`` for an unknown name."""
        store = self._store
        return named(store.workload(name), "workload", name, (w.name for w in store.workloads()))

    def profile(self, name: str) -> DeviceProfile:
        """Raises ``RejectedError`` for an unknown name."""
        store = self._store
        return named(store.profile(name), "profile", name, (p.name for p in store.profiles()))

    def device(self, device_id: str) -> Device:
        """Raises ``RejectedError`` for an unknown id."""
        store = self._store
        return named(store.device(device_id), "device", device_id, store.device_ids())

    def workloads(self, _request: pb.ListWorkloadsRequest) -> pb.ListWorkloadsResponse:
        times = self._store.workload_update_times()
        infos = []
        for workload in self._store.workloads():
            teacher = self._store.teacher(workload.teacher_key)
            infos.append(
                pb.WorkloadInfo(
                    name=workload.name,
                    spec_json=workload.to_json(),
                    teacher=views.teacher_info(teacher) if teacher is not None else None,
                    update_time=timestamp(times.get(workload.name, 0.0)),
                )
            )
        return pb.ListWorkloadsResponse(workloads=infos)

    def profiles(self, request: pb.ListProfilesRequest) -> pb.ListProfilesResponse:
        if request.workload:
            self.workload(request.workload)
        devices = self._store.devices()
        return pb.ListProfilesResponse(
            profiles=[
                self.profile_info(profile, devices)
                for profile in self._store.profiles(request.workload or None)
            ]
        )

    def profile_info(self, profile: DeviceProfile, devices: Iterable[Device]) -> pb.ProfileInfo:
        """One profile with the controller's last word on it."""
        num_devices = sum(profile.name in device.profiles for device in devices)
        last = next(iter(self._store.decisions(profile.name, limit=1)), None)
        message = last.decision.reason if last is not None else "not decided yet"
        if not num_devices:
            message = f"no registered device matches it; {message}"
        digest = self._store.current_digest(profile.name)
        serving = self._store.candidate(digest, profile.name) if digest else None
        if serving is not None and serving.rejected_reason:
            message = f"what serves {serving.rejected_reason}; {message}"
        unmet = why_nothing_fits(self._store, profile, self._settings)
        # A decision that gives up says already what binds.
        gave_up = last is not None and last.decision.verdict is Verdict.INFEASIBLE
        if unmet and not gave_up:
            message = f"{message}; {unmet}"
        return pb.ProfileInfo(
            name=profile.name,
            workload=profile.workload,
            constraints=views.constraints_info(profile.constraints),
            spec_json=_profile_json(profile),
            num_devices=num_devices,
            current_digest=self._store.current_digest(profile.name),
            measured_p95_ms=last.decision.measured_p95_ms if last is not None else 0.0,
            num_samples=last.decision.num_samples if last is not None else 0,
            verdict=last.decision.verdict.value if last is not None else "",
            message=message,
        )

    def devices(self, request: pb.ListDevicesRequest) -> pb.ListDevicesResponse:
        if request.profile:
            self.profile(request.profile)
        if request.device_id:
            devices = [self.device(request.device_id)]
        else:
            devices = self._store.devices(request.profile or None)
        if request.profile:
            devices = [device for device in devices if request.profile in device.profiles]
        since_s = self._now_s() - self._settings.max_age_s
        windows: dict[str, list[Window]] = {}
        for window in self._store.windows(device_id=request.device_id or None, since_s=since_s):
            windows.setdefault(window.device_id, []).append(window)
        deployments = deployments_by_host(self._store.deployments(), self._store.hosting_devices())
        identities = {item.device_id: item for item in self._store.identities()}
        infos = []
        for device in devices:
            recent = windows.get(device.device_id, [])
            first = device.hosts[0]
            desired = deployments.get((device.device_id, first.workload))
            info = pb.DeviceInfo(
                registration=registration_to_proto(device),
                profile=device.profile,
                connected=device.connected,
                last_seen_time=timestamp(device.last_seen_s),
                generation=first.serving_generation,
                serving_digest=first.serving_digest,
                p95_ms=_host_p95_ms(first, recent),
                rss_bytes=recent[-1].rss_bytes if recent else 0,
                message=device.message,
            )
            identity = identities.get(device.device_id)
            info.identity_state = identity.state(self._now_s()).value if identity is not None else "none"
            if identity is not None and identity.certificate is not None:
                info.certificate_expire_time.CopyFrom(timestamp(identity.certificate.not_after_s))
            if desired is not None:
                info.desired_generation = desired.generation
                info.desired_digest = desired.digest
                info.deployment.CopyFrom(views.deployment_info(desired))
            for host in device.hosted:
                told = deployments.get((device.device_id, host.workload))
                info.workloads.append(views.hosted_info(host, told, p95_ms=_host_p95_ms(host, recent)))
            infos.append(info)
        return pb.ListDevicesResponse(devices=infos)

    def candidates(self, request: pb.ListCandidatesRequest) -> pb.ListCandidatesResponse:
        if request.workload:
            self.workload(request.workload)
        if request.profile:
            self.profile(request.profile)
        found = self._store.candidates(request.profile or None, request.workload or None)
        by_profile: dict[str, list[Candidate]] = {}
        for candidate in found:
            by_profile.setdefault(candidate.profile, []).append(candidate)
        infos = []
        for profile in sorted(by_profile):
            infos += self.candidate_infos(profile, by_profile[profile])
        return pb.ListCandidatesResponse(candidates=infos)

    def candidate_infos(self, profile: str, candidates: list[Candidate]) -> list[pb.CandidateInfo]:
        """All candidates of one profile, with what the fleet's reports say of each."""
        measured = self._store.policy_state(profile).measured
        predictor = Predictor(candidates, measured, self._settings)
        front = {candidate.digest for candidate in pareto_front(candidates)}
        return [
            views.candidate_info(
                candidate,
                front=front,
                predicted_p95_ms=predictor.predict(candidate).p95_ms if predictor.knows_fleet else 0.0,
            )
            for candidate in candidates
        ]

    def rollouts(self, request: pb.ListRolloutsRequest) -> pb.ListRolloutsResponse:
        if request.profile:
            self.profile(request.profile)
        times = self._store.rollout_update_times()
        return pb.ListRolloutsResponse(
            rollouts=[
                views.rollout_info(rollout, update_time_s=times.get(rollout.rollout_id, 0.0))
                for rollout in self._store.rollouts(request.profile or None)
            ]
        )

    def decisions(self, request: pb.ListDecisionsRequest) -> pb.ListDecisionsResponse:
        if request.profile:
            self.profile(request.profile)
        entries = self._store.decisions(
            request.profile or None,
            limit=min(request.limit or _DEFAULT_NUM_DECISIONS, _MAX_NUM_DECISIONS),
            changes_only=request.changes_only,
        )
        return pb.ListDecisionsResponse(decisions=[views.decision_info(entry) for entry in entries])

    def jobs(self, request: pb.ListJobsRequest) -> pb.ListJobsResponse:
        jobs = self._store.jobs(unfinished_only=request.unfinished_only)
        return pb.ListJobsResponse(jobs=[views.job_info(job) for job in jobs])

    def measurements(self, request: pb.ListMeasurementsRequest) -> pb.ListMeasurementsResponse:
        if request.profile:
            self.profile(request.profile)
        if request.device_id:
            self.device(request.device_id)
        since_s = seconds(request.since_time, field="since_time") if request.HasField("since_time") else 0.0
        devices = {device.device_id: device for device in self._store.devices()}
        windows = self._store.windows(
            profile=request.profile or None, device_id=request.device_id or None, since_s=since_s
        )
        return pb.ListMeasurementsResponse(
            measurements=[
                views.measurement(window, device.profile_for(window.workload) if device else "")
                for window in windows[-_MAX_NUM_MEASUREMENTS:]
                for device in (devices.get(window.device_id),)
            ]
        )


def _host_p95_ms(host: HostedWorkload, windows: Iterable[Window]) -> float:
    """Of what it serves now, from its newest windows."""
    serving = [
        window
        for window in windows
        if window.digest == host.serving_digest and host.workload in ("", window.workload)
    ]
    return _merged_p95_ms(serving[-_NUM_DEVICE_WINDOWS:])


def _merged_p95_ms(windows: Iterable[Window]) -> float:
    merged = LatencySketch.empty()
    for window in windows:
        merged = merged.merge(sketch_of(window.latency))
    return merged.quantile(0.95) if merged.count else 0.0


def _profile_json(profile: DeviceProfile) -> str:
    match, plan = profile.match, profile.rollout
    return json.dumps(
        {
            "match": {
                "architecture": match.architecture,
                "instruction_sets": sorted(match.instruction_sets),
                "min_cores": match.min_cores,
                "max_cores": match.max_cores,
                "min_memory_bytes": match.min_memory_bytes,
                "max_memory_bytes": match.max_memory_bytes,
                "labels": dict(match.labels),
            },
            "instruction_sets": sorted(profile.instruction_sets),
            "num_threads": profile.num_threads,
            "rollout": encode(plan),
        },
        sort_keys=True,
    )
