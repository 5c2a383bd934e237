"""Why a device runs what it runs, in plain sentences.

Pure: takes values, returns text. Each sentence states one fact with its figures, most important first; what
is not known is said, never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from cloud.domain.candidates import Candidate, CandidateMetrics
from cloud.domain.devices import Deployment, DeploymentState, Device
from cloud.domain.groups import shown_state
from cloud.domain.jobs import Job
from cloud.domain.networks import network_name
from cloud.domain.profiles import DeviceProfile
from cloud.domain.rollout import Rollout, RolloutState
from cloud.store import LedgerEntry


@dataclass(frozen=True, kw_only=True, slots=True)
class Situation:
    """All that the explanation is made from.

    ``led_here`` is the decision that asked for the deployment; None when a person did, or when it is not
    kept any more. ``latest`` is the newest decision on the profile. ``rollout`` is the deployment's,
    ``newer_rollout`` the profile's newest, where that is another. ``p95_ms`` is what the device measures of
    what it serves, 0 when it has not reported.
    """

    device: Device
    profile: DeviceProfile | None = None
    deployment: Deployment | None = None
    candidate: Candidate | None = None
    rollout: Rollout | None = None
    newer_rollout: Rollout | None = None
    led_here: LedgerEntry | None = None
    latest: LedgerEntry | None = None
    jobs: tuple[Job, ...] = ()
    p95_ms: float = 0.0


def explain(situation: Situation) -> list[str]:
    """The sentences, most important first."""
    sentences = [_what_it_runs(situation)]
    if situation.profile is None:
        sentences.append(_no_profile(situation.device))
    if situation.deployment is not None:
        sentences.append(_why(situation))
        sentences += _candidate(situation)
        sentences += _rollout(situation)
        sentences += _progress(situation)
    sentences += _newer_rollout(situation)
    sentences += _measured(situation)
    sentences += _since(situation)
    sentences += [
        f"Job {job.job_id} is under way for this profile: {job.message or job.state.value}."
        for job in situation.jobs
    ]
    sentences += _presence(situation.device)
    return sentences


def _what_it_runs(situation: Situation) -> str:
    device, deployment = situation.device, situation.deployment
    name = device.device_id
    if not device.serving_digest:
        if deployment is None:
            return f"{name} runs nothing, and was told to run nothing yet."
        return (
            f"{name} runs nothing yet; it should run {_short(deployment.digest)} "
            f"(generation {deployment.generation})."
        )
    runs = f"{name} runs {_short(device.serving_digest)} (generation {device.serving_generation})"
    if deployment is None:
        return f"{runs}, which this control plane did not ask for."
    if deployment.digest == device.serving_digest:
        return f"{runs}, as it should."
    return f"{runs}, but should run {_short(deployment.digest)} (generation {deployment.generation})."


def _no_profile(device: Device) -> str:
    return f"It belongs to no profile: {device.message or 'none matches its hardware and labels'}."


def _why(situation: Situation) -> str:
    deployment, entry = situation.deployment, situation.led_here
    assert deployment is not None
    rollout = situation.rollout
    if rollout is not None and rollout.digest != deployment.digest:
        return (
            f"It went back to {_short(deployment.digest)} at {_time(deployment.issue_time_s)}, because the "
            f"rollout of {_short(rollout.digest)} ended as {rollout.state.value}."
        )
    if entry is None:
        if deployment.decision_id:
            return f"Decision {deployment.decision_id} asked for that; it is not in the ledger any more."
        if not deployment.rollout_id:
            return f"Profile {deployment.profile} runs {_short(deployment.digest)}, so this device should."
        return (
            f"A person asked for {_short(deployment.digest)} with rollout {deployment.rollout_id} at "
            f"{_time(deployment.issue_time_s)}."
        )
    decision = entry.decision
    figures = ""
    if decision.measured_p95_ms:
        figures = f" (measured p95 {decision.measured_p95_ms:.3g} ms"
        if decision.objective_p95_ms:
            figures += f" against an objective of {decision.objective_p95_ms:.3g} ms"
        figures += f", {decision.num_samples} requests)"
    return (
        f"It should run {_short(deployment.digest)} because of decision {entry.decision_id} "
        f"({decision.action}) at {_time(entry.decide_time_s)}: {decision.reason}{figures}."
    )


def _candidate(situation: Situation) -> list[str]:
    candidate = situation.candidate
    if candidate is None:
        return []
    metrics, spec = candidate.metrics, candidate.spec
    kind = (
        f"{spec.road} student of width {spec.width_ratio:g}" if spec.rules is None else spec.rules.kind.value
    )
    if spec.network is not None:
        kind += f" of network {network_name(spec.network)}"
    if spec.depth_ratio is not None:
        kind += f" and depth {spec.depth_ratio:g}"
    if spec.shortcuts is not None:
        kind += " without shortcuts"
    text = (
        f"{_short(candidate.digest)} is a {kind}, "
        f"{candidate.precision}: {metrics.metric} {metrics.accuracy:.4f}, {_size(metrics)}, "
        f"p50 {metrics.latency_p50_ms:.3g} ms where it was built"
    )
    if candidate.rejected_reason:
        text += f"; it may not ship any more: {candidate.rejected_reason}"
    return [text + "."]


def _size(metrics: CandidateMetrics) -> str:
    text = f"{metrics.artifact_bytes / 1000:.1f} kB"
    if metrics.executable_bytes:
        text += f" ({metrics.executable_bytes / 1000:.1f} kB unpacked)"
    return text


def _rollout(situation: Situation) -> list[str]:
    rollout = situation.rollout
    if rollout is None:
        return []
    if situation.newer_rollout is not None:  # what it said last is no longer so
        return [f"It came with rollout {rollout.rollout_id}, which is {rollout.state.value}."]
    return [f"Rollout {_how_it_stands(rollout)}."]


def _newer_rollout(situation: Situation) -> list[str]:
    rollout = situation.newer_rollout
    if rollout is None:
        return []
    same = situation.deployment is not None and situation.deployment.digest == rollout.digest
    what = "the same student" if same else _short(rollout.digest)
    text = f"The newest rollout of profile {rollout.profile}, of {what}: {_how_it_stands(rollout)}."
    device_id = situation.device.device_id
    for group in rollout.groups:
        for record in group.devices:
            if record.device_id == device_id:
                reason = f" ({record.message})" if record.message else ""
                return [f"{text} This device is in its group {group.name}: {record.state.value}{reason}."]
    return [f"{text} This device has no part in it."]


def _how_it_stands(rollout: Rollout) -> str:
    ended = rollout.state.is_terminal
    groups = ", ".join(
        f"{group.name} {shown_state(group.state, rollout_ended=ended)}" for group in rollout.groups
    )
    text = f"{rollout.rollout_id} is {rollout.state.value}"
    text += f" ({groups})" if groups else ""
    text += f": {rollout.message}" if rollout.message else ""
    if rollout.state is RolloutState.PAUSED:
        text += f"; 'edgeloop rollout resume {rollout.rollout_id}' goes on"
    return text


def _progress(situation: Situation) -> list[str]:
    deployment = situation.deployment
    assert deployment is not None
    state = deployment.state
    if state is DeploymentState.PENDING:
        since = f"since generation {deployment.generation} was published"
        if not situation.device.connected:
            return [f"The device is not connected {since}."]
        return [
            f"The device has not answered {since}. If that lasts, its log says why: an agent keeps silent "
            "about what is not signed with a key that it trusts (--director-key)."
        ]
    if state is DeploymentState.ACTIVE and situation.device.serving_digest != deployment.digest:
        return [
            f"The device reported generation {deployment.generation} as active, "
            f"{_time(deployment.update_time_s)}, and does not serve it any more: it was set up anew, or went "
            "back by itself."
        ]
    text = f"The device reports generation {deployment.generation} as {state.value}"
    if state is DeploymentState.FETCHING:
        text += f", {deployment.progress:.0%} fetched"
    if deployment.code or deployment.message:
        text += f" ({': '.join(part for part in (deployment.code, deployment.message) if part)})"
    return [f"{text}, {_time(deployment.update_time_s)}."]


def _measured(situation: Situation) -> list[str]:
    if not situation.p95_ms:
        return (
            ["It has measured nothing lately of what it serves."] if situation.device.serving_digest else []
        )
    text = f"It measures a p95 of {situation.p95_ms:.3g} ms"
    limit_ms = situation.profile.constraints.latency_p95_ms if situation.profile is not None else None
    if limit_ms is not None:
        relation = "within" if situation.p95_ms <= limit_ms else "over"
        text += f", {relation} the objective of {limit_ms:.3g} ms"
    if situation.device.emulated_slowdown > 1:
        text += f", as a device that emulates one {situation.device.emulated_slowdown} times slower"
    return [text + "."]


def _since(situation: Situation) -> list[str]:
    latest = situation.latest
    if latest is None:
        if situation.profile is None:
            return []
        return [f"The controller has not decided on profile {situation.profile.name} yet."]
    if situation.led_here is not None and latest.decision_id == situation.led_here.decision_id:
        return []
    decision = latest.decision
    return [
        f"The controller's last word on profile {decision.profile}, at {_time(latest.last_time_s)}: "
        f"{decision.action} ({decision.verdict}): {decision.reason}."
    ]


def _presence(device: Device) -> list[str]:
    if device.connected:
        return []
    return [f"The device is not connected; it was last heard of at {_time(device.last_seen_s)}."]


def _short(digest: str) -> str:
    return digest[:12]


def _time(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
