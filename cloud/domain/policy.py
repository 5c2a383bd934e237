"""skeleton; rules follow"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cloud.domain.candidates import Candidate
from cloud.domain.decisions import Action, Decision, Verdict
from cloud.domain.evidence import Window
from cloud.domain.profiles import DeviceProfile
from cloud.domain.settings import PolicySettings
from cloud.domain.state import PolicyState
from cloud.domain.workloads import SearchBudget

__all__ = ["Action", "Decision", "PolicySettings", "PolicyState", "Verdict", "decide", "replay"]


def decide(
    *,
    profile: DeviceProfile,
    windows: Sequence[Window],
    candidates: Sequence[Candidate],
    current_digest: str,
    state: PolicyState,
    busy: str,
    now_s: float,
    settings: PolicySettings,
    search: SearchBudget,
) -> tuple[Decision, PolicyState]:
    """One decision for one profile.

    ``windows`` are the profile's, of all digests; ``current_digest`` is the profile's target ("" when none);
    ``busy`` says why nothing may be started now, or is "". The returned state counts the action as taken:
    store both in one transaction, then act.
    """
    raise NotImplementedError


def replay(inputs: Mapping[str, Any]) -> Decision:
    """The decision that these inputs lead to."""
    raise NotImplementedError
