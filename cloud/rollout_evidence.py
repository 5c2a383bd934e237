"""What a rollout's running group measured of the artifact that is rolled out.

A group succeeds on the latency of the digest that actually serves, not on "installed". Throttled machines and
reports that cannot be believed say nothing about an artifact: then the group counts as not measured yet.
"""

from __future__ import annotations

from collections.abc import Sequence

from cloud.domain.estimates import estimate
from cloud.domain.evidence import Window, tabulate
from cloud.domain.profiles import DeviceProfile
from cloud.domain.rollout import GroupEvidence, Rollout, RolloutGroup
from cloud.domain.settings import PolicySettings
from cloud.domain.state import PolicyState


def group_evidence(
    rollout: Rollout,
    group: RolloutGroup,
    *,
    profile: DeviceProfile,
    windows: Sequence[Window],
    state: PolicyState,
    settings: PolicySettings,
    now_s: float,
) -> GroupEvidence | None:
    """What ``advance`` judges the group by; None when the profile has no latency objective."""
    objective_ms = profile.constraints.latency_p95_ms
    if objective_ms is None:
        return None
    previous = state.measured.get(rollout.previous_digest)
    previous_ms = previous.p95_ms if previous is not None else 0.0
    table = tabulate(
        windows,
        workload=rollout.workload,
        digests=(rollout.digest,),
        now_s=now_s,
        settings=settings,
        device_ids={device.device_id for device in group.devices},
    )
    found = estimate(table.of(rollout.digest), baselines=state.baselines, settings=settings)
    # Fewer devices than the policy asks for are no matter here: a group of canaries is small by design.
    is_thin = found.num_samples < settings.min_samples or found.num_windows < settings.min_windows
    if found.problem or found.is_throttled or is_thin:
        return GroupEvidence(previous_p95_ms=previous_ms, objective_p95_ms=objective_ms)
    return GroupEvidence(
        p95_ms=found.p95_ms,
        lower_p95_ms=found.lower_p95_ms,
        num_samples=found.num_samples,
        previous_p95_ms=previous_ms,
        objective_p95_ms=objective_ms,
    )
