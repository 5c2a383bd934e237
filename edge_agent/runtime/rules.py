"""Decision rules behind the same port as networks: numpy alone, no code from the file.

Rules that this module keeps:

- What is loaded has passed every check of ``edgeloop.rules``: no index needs checking at run time, and every
  walk ends.
- A sample on its own walks node by node in plain Python, which on the few nodes of a tree is faster than one
  numpy call; many trees, and many samples, go one level at a time through numpy. Both ways give the same
  bytes.
- A weighted sum is added term by term in float64, in the order of its terms: products of float32 numbers are
  exact there, so that no order of rounding is left to a processor or to a library.
- Nothing is changed by a run: calls from many threads need no lock.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from edgeloop import rules
from edgeloop.errors import RejectedError

Array = NDArray[np.float32]

INPUT_NAME = "input"
OUTPUT_NAME = "logits"
#: Up to so many steps a sample, Python beats numpy.
MAX_PYTHON_STEPS = 300
#: Walks at once, so that a large batch on many trees needs little memory.
_MAX_WALKS = 1 << 18


class RulesRuntime:
    """One model of rules; made by ``load_rules``."""

    def __init__(self, model: rules.RuleModel, walks: list[int]) -> None:
        self.input_name, self.output_name = INPUT_NAME, OUTPUT_NAME
        self.sample_shape = model.input_shape
        self.input_shape = (0, *model.input_shape)
        self.output_shape = (0, model.num_classes)
        self._feature, self._threshold = model.feature, model.threshold
        self._has_sums = model.has_sums
        # One array, the right successors behind the left ones: a comparison is then an index.
        self._next = np.concatenate([model.right, model.left]).astype(np.intp)
        self._base = model.base.astype(np.float64)
        self._adds = model.kind is rules.RulesKind.BOOSTED
        self._roots = model.roots.astype(np.intp)
        if self._adds:
            self._tree_class = model.tree_class.astype(np.intp)
            self._leaves = model.leaves[:, 0].astype(np.float64)
        else:
            scores = model.leaves.astype(np.float64) + self._base
            self._scores: Array = scores.astype(np.float32)
        self._in_python = sum(walks) <= MAX_PYTHON_STEPS
        if self._in_python:
            tested = _terms(model) if self._has_sums else model.feature.tolist()
            successors = zip(model.left.tolist(), model.right.tolist(), strict=True)
            self._nodes = [
                (what, threshold, left, right)
                for what, threshold, (left, right) in zip(
                    tested, model.threshold.tolist(), successors, strict=True
                )
            ]
            self._root_list: list[int] = self._roots.tolist()
        if self._has_sums:
            self._set_columns(model)

    def run(self, inputs: Array) -> Array:
        """Scores [n, classes] for ``inputs`` [n, ...]."""
        if inputs.dtype != np.float32:
            raise RejectedError(f"inputs are {inputs.dtype}, the model takes float32", code="input-type")
        if inputs.shape[1:] != self.sample_shape or not inputs.shape[0]:
            raise RejectedError(
                f"inputs have shape {list(inputs.shape)}, the model takes [n, "
                f"{', '.join(map(str, self.sample_shape))}] with n of at least 1",
                code="input-shape",
            )
        rows = inputs.reshape(len(inputs), -1)
        if len(rows) == 1 and self._in_python:
            walk = self._walk_sums if self._has_sums else self._walk
            leaves = np.array([[walk(rows[0], root) for root in self._root_list]])
            return self._score(leaves)
        step = max(1, _MAX_WALKS // len(self._roots))
        if len(rows) <= step:
            return self._score(self._walk_all(rows))
        return np.concatenate(
            [self._score(self._walk_all(rows[start : start + step])) for start in range(0, len(rows), step)]
        )

    def _walk(self, row: Array, at: int) -> int:
        """The leaf that one sample reaches from ``at``."""
        nodes, value = self._nodes, row.item
        while at >= 0:
            feature, threshold, left, right = nodes[at]
            at = left if value(feature) <= threshold else right
        return ~at

    def _walk_sums(self, row: Array, at: int) -> int:
        """``_walk``, where nodes test weighted sums."""
        nodes, value = self._nodes, row.item
        while at >= 0:
            terms, threshold, left, right = nodes[at]
            total = 0.0
            for feature, weight in terms:
                total += weight * value(feature)
            at = left if total <= threshold else right
        return ~at

    def _set_columns(self, model: rules.RuleModel) -> None:
        """Keeps the first term of all nodes, the second of those that have one, and so on."""
        first, most = model.first_term[:-1], int(model.num_terms.max())
        self._columns = []
        for place in range(most):
            has = model.num_terms > place
            term = np.where(has, first + place, 0)
            weight = model.weight[term].astype(np.float64)
            self._columns.append((model.feature[term].astype(np.intp), weight, has))

    def _sum_terms(
        self, flat: Array, offsets: NDArray[np.intp], nodes: NDArray[np.intp]
    ) -> NDArray[np.float64]:
        """The weighted sum that each of ``nodes`` tests, of the sample that begins at its offset."""
        feature, weight, _ = self._columns[0]
        totals: NDArray[np.float64] = weight[nodes] * flat[offsets + feature[nodes]]
        for feature, weight, has in self._columns[1:]:
            # Not a weight of 0 where there is no such term: times infinity, that is no number.
            products = weight[nodes] * flat[offsets + feature[nodes]]
            totals = np.where(has[nodes], totals + products, totals)
        return totals

    def _walk_all(self, rows: Array) -> NDArray[np.intp]:
        """The leaf of each sample in each tree, ``[n, trees]``."""
        at = np.tile(self._roots, len(rows))
        flat, num_nodes = np.ravel(rows), len(self._threshold)
        moving = np.flatnonzero(at >= 0)
        nodes = at[moving]
        offsets = moving // len(self._roots) * rows.shape[1]
        while len(moving):
            if self._has_sums:
                with np.errstate(invalid="ignore"):  # infinity less infinity goes right, as NaN does
                    values = self._sum_terms(flat, offsets, nodes)
            else:
                values = flat[offsets + self._feature[nodes]]
            lower = values <= self._threshold[nodes]
            nodes = self._next[nodes + num_nodes * lower]
            arrived = nodes < 0
            if arrived.any():
                at[moving[arrived]] = nodes[arrived]
                still = ~arrived
                moving, nodes, offsets = moving[still], nodes[still], offsets[still]
        return ~at.reshape(len(rows), -1)

    def _score(self, leaves: NDArray[np.intp]) -> Array:
        """Scores for the leaves that samples reached, ``[n, trees]``."""
        if not self._adds:
            return self._scores[leaves[:, 0]]
        # Adds one after the other, in the order of the trees, so that a batch gives what one sample gives.
        count, num_classes = len(leaves), len(self._base)
        cells = (np.arange(count) * num_classes)[:, None] + self._tree_class
        sums = np.bincount(cells.ravel(), self._leaves[leaves].ravel(), count * num_classes)
        return (sums.reshape(count, num_classes) + self._base).astype(np.float32)


def _terms(model: rules.RuleModel) -> list[tuple[tuple[int, float], ...]]:
    """Of each node its inputs and weights."""
    pairs = list(zip(model.feature.tolist(), model.weight.tolist(), strict=True))
    ends = model.first_term.tolist()
    return [tuple(pairs[begin:end]) for begin, end in pairwise(ends)]


def load_rules(data: bytes) -> RulesRuntime:
    """Loads rules. Raises ``RejectedError``: "rules-version" or "rules-malformed"."""
    return RulesRuntime(*rules.read(data))
