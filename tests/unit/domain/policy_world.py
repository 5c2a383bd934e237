"""Students of three widths, and a loop around the policy."""

from __future__ import annotations

from domain_values import World, candidate, profile
from policy_loop import Loop

WIDE, HALF, QUARTER = candidate(0.75), candidate(0.5), candidate(0.25)


def world(*candidates, slowdown=5.0, slower=None):
    return World(slowdown=slowdown, candidates=list(candidates), slower=slower or {})


def loop(made, current, *, objective_ms=None, objective_ratio=None, **changes):
    """``objective_ratio`` is the objective as a multiple of what ``current`` measures."""
    if objective_ratio is not None:
        objective_ms = made.p95_of(current) * objective_ratio
    constraints = {
        key: changes.pop(key)
        for key in ("artifact_bytes", "peak_rss_bytes", "min_accuracy")
        if key in changes
    }
    return Loop(world=made, profile=profile(objective_ms, **constraints), current=current, **changes)
