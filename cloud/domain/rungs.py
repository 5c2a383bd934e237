"""What a search builds first, and which of it is worth training further: successive halving over widths.

The first rung is cheap: students cut from the elastic family, which need no training, at every width asked
for. On the second rung the better half is continued (distilled further from where the cut left it) and
challenged by the other roads at the same width, since no road wins everywhere. Without a family the first
rung trains each width by its best road, and second roads follow.

Other methods come between, as soon as measurements ask for them (``methods``): where artifact bytes bind,
their proposals go before further widths and roads; where latency binds, the workload's own networks, one
without shortcuts and shorter ones compete with narrower ones on the same rung.

Rules: a job's trials never exceed its budget; no spec is tried twice; the same results lead to the same rung.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from cloud.domain.candidates import Candidate, most_accurate, pareto_front
from cloud.domain.feasibility import violations
from cloud.domain.idle_fields import without_idle
from cloud.domain.latency_answers import latency_answers
from cloud.domain.methods import Proposal, other_methods, size_levers
from cloud.domain.networks import network_name
from cloud.domain.own_networks import whole_networks
from cloud.domain.profiles import Constraints
from cloud.domain.search import first_rung, roads_for
from cloud.domain.specs import CompressionSpec, Road
from cloud.domain.workloads import SearchBudget

#: Training lifts a cut student by about this much: a floor that is missed by less is not yet missed.
HOPED_GAIN = 0.02


def is_cut(spec: CompressionSpec) -> bool:
    """Whether the student comes out of the family as it is."""
    return spec.road is Road.ELASTIC and spec.num_epochs == 0


def next_rung(
    tried: Sequence[CompressionSpec],
    built: Iterable[Candidate],
    *,
    constraints: Constraints,
    budget: SearchBudget,
    max_trials: int,
    exclude: Iterable[str] = (),
    num_inputs: int = 0,
    num_branches: int = 0,
    num_shortcuts: int = 0,
) -> tuple[Proposal, ...]:
    """Specs to go on with after ``tried``, best first; none when the search is done.

    ``built`` are the candidates that came of them, ``exclude`` the digests of specs that exist or failed
    before. ``num_inputs`` is as in ``other_methods``; ``num_branches`` and ``num_shortcuts`` are as in
    ``latency_answers``.
    """
    room = max_trials - len(tried)
    if not tried or room < 1:
        return ()
    mine = {spec.digest for spec in tried}
    taken = mine | set(exclude)
    found = [c for c in built if c.spec.digest in mine]
    wanted = list(
        size_levers(
            found,
            constraints=constraints,
            methods=budget.methods,
            num_epochs=budget.num_epochs,
            exclude=taken,
        )
        or (
            *latency_answers(
                found,
                constraints=constraints,
                budget=budget,
                num_branches=num_branches,
                num_shortcuts=num_shortcuts,
                exclude=taken,
            ),
            *other_methods(
                found,
                constraints=constraints,
                methods=budget.methods,
                tolerance=budget.tolerance,
                num_inputs=num_inputs,
                exclude=taken,
            ),
        )
    )
    if all(is_cut(spec) for spec in tried):
        wanted += _after_cuts(found, constraints, budget)
    elif budget.family_epochs == 0 and not wanted:
        wanted += [
            Proposal(spec=spec, reason=f"the widths' roads: {spec.label}")
            for spec in first_rung(budget, taken, limit=room)
        ]
    fresh: dict[str, Proposal] = {}
    for proposal in wanted:
        if proposal.spec.digest not in taken:
            fresh.setdefault(proposal.spec.digest, proposal)
    return tuple(fresh.values())[:room]


def _after_cuts(found: Sequence[Candidate], constraints: Constraints, budget: SearchBudget) -> list[Proposal]:
    """The better half of the cuts, distilled further, and the other roads at their widths."""
    hoped = replace(
        constraints,
        latency_p95_ms=None,
        min_accuracy=None if constraints.min_accuracy is None else constraints.min_accuracy - HOPED_GAIN,
    )
    able = [c for c in found if not violations(c, hoped)]
    front = sorted(
        pareto_front(able), key=lambda c: (-c.metrics.accuracy, c.metrics.latency_p50_ms, c.digest)
    )
    kept, where = front[: math.ceil(len(front) / 2)], "on the front of the cuts"
    if not kept:  # a family of few steps is further behind: what is nearest to the floor is tried
        where = "of all cuts the nearest to the accuracy floor"
        others = replace(hoped, min_accuracy=None)
        near = [c for c in found if not c.rejected_reason and not violations(c, others)]
        kept = [most_accurate(near)] if near else []
    wanted = []
    if budget.num_epochs:
        wanted = [
            Proposal(
                spec=without_idle(replace(c.spec, num_epochs=budget.num_epochs)),
                reason=f"{c.digest[:12]} is {where}: it is distilled further",
            )
            for c in kept
        ]
    wanted += [
        Proposal(
            spec=spec,
            reason=f"network {network_name(spec.network or '')} of the workload challenges the cuts",
        )
        for spec in whole_networks(budget, ())
    ]
    for place in (0, 1):
        for c in kept:
            road = roads_for(c.spec.width_ratio, budget.num_epochs)[place]
            spec = CompressionSpec(
                road=road,
                width_ratio=c.spec.width_ratio,
                num_epochs=budget.num_epochs,
                depth_ratio=c.spec.depth_ratio,
            )
            wanted.append(Proposal(spec=spec, reason=f"{road} challenges the cut {c.digest[:12]}"))
    return wanted
