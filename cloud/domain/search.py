"""Which students are worth building next.

Rules kept here:

- Widths lie on a grid of sixteenths: the same wish leads to the same spec, and what was built is found.
- No spec is proposed twice: neither one that a candidate has, rejected or not, nor one that is excluded.
- The width for a target latency is read off what was built and measured (``width_curve``).
- Where latency binds, students without shortcuts (``chains``) and of fewer layers compete with narrower ones;
  they say nothing about widths.
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

from cloud.domain.candidates import Candidate
from cloud.domain.chains import chain_for, is_chain, is_measure
from cloud.domain.families import FamilySettings
from cloud.domain.latency_answers import latency_answers
from cloud.domain.methods import Method, allowed, shorter, size_levers
from cloud.domain.own_networks import answers, whole_networks
from cloud.domain.profiles import DeviceProfile
from cloud.domain.specs import CompressionSpec, Road
from cloud.domain.width_curve import GRID, width_for
from cloud.domain.workloads import SearchBudget

#: Here a student has about a fifteenth of the teacher's multiply-accumulates, and there a sixtieth.
_SCRATCH_WIDTH = 0.26
_TINY_WIDTH = 0.13


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
    num_shortcuts: int = 0,
) -> tuple[CompressionSpec, ...]:
    """Specs worth building, best first; none that ``candidates`` or ``exclude`` (spec digests) already has.

    ``target_latency_ms`` is in the scale measured where candidates are built, and not to be exceeded; None
    stands for one step in the direction. ``current`` is what serves: smaller or larger means than it.
    ``num_branches`` is how many branches beside shortcuts the teacher has, of which some may be left out,
    ``num_shortcuts`` how many of its shortcuts may be left out (0: it needs them).
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
            for proposal in latency_answers(
                mine,
                constraints=profile.constraints,
                budget=budget,
                num_branches=num_branches,
                num_shortcuts=num_shortcuts,
                exclude=taken,
            )
        )
    if direction is Direction.INITIAL:
        rung = first_rung(budget, taken | {spec.digest for spec in ahead}, limit=budget.max_trials)
        return (*ahead, *rung)[: budget.max_trials]
    # Rules have no width, and are too fast to say anything about networks; shorter ones are, too.
    networks = [c for c in mine if is_measure(c)]
    if current is not None and current.spec.road is Road.RULES:
        current = None
    is_own = current is not None and current.spec.network is not None
    widths = _widths(networks, target_latency_ms, direction, None if is_own else current)
    limit = max(1, math.ceil(budget.max_trials / 2))
    if direction is Direction.LARGER and current is not None and is_chain(current.spec):
        ahead = _wider_chain(mine, current, target_latency_ms, budget, taken, num_shortcuts)
        taken |= {spec.digest for spec in ahead}
    cuts = _unbuilt(_cuts(widths[:2], budget), taken, budget, limit=limit)
    if cuts:
        return cuts if direction is Direction.SMALLER else (*ahead, *cuts)[:limit]
    roads = {width: roads_for(width, budget.num_epochs) for width in widths}
    wanted = [(width, roads[width][0]) for width in widths[:2]]
    wanted[1:1] = [(width, roads[width][1]) for width in widths[:1]]
    wanted += [(width, roads[width][0]) for width in widths[2:]]
    wanted += [(width, roads[width][1]) for width in widths[1:]]
    found = _unbuilt(wanted, taken, budget, limit=limit)
    if direction is Direction.SMALLER and current is not None and target_latency_ms is not None:
        others = answers(budget, current, target_latency_ms, taken)
        if not is_own:
            others += _other_shapes(
                mine, current, target_latency_ms, budget, taken, num_branches, num_shortcuts
            )
        if others:
            most = min(budget.max_trials, max(2, limit))
            return (*found[: max(1, limit - len(others))], *others)[:most]
    return (*ahead, *found)[:limit]


def _wider_chain(
    mine: Sequence[Candidate],
    current: Candidate,
    target_latency_ms: float | None,
    budget: SearchBudget,
    taken: set[str],
    num_shortcuts: int,
) -> tuple[CompressionSpec, ...]:
    """What has no shortcuts grows without them: with them, no wider, it would be slower."""
    if target_latency_ms is None:
        return ()
    wider = chain_for(
        mine,
        target_latency_ms=target_latency_ms,
        methods=budget.methods,
        num_epochs=budget.num_epochs,
        num_shortcuts=num_shortcuts,
        exclude=taken,
    )
    return () if wider is None or wider.width_ratio <= current.spec.width_ratio else (wider,)


def _other_shapes(
    mine: Sequence[Candidate],
    current: Candidate,
    target_latency_ms: float,
    budget: SearchBudget,
    taken: set[str],
    num_branches: int,
    num_shortcuts: int,
) -> tuple[CompressionSpec, ...]:
    """Without shortcuts, or of fewer layers, in answer to a miss of ``current``."""
    found = [
        chain_for(
            mine,
            target_latency_ms=target_latency_ms,
            methods=budget.methods,
            num_epochs=budget.num_epochs,
            num_shortcuts=num_shortcuts,
            exclude=taken,
        )
    ]
    if Method.DEPTH in allowed(budget.methods):
        found.append(
            shorter(
                current.spec,
                latency_ratio=target_latency_ms / current.metrics.latency_p50_ms,
                num_branches=num_branches,
                num_epochs=budget.num_epochs,
            )
        )
    return tuple(spec for spec in found if spec is not None and spec.digest not in taken)


def roads_for(width_ratio: float, num_epochs: int) -> tuple[Road, Road]:
    """The roads that pay at a width, best first. Without epochs there is one: the others want to learn."""
    if not num_epochs:
        return (Road.PRUNED, Road.PRUNED)
    if width_ratio > _SCRATCH_WIDTH:
        return (Road.PRUNED, Road.DISTILLED)
    if width_ratio > _TINY_WIDTH:
        return (Road.SCRATCH, Road.DISTILLED)
    return (Road.PRUNED, Road.SCRATCH)


def first_rung(budget: SearchBudget, taken: set[str], *, limit: int) -> tuple[CompressionSpec, ...]:
    """Each width by its best road, the workload's own networks, then the second roads.

    Those go narrowest first: there the best road is least sure.
    With a family, its cuts alone: what is worth training follows from how they measure (``rungs``).
    """
    cuts = _unbuilt(_cuts(budget.width_ratios, budget), taken, budget, limit=limit)
    cuts += _short_cuts(budget, {*taken, *(spec.digest for spec in cuts)}, limit=limit - len(cuts))
    if cuts:
        return cuts
    epochs = budget.num_epochs
    first = [(width, roads_for(width, epochs)[0]) for width in budget.width_ratios]
    second = [(width, roads_for(width, epochs)[1]) for width in sorted(budget.width_ratios)]
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
