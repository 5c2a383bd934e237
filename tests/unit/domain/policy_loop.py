"""The policy in a loop with a world that obeys it at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from domain_values import NOW_S, QUICK, World, fleet_windows

from cloud.domain.decisions import Action, Decision
from cloud.domain.evidence import Window
from cloud.domain.policy import PolicySettings, PolicyState, decide
from cloud.domain.profiles import DeviceProfile
from cloud.domain.workloads import SearchBudget

STEP_S = 30.0


@dataclass
class Loop:
    """Each step gives the windows that the digest now serving would have given, then does what is decided."""

    world: World
    profile: DeviceProfile
    current: str = ""
    num_devices: int = 3
    num_windows: int = 6
    settings: PolicySettings = QUICK
    search: SearchBudget = field(default_factory=SearchBudget)
    state: PolicyState = field(default_factory=PolicyState)
    now_s: float = NOW_S
    noise: Callable[[int], float] = lambda step: 1.0
    forge: Callable[[list[Window]], list[Window]] = lambda windows: windows
    refused: frozenset[str] = frozenset()
    reference_ms: float = 0.2
    decisions: list[Decision] = field(default_factory=list)

    def step(self) -> Decision:
        self.now_s += STEP_S
        number = len(self.decisions)
        windows: list[Window] = []
        if self.current:
            windows = [
                made
                for n in range(self.num_windows)
                for made in fleet_windows(
                    self.world.p95_of(self.current) * self.noise(number - n),
                    digest=self.current,
                    num_devices=self.num_devices,
                    num_windows=1,
                    end_s=self.now_s - n * STEP_S,
                    boot_id=f"{self.current[:6]}-{number - n}",
                    reference_ms=self.reference_ms,
                )
            ]
        decision, state = decide(
            profile=self.profile,
            windows=self.forge(windows),
            candidates=self.world.candidates,
            current_digest=self.current,
            state=self.state,
            busy="",
            now_s=self.now_s,
            settings=self.settings,
            search=self.search,
        )
        self.state = PolicyState.from_json(state.to_json())
        self.decisions.append(decision)
        if decision.starts_rollout and decision.chosen_digest not in self.refused:
            self.current = decision.chosen_digest
        if decision.action is Action.BUILD:
            self.world.build(decision.specs)
        return decision

    def run(self, num_steps: int) -> list[Decision]:
        return [self.step() for _ in range(num_steps)]

    @property
    def acted(self) -> list[Decision]:
        return [d for d in self.decisions if d.starts_rollout or d.action is Action.BUILD]

    @property
    def p95_ms(self) -> float:
        return self.world.p95_of(self.current)

    @property
    def accuracy(self) -> float:
        return next(c for c in self.world.candidates if c.digest == self.current).metrics.accuracy
