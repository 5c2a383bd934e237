"""What a search builds first, and which of it is worth training further: successive halving over widths.

The first rung is cheap: students cut from the elastic family, which need no training, at every width asked
for. On the second rung the better half is continued (distilled further from where the cut left it) and
challenged by the other roads at the same width, since no road wins everywhere. Without a family there is one
rung.

Rules: a job's trials never exceed its budget; no spec is tried twice; the same results lead to the same rung.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from cloud.domain.candidates import Candidate, pareto_front
from cloud.domain.feasibility import violations
from cloud.domain.profiles import Constraints
from cloud.domain.search import roads_for
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
) -> tuple[CompressionSpec, ...]:
    """Specs to go on with after ``tried``, best first; none when the search is done.

    ``built`` are the candidates that came of them, ``exclude`` the digests of specs that exist or failed
    before.
    """
    if not tried or not all(is_cut(spec) for spec in tried):
        return ()
    mine = {spec.digest for spec in tried}
    hoped = replace(
        constraints,
        latency_p95_ms=None,
        min_accuracy=None if constraints.min_accuracy is None else constraints.min_accuracy - HOPED_GAIN,
    )
    able = [c for c in built if c.spec.digest in mine and not violations(c, hoped)]
    front = sorted(
        pareto_front(able), key=lambda c: (-c.metrics.accuracy, c.metrics.latency_p50_ms, c.digest)
    )
    kept = front[: math.ceil(len(front) / 2)]
    wanted = [replace(c.spec, num_epochs=budget.num_epochs) for c in kept] if budget.num_epochs else []
    for place in (0, 1):
        wanted += [
            CompressionSpec(
                road=roads_for(c.spec.width_ratio)[place],
                width_ratio=c.spec.width_ratio,
                num_epochs=budget.num_epochs,
            )
            for c in kept
        ]
    taken = mine | set(exclude)
    return tuple(spec for spec in wanted if spec.digest not in taken)[: max(0, max_trials - len(tried))]
