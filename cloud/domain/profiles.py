"""Hardware classes, what each must meet, and which device belongs to which."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cloud.domain.windows import MaintenanceWindow

#: With any of these, int8 dot products accumulate in 32 bits and full-range weights are exact. Without,
#: the 16-bit intermediate of the older kernels saturates: weights must stay within 7 bits.
WIDE_ACCUMULATION = frozenset({"avx512_vnni", "avx_vnni", "asimddp", "i8mm", "amx_int8"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Constraints:
    """What a profile must meet. ``None`` leaves that side open.

    ``latency_p95_ms`` is what the fleet measures on the device, not an estimate from the cloud.
    """

    latency_p95_ms: float | None = None
    artifact_bytes: int | None = None
    peak_rss_bytes: int | None = None
    min_accuracy: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """What a device said of its hardware when it registered, bounds checked."""

    architecture: str
    num_cores: int
    memory_bytes: int
    instruction_sets: frozenset[str] = frozenset()
    processor: str = ""
    runtime: str = "onnxruntime"
    runtime_version: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class MatchRule:
    """Which devices belong to a profile: every condition given must hold.

    Labels must be equal; ``instruction_sets`` must all be present; cores and memory lie within the bounds.
    """

    architecture: str | None = None
    instruction_sets: frozenset[str] = frozenset()
    min_cores: int | None = None
    max_cores: int | None = None
    min_memory_bytes: int | None = None
    max_memory_bytes: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    def matches(self, hardware: Hardware, labels: Mapping[str, str]) -> bool:
        """Whether a device with this hardware and these labels belongs to the profile."""
        return not self.mismatches(hardware, labels)

    def mismatches(self, hardware: Hardware, labels: Mapping[str, str]) -> list[str]:
        """Each condition that does not hold, as a sentence for people."""
        found = []
        if self.architecture is not None and hardware.architecture != self.architecture:
            found.append(f"architecture is {hardware.architecture}, not {self.architecture}")
        missing = sorted(self.instruction_sets - hardware.instruction_sets)
        if missing:
            found.append(f"instruction sets {', '.join(missing)} are missing")
        for name, value, low, high in (
            ("cores", hardware.num_cores, self.min_cores, self.max_cores),
            ("memory_bytes", hardware.memory_bytes, self.min_memory_bytes, self.max_memory_bytes),
        ):
            if low is not None and value < low:
                found.append(f"{name} is {value}, under {low}")
            if high is not None and value > high:
                found.append(f"{name} is {value}, over {high}")
        for key, wanted in sorted(self.labels.items()):
            if labels.get(key) != wanted:
                found.append(f"label {key} is {labels.get(key, '(not set)')}, not {wanted}")
        return found

    @property
    def num_conditions(self) -> int:
        """How specific the rule is; of two that match, the more specific wins."""
        bounds = (
            self.architecture,
            self.min_cores,
            self.max_cores,
            self.min_memory_bytes,
            self.max_memory_bytes,
        )
        return sum(bound is not None for bound in bounds) + len(self.instruction_sets) + len(self.labels)


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupPlan:
    """One group of a rollout; the names are hawkBit's.

    ``target_percentage`` is of the devices that no group before has; the last group takes all that are left.
    Thresholds (0 to 1) that are None are those of the plan.
    """

    name: str
    target_percentage: float = 100.0
    success_threshold: float | None = None
    error_threshold: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutPlan:
    """How a new artifact is exposed to a profile's devices.

    ``timeout_s`` is the time that a device has from when it is told. Without ``groups`` there are two, canary
    and rest, the first with ``canary_share`` of the devices. ``max_per_minute`` bounds how many devices are
    told within any minute.
    """

    canary_share: float = 0.5
    success_threshold: float = 1.0
    error_threshold: float = 0.5
    timeout_s: float = 600.0
    groups: tuple[GroupPlan, ...] = ()
    max_per_minute: int | None = None
    maintenance_window: MaintenanceWindow | None = None

    @property
    def group_plans(self) -> tuple[GroupPlan, ...]:
        """The groups, in the order in which they start."""
        if self.groups:
            return self.groups
        return (GroupPlan(name="canary", target_percentage=100 * self.canary_share), GroupPlan(name="rest"))


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceProfile:
    """A hardware class with its budgets.

    ``instruction_sets`` decides how weights are quantised and must be what every device of the class has;
    ``num_threads`` is what the agent gives the runtime.
    """

    name: str
    workload: str
    match: MatchRule
    constraints: Constraints = Constraints()
    instruction_sets: frozenset[str] = frozenset()
    num_threads: int = 1
    rollout: RolloutPlan = RolloutPlan()

    @property
    def needs_reduced_range(self) -> bool:
        """Whether int8 weights must stay within 7 bits on this class (see ``WIDE_ACCUMULATION``)."""
        return not self.instruction_sets & WIDE_ACCUMULATION


def match_profile(
    profiles: Iterable[DeviceProfile], hardware: Hardware, labels: Mapping[str, str]
) -> tuple[DeviceProfile | None, str]:
    """The profile that a device belongs to, or None, with the reason for people.

    Of several that match, the one with the most conditions wins, then the first by name, so that the
    answer does not depend on the order in which profiles were applied.
    """
    ordered = sorted(profiles, key=lambda profile: (-profile.match.num_conditions, profile.name))
    if not ordered:
        return None, "no profile exists yet: apply a fleet file"
    for profile in ordered:
        if profile.match.matches(hardware, labels):
            return profile, ""
    reasons = "; ".join(
        f"{profile.name}: {', '.join(profile.match.mismatches(hardware, labels))}" for profile in ordered
    )
    return None, f"no profile matches ({reasons})"
