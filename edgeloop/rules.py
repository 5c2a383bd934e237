"""Decision rules as an artifact: trees, boosted trees and rule lists in one small binary format.

Rules kept here:

- One format holds all kinds: nodes that test ``x[feature] <= threshold`` (then left, else right; NaN goes
  right), and leaves. A reference at or over 0 is a node, one below 0 the leaf ``-1 - reference``. A node
  refers only to nodes behind it, so that every walk ends; nodes may share a successor, which is how a rule
  list falls through to its next rule.
- Scores are read as logits, as a network's are: the softmax of them is the probability of each class. A
  tree's or a rule list's leaf holds one score a class; a leaf of boosted trees holds one number, which its
  tree adds to one class.
- Inputs are float32 and so are thresholds, and sums are float64: the same bytes give the same decision on
  every processor.
- What comes from outside passes every bound or becomes no value: ``RejectedError``, "rules-version" or
  "rules-malformed". Sizes are checked against the bytes before anything is made of them, and the longest walk
  against ``MAX_STEPS``.
- ``decode(encode(model))`` gives the same model, and ``encode`` holds to the same checks as ``decode``.

Layout, version 1, little-endian: magic ``EDGERULE``, u16 version, u8 kind, u8 rank; u32 each: classes, trees,
nodes, leaves, bytes of names; u32 for each dimension of one sample; then float32 base[classes], int32
root[trees], (boosted) int32 class[trees], int32 feature[nodes], float32 threshold[nodes], int32 left[nodes],
int32 right[nodes], float32 leaf[leaves, width], and the names of the inputs that are tested, ascending,
UTF-8, one a line, or nothing.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgeloop.errors import RejectedError

MAGIC: Final = b"EDGERULE"
VERSION: Final = 1
MAX_RANK: Final = 7
MAX_DIMENSION: Final = 65_536
MAX_FEATURES: Final = 1 << 24
MAX_CLASSES: Final = 65_536
MAX_TREES: Final = 1 << 14
MAX_NODES: Final = 1 << 18
MAX_LEAVES: Final = 1 << 18
#: Of one sample, over all trees: a second or so on a slow gateway.
MAX_STEPS: Final = 1 << 20
#: No score is near it; sums of them stay finite.
MAX_SCORE: Final = 1e6
MAX_NAMES_BYTES: Final = 1 << 20
MAX_NAME_CHARS: Final = 64

_HEAD = struct.Struct("<8sHBBIIIII")


class RulesKind(StrEnum):
    """What the nodes mean together."""

    TREE = "tree"  # one tree
    BOOSTED = "boosted"  # many trees, each of which adds to one class
    RULE_LIST = "rule-list"  # rules in order: the first that fits decides


_CODES: Final = {RulesKind.TREE: 1, RulesKind.BOOSTED: 2, RulesKind.RULE_LIST: 3}
_KINDS: Final = {code: kind for kind, code in _CODES.items()}


def _empty() -> NDArray[np.int32]:
    return np.zeros(0, np.int32)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RuleModel:
    """A model of rules. ``leaves`` is ``[leaves, classes]``; of boosted trees ``[leaves, 1]``.

    ``tree_class`` says to which class each boosted tree adds; other kinds leave it empty. ``names`` holds one
    name for each input that is tested, in ascending order, or nothing.
    """

    kind: RulesKind
    input_shape: tuple[int, ...]
    num_classes: int
    base: NDArray[np.float32]
    roots: NDArray[np.int32]
    feature: NDArray[np.int32]
    threshold: NDArray[np.float32]
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    leaves: NDArray[np.float32]
    tree_class: NDArray[np.int32] = field(default_factory=_empty)
    names: tuple[str, ...] = ()

    @property
    def num_features(self) -> int:
        return math.prod(self.input_shape)

    @property
    def used_features(self) -> list[int]:
        """Inputs that are tested, ascending."""
        return [int(number) for number in np.unique(self.feature)]

    @property
    def num_numbers(self) -> int:
        """Thresholds and leaf values: what a network's weights are to it."""
        return len(self.threshold) + int(self.leaves.size)


def is_rules(data: bytes) -> bool:
    """Whether the bytes claim to be of this format."""
    return data[: len(MAGIC)] == MAGIC


def floor32(values: Any) -> NDArray[np.float32]:
    """The largest float32 at or below each value.

    For a float32 ``x``, ``x <= floor32(t)`` holds exactly when ``x <= t``: so thresholds that were fitted in
    float64 lose nothing.
    """
    wide = np.asarray(values, np.float64)
    narrow = wide.astype(np.float32)
    return np.where(narrow > wide, np.nextafter(narrow, np.float32(-np.inf)), narrow)


def encode(model: RuleModel) -> bytes:
    """The artifact's bytes. Raises ``RejectedError`` when a device would refuse them."""
    longest_walk(model)
    names = "\n".join(model.names).encode()
    head = _HEAD.pack(
        MAGIC,
        VERSION,
        _CODES[model.kind],
        len(model.input_shape),
        model.num_classes,
        len(model.roots),
        len(model.feature),
        len(model.leaves),
        len(names),
    )
    shape = struct.pack(f"<{len(model.input_shape)}I", *model.input_shape)
    parts: list[NDArray[Any]] = [model.base, model.roots]
    if model.kind is RulesKind.BOOSTED:
        parts.append(model.tree_class)
    parts += [model.feature, model.threshold, model.left, model.right, model.leaves]
    body = b"".join(np.ascontiguousarray(part, part.dtype.newbyteorder("<")).tobytes() for part in parts)
    return head + shape + body + names


def decode(data: bytes) -> RuleModel:
    """Read an artifact. Raises ``RejectedError``: "rules-version" or "rules-malformed"."""
    model, _ = read(data)
    return model


def read(data: bytes) -> tuple[RuleModel, list[int]]:
    """``decode``, and the longest walk through each tree. Raises ``RejectedError`` as it does."""
    if not is_rules(data) or len(data) < _HEAD.size:
        raise _malformed("header", f"{len(data)} bytes that do not begin as rules do")
    _, version, code, rank, num_classes, num_trees, num_nodes, num_leaves, num_name_bytes = _HEAD.unpack_from(
        data
    )
    if version != VERSION:
        raise RejectedError(
            f"the rules are of format version {version}, this side reads {VERSION}: update the older side",
            code="rules-version",
        )
    if code not in _KINDS:
        raise _malformed("kind", str(code))
    kind = _KINDS[code]
    _bound("rank", rank, 1, MAX_RANK)
    _bound("classes", num_classes, 2, MAX_CLASSES)
    _bound("trees", num_trees, 1, MAX_TREES)
    _bound("nodes", num_nodes, 0, MAX_NODES)
    _bound("leaves", num_leaves, 1, MAX_LEAVES)
    _bound("bytes of names", num_name_bytes, 0, MAX_NAMES_BYTES)
    boosted = kind is RulesKind.BOOSTED
    width = 1 if boosted else num_classes
    numbers = num_classes + num_trees * (2 if boosted else 1) + 4 * num_nodes + num_leaves * width
    wanted = _HEAD.size + 4 * rank + 4 * numbers + num_name_bytes
    if len(data) != wanted:
        raise _malformed("length", f"{len(data)} bytes where the header says {wanted}")
    shape = struct.unpack_from(f"<{rank}I", data, _HEAD.size)
    at = _HEAD.size + 4 * rank

    def take(count: int, dtype: type[np.generic]) -> NDArray[Any]:
        nonlocal at
        wire = np.dtype(dtype).newbyteorder("<")
        array = np.frombuffer(data, wire, count, at).astype(dtype)
        at += 4 * count
        return array

    model = RuleModel(
        kind=kind,
        input_shape=shape,
        num_classes=num_classes,
        base=take(num_classes, np.float32),
        roots=take(num_trees, np.int32),
        tree_class=take(num_trees, np.int32) if boosted else _empty(),
        feature=take(num_nodes, np.int32),
        threshold=take(num_nodes, np.float32),
        left=take(num_nodes, np.int32),
        right=take(num_nodes, np.int32),
        leaves=take(num_leaves * width, np.float32).reshape(num_leaves, width),
        names=_read_names(data[at:]),
    )
    return model, longest_walk(model)


def longest_walk(model: RuleModel) -> list[int]:
    """Most nodes that one sample passes in each tree.

    Checks the whole model on the way: raises ``RejectedError`` ("rules-malformed").
    """
    _check_shape(model)
    num_nodes, num_leaves = len(model.feature), len(model.leaves)
    for name, values in (("base", model.base), ("threshold", model.threshold), ("leaf", model.leaves)):
        if not np.isfinite(values).all():
            raise _malformed(name, "not a finite number")
    for name, values in (("base", model.base), ("leaf", model.leaves)):
        if np.abs(values).max(initial=0.0) > MAX_SCORE:
            raise _malformed(name, f"a score beyond {MAX_SCORE:g}")
    if num_nodes and not 0 <= model.feature.min() <= model.feature.max() < model.num_features:
        raise _malformed("feature", f"outside of the {model.num_features} inputs")
    own = np.arange(num_nodes)
    for name, references in (("left", model.left), ("right", model.right)):
        if not ((references < 0) | (references > own)).all():
            raise _malformed(name, "a node that is not behind its own")
        _check_references(name, references, num_nodes, num_leaves)
    _check_references("root", model.roots, num_nodes, num_leaves)
    used = model.used_features
    if model.names and len(model.names) != len(used):
        raise _malformed("names", f"{len(model.names)} of them for {len(used)} inputs that are tested")
    steps = [0] * num_nodes
    left, right = model.left.tolist(), model.right.tolist()
    for node in range(num_nodes - 1, -1, -1):
        one, other = left[node], right[node]
        steps[node] = 1 + max(steps[one] if one >= 0 else 0, steps[other] if other >= 0 else 0)
    walks = [steps[root] if root >= 0 else 0 for root in model.roots.tolist()]
    if sum(walks) > MAX_STEPS:
        raise _malformed("nodes", f"a walk of {sum(walks)} steps, at most {MAX_STEPS} are allowed")
    return walks


def _check_shape(model: RuleModel) -> None:
    """That the parts fit together and stay within what ``read`` takes."""
    _bound("rank", len(model.input_shape), 1, MAX_RANK)
    for dimension in model.input_shape:
        _bound("dimension", dimension, 1, MAX_DIMENSION)
    _bound("inputs", model.num_features, 1, MAX_FEATURES)
    _bound("classes", model.num_classes, 2, MAX_CLASSES)
    boosted = model.kind is RulesKind.BOOSTED
    _bound("trees", len(model.roots), 1, MAX_TREES if boosted else 1)
    _bound("nodes", len(model.feature), 0, MAX_NODES)
    _bound("leaves", len(model.leaves), 1, MAX_LEAVES)
    if model.base.shape != (model.num_classes,):
        raise _malformed("base", f"{model.base.shape} for {model.num_classes} classes")
    if model.leaves.shape[1:] != (1 if boosted else model.num_classes,):
        raise _malformed("leaf", f"{model.leaves.shape[1:]} numbers for {model.num_classes} classes")
    lengths = {len(part) for part in (model.feature, model.threshold, model.left, model.right)}
    if len(lengths) != 1:
        raise _malformed("nodes", f"parts of different length {sorted(lengths)}")
    if len(model.tree_class) != (len(model.roots) if boosted else 0):
        raise _malformed("class", f"{len(model.tree_class)} for {len(model.roots)} trees")
    if boosted and not 0 <= model.tree_class.min() <= model.tree_class.max() < model.num_classes:
        raise _malformed("class", f"outside of the {model.num_classes} classes")
    if len("\n".join(model.names).encode()) > MAX_NAMES_BYTES:
        raise _malformed("names", f"more than {MAX_NAMES_BYTES} bytes of them")
    for name in model.names:
        if not 1 <= len(name) <= MAX_NAME_CHARS or not name.isprintable():
            raise _malformed(
                "names", f"{name[:MAX_NAME_CHARS]!r}; 1 to {MAX_NAME_CHARS} printable characters"
            )


def _check_references(name: str, references: NDArray[np.int32], num_nodes: int, num_leaves: int) -> None:
    if len(references) and not -num_leaves <= references.min() <= references.max() < num_nodes:
        raise _malformed(name, f"outside of {num_nodes} nodes and {num_leaves} leaves")


def _read_names(raw: bytes) -> tuple[str, ...]:
    try:
        return tuple(raw.decode().split("\n")) if raw else ()
    except UnicodeDecodeError:
        raise _malformed("names", "no UTF-8 text") from None


def _bound(what: str, found: int, low: int, high: int) -> None:
    if not low <= found <= high:
        raise _malformed(what, f"{found}; {low} to {high} are allowed")


def _malformed(what: str, problem: str) -> RejectedError:
    return RejectedError(f"the rules' {what}: {problem}; build the artifact again", code="rules-malformed")
