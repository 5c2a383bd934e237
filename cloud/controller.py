"""The loop: what was measured, what follows from it, and seeing it through.

Rules that this module keeps:

* ``step`` is the whole of it: everything that it knows it reads from the database, so that a process that was
  killed between any two lines goes on where it was.
* Persist, then act. A decision, the policy's memory of it and the job or rollout that it starts are one
  transaction; deployments are issued in the transaction of the rollout that asks for them. Sending follows.
* The same decision is acted on once: its id is the profile's next number, and ids that exist change nothing.
* Whatever is read, changed and written back (a rollout above all) is so inside one transaction, since people
  pause and abort through another thread.
* An error in one profile is logged with its name and leaves the others alone. ``step`` never raises.
* While paused, the policy still measures and explains, but starts nothing, and rollouts that it started stand
  still. Rollouts that people started go on: they have a pause of their own.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, TypeVar

from cloud.deltas import DeltaShelf
from cloud.deployer import DEFAULT_LIFETIME_S, Deployer
from cloud.domain.decisions import Action, Decision
from cloud.domain.evidence import Window
from cloud.domain.fleet_device import fleet_devices
from cloud.domain.jobs import Job, JobKind
from cloud.domain.policy import decide
from cloud.domain.profiles import DeviceProfile
from cloud.domain.reconcile import reconcile
from cloud.domain.rollout import (
    DeploymentIntent,
    FleetDevice,
    GroupEvidence,
    Rollout,
    RolloutState,
    abort,
    advance,
    plan_rollout,
    running_group,
)
from cloud.domain.settings import PolicySettings
from cloud.domain.state import PolicyState
from cloud.domain.workloads import Workload
from cloud.job_plans import compress_job
from cloud.own_load import busy_spans, without_own_load
from cloud.retirement import current, is_retired
from cloud.rollout_evidence import group_evidence
from cloud.shipment import Shipment
from cloud.store import Store
from edgeloop.errors import EdgeloopError
from edgeloop.trust import DirectorKey

logger = logging.getLogger(__name__)

T = TypeVar("T")

PAUSED_KEY = "controller-paused"
#: Devices that are told in one transaction when a fleet must be brought in line: theirs, and on SQLite all,
#: reports wait until it ends.
MAX_ISSUED_A_TURN: Final = 500
_HOUSEKEEPING_INTERVAL_S = 600.0
_REPORTS_KEPT_S = 7 * 86_400.0
_DECISIONS_KEPT_S = 30 * 86_400.0


def fleet(store: Store) -> list[FleetDevice]:
    """Every registered device with its newest deployment; once for each workload that it hosts."""
    return fleet_devices(store.devices(), store.deployments())


class Controller:
    """Owned by one thread. ``ship`` takes the whole desired state (Publisher.set_desired).

    ``computes_here``: jobs run on this machine, beside the emulated devices (see ``own_load``).
    """

    def __init__(
        self,
        store: Store,
        *,
        director: Callable[[], DirectorKey],
        ship: Callable[[Mapping[str, Shipment]], None],
        settings: PolicySettings,
        computes_here: bool = False,
        deployment_lifetime_s: float = DEFAULT_LIFETIME_S,
        release: Callable[[Collection[tuple[str, str]], float], None] = lambda pairs, now_s: None,
        deltas: DeltaShelf | None = None,
    ) -> None:
        self._computes_here = computes_here
        self._store = store
        self._settings = settings
        self._deployer = Deployer(store, director, ship, deployment_lifetime_s, release, deltas)
        self._last_errors: dict[str, str] = {}
        self._housekeeping_s = float("-inf")
        self._more = False

    def step(self, now_s: float) -> bool:
        """One round over the whole fleet. True when more remains to be said to it than fits one round."""
        paused = self._guarded("the controller's switch", self._paused, True)
        profiles: list[DeviceProfile] = self._guarded("profiles", self._store.profiles, [])
        for profile in profiles:
            self._guarded(f"profile {profile.name}", partial(self._decide, profile, paused, now_s), None)
        rollouts: list[Rollout] = self._guarded(
            "rollouts", partial(self._store.rollouts, unfinished_only=True), []
        )
        for rollout in reversed(rollouts):
            if paused and rollout.decision_id:
                continue
            self._guarded(
                f"rollout {rollout.rollout_id}", partial(self._advance, rollout.rollout_id, now_s), None
            )
        self._guarded("the fleet", partial(self._reconcile, now_s), None)
        self._guarded("generations", partial(self._deployer.reissue_ignored, now_s), None)
        self._guarded("deployments", partial(self._deployer.ship, now_s), None)
        self._guarded("the database", partial(self._tidy, now_s), None)
        return self._more

    def _paused(self) -> bool:
        return self._store.get_meta(PAUSED_KEY) == "1"

    # -- deciding ----------------------------------------------------------------------------------------

    def _decide(self, profile: DeviceProfile, paused: bool, now_s: float) -> None:
        workload = self._store.workload(profile.workload)
        if workload is None:
            return
        busy = self._busy(profile, workload, paused)
        current_digest = self._store.current_digest(profile.name)
        known = self._store.candidates(profile=profile.name, workload=workload.name)
        # What is served of a teacher that is gone is nothing to compare with, and nothing to keep.
        is_gone = any(candidate.digest == current_digest and is_retired(candidate) for candidate in known)
        teacher = self._store.teacher(workload.teacher_key)
        decision, state = decide(
            profile=profile,
            windows=self._windows(profile, now_s),
            candidates=current(known),
            current_digest="" if is_gone else current_digest,
            state=self._store.policy_state(profile.name),
            busy=busy,
            now_s=now_s,
            settings=self._settings,
            search=workload.search,
            num_branches=0 if teacher is None else teacher.num_branches,
            num_shortcuts=0 if teacher is None else teacher.num_shortcuts,
        )
        with self._store.transaction():
            if (self._busy(profile, workload, paused), self._store.current_digest(profile.name)) != (
                busy,
                current_digest,
            ):
                return  # someone started something meanwhile: decide again with that in sight
            self._commit(profile, decision, state, now_s)

    def _commit(self, profile: DeviceProfile, decision: Decision, state: PolicyState, now_s: float) -> None:
        key = f"decision-number/{profile.name}"
        number = int(self._store.get_meta(key, "0")) + 1
        stem = profile.name if len(profile.name) <= 48 else _shortened(profile.name)
        decision_id = f"{stem}-d{number}"
        job: Job | None = None
        rollout: Rollout | None = None
        if decision.action is Action.BUILD and decision.specs:
            job = compress_job(
                f"{stem}-j{number}",
                profile,
                decision.specs,
                now_s,
                decision_id=decision_id,
                reasons={spec.digest: f"{decision_id}: {decision.reason}" for spec in decision.specs},
            )
        elif decision.starts_rollout:
            candidate = self._store.candidate(decision.chosen_digest, profile.name)
            if candidate is None:
                logger.error(
                    "profile %s: the policy chose %s, which is no candidate",
                    profile.name,
                    decision.chosen_digest,
                )
                return
            target = self._store.targets().get(profile.name)
            rollout = plan_rollout(
                rollout_id=f"{stem}-r{number}",
                profile=profile,
                digest=candidate.digest,
                manifest_digest=candidate.manifest_digest,
                previous_digest=target.digest if target else "",
                previous_manifest_digest=target.manifest_digest if target else "",
                devices=fleet(self._store),
                now_s=now_s,
                decision_id=decision_id,
            )
        kept_as = self._store.commit_decision(decision_id, decision, state, now_s, job=job, rollout=rollout)
        if kept_as == decision_id:
            self._store.set_meta(key, str(number))
            level = logging.INFO if decision.action not in (Action.HOLD, Action.KEEP) else logging.DEBUG
            logger.log(
                level, "%s: %s (%s): %s", decision_id, decision.action, decision.verdict, decision.reason
            )

    def _busy(self, profile: DeviceProfile, workload: Workload, paused: bool) -> str:
        """Why nothing may be started for the profile now; empty when something may."""
        for rollout in self._store.rollouts(profile.name, unfinished_only=True):
            return f"rollout {rollout.rollout_id} is {rollout.state.value}"
        for job in self._store.jobs(unfinished_only=True):
            if job.kind is JobKind.COMPRESS and job.profile == profile.name:
                doing = job.message if job.message.startswith("waits") else "is building students"
                return f"job {job.job_id} {doing}"
            if job.kind is JobKind.TRAIN and job.workload == workload.name:
                return f"job {job.job_id} is training the teacher of {workload.name}"
        if paused:
            return "the controller is paused: 'edgeloop resume' lets it act again"
        if self._store.teacher(workload.teacher_key) is None:
            return (
                f"workload {workload.name} has no trained teacher yet: run 'edgeloop train {workload.name}'"
            )
        return ""

    # -- seeing it through ---------------------------------------------------------------------------------

    def _advance(self, rollout_id: str, now_s: float) -> None:
        store = self._store
        seen = store.rollout(rollout_id)
        if seen is None or seen.state.is_terminal:
            return
        profile = store.profile(seen.profile)
        # A large fleet's reports take seconds to read, and others wait for a transaction that does so.
        evidence = self._evidence(seen, profile, now_s) if profile is not None else None
        with store.transaction():
            rollout = store.rollout(rollout_id)
            if rollout != seen or store.profile(seen.profile) != profile:
                return  # someone changed it meanwhile: judge it again with that in sight
            if profile is None:
                store.save_rollout(
                    replace(
                        abort(rollout, now_s),
                        state=RolloutState.SUPERSEDED,
                        message=f"profile {rollout.profile} was removed",
                    ),
                    now_s,
                )
                return
            after, intents = advance(rollout, fleet(store), now_s, evidence=evidence)
            if after != rollout:
                store.save_rollout(after, now_s)
            if after.state is RolloutState.SUCCEEDED:
                store.set_current(
                    profile.name,
                    after.digest,
                    manifest_digest=after.manifest_digest,
                    rollout_id=after.rollout_id,
                    now_s=now_s,
                )
            self._deployer.issue(intents, now_s)
        if after.state is not rollout.state:
            logger.info("rollout %s %s: %s", rollout_id, after.state.value, after.message)

    def _evidence(self, rollout: Rollout, profile: DeviceProfile, now_s: float) -> GroupEvidence | None:
        group = running_group(rollout)
        if group is None:
            return None
        return group_evidence(
            rollout,
            group,
            profile=profile,
            windows=self._windows(profile, now_s),
            state=self._store.policy_state(profile.name),
            settings=self._settings,
            now_s=now_s,
        )

    def _windows(self, profile: DeviceProfile, now_s: float) -> Sequence[Window]:
        """What the profile's devices measured lately, without what this machine's own work did to them."""
        since_s = now_s - self._settings.max_age_s
        windows = self._store.windows(profile=profile.name, since_s=since_s)
        if not self._computes_here:
            return windows
        recent = [job for job in self._store.jobs() if not job.end_time_s or job.end_time_s > since_s]
        return without_own_load(windows, busy_spans(recent, now_s))

    def _reconcile(self, now_s: float) -> None:
        # Asked first without a transaction: mostly there is nothing to say, and nobody need wait for that.
        self._more = False
        if not self._unsaid(now_s):
            return
        with self._store.transaction():
            intents = self._unsaid(now_s)
            self._more = len(intents) > MAX_ISSUED_A_TURN
            self._deployer.issue(intents[:MAX_ISSUED_A_TURN], now_s)

    def _unsaid(self, now_s: float) -> list[DeploymentIntent]:
        store = self._store
        return reconcile(
            profiles=store.profiles(),
            devices=fleet(store),
            rollouts=store.rollouts(),
            targets=store.targets(),
            now_s=now_s,
        )

    def _tidy(self, now_s: float) -> None:
        if now_s - self._housekeeping_s < _HOUSEKEEPING_INTERVAL_S:
            return
        self._housekeeping_s = now_s
        self._store.prune_reports(now_s - _REPORTS_KEPT_S)
        self._store.prune_decisions(now_s - _DECISIONS_KEPT_S)

    def _guarded(self, what: str, action: Callable[[], T], otherwise: T) -> T:
        """An error is logged once, and again when it changes or comes back."""
        try:
            result = action()
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            if self._last_errors.get(what) != text:
                self._last_errors[what] = text
                trace = not isinstance(error, EdgeloopError)
                logger.error("%s: %s; going on with the others", what, text, exc_info=trace)
            return otherwise
        self._last_errors.pop(what, None)
        return result


def _shortened(name: str) -> str:
    """Ids travel in fields of 64 characters; names may have 63."""
    return f"{name[:39]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
