"""When a student without shortcuts, a chain, is worth a trial, and how wide it is.

Rules kept here:

- Where latency binds, a chain competes with narrower students: each shortcut costs calls, which take their
  time at any width, so that a chain may be wider at the same latency. One at a time.
- Its width is the one at which it should take as long as the target. Before a chain was measured its latency
  is assumed to be a share of that of the same width with shortcuts; then the measured share holds.
- It is wider than the student with shortcuts that would meet the target, or it is not worth a trial; and not
  narrower than what was built: chains stop learning before networks with shortcuts do.
- A chain that lost to a student with shortcuts which is no slower was the last.
- It has all branches and wants epochs. Which networks can do without their shortcuts is decided where they
  are traced (``num_shortcuts``): none of a teacher that needs them is ever asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Final

from cloud.domain.candidates import Candidate
from cloud.domain.feasibility import violations
from cloud.domain.methods import Method, Proposal, allowed
from cloud.domain.profiles import Constraints
from cloud.domain.specs import CompressionSpec, Road
from cloud.domain.width_curve import GRID, latency_at, width_for

#: A chain's latency over that of the same width with shortcuts, until one was measured. By what
#: docs/search.md has of three blocks, 0.7 to 0.8.
ASSUMED_SHARE: Final = 0.78


def chain_students(
    built: Iterable[Candidate],
    *,
    constraints: Constraints,
    methods: Sequence[Method] | None,
    num_epochs: int,
    num_shortcuts: int,
    exclude: Iterable[str] = (),
) -> tuple[Proposal, ...]:
    """A chain in the place of the best of these students; nothing where latency does not bind.

    Latency is what was measured where they were built. ``num_shortcuts`` is how many the teacher has and can
    do without, ``num_epochs`` what a student is trained for.
    """
    limit, known = constraints.latency_p95_ms, list(built)
    if limit is None:
        return ()
    able = [c for c in known if not c.rejected_reason and not violations(c, constraints)]
    fitting = max((c.metrics.accuracy for c in able if c.metrics.latency_p95_ms <= limit), default=-1.0)
    slow = sorted(
        (
            c
            for c in able
            if is_measure(c) and c.metrics.latency_p95_ms > limit and c.metrics.accuracy > fitting
        ),
        key=lambda c: (-c.metrics.accuracy, c.metrics.latency_p95_ms, c.digest),
    )
    if not slow:
        return ()
    base = slow[0]
    spec = chain_for(
        known,
        target_latency_ms=limit * base.metrics.latency_p50_ms / base.metrics.latency_p95_ms,
        methods=methods,
        num_epochs=num_epochs,
        num_shortcuts=num_shortcuts,
        exclude=exclude,
    )
    if spec is None:
        return ()
    shortcuts = "its shortcut" if num_shortcuts == 1 else f"its {num_shortcuts} shortcuts"
    reason = (
        f"latency binds: {base.digest[:12]} takes {base.metrics.latency_p95_ms:.3g} ms of at most {limit:g} "
        f"where it was built, and without {shortcuts} a network can be wider at the same latency: "
        f"{spec.width_ratio:g} wide"
    )
    return (Proposal(spec=spec, reason=reason),)


def chain_for(
    built: Iterable[Candidate],
    *,
    target_latency_ms: float,
    methods: Sequence[Method] | None,
    num_epochs: int,
    num_shortcuts: int,
    exclude: Iterable[str] = (),
) -> CompressionSpec | None:
    """The chain that should take ``target_latency_ms`` (p50, where students are built), or None."""
    known = [c for c in built if not c.rejected_reason]
    whole = [c for c in known if is_measure(c)]
    if Method.SHORTCUTS not in allowed(methods) or not (num_shortcuts and num_epochs and whole):
        return None
    chains = [c for c in known if is_chain(c.spec)]
    if any(_lost(chain, whole) for chain in chains):
        return None
    width = chain_width(whole, chains, target_latency_ms)
    if width is None:
        return None
    spec = CompressionSpec(road=Road.PRUNED, width_ratio=width, num_epochs=num_epochs, shortcuts=False)
    was_built = any(c.spec.width_ratio == width and c.spec.num_epochs >= num_epochs for c in chains)
    return None if was_built or spec.digest in set(exclude) else spec


def chain_width(
    whole: Sequence[Candidate], chains: Sequence[Candidate], target_latency_ms: float
) -> float | None:
    """On the grid; None where no chain is wider than what has shortcuts and is as fast.

    ``whole`` are students with shortcuts, at least one.
    """
    against = _step(width_for(whole, target_latency_ms))
    if chains:
        share = median(c.metrics.latency_p50_ms / latency_at(whole, c.spec.width_ratio) for c in chains)
        aim = _step(width_for(whole, target_latency_ms / share))
        if aim <= against:
            return None
    else:
        aim = max(against + 1, _step(width_for(whole, target_latency_ms / ASSUMED_SHARE)))
    narrowest = math.ceil(min(c.spec.width_ratio for c in whole) * GRID - 1e-6)
    return min(GRID, max(aim, narrowest)) / GRID


def is_chain(spec: CompressionSpec) -> bool:
    """Whether it is one as they are proposed: all of the teacher's branches, none of its shortcuts."""
    return spec.shortcuts is False and spec.depth_ratio is None and spec.network is None


def is_measure(candidate: Candidate) -> bool:
    """Whether its latency says what the teacher's students of its width take."""
    return candidate.spec.is_whole and candidate.spec.road is not Road.RULES


def _lost(chain: Candidate, whole: Sequence[Candidate]) -> bool:
    return any(
        c.metrics.accuracy > chain.metrics.accuracy
        and c.metrics.latency_p50_ms <= chain.metrics.latency_p50_ms
        for c in whole
    )


def _step(width_ratio: float) -> int:
    """The step of the grid at or under it, with a hair of tolerance; at least the first, at most the last."""
    return min(GRID, max(1, math.floor(width_ratio * GRID + 1e-6)))
