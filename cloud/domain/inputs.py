"""All that a decision is a function of, as one value that can be stored and decided from again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from cloud.domain import codec
from cloud.domain.candidates import Candidate
from cloud.domain.estimates import Baseline, Estimate, estimate, learn_baselines
from cloud.domain.evidence import EvidenceTable
from cloud.domain.profiles import DeviceProfile
from cloud.domain.settings import PolicySettings
from cloud.domain.state import PolicyState, enter, remember
from cloud.domain.workloads import SearchBudget

INPUTS_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class DecisionInputs:
    """``candidates`` are the profile's own, by digest; ``state`` is the one before the decision.

    ``num_branches`` and ``num_shortcuts`` are how many of the teacher's a student may leave out.
    """

    profile: DeviceProfile
    table: EvidenceTable
    candidates: tuple[Candidate, ...]
    current_digest: str
    state: PolicyState
    busy: str
    now_s: float
    settings: PolicySettings
    search: SearchBudget
    num_branches: int = 0
    num_shortcuts: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "version": INPUTS_VERSION,
            "profile": codec.encode(self.profile),
            "table": self.table.to_json(),
            "candidates": codec.encode(self.candidates),
            "current_digest": self.current_digest,
            "state": codec.encode(self.state),
            "busy": self.busy,
            "now_s": self.now_s,
            "settings": codec.encode(self.settings),
            "search": codec.encode(self.search),
            "num_branches": self.num_branches,
            "num_shortcuts": self.num_shortcuts,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``to_json``. Raises ``ValueError`` for a version that is not known."""
        if values.get("version") != INPUTS_VERSION:
            raise ValueError(
                f"inputs of version {values.get('version')!r} cannot be replayed: "
                f"this release reads version {INPUTS_VERSION}"
            )
        return cls(
            profile=codec.decode(DeviceProfile, values["profile"]),
            table=EvidenceTable.from_json(values["table"]),
            candidates=codec.decode(tuple[Candidate, ...], values["candidates"]),
            current_digest=values["current_digest"],
            state=codec.decode(PolicyState, values["state"]),
            busy=values["busy"],
            now_s=float(values["now_s"]),
            settings=codec.decode(PolicySettings, values["settings"]),
            search=codec.decode(SearchBudget, values["search"]),
            num_branches=int(values.get("num_branches", 0)),
            num_shortcuts=int(values.get("num_shortcuts", 0)),
        )


def observe(inputs: DecisionInputs) -> tuple[Estimate, PolicyState]:
    """The estimate for what serves, and the state with all that the windows teach."""
    state = enter(
        inputs.state,
        constraints=inputs.profile.constraints,
        current_digest=inputs.current_digest,
        now_s=inputs.now_s,
    )
    baselines: dict[str, Baseline] = dict(state.baselines)
    for digest in inputs.table.digests:
        baselines = learn_baselines(inputs.table.of(digest), baselines)
    state = replace(state, baselines=baselines)
    serving = Estimate()
    # What serves comes last: when it shows that the fleet's speed has drifted, the others follow it.
    others = [digest for digest in inputs.table.digests if digest != inputs.current_digest]
    for digest in (*others, inputs.current_digest):
        found = estimate(inputs.table.of(digest), baselines=baselines, settings=inputs.settings)
        state = remember(state, digest, found, now_s=inputs.now_s, settings=inputs.settings)
        serving = found
    return serving, state
