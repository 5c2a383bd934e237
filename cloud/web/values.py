"""What the page shows, as plain values: whatever they hold, ``page`` renders it and escapes it.

Texts may come from devices. ``gather`` cuts them, and nothing else is promised of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """p95 of one span of time, over the devices that were looked at."""

    time_s: float
    p95_ms: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfileRow:
    """``objective_p95_ms`` and ``measured_p95_ms`` are 0 without one; ``states`` counts deployments."""

    name: str
    num_devices: int = 0
    num_connected: int = 0
    states: Mapping[str, int] = field(default_factory=dict)
    objective_p95_ms: float = 0.0
    measured_p95_ms: float = 0.0
    requests_per_s: float = 0.0
    verdict: str = ""
    message: str = ""
    history: tuple[Point, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutRow:
    """``groups`` are name, state, and how many of how many devices serve it."""

    rollout_id: str
    profile: str
    digest: str
    state: str
    message: str
    groups: tuple[tuple[str, str, int, int], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class JobRow:
    """``progress`` is 0 to 1."""

    job_id: str
    kind: str
    about: str
    state: str
    progress: float
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DecisionRow:
    time_s: float
    profile: str
    action: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Notice:
    """Something that a person may want to look at."""

    about: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetView:
    """One look at the fleet. ``num_more_notices`` were left out of ``notices``."""

    time_s: float
    version: str
    acts: bool
    broker_connected: bool
    controller_paused: bool
    profiles: tuple[ProfileRow, ...] = ()
    rollouts: tuple[RolloutRow, ...] = ()
    jobs: tuple[JobRow, ...] = ()
    decisions: tuple[DecisionRow, ...] = ()
    notices: tuple[Notice, ...] = ()
    num_more_notices: int = 0
