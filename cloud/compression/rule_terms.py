"""One test on a small weighted sum of inputs: ``x[3,4] - 0.62 x[2,1] <= 0.35``, fitted to what points need.

Left or right is what a point's *regret* says: what it costs to send it left instead of right. A logistic
regression of that on all inputs (Newton's method, a little ridge) is brought down to few terms one at a time,
each time the one whose loss costs least by the curvature of the likelihood (Hassibi and Stork's optimal brain
surgeon, NeurIPS 1992), and is fitted again on those that are left. Then single weights and the threshold are
moved to where the summed regret itself is least, each exactly (coordinate search as in OC1: Murthy, Kasif and
Salzberg, 1994).

Rules: a test is compared as it will ship, with its weights rounded to what a person reads and its threshold
a float32 of as few digits as part the same points; the largest term by its spread comes first, with weight
1; a sum is that of exact products in float64, in the order of the terms, as the runtime makes it; a test
is replaced only by one of less regret on all points that reach it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeloop.rules import floor32

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]

#: Of a weight: a person reads 0.62.
NUM_DIGITS = 2
#: Inputs that the regression of one test looks at: those that go with the regret most.
MAX_SCREENED = 64
#: Points that one regression looks at, and that single weights are moved on; at random of more.
MAX_ROWS = 2000
RIDGE = 1e-3
MAX_STEPS = 6
MAX_PASSES = 2
#: Of the regret in a node: a term has to win that much, or stays out.
_LEAST_GAIN = 1e-9
_MAX_DECIMALS = 12
_MAX_CELLS = 1 << 24


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SumTest:
    """Left when ``sum(weights * x[features]) <= threshold``; numbers are float32 values."""

    features: Integers
    weights: Doubles
    threshold: float

    def lower(self, inputs: Floats, rows: Integers) -> NDArray[np.bool_]:
        """Which of ``rows`` go left."""
        below: NDArray[np.bool_] = project(inputs, rows, self.features, self.weights) <= self.threshold
        return below


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scale:
    """Mean and spread of each input; one that never changes has the spread 0."""

    mean: Doubles
    spread: Doubles

    @classmethod
    def of(cls, inputs: Floats) -> Scale:
        """From rows ``[n, features]``; of many, from some evenly chosen ones."""
        inputs = inputs[:: max(1, math.ceil(inputs.size / _MAX_CELLS))]
        spread = inputs.std(axis=0, dtype=np.float64)
        mean = inputs.mean(axis=0, dtype=np.float64)
        return cls(mean=mean, spread=np.where(spread > 1e-6 * np.maximum(np.abs(mean), 1e-30), spread, 0.0))


def project(inputs: Floats, rows: Integers, features: Integers, weights: Doubles) -> Doubles:
    """The weighted sum of each of ``rows``, to the bit as ``edge_agent.runtime.rules`` makes it."""
    total = np.zeros(len(rows))
    for feature, weight in zip(features, weights, strict=True):
        total += weight * inputs[rows, feature].astype(np.float64)
    return total


def improve_test(
    test: SumTest,
    inputs: Floats,
    rows: Integers,
    regret: Doubles,
    *,
    num_terms: int,
    scale: Scale,
    rng: np.random.Generator,
) -> tuple[SumTest, bool]:
    """A test of at most ``num_terms`` terms and less regret on ``rows`` than ``test``, or ``test``.

    Also says whether what was left is now right: the successors are then to be swapped.
    """
    some = np.sort(rng.permutation(len(rows))[:MAX_ROWS]) if len(rows) > MAX_ROWS else np.arange(len(rows))
    starts = regress(inputs, rows[some], regret[some], num_terms=num_terms, scale=scale)
    if scale.spread[test.features].all():
        starts.insert(0, (test.features, test.weights * scale.spread[test.features]))
    best, swapped = test, False
    least = float(regret[test.lower(inputs, rows)].sum()) - _LEAST_GAIN * len(rows)
    for features, weights in starts:
        values = _standardised(inputs, rows[some], features, scale)
        moved = move_weights(values, weights, regret[some])
        found = _as_shipped(features, moved, inputs, rows, regret, scale)
        if found is not None and found[1] < least:
            best, least, swapped = found
    return best, swapped


def regress(
    inputs: Floats, rows: Integers, regret: Doubles, *, num_terms: int, scale: Scale
) -> list[tuple[Integers, Doubles]]:
    """Inputs and standardised weights of a test of ``num_terms`` terms; nothing where all want one side."""
    right, amount = (regret > 0).astype(np.float64), np.abs(regret)
    amount = amount / amount.sum()
    if not 0.0 < float(right @ amount) < 1.0 - 1e-12:
        return []
    features = np.flatnonzero(scale.spread)
    if len(features) > MAX_SCREENED:
        signed = amount * (right - right @ amount)
        agrees = np.abs(signed @ inputs[rows])[features] / scale.spread[features]
        features = features[np.sort(np.argsort(-agrees, kind="stable")[:MAX_SCREENED])]
    values = _standardised(inputs, rows, features, scale)
    weights, curvature = _logistic(values, right, amount, np.zeros(len(features) + 1))
    inverse = np.linalg.inv(curvature)
    stays = np.ones(len(features), bool)
    for _ in range(len(features) - num_terms):
        # The last column is the constant, which stays. What went is 0 in both from then on.
        worth = np.full(len(features), np.inf)
        worth[stays] = np.square(weights[:-1][stays]) / np.diag(inverse)[:-1][stays]
        out = int(worth.argmin())
        weights = weights - weights[out] / inverse[out, out] * inverse[:, out]
        inverse = inverse - np.outer(inverse[:, out], inverse[out] / inverse[out, out])
        stays[out] = False
    kept = np.flatnonzero(stays)
    weights, _ = _logistic(values[:, kept], right, amount, np.append(weights[kept], weights[-1]))
    return [(features[kept], weights[:-1])]


def _logistic(values: Doubles, right: Doubles, amount: Doubles, weights: Doubles) -> tuple[Doubles, Doubles]:
    """Newton's method from ``weights``, the constant last; the weights, and the curvature at them."""
    rows = np.concatenate([values, np.ones((len(values), 1))], axis=1)
    ridge = np.full(rows.shape[1], RIDGE)
    ridge[-1] = 1e-6
    for _ in range(MAX_STEPS):
        says = 1.0 / (1.0 + np.exp(-np.clip(rows @ weights, -30.0, 30.0)))
        slope = rows.T @ (amount * (says - right)) + ridge * weights
        bend = amount * np.maximum(says * (1.0 - says), 1e-4)
        curvature = (rows * bend[:, None]).T @ rows + np.diag(ridge)
        step = np.linalg.solve(curvature, slope)
        weights = weights - step
        if np.abs(step).max() < 1e-2:
            break
    return weights, curvature


def move_weights(values: Doubles, weights: Doubles, regret: Doubles) -> Doubles:
    """Moves one weight at a time to where the summed regret of what goes left is least."""
    weights = weights.copy()
    sums = values @ weights
    cost, threshold = best_cut(sums, regret)
    for _ in range(MAX_PASSES):
        before = cost
        for term in range(len(weights)):
            column = values[:, term]
            rest = sums - weights[term] * column
            moved = _best_weight(column, rest - threshold, regret)
            if moved is None:
                continue
            there = rest + moved * column
            found, at = best_cut(there, regret)
            if found < cost - 1e-12:
                weights[term], sums, cost, threshold = moved, there, found, at
        if cost > before - 1e-12:
            break
    return weights


def _best_weight(column: Doubles, rest: Doubles, regret: Doubles) -> float | None:
    """The ``w`` with the least regret of the points where ``w * column + rest <= 0``."""
    moves = np.abs(column) > 1e-9
    at = -rest[moves] / column[moves]
    # Passing its own value upwards, a point of positive column leaves the left side, another enters it.
    change = np.where(column[moves] > 0, -regret[moves], regret[moves])
    order = np.argsort(at, kind="stable")
    at, change = at[order], change[order]
    if len(at) < 2:
        return None
    costs = np.cumsum(change)[:-1]
    costs[at[1:] <= at[:-1] + 1e-9] = np.inf
    best = int(costs.argmin())
    return float(at[best] + at[best + 1]) / 2 if np.isfinite(costs[best]) else None


def best_cut(sums: Doubles, regret: Doubles) -> tuple[float, float]:
    """The least regret of what lies at or under a float32 threshold, and a threshold that gives it."""
    order = np.argsort(sums, kind="stable")
    ordered = sums[order]
    costs = np.cumsum(regret[order])[:-1]
    low, high = ordered[:-1], ordered[1:]
    with np.errstate(over="ignore"):
        middle = floor32((low + high) / 2).astype(np.float64)
    costs[~((low <= middle) & (middle < high))] = np.inf
    if not len(costs) or not np.isfinite(costs).any():
        return math.inf, 0.0
    best = int(costs.argmin())
    return float(costs[best]), float(middle[best])


def _standardised(inputs: Floats, rows: Integers, features: Integers, scale: Scale) -> Doubles:
    values = inputs[np.ix_(rows, features)].astype(np.float64)
    values -= scale.mean[features]
    values /= scale.spread[features]
    return values


def _as_shipped(
    features: Integers, weights: Doubles, inputs: Floats, rows: Integers, regret: Doubles, scale: Scale
) -> tuple[SumTest, float, bool] | None:
    """The test with readable numbers, its regret, and whether low sums go right.

    None where no float32 threshold parts anything.
    """
    order = np.argsort(-np.abs(weights), kind="stable")
    features, plain = features[order], weights[order] / scale.spread[features[order]]
    if not plain[0]:
        return None
    swapped = bool(plain[0] < 0)
    with np.errstate(over="ignore"):
        rounded = np.array([_significant(weight / plain[0]) for weight in plain], np.float32)
    kept = np.isfinite(rounded) & (np.abs(rounded) >= np.finfo(np.float32).tiny)
    features, numbers = features[kept], rounded[kept].astype(np.float64)
    sums = project(inputs, rows, features, numbers)
    cost, threshold = best_cut(sums, -regret if swapped else regret)
    if not math.isfinite(cost):
        return None
    if swapped:  # it is the others that go left
        cost += float(regret.sum())
    low = float(sums[sums <= threshold].max())
    high = float(sums[sums > threshold].min())
    test = SumTest(features=features, weights=numbers, threshold=shortest_between(low, high))
    return test, cost, swapped


def shortest_between(low: float, high: float) -> float:
    """A float32 ``t`` with ``low <= t < high``, of few decimals; the caller knows that there is one."""
    middle = float(floor32((low + high) / 2))
    first = -math.floor(math.log10(high - low)) - 1
    for decimals in range(first, first + _MAX_DECIMALS):
        value = float(np.float32(round(middle, decimals))) + 0.0  # no -0
        if low <= value < high:
            return value
    return middle


def _significant(value: float) -> float:
    """Rounded to ``NUM_DIGITS`` digits that count."""
    if not value or not math.isfinite(value):
        return 0.0
    return round(value, NUM_DIGITS - 1 - math.floor(math.log10(abs(value))))
