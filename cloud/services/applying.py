"""Applying documents: all or none, and nothing when nothing changed.

Every document is validated before the first is written, and all are written in one transaction, which a dry
run takes back. Profiles that leave a fleet's document leave the fleet; devices are matched anew at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cloud.document_problems import parse_document
from cloud.domain.devices import Device, matched
from cloud.domain.profiles import DeviceProfile, match_profile
from cloud.domain.settings import PolicySettings
from cloud.domain.workloads import Workload
from cloud.resources import FleetDocument, WorkloadDocument
from cloud.retirement import change_teacher
from cloud.services.fit import why_nothing_fits
from cloud.store import Change, Store
from edgeloop.errors import ConfigError
from edgeloop.v1 import control_service_pb2 as pb

MAX_DOCUMENTS = 1000

CHANGES = {
    Change.CREATED: pb.AppliedResource.CHANGE_CREATED,
    Change.UPDATED: pb.AppliedResource.CHANGE_UPDATED,
    Change.UNCHANGED: pb.AppliedResource.CHANGE_UNCHANGED,
    Change.DELETED: pb.AppliedResource.CHANGE_DELETED,
}


class _DryRunError(Exception):
    """Leaves the transaction, and with it everything that was written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Documents:
    workloads: list[tuple[str, WorkloadDocument]]
    fleets: list[tuple[str, FleetDocument]]


def apply_documents(
    store: Store, request: pb.ApplyRequest, *, settings: PolicySettings, now_s: float
) -> list[pb.AppliedResource]:
    """What was changed. Raises ``ConfigError`` with every problem found; then nothing was changed."""
    documents = _parse(request.documents)
    resources: list[pb.AppliedResource] = []
    try:
        with store.transaction():
            for _, workload in documents.workloads:
                resources.append(_apply_workload(store, workload.to_domain(), now_s))
            for source, fleet in documents.fleets:
                resources += _apply_fleet(store, source, fleet, settings, now_s)
            if any(resource.change != pb.AppliedResource.CHANGE_UNCHANGED for resource in resources):
                match_devices(store)
            if request.validate_only:
                raise _DryRunError
    except _DryRunError:
        pass
    return resources


def _parse(documents: Sequence[pb.Document]) -> _Documents:
    if len(documents) > MAX_DOCUMENTS:
        raise ConfigError(
            f"{len(documents)} documents at once: send at most {MAX_DOCUMENTS}", code="document-count"
        )
    problems: list[str] = []
    found = _Documents(workloads=[], fleets=[])
    seen: dict[tuple[str, str], str] = {}
    for index, document in enumerate(documents):
        source = document.source or f"document {index + 1}"
        try:
            parsed = parse_document(document.kind, document.json, source)
        except ConfigError as error:
            problems.append(error.message)
            continue
        key = (parsed.kind, parsed.name)
        if key in seen:
            problems.append(f"{source}: {parsed.kind} {parsed.name} stands in {seen[key]} already: keep one")
        seen[key] = source
        if isinstance(parsed, WorkloadDocument):
            found.workloads.append((source, parsed))
        else:
            found.fleets.append((source, parsed))
    if problems:
        raise ConfigError("\n".join(problems), code="document-field")
    return found


def _apply_workload(store: Store, workload: Workload, now_s: float) -> pb.AppliedResource:
    before = store.workload(workload.name)
    change = store.apply_workload(workload, now_s)
    note = ""
    retired = change_teacher(store, before, workload, now_s) if before is not None else 0
    if store.teacher(workload.teacher_key) is None:
        note = f"its teacher is not trained yet: 'edgeloop train {workload.name}'"
        if before is not None and store.teacher(before.teacher_key) is not None:
            note = f"the teacher that it had no longer fits: 'edgeloop train {workload.name}'"
    if retired:
        note += f"{'; ' if note else ''}{retired} students of the teacher that it had may not ship any more"
    return pb.AppliedResource(kind="Workload", name=workload.name, change=CHANGES[change], note=note)


def _apply_fleet(
    store: Store, source: str, fleet: FleetDocument, settings: PolicySettings, now_s: float
) -> list[pb.AppliedResource]:
    if store.workload(fleet.workload) is None:
        known = ", ".join(workload.name for workload in store.workloads()) or "none yet"
        raise ConfigError(
            f"{source}: workload: {fleet.workload!r} is not known (known are: {known}): apply its Workload "
            "document first, or together with this one",
            code="workload-unknown",
        )
    profiles = fleet.to_domain()
    for profile in profiles:
        other = store.profile(profile.name)
        if other is not None and other.workload != profile.workload:
            raise ConfigError(
                f"{source}: profiles: {profile.name!r} belongs to workload {other.workload} already: choose "
                "another name",
                code="profile-taken",
            )
    resources = []
    devices = store.devices()
    for profile in profiles:
        change = store.apply_profile(profile, now_s)
        resources.append(
            pb.AppliedResource(
                kind="Profile",
                name=profile.name,
                change=CHANGES[change],
                note=_profile_note(store, profile, profiles, devices, settings),
            )
        )
    names = {profile.name for profile in profiles}
    for gone in store.profiles(fleet.workload):
        if gone.name not in names:
            store.remove_profile(gone.name)
            resources.append(
                pb.AppliedResource(
                    kind="Profile",
                    name=gone.name,
                    change=pb.AppliedResource.CHANGE_DELETED,
                    note="its devices go on with what they run until another profile matches them",
                )
            )
    return resources


def _profile_note(
    store: Store,
    profile: DeviceProfile,
    profiles: Sequence[DeviceProfile],
    devices: Sequence[Device],
    settings: PolicySettings,
) -> str:
    notes = []
    matching = [
        device
        for device in devices
        if device.may_run(profile.workload) and profile.match.matches(device.hardware, device.labels)
    ]
    if not matching:
        notes.append(_no_match(profile, devices))
    elif not any(
        match_profile(profiles, device.hardware, device.labels)[0] == profile for device in matching
    ):
        notes.append("every device that it matches belongs to a more specific profile")
    unmet = why_nothing_fits(store, profile, settings)
    if unmet:
        notes.append(unmet)
    return "; ".join(notes)


def _no_match(profile: DeviceProfile, devices: Sequence[Device]) -> str:
    if not devices:
        return "no device has registered yet"

    def mismatches(device: Device) -> list[str]:
        found = profile.match.mismatches(device.hardware, device.labels)
        return found if device.may_run(profile.workload) else [*found, f"does not host {profile.workload}"]

    nearest = min(devices, key=lambda device: (len(mismatches(device)), device.device_id))
    why = ", ".join(mismatches(nearest))
    return f"no registered device matches it (nearest is {nearest.device_id}: {why})"


def match_devices(store: Store) -> None:
    """Give every device the profile that it belongs to now, or the reason why none."""
    profiles = store.profiles()
    for device in store.devices():
        now = matched(device, profiles)
        if now != device:
            store.set_device_match(now)
