"""What operators change of profiles and workloads one by one: constraints, and whether they exist at all.

Rules kept here:

- What something else depends on is not deleted: the refusal names everything that stands in the way, and what
  ends it. (A Fleet document that no longer holds a profile is another matter: it says what the fleet is.)
- Values are held to the bounds that a Fleet document has, by the same model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from pydantic import ValidationError

from cloud.document_problems import path_text, problems_of
from cloud.domain.jobs import Job
from cloud.domain.settings import PolicySettings
from cloud.resources import ConstraintsSection
from cloud.services import views
from cloud.services.applying import CHANGES, match_devices
from cloud.services.fit import why_nothing_fits
from cloud.services.queries import Queries
from cloud.store import Store
from edgeloop.errors import ConfigError, RejectedError
from edgeloop.v1 import control_service_pb2 as pb

_CONSTRAINTS = ("latency_p95_ms", "artifact_bytes", "peak_rss_bytes", "min_accuracy")
_MAX_NAMED = 5


class Catalogue:
    """Safe to call from any thread. ``poke`` is called after each change: the controller looks at once."""

    def __init__(
        self,
        store: Store,
        queries: Queries,
        *,
        settings: PolicySettings,
        now_s: Callable[[], float],
        poke: Callable[[], None],
    ) -> None:
        self._store = store
        self._queries = queries
        self._settings = settings
        self._now_s = now_s
        self._poke = poke

    def set_constraints(self, request: pb.SetProfileConstraintsRequest) -> pb.SetProfileConstraintsResponse:
        """Change those that are given. Raises ``ConfigError`` with every field that is out of bounds."""
        given = {name: getattr(request, name) or None for name in _CONSTRAINTS if request.HasField(name)}
        if not given:
            raise ConfigError(
                f"no constraint is given: name at least one of {', '.join(_CONSTRAINTS)}", code="constraints"
            )
        try:
            ConstraintsSection(**given)
        except ValidationError as error:
            problems = [f"{path_text(path)}: {message}" for path, message in problems_of(error)]
            raise ConfigError("\n".join(problems), code="constraints") from None
        with self._store.transaction():
            before = self._queries.profile(request.profile)
            profile = replace(before, constraints=replace(before.constraints, **given))
            change = self._store.apply_profile(profile, self._now_s())
            note = why_nothing_fits(self._store, profile, self._settings)
        self._poke()
        resource = pb.AppliedResource(kind="Profile", name=profile.name, change=CHANGES[change], note=note)
        constraints = views.constraints_info(profile.constraints)
        return pb.SetProfileConstraintsResponse(resource=resource, constraints=constraints)

    def delete_profile(self, request: pb.DeleteProfileRequest) -> pb.DeleteProfileResponse:
        """Forget it; its candidates, decisions and measurements stay."""
        with self._store.transaction():
            profile = self._queries.profile(request.profile)
            in_the_way = []
            if devices := [device.device_id for device in self._store.devices(profile.name)]:
                in_the_way.append(
                    f"{_counted(devices, 'device belongs to it', 'devices belong to it')}: move them with "
                    "'edgeloop device label' (or their agents' --label), or forget them with "
                    "'edgeloop device delete'"
                )
            rollouts = self._store.rollouts(profile.name, unfinished_only=True)
            if ids := [rollout.rollout_id for rollout in rollouts]:
                in_the_way.append(f"{_running(ids, 'rollout')}: 'edgeloop rollout abort {ids[0]}'")
            in_the_way += self._jobs_in_the_way(lambda job: job.profile == profile.name)
            _refuse(f"profile {profile.name}", in_the_way)
            self._store.remove_profile(profile.name)
            match_devices(self._store)
        self._poke()
        return pb.DeleteProfileResponse()

    def delete_workload(self, request: pb.DeleteWorkloadRequest) -> pb.DeleteWorkloadResponse:
        """Forget it; its teacher is found again when the same workload is applied again."""
        with self._store.transaction():
            workload = self._queries.workload(request.workload)
            in_the_way = []
            if names := [profile.name for profile in self._store.profiles(workload.name)]:
                in_the_way.append(
                    f"{_counted(names, 'profile belongs to it', 'profiles belong to it')}: 'edgeloop profile "
                    f"delete {names[0]}'"
                )
            in_the_way += self._jobs_in_the_way(lambda job: job.workload == workload.name)
            _refuse(f"workload {workload.name}", in_the_way)
            self._store.remove_workload(workload.name)
        self._poke()
        return pb.DeleteWorkloadResponse()

    def _jobs_in_the_way(self, belongs: Callable[[Job], bool]) -> list[str]:
        ids = [job.job_id for job in self._store.jobs(unfinished_only=True) if belongs(job)]
        return [f"{_running(ids, 'job')}: 'edgeloop cancel {ids[0]}'"] if ids else []


def _running(ids: list[str], noun: str) -> str:
    return _counted(ids, f"{noun} has not ended", f"{noun}s have not ended")


def _counted(names: list[str], one: str, several: str) -> str:
    """``2 devices belong to it (gw-1, gw-2)``."""
    listed = ", ".join(names[:_MAX_NAMED]) + (", ..." if len(names) > _MAX_NAMED else "")
    return f"{len(names)} {one if len(names) == 1 else several} ({listed})"


def _refuse(what: str, in_the_way: Iterable[str]) -> None:
    if reasons := "; ".join(in_the_way):
        raise RejectedError(f"{what} cannot be deleted: {reasons}", code="in-use")
