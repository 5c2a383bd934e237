"""Decision rules as an artifact: trees, boosted trees and rule lists in one small binary format.

Rules kept here:

- One format holds all kinds: nodes that test ``x[feature] <= threshold`` (then left, else right; NaN goes
  right), or a weighted sum of at most ``MAX_TERMS`` inputs in the place of one, and leaves. A reference at or
  over 0 is a node, one below 0 the leaf ``-1 - reference``. A node refers only to nodes behind it, so that
  every walk ends; nodes may share a successor, which is how a rule list falls through to its next rule.
- Scores are read as logits, as a network's are: the softmax of them is the probability of each class. A
  tree's or a rule list's leaf holds one score a class; a leaf of boosted trees holds one number, which its
  tree adds to one class.
- Inputs are float32 and so are thresholds and weights, and sums are float64, added in the order of the terms
  (a product of two float32 is exact in it): the same bytes give the same decision on every processor.
- What comes from outside passes every bound or becomes no value: ``RejectedError``, "rules-version" or
  "rules-malformed". Sizes are checked against the bytes before anything is made of them, and the longest walk
  against ``MAX_STEPS``.
- ``decode(encode(model))`` gives the same model, and ``encode`` holds to the same checks as ``decode``. What
  tests single inputs is written in version 1, which every agent reads; sums of inputs need version 2, which
  an older agent refuses by name.

Layout, version 1, little-endian: magic ``EDGERULE``, u16 version, u8 kind, u8 rank; u32 each: classes, trees,
nodes, leaves, bytes of names; u32 for each dimension of one sample; then float32 base[classes], int32
root[trees], (boosted) int32 class[trees], int32 feature[nodes], float32 threshold[nodes], int32 left[nodes],
int32 right[nodes], float32 leaf[leaves, width], and the names of the inputs that are tested, ascending,
UTF-8, one a line, or nothing. Version 2 has u32 terms behind the bytes of names, u8 terms[nodes] and float32
weight[terms] around the features, of which there is one for each term, those of a node in a row.
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
#: Of what tests single inputs, and of what tests sums of inputs.
VERSION: Final = 1
TERMS_VERSION: Final = 2
MAX_RANK: Final = 7
MAX_DIMENSION: Final = 65_536
MAX_FEATURES: Final = 1 << 24
MAX_CLASSES: Final = 65_536
MAX_TREES: Final = 1 << 14
MAX_NODES: Final = 1 << 18
MAX_LEAVES: Final = 1 << 18
#: Of one test: more of them nobody reads.
MAX_TERMS: Final = 8
#: Of one sample, over all trees: a second or so on a slow gateway.
MAX_STEPS: Final = 1 << 20
#: No score is near it; sums of them stay finite.
MAX_SCORE: Final = 1e6
MAX_NAMES_BYTES: Final = 1 << 20
MAX_NAME_CHARS: Final = 64

_HEAD = struct.Struct("<8sHBBIIIII")
_NUM_TERMS = struct.Struct("<I")


class RulesKind(StrEnum):
    """What the nodes mean together."""

    TREE = "tree"  # one tree
    BOOSTED = "boosted"  # many trees, each of which adds to one class
    RULE_LIST = "rule-list"  # rules in order: the first that fits decides


_CODES: Final = {RulesKind.TREE: 1, RulesKind.BOOSTED: 2, RulesKind.RULE_LIST: 3}
_KINDS: Final = {code: kind for kind, code in _CODES.items()}


def _empty() -> NDArray[np.int32]:
    return np.zeros(0, np.int32)


def _no_weights() -> NDArray[np.float32]:
    return np.zeros(0, np.float32)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RuleModel:
    """A model of rules. ``leaves`` is ``[leaves, classes]``; of boosted trees ``[leaves, 1]``.

    ``tree_class`` says to which class each boosted tree adds; other kinds leave it empty. ``names`` holds one
    name for each input that is tested, in ascending order, or nothing.

    ``feature`` has one input for each node. Where nodes test sums, ``num_terms`` says of how many inputs
    each, and ``feature`` and ``weight`` have one entry for each term, those of a node in a row; else
    ``num_terms`` and ``weight`` are empty.
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
    num_terms: NDArray[np.int32] = field(default_factory=_empty)
    weight: NDArray[np.float32] = field(default_factory=_no_weights)

    @property
    def has_sums(self) -> bool:
        """Whether nodes test weighted sums."""
        return len(self.num_terms) > 0

    @property
    def first_term(self) -> NDArray[np.int64]:
        """Where each node's terms begin in ``feature``; one more entry says where the last one's end."""
        ends = np.cumsum(self.num_terms if self.has_sums else np.ones(len(self.threshold)), dtype=np.int64)
        return np.concatenate([np.zeros(1, np.int64), ends])

    @property
    def num_features(self) -> int:
        return math.prod(self.input_shape)

    @property
    def used_features(self) -> list[int]:
        """Inputs that are tested, ascending."""
        return [int(number) for number in np.unique(self.feature)]

    @property
    def num_numbers(self) -> int:
        """Thresholds, weights and leaf values: what a network's weights are to it."""
        return len(self.threshold) + len(self.weight) + int(self.leaves.size)


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
        TERMS_VERSION if model.has_sums else VERSION,
        _CODES[model.kind],
        len(model.input_shape),
        model.num_classes,
        len(model.roots),
        len(model.threshold),
        len(model.leaves),
        len(names),
    )
    if model.has_sums:
        head += _NUM_TERMS.pack(len(model.feature))
    shape = struct.pack(f"<{len(model.input_shape)}I", *model.input_shape)
    parts: list[NDArray[Any]] = [model.base, model.roots]
    if model.kind is RulesKind.BOOSTED:
        parts.append(model.tree_class)
    if model.has_sums:
        parts += [model.num_terms.astype(np.uint8), model.feature, model.weight]
    else:
        parts.append(model.feature)
    parts += [model.threshold, model.left, model.right, model.leaves]
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
    if version not in (VERSION, TERMS_VERSION):
        raise RejectedError(
            f"the rules are of format version {version}, this side reads {VERSION} and {TERMS_VERSION}: "
            "update the older side",
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
    has_sums, at, num_terms, around_terms = version == TERMS_VERSION, _HEAD.size, num_nodes, 0
    if has_sums:
        if len(data) < _HEAD.size + _NUM_TERMS.size:
            raise _malformed("header", f"{len(data)} bytes that end within it")
        (num_terms,) = _NUM_TERMS.unpack_from(data, at)
        at += _NUM_TERMS.size
        _bound("nodes", num_nodes, 1, MAX_NODES)  # what has no sums is of version 1
        _bound("terms", num_terms, num_nodes, MAX_TERMS * num_nodes)
        around_terms = num_nodes + 4 * num_terms
    boosted = kind is RulesKind.BOOSTED
    width = 1 if boosted else num_classes
    numbers = num_classes + num_trees * (2 if boosted else 1) + num_terms + 3 * num_nodes + num_leaves * width
    wanted = at + 4 * rank + 4 * numbers + around_terms + num_name_bytes
    if len(data) != wanted:
        raise _malformed("length", f"{len(data)} bytes where the header says {wanted}")
    shape = struct.unpack_from(f"<{rank}I", data, at)
    at += 4 * rank

    def take(count: int, dtype: type[np.generic]) -> NDArray[Any]:
        nonlocal at
        wire = np.dtype(dtype).newbyteorder("<")
        array = np.frombuffer(data, wire, count, at).astype(dtype)
        at += wire.itemsize * count
        return array

    model = RuleModel(
        kind=kind,
        input_shape=shape,
        num_classes=num_classes,
        base=take(num_classes, np.float32),
        roots=take(num_trees, np.int32),
        tree_class=take(num_trees, np.int32) if boosted else _empty(),
        num_terms=take(num_nodes, np.uint8).astype(np.int32) if has_sums else _empty(),
        feature=take(num_terms, np.int32),
        weight=take(num_terms, np.float32) if has_sums else _no_weights(),
        threshold=take(num_nodes, np.float32),
        left=take(num_nodes, np.int32),
        right=take(num_nodes, np.int32),
        leaves=take(num_leaves * width, np.float32).reshape(num_leaves, width),
        names=_read_names(data[at:]),
    )
    return model, longest_walk(model)


def longest_walk(model: RuleModel) -> list[int]:
    """Most terms that one sample passes in each tree: nodes, where each of them tests one input.

    Checks the whole model on the way: raises ``RejectedError`` ("rules-malformed").
    """
    _check_shape(model)
    num_nodes, num_leaves = len(model.threshold), len(model.leaves)
    for name, values in (
        ("base", model.base),
        ("threshold", model.threshold),
        ("weight", model.weight),
        ("leaf", model.leaves),
    ):
        if not np.isfinite(values).all():
            raise _malformed(name, "not a finite number")
    for name, values in (("base", model.base), ("leaf", model.leaves)):
        if np.abs(values).max(initial=0.0) > MAX_SCORE:
            raise _malformed(name, f"a score beyond {MAX_SCORE:g}")
    if num_nodes and not 0 <= model.feature.min() <= model.feature.max() < model.num_features:
        raise _malformed("feature", f"outside of the {model.num_features} inputs")
    if model.has_sums:
        _check_terms(model)
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
    costs = model.num_terms.tolist() if model.has_sums else [1] * num_nodes
    for node in range(num_nodes - 1, -1, -1):
        one, other = left[node], right[node]
        steps[node] = costs[node] + max(steps[one] if one >= 0 else 0, steps[other] if other >= 0 else 0)
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
    _bound("nodes", len(model.threshold), 0, MAX_NODES)
    _bound("leaves", len(model.leaves), 1, MAX_LEAVES)
    if model.base.shape != (model.num_classes,):
        raise _malformed("base", f"{model.base.shape} for {model.num_classes} classes")
    if model.leaves.shape[1:] != (1 if boosted else model.num_classes,):
        raise _malformed("leaf", f"{model.leaves.shape[1:]} numbers for {model.num_classes} classes")
    terms = (model.feature, model.weight) if model.has_sums else (model.feature,)
    nodes = (model.num_terms,) if model.has_sums else terms
    lengths = {len(part) for part in (*nodes, model.threshold, model.left, model.right)}
    if len(lengths) != 1:
        raise _malformed("nodes", f"parts of different length {sorted(lengths)}")
    if model.has_sums:
        low, high = int(model.num_terms.min()), int(model.num_terms.max())
        if not 1 <= low <= high <= MAX_TERMS:
            raise _malformed("terms", f"{low} to {high} in a node; 1 to {MAX_TERMS} are allowed")
    if {len(part) for part in terms} != {int(model.first_term[-1])}:
        raise _malformed("terms", f"{len(model.feature)} inputs and {len(model.weight)} weights for them")
    if not model.has_sums and len(model.weight):
        raise _malformed("terms", f"{len(model.weight)} weights in nodes of single inputs")
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


def _check_terms(model: RuleModel) -> None:
    """That no weight is nothing, and that no sum has an input twice: the text says each once."""
    if not model.weight.all():
        raise _malformed("weight", "0, which says nothing")
    owner = np.repeat(np.arange(len(model.threshold)), model.num_terms)
    if len(np.unique(owner * model.num_features + model.feature)) != len(model.feature):
        raise _malformed("terms", "the same input twice in one test")


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
