"""What people ask the control plane to do.

Each operation reads, checks and writes in one transaction, and leaves the doing to the controller and the job
runner, which find it in the database. An operation that is repeated gives the answer of the first time.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Callable
from dataclasses import replace

from cloud.compute_host import COMPUTE_KEY
from cloud.controller import PAUSED_KEY, fleet
from cloud.domain.candidates import Candidate
from cloud.domain.jobs import Job, JobKind, JobState
from cloud.domain.latency_answers import latency_answers
from cloud.domain.methods import reserved_trials, size_levers
from cloud.domain.networks import network_name
from cloud.domain.profiles import DeviceProfile
from cloud.domain.rollout import Rollout, RolloutState, abort, pause, plan_rollout, resume, supersede
from cloud.domain.rungs import is_cut
from cloud.domain.search import Direction, propose
from cloud.domain.settings import PolicySettings
from cloud.domain.specs import CompressionSpec
from cloud.domain.workloads import Workload
from cloud.job_plans import compress_job, teacher_task_ids, train_job
from cloud.retirement import current
from cloud.services import views
from cloud.services.applying import apply_documents
from cloud.services.asked_specs import asked_specs
from cloud.services.fit import best_candidate
from cloud.services.queries import Queries, named
from cloud.store import Store
from edgeloop.errors import ConfigError, RejectedError
from edgeloop.v1 import control_service_pb2 as pb

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)
_DIGEST_START = re.compile(r"[0-9a-f]{6,64}", re.ASCII)


class Operations:
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

    def apply(self, request: pb.ApplyRequest) -> pb.ApplyResponse:
        resources = apply_documents(self._store, request, settings=self._settings, now_s=self._now_s())
        self._poke()
        return pb.ApplyResponse(resources=resources)

    # -- jobs --------------------------------------------------------------------------------------

    def train(self, request: pb.TrainTeacherRequest) -> pb.TrainTeacherResponse:
        with self._store.transaction():
            workload = self._queries.workload(request.workload)
            job = self._training_of(workload, force=request.force)
            self._check_is_run(job)
            if job is None:
                job = train_job(_new_id("train", workload.name), workload, self._now_s(), force=request.force)
                self._store.create_job(job)
        self._poke()
        return pb.TrainTeacherResponse(job=views.job_info(job))

    def _training_of(self, workload: Workload, *, force: bool) -> Job | None:
        """The job that does, or did, this work."""
        task_id = teacher_task_ids(workload)[0]
        num_teachers = workload.training.num_teachers
        jobs = [
            job for job in self._store.jobs() if job.kind is JobKind.TRAIN and len(job.trials) == num_teachers
        ]
        for job in jobs:
            forced = job.trials[0].task_id.startswith(f"{task_id}-")
            if not job.state.finished and (forced if force else forced or job.trials[0].task_id == task_id):
                return job
        if force or self._store.teacher(workload.teacher_key) is None:
            return None
        for job in jobs:
            if job.state is JobState.SUCCEEDED and job.trials[0].task_id.startswith(task_id):
                return job
        return None

    def compress(self, request: pb.CompressStudentsRequest) -> pb.CompressStudentsResponse:
        with self._store.transaction():
            profile = self._profile_for(request)
            workload = self._queries.workload(profile.workload)
            specs = asked_specs(request.spec_json, workload.search.students)
            job = self._compression_of(profile, specs)
            self._check_is_run(job)
            if job is None:
                max_trials = 0 if specs else request.max_trials or workload.search.max_trials
                reasons: dict[str, str] = {}
                if not specs:
                    specs = self._proposed(profile, workload, request.max_trials)
                    reasons = self._reasons(profile, workload, specs)
                job = compress_job(
                    _new_id("compress", profile.name),
                    profile,
                    specs,
                    self._now_s(),
                    max_trials=max_trials,
                    reasons=reasons,
                )
                self._store.create_job(job)
        self._poke()
        return pb.CompressStudentsResponse(job=views.job_info(job))

    def _check_is_run(self, job: Job | None) -> None:
        """Raises ``ConfigError`` where nothing would ever run what is new or unfinished."""
        if (job is None or not job.state.finished) and self._store.get_meta(COMPUTE_KEY) == "none":
            raise ConfigError(
                "nothing would run this job: the control plane that acts was started with --compute none; "
                "start it again without that, or with --ray-address HEAD:6379 for a cluster elsewhere",
                code="compute-none",
            )

    def _profile_for(self, request: pb.CompressStudentsRequest) -> DeviceProfile:
        if request.profile:
            profile = self._queries.profile(request.profile)
            if request.workload and request.workload != profile.workload:
                raise RejectedError(
                    f"profile {profile.name} belongs to workload {profile.workload}, not {request.workload}: "
                    "name one of the two alone",
                    code="profile-workload",
                )
            return profile
        workload = self._queries.workload(request.workload)
        profiles = self._store.profiles(workload.name)
        if len(profiles) == 1:
            return profiles[0]
        known = ", ".join(profile.name for profile in profiles) or "none yet: apply a Fleet document"
        raise RejectedError(f"profile is not given: name one of {known}", code="profile-missing")

    def _compression_of(self, profile: DeviceProfile, specs: tuple[CompressionSpec, ...]) -> Job | None:
        """The unfinished job that does this work; without specs, any unfinished search of the profile.

        What the controller builds for a decision is no search: nothing would follow from what it measures.
        Students that both want are built once.
        """
        wanted = {spec.digest for spec in specs}
        for job in self._store.jobs(unfinished_only=True):
            if job.kind is not JobKind.COMPRESS or job.profile != profile.name:
                continue
            of_job = {trial.spec.digest for trial in job.trials if trial.spec}
            if wanted == of_job if wanted else job.max_trials:
                return job
        return None

    def _proposed(
        self, profile: DeviceProfile, workload: Workload, max_trials: int
    ) -> tuple[CompressionSpec, ...]:
        budget = replace(workload.search, max_trials=max_trials) if max_trials else workload.search
        candidates = current(self._store.candidates(profile.name, workload.name))
        taken = [spec.digest for spec in self._store.failed_specs(profile.name)]
        found: tuple[CompressionSpec, ...] = ()
        num_branches, num_shortcuts = self._may_go(workload)
        first = propose(
            profile, candidates, target_latency_ms=None, direction=Direction.INITIAL, budget=budget,
            exclude=taken, num_branches=num_branches, num_shortcuts=num_shortcuts,
        )  # fmt: skip
        if first and is_cut(first[0]):
            return first  # what is worth training follows from how these measure
        kept = reserved_trials(
            profile.constraints, budget.methods, budget.max_trials, num_branches=num_branches,
            num_shortcuts=num_shortcuts,
        )  # fmt: skip
        for direction in (Direction.INITIAL, Direction.SMALLER, Direction.LARGER):
            found += propose(
                profile,
                candidates,
                target_latency_ms=None,
                direction=direction,
                budget=budget,
                exclude=[*taken, *(spec.digest for spec in found)],
                num_branches=num_branches,
                num_shortcuts=num_shortcuts,
            )
        if not found:
            raise RejectedError(
                f"the search has nothing left to propose for profile {profile.name}: every student near "
                "those that exist was built or has failed; name one with --spec",
                code="search-exhausted",
            )
        return found[: budget.max_trials - kept]

    def _reasons(
        self, profile: DeviceProfile, workload: Workload, specs: tuple[CompressionSpec, ...]
    ) -> dict[str, str]:
        """Why each was proposed, by spec digest."""
        candidates = current(self._store.candidates(profile.name, workload.name))
        failed = [spec.digest for spec in self._store.failed_specs(profile.name)]
        num_branches, num_shortcuts = self._may_go(workload)
        levers = size_levers(
            candidates,
            constraints=profile.constraints,
            methods=workload.search.methods,
            num_epochs=workload.search.num_epochs,
            exclude=failed,
        )
        faster = latency_answers(
            candidates,
            constraints=profile.constraints,
            budget=workload.search,
            num_branches=num_branches,
            num_shortcuts=num_shortcuts,
            exclude=failed,
        )
        reasons = {
            spec.digest: "first of the search: "
            + (f"network {network_name(spec.network)}, " if spec.network else "")
            + f"{spec.road} at width {spec.width_ratio:g}"
            for spec in specs
        }
        return reasons | {proposal.spec.digest: proposal.reason for proposal in (*levers, *faster)}

    def _may_go(self, workload: Workload) -> tuple[int, int]:
        """How many of the teacher's branches and shortcuts may be left out; none before it is trained."""
        teacher = self._store.teacher(workload.teacher_key)
        return (0, 0) if teacher is None else (teacher.num_branches, teacher.num_shortcuts)

    def cancel(self, request: pb.CancelJobRequest) -> pb.CancelJobResponse:
        with self._store.transaction():
            job = self.job(request.job_id)
            if not job.state.finished:
                job = replace(
                    job,
                    state=JobState.CANCELLED,
                    message="cancelled by an operator",
                    end_time_s=self._now_s(),
                )
                self._store.update_job(job)
        self._poke()
        return pb.CancelJobResponse(job=views.job_info(job))

    def job(self, job_id: str) -> Job:
        """Raises ``RejectedError`` for an unknown id."""
        return named(
            self._store.job(job_id), "job", job_id, (job.job_id for job in self._store.jobs(limit=20))
        )

    # -- rollouts ------------------------------------------------------------------------------------

    def start_rollout(self, request: pb.StartRolloutRequest) -> pb.StartRolloutResponse:
        if request.request_id and not _REQUEST_ID.fullmatch(request.request_id):
            raise RejectedError(
                "request_id: give 1 to 128 letters, digits and ._:-, such as a UUID", code="request-id"
            )
        if not 0 <= request.canary_share <= 1:
            raise RejectedError(
                f"canary_share is {request.canary_share}: give 0 (the profile's own) to 1",
                code="canary-share",
            )
        request_id = request.request_id or str(uuid.uuid4())
        rollout_id = "rollout-" + hashlib.sha256(request_id.encode()).hexdigest()[:12]
        with self._store.transaction():
            profile = self._queries.profile(request.profile)
            rollout = self._store.rollout(rollout_id)
            if rollout is None:
                rollout = self._planned(rollout_id, profile, request)
            elif rollout.profile != profile.name or not rollout.digest.startswith(request.digest):
                raise RejectedError(
                    f"request_id {request.request_id} was used for profile {rollout.profile} and candidate "
                    f"{rollout.digest[:12]}: choose a new one",
                    code="request-id-reused",
                )
        self._poke()
        return pb.StartRolloutResponse(rollout=views.rollout_info(rollout))

    def _planned(self, rollout_id: str, profile: DeviceProfile, request: pb.StartRolloutRequest) -> Rollout:
        now_s = self._now_s()
        if request.digest:
            candidate = self._candidate(profile, request.digest)
        else:
            candidate = best_candidate(self._store, profile, self._settings)
        for running in self._store.rollouts(profile.name, unfinished_only=True):
            self._store.save_rollout(supersede(running, now_s, by_rollout_id=rollout_id), now_s)
        target = self._store.targets().get(profile.name)
        plan = profile.rollout
        if request.canary_share:
            plan = replace(plan, canary_share=request.canary_share, groups=())
        if request.max_per_minute:
            plan = replace(plan, max_per_minute=request.max_per_minute)
        rollout = plan_rollout(
            rollout_id=rollout_id,
            profile=profile,
            digest=candidate.digest,
            manifest_digest=candidate.manifest_digest,
            previous_digest=target.digest if target else "",
            previous_manifest_digest=target.manifest_digest if target else "",
            devices=fleet(self._store),
            now_s=now_s,
            plan=plan,
        )
        self._store.save_rollout(rollout, now_s)
        return rollout

    def _candidate(self, profile: DeviceProfile, digest: str) -> Candidate:
        known = self._store.candidates(profile.name, profile.workload)
        if not _DIGEST_START.fullmatch(digest):
            raise RejectedError(
                f"digest is {digest[:80]!r}: give at least 6 of its lower-case hex digits", code="digest"
            )
        fitting = [candidate for candidate in known if candidate.digest.startswith(digest)]
        if len(fitting) > 1:
            raise RejectedError(
                f"digest {digest} fits {len(fitting)} candidates: give more of it", code="digest"
            )
        candidate = named(
            fitting[0] if fitting else None,
            "candidate",
            digest[:12],
            (f"{candidate.digest[:12]}" for candidate in known),
        )
        if candidate.rejected_reason:
            raise RejectedError(
                f"candidate {candidate.digest[:12]} may not ship: {candidate.rejected_reason}",
                code="candidate-rejected",
            )
        return candidate

    def pause_rollout(self, request: pb.PauseRolloutRequest) -> pb.PauseRolloutResponse:
        return pb.PauseRolloutResponse(rollout=self._change(request.rollout_id, pause))

    def resume_rollout(self, request: pb.ResumeRolloutRequest) -> pb.ResumeRolloutResponse:
        return pb.ResumeRolloutResponse(rollout=self._change(request.rollout_id, resume))

    def abort_rollout(self, request: pb.AbortRolloutRequest) -> pb.AbortRolloutResponse:
        return pb.AbortRolloutResponse(rollout=self._change(request.rollout_id, abort, RolloutState.ABORTED))

    def _change(
        self,
        rollout_id: str,
        change: Callable[[Rollout, float], Rollout],
        done: RolloutState | None = None,
    ) -> pb.RolloutInfo:
        with self._store.transaction():
            rollout = named(
                self._store.rollout(rollout_id),
                "rollout",
                rollout_id,
                (other.rollout_id for other in self._store.rollouts(limit=20)),
            )
            if rollout.state.is_terminal and rollout.state is not done:
                raise RejectedError(
                    f"rollout {rollout_id} has ended already: it is {rollout.state.value}",
                    code="rollout-ended",
                )
            now_s = self._now_s()
            after = rollout if rollout.state is done else change(rollout, now_s)
            if after != rollout:
                self._store.save_rollout(after, now_s)
        self._poke()
        return views.rollout_info(after)

    # -- the controller ------------------------------------------------------------------------------

    def set_paused(self, request: pb.SetControllerPausedRequest) -> pb.SetControllerPausedResponse:
        self._store.set_meta(PAUSED_KEY, "1" if request.paused else "")
        self._poke()
        return pb.SetControllerPausedResponse(paused=request.paused)


def _new_id(kind: str, name: str) -> str:
    return f"{kind}-{name[:40]}-{uuid.uuid4().hex[:6]}"
