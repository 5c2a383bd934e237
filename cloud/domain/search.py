"""Which students are worth building next.

Rules kept here:

- Widths lie on a grid of sixteenths: the same wish leads to the same spec, and what was built is found.
- No spec is proposed twice: neither one that a candidate has, rejected or not, nor one that is excluded.
- The width for a target latency is read off what was built and measured, as a rising curve in logarithms;
  multiply-accumulates are never asked, they mislead.
- Where latency binds, a student of fewer layers competes with narrower ones; it says nothing about widths.
- Networks of the workload's own (``own_networks``) compete: first of all where latency binds.
- Where artifact bytes bind, what makes the best student smaller comes before another width (``methods``).
- Where the workload has an elastic family, students cut from it come first: they cost seconds, not a
  training.
- No road wins everywhere. Down to about a quarter of the width, the teacher's own channels or its soft labels
  help; under it a network trained on the labels alone does better, and the very smallest profit from both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from enum import StrEnum
from itertools import pairwise

from cloud.domain.candidates import Candidate
from cloud.domain.families import FamilySettings
from cloud.domain.methods import Method, allowed, shorter, shorter_students, size_levers
from cloud.domain.own_networks import answers, own_students, whole_networks
from cloud.domain.profiles import DeviceProfile
from cloud.domain.specs import CompressionSpec, Road
from cloud.domain.workloads import SearchBudget

GRID = 16
#: Here a student has about a fifteenth of the teacher's multiply-accumulates, and there a sixtieth.
_SCRATCH_WIDTH = 0.26
_TINY_WIDTH = 0.13
#: How latency follows width where only one student was built: (low, assumed, high) exponents.
_SLOPES = (0.25, 1.0, 2.5)


class Direction(StrEnum):
    """``INITIAL`` covers the range; the others look for one latency, from above or from below."""

    INITIAL = "initial"
    SMALLER = "smaller"
    LARGER = "larger"


def propose(
    profile: DeviceProfile,
    candidates: Sequence[Candidate],
    *,
    target_latency_ms: float | None,
    direction: Direction,
    budget: SearchBudget,
    exclude: Iterable[str] = (),
    current: Candidate | None = None,
    num_branches: int = 0,
) -> tuple[CompressionSpec, ...]:
    """Specs worth building, best first; none that ``candidates`` or ``exclude`` (spec digests) already has.

    ``target_latency_ms`` is in the scale measured where candidates are built, and not to be exceeded; None
    stands for one step in the direction. ``current`` is what serves: smaller or larger means than it.
    ``num_branches`` is how many branches beside shortcuts the teacher has, of which some may be left out.
    """
    mine = [c for c in candidates if c.profile == profile.name and c.workload == profile.workload]
    taken = {candidate.spec.digest for candidate in mine} | set(exclude)
    ahead: tuple[CompressionSpec, ...] = ()
    if target_latency_ms is None and direction is not Direction.LARGER and budget.max_trials:
        levers = size_levers(
            mine,
            constraints=profile.constraints,
            methods=budget.methods,
            num_epochs=budget.num_epochs,
            exclude=taken,
        )
        if levers:
            return tuple(lever.spec for lever in levers)[: budget.max_trials]
        ahead = tuple(
            proposal.spec
            for proposal in (
                *own_students(mine, constraints=profile.constraints, budget=budget, exclude=taken),
                *shorter_students(
                    mine,
                    constraints=profile.constraints,
                    methods=budget.methods,
                    num_epochs=budget.num_epochs,
                    num_branches=num_branches,
                    exclude=taken,
                ),
            )
        )
    if direction is Direction.INITIAL:
        rung = first_rung(budget, taken | {spec.digest for spec in ahead}, limit=budget.max_trials)
        return (*ahead, *rung)[: budget.max_trials]
    # Rules have no width, and are too fast to say anything about networks; shorter ones are, too.
    networks = [c for c in mine if c.spec.road is not Road.RULES and c.spec.is_whole]
    if current is not None and current.spec.road is Road.RULES:
        current = None
    is_own = current is not None and current.spec.network is not None
    widths = _widths(networks, target_latency_ms, direction, None if is_own else current)
    limit = max(1, math.ceil(budget.max_trials / 2))
    cuts = _unbuilt(_cuts(widths[:2], budget), taken, budget, limit=limit)
    if cuts:
        return cuts
    wanted = [(width, roads_for(width)[0]) for width in widths[:2]]
    wanted[1:1] = [(width, roads_for(width)[1]) for width in widths[:1]]
    wanted += [(width, road) for width in widths[2:] for road in roads_for(width)[:1]]
    wanted += [(width, road) for width in widths[1:] for road in roads_for(width)[1:]]
    found = _unbuilt(wanted, taken, budget, limit=limit)
    if direction is Direction.SMALLER and current is not None and target_latency_ms is not None:
        spec, own = None, answers(budget, current, target_latency_ms, taken)
        if Method.DEPTH in allowed(budget.methods) and not is_own:
            spec = shorter(
                current.spec,
                latency_ratio=target_latency_ms / current.metrics.latency_p50_ms,
                num_branches=num_branches,
                num_epochs=budget.num_epochs,
            )
        others = own if spec is None or spec.digest in taken else (*own, spec)
        if others:
            return (*found[: max(1, limit - len(others))], *others)[: max(2, limit)]
    return (*ahead, *found)[:limit]


def roads_for(width_ratio: float) -> tuple[Road, ...]:
    """The roads that pay at a width, best first."""
    if width_ratio > _SCRATCH_WIDTH:
        return (Road.PRUNED, Road.DISTILLED)
    if width_ratio > _TINY_WIDTH:
        return (Road.SCRATCH, Road.DISTILLED)
    return (Road.PRUNED, Road.SCRATCH)


def width_for(candidates: Sequence[Candidate], target_latency_ms: float) -> float:
    """The width that would measure the target latency; between measured ones read off, beyond them assumed.

    Raises ``ValueError`` when nothing was built yet.
    """
    points = _curve(candidates)
    if not points:
        raise ValueError("no student was built yet: propose the initial ones first")
    goal = math.log(target_latency_ms)
    for (x0, y0), (x1, y1) in pairwise(points):
        if y0 <= goal <= y1 and y1 > y0:
            return math.exp(x0 + (x1 - x0) * (goal - y0) / (y1 - y0))
    x, y = points[0] if goal < points[0][1] else points[-1]
    return math.exp(x + (goal - y) / _outer_slope(points, below=goal < points[0][1]))


def first_rung(budget: SearchBudget, taken: set[str], *, limit: int) -> tuple[CompressionSpec, ...]:
    """Each width by its best road, the workload's own networks, then the second roads.

    Those go narrowest first: there the best road is least sure.
    With a family, its cuts alone: what is worth training follows from how they measure (``rungs``).
    """
    cuts = _unbuilt(_cuts(budget.width_ratios, budget), taken, budget, limit=limit)
    cuts += _short_cuts(budget, {*taken, *(spec.digest for spec in cuts)}, limit=limit - len(cuts))
    if cuts:
        return cuts
    first = [(width, roads_for(width)[0]) for width in budget.width_ratios]
    second = [(width, roads_for(width)[1]) for width in sorted(budget.width_ratios)]
    found = _unbuilt(first, taken, budget, limit=limit) + whole_networks(budget, taken)
    found += _unbuilt(second, {*taken, *(spec.digest for spec in found)}, budget, limit=limit)
    return (found + whole_networks(budget, taken, road=Road.SCRATCH))[: max(0, limit)]


def _cuts(widths: Iterable[float], budget: SearchBudget) -> list[tuple[float, Road]]:
    """Those widths that the workload's family holds."""
    if not budget.family_epochs:
        return []
    narrowest = FamilySettings(num_epochs=budget.family_epochs).narrowest
    return [(width, Road.ELASTIC) for width in widths if width >= narrowest - 1e-9]


def _short_cuts(budget: SearchBudget, taken: set[str], *, limit: int) -> tuple[CompressionSpec, ...]:
    """Cuts of the family's shorter networks, at every width."""
    specs = [
        CompressionSpec(road=road, width_ratio=width, num_epochs=0, depth_ratio=depth)
        for depth in budget.shorter_depths
        for width, road in _cuts(budget.width_ratios, budget)
    ]
    return tuple(spec for spec in specs if spec.digest not in taken)[: max(0, limit)]


def _unbuilt(
    wanted: Iterable[tuple[float, Road]], taken: set[str], budget: SearchBudget, *, limit: int
) -> tuple[CompressionSpec, ...]:
    specs: list[CompressionSpec] = []
    seen = set(taken)
    for width, road in wanted:
        num_epochs = 0 if road is Road.ELASTIC else budget.num_epochs
        spec = CompressionSpec(road=road, width_ratio=width, num_epochs=num_epochs)
        if len(specs) < limit and spec.digest not in seen:
            seen.add(spec.digest)
            specs.append(spec)
    return tuple(specs)


def _widths(
    candidates: Sequence[Candidate],
    target_latency_ms: float | None,
    direction: Direction,
    current: Candidate | None,
) -> list[float]:
    """Grid widths to try, nearest to the wish first."""
    own = round(current.spec.width_ratio * GRID) if current is not None else None
    if target_latency_ms is not None and candidates:
        aim = width_for(candidates, target_latency_ms) * GRID
    elif own is not None:
        aim = own * (0.7 if direction is Direction.SMALLER else 1.4)
    else:
        aim = GRID / 2
    # A hair of tolerance: a width that was built and hit the target is not stepped over.
    top = min(GRID, math.floor(aim + 1e-6))
    if direction is Direction.SMALLER:
        if own is not None and own > 1:
            top = min(top, own - 1)
        return [step / GRID for step in _falling(max(1, top), 1)]
    bottom = 1 if own is None else own + 1
    return [step / GRID for step in _falling(top, bottom)]


def _falling(top: int, bottom: int) -> list[int]:
    """From top to bottom in steps of about a sixth, at least one."""
    steps = []
    while top >= bottom:
        steps.append(top)
        top = min(top - 1, math.floor(top * 5 / 6))
    return steps


def _curve(candidates: Sequence[Candidate]) -> list[tuple[float, float]]:
    """(log width, log latency), made to rise: neighbours that fall are averaged (pool adjacent violators).

    Of one width built twice the middle counts: roads differ in weights, hardly in latency.
    """
    by_width: dict[float, list[float]] = {}
    for candidate in candidates:
        by_width.setdefault(candidate.spec.width_ratio, []).append(candidate.metrics.latency_p50_ms)
    pools: list[tuple[list[float], float, int]] = []
    for width in sorted(by_width):
        values = sorted(by_width[width])
        pools.append(([math.log(width)], math.log(values[len(values) // 2]), 1))
        while len(pools) > 1 and pools[-2][1] > pools[-1][1]:
            (xs0, y0, n0), (xs1, y1, n1) = pools[-2:]
            pools[-2:] = [(xs0 + xs1, (y0 * n0 + y1 * n1) / (n0 + n1), n0 + n1)]
    return [(x, y) for xs, y, _ in pools for x in xs]


def _outer_slope(points: Sequence[tuple[float, float]], *, below: bool) -> float:
    low, assumed, high = _SLOPES
    if len(points) < 2:
        return assumed
    (x0, y0), (x1, y1) = (points[0], points[1]) if below else (points[-2], points[-1])
    return min(high, max(low, (y1 - y0) / (x1 - x0)))
