"""Which candidate suits a profile, and what stands in the way when none does.

Only what was built and measured is spoken of; a profile without candidates has nothing to say yet.
"""

from __future__ import annotations

from cloud.domain.candidates import Candidate
from cloud.domain.feasibility import explain_infeasible, violations
from cloud.domain.prediction import Predictor
from cloud.domain.profiles import DeviceProfile
from cloud.domain.settings import PolicySettings
from cloud.store import Store
from edgeloop.errors import RejectedError


def best_candidate(store: Store, profile: DeviceProfile, settings: PolicySettings) -> Candidate:
    """The most accurate candidate that meets the constraints.

    Raises ``RejectedError`` that says which constraint binds and what could be met.
    """
    known, predictor = _known(store, profile, settings)
    fitting = [candidate for candidate in known if _fits(candidate, profile, predictor)]
    if fitting:
        return min(fitting, key=lambda c: (-c.metrics.accuracy, c.metrics.latency_p50_ms, c.digest))
    if not known:
        raise RejectedError(
            f"profile {profile.name} has no candidate that may ship: build some with "
            f"'edgeloop compress --profile {profile.name}'",
            code="candidate-none",
        )
    raise RejectedError(
        f"no candidate of profile {profile.name} meets its constraints "
        f"({explain_infeasible(known, profile.constraints, predictor.predict).sentence}): build others with "
        "'edgeloop compress', relax a constraint, or name a candidate",
        code="candidate-none-fits",
    )


def why_nothing_fits(store: Store, profile: DeviceProfile, settings: PolicySettings) -> str:
    """For people: empty while something fits, or while nothing was built yet."""
    known, predictor = _known(store, profile, settings)
    if not known or any(_fits(candidate, profile, predictor) for candidate in known):
        return ""
    sentence = explain_infeasible(known, profile.constraints, predictor.predict).sentence
    return f"no candidate meets the constraints ({sentence})"


def _known(
    store: Store, profile: DeviceProfile, settings: PolicySettings
) -> tuple[list[Candidate], Predictor]:
    candidates = store.candidates(profile.name, profile.workload)
    predictor = Predictor(candidates, store.policy_state(profile.name).measured, settings)
    return [candidate for candidate in candidates if not candidate.rejected_reason], predictor


def _fits(candidate: Candidate, profile: DeviceProfile, predictor: Predictor) -> bool:
    if violations(candidate, profile.constraints):
        return False
    limit_ms = profile.constraints.latency_p95_ms
    if limit_ms is None or not predictor.knows_fleet:
        # Times measured where it was built say nothing of this fleet's: until it reports, none is ruled out.
        return True
    return predictor.predict(candidate).upper_p95_ms <= limit_ms
