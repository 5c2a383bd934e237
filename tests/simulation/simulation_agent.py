"""The devices of a simulated fleet, and what may befall them and their controller."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cloud.domain.evidence import Window


@dataclass
class Faults:
    """Chances, each for one message or one tick. All end at ``until_s``."""

    drop: float = 0.2
    double: float = 0.2
    max_delay_s: float = 90.0
    crash_agent: float = 0.03
    crash_controller: float = 0.2
    until_s: float = 1200.0


class Crash(Exception):  # noqa: N818  # nothing went wrong: it is the fault that is injected
    """The controller was killed here."""


@dataclass
class Agent:
    """``kept`` is on its disk; ``boot`` and ``sequence`` make its windows unique."""

    device_id: str
    profile: str
    slowdown: float
    kept: dict[str, Any] = field(
        default_factory=lambda: {"generation": 0, "digest": "", "serving": "", "state": ""}
    )
    spool: dict[tuple[str, int], Window] = field(default_factory=dict)
    boot: int = 0
    sequence: int = 0
    online: bool = True
