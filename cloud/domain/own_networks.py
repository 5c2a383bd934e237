"""When the workload's own networks are worth a trial.

Rules kept here:

- A network that a person has in mind comes before the search's second thoughts: each is tried once, whole
  and taught by the teacher, where the budget allows.
- Where latency binds it comes first of all: its graph is not the teacher's, so that what a call of that
  costs does not hold it back. One that is too slow itself is tried narrower.
- Its width says nothing about the widths of the teacher's students, nor theirs about it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import replace

from cloud.domain.candidates import Candidate
from cloud.domain.feasibility import violations
from cloud.domain.idle_fields import without_idle
from cloud.domain.methods import Proposal
from cloud.domain.networks import network_name
from cloud.domain.profiles import Constraints
from cloud.domain.specs import CompressionSpec, Road
from cloud.domain.workloads import SearchBudget

_GRID = 16
_PER_RUNG = 2


def whole_networks(
    budget: SearchBudget, taken: Collection[str], *, road: Road = Road.DISTILLED
) -> tuple[CompressionSpec, ...]:
    """Each of the workload's own networks that was not tried along this road yet.

    None without epochs, since they begin with fresh weights.
    """
    if not budget.num_epochs:
        return ()
    specs = (
        CompressionSpec(road=road, network=network.reference, width_ratio=1.0, num_epochs=budget.num_epochs)
        for network in budget.students
    )
    return tuple(spec for spec in specs if spec.digest not in taken)


def narrower(spec: CompressionSpec, *, latency_ratio: float) -> CompressionSpec | None:
    """``spec`` of fewer channels, for ``latency_ratio`` of its latency; None where none are left to go."""
    now = round(spec.width_ratio * _GRID)
    kept = max(1, min(now - 1, math.floor(now * latency_ratio)))
    return without_idle(replace(spec, width_ratio=kept / _GRID)) if kept < now else None


def answers(
    budget: SearchBudget, current: Candidate, target_latency_ms: float, taken: Collection[str]
) -> tuple[CompressionSpec, ...]:
    """What of the workload's own networks may answer a miss of ``current``, best first."""
    found = list(whole_networks(budget, taken))
    if is_own(current.spec, budget):
        ratio = target_latency_ms / current.metrics.latency_p50_ms
        smaller = narrower(current.spec, latency_ratio=ratio)
        if smaller is not None and smaller.digest not in taken:
            found.append(smaller)
    return tuple(found[:1])


def own_students(
    built: Iterable[Candidate],
    *,
    constraints: Constraints,
    budget: SearchBudget,
    exclude: Iterable[str] = (),
) -> tuple[Proposal, ...]:
    """The workload's own networks, where the best of these students is too slow; nothing where none is.

    Latency is what was measured where they were built.
    """
    limit = constraints.latency_p95_ms
    if limit is None or not budget.students:
        return ()
    known = [c for c in built if not c.rejected_reason and not violations(c, constraints)]
    fitting = max((c.metrics.accuracy for c in known if c.metrics.latency_p95_ms <= limit), default=-1.0)
    slow = sorted(
        (c for c in known if c.metrics.latency_p95_ms > limit and c.metrics.accuracy > fitting),
        key=lambda c: (-c.metrics.accuracy, c.metrics.latency_p95_ms, c.digest),
    )
    if not slow:
        return ()
    taken = {c.spec.digest for c in known} | set(exclude)
    best = slow[0]
    found = [
        Proposal(
            spec=spec,
            reason=(
                f"latency binds: {best.digest[:12]} takes {best.metrics.latency_p95_ms:.3g} ms of at most "
                f"{limit:g} where it was built, and network {network_name(spec.network or '')} is a graph of "
                "its own"
            ),
        )
        for spec in whole_networks(budget, taken)
    ]
    for base in slow:
        smaller = None
        if is_own(base.spec, budget):
            smaller = narrower(base.spec, latency_ratio=limit / base.metrics.latency_p95_ms)
        if smaller is not None and smaller.digest not in taken:
            reason = (
                f"latency binds: network {network_name(base.spec.network or '')} takes "
                f"{base.metrics.latency_p95_ms:.3g} ms of at most {limit:g} where it was built: fewer of its "
                "channels"
            )
            found.append(Proposal(spec=smaller, reason=reason))
    return tuple(found[:_PER_RUNG])


def is_own(spec: CompressionSpec, budget: SearchBudget) -> bool:
    """Whether it is one of the workload's own networks as the workload has them now."""
    return spec.network is not None and any(spec.network == n.reference for n in budget.students)
