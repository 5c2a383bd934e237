"""Rules as people read them: ``if x[3] <= 0.7 and x[5] - 0.6 x[2] > 0.1 then class 2, 97 %``.

Rules: the text says all that decides, and no more than that: of several bounds on one input, or on the same
sum, the tightest stays; a sum is added from left to right, as it stands, its products exact; and numbers are
written so that they read back as the same float32. The inputs have the names that the dataset gave them; else
``x[row,column]`` in an image of one channel, ``x[i]`` in a row of values, and all indices in anything else.
The percentage is the probability that the rule gives its class.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgeloop.errors import RejectedError
from edgeloop.rules import RuleModel, RulesKind

#: More lines than anybody reads; boosted trees come by the thousand.
MAX_LINES = 20_000

#: (node, whether its test held), from the root on
Way = tuple[tuple[int, bool], ...]


def describe_rules(model: RuleModel) -> list[str]:
    """One line a rule. Raises ``RejectedError`` ("rules-text") for a model that is no list of rules."""
    if model.kind is RulesKind.RULE_LIST:
        return list(_list_lines(model))
    lines: list[str] = []
    for number, root in enumerate(model.roots.tolist()):
        if model.kind is RulesKind.BOOSTED:
            if not number:
                lines.append("each class begins at: " + ", ".join(map(_number, model.base)))
            lines.append(f"tree {number + 1} adds to class {int(model.tree_class[number])}:")
        for way, leaf in _ways(model, root):
            lines.append(f"{_conditions(model, way)} {_outcome(model, leaf)}")
            if len(lines) > MAX_LINES:
                raise RejectedError(f"the rules are more than {MAX_LINES} lines", code="rules-text")
    if model.kind is RulesKind.BOOSTED:
        lines.append("the class with the largest sum wins")
    return lines


def feature_name(model: RuleModel, feature: int) -> str:
    """What an input is called in the text."""
    if model.names:
        return model.names[model.used_features.index(feature)]
    shape = model.input_shape
    if len(shape) == 3 and shape[0] == 1:
        shape = shape[1:]
    return f"x[{','.join(str(int(index)) for index in np.unravel_index(feature, shape))}]"


def _ways(model: RuleModel, root: int) -> Iterator[tuple[Way, int]]:
    """The way to each leaf, left before right."""
    pending: list[tuple[int, Way]] = [(root, ())]
    while pending:
        reference, way = pending.pop()
        if reference < 0:
            yield way, ~reference
            continue
        pending.append((int(model.right[reference]), (*way, (reference, False))))
        pending.append((int(model.left[reference]), (*way, (reference, True))))


def _conditions(model: RuleModel, way: Way) -> str:
    bounds: dict[tuple[str, bool], float] = {}
    for node, held in way:
        key, threshold = (_tested(model, node), held), float(model.threshold[node])
        known = bounds.get(key, threshold)
        bounds[key] = min(known, threshold) if held else max(known, threshold)
    if not bounds:
        return "always"
    return "if " + " and ".join(
        f"{tested} {'<=' if held else '>'} {_number(threshold)}"
        for (tested, held), threshold in bounds.items()
    )


def _tested(model: RuleModel, node: int) -> str:
    """What one node compares: an input, or ``x[3] - 0.6 x[2]``."""
    if not model.has_sums:
        return feature_name(model, int(model.feature[node]))
    begin, end = model.first_term[node : node + 2].tolist()
    text = ""
    for feature, weight in zip(model.feature[begin:end], model.weight[begin:end], strict=True):
        joint = (" - " if weight < 0 else " + ") if text else ("-" if weight < 0 else "")
        factor = "" if abs(weight) == 1 else f"{_number(abs(weight))} "
        text += f"{joint}{factor}{feature_name(model, int(feature))}"
    return text


def _outcome(model: RuleModel, leaf: int) -> str:
    values = model.leaves[leaf].astype(np.float64)
    if model.kind is RulesKind.BOOSTED:
        return f"then {'+' if values[0] >= 0 else ''}{_number(values[0])}"
    # The sum that the runtime makes, so that ties are broken alike.
    scores = (values + model.base.astype(np.float64)).astype(np.float32)
    shares = np.exp(scores.astype(np.float64) - scores.max())
    winner = int(scores.argmax())
    return f"then class {winner}, {shares[winner] / shares.sum():.0%}".replace("%", " %")


def _list_lines(model: RuleModel) -> Iterator[str]:
    default = len(model.leaves) - 1
    node = 0
    for number in range(default):
        way: list[tuple[int, bool]] = []
        holds = 0
        while holds != ~number:
            if node >= len(model.threshold):
                raise _no_list()
            successors = (int(model.left[node]), int(model.right[node]))
            holds = ~number if ~number in successors else node + 1
            if holds not in successors:
                raise _no_list()
            way.append((node, successors[0] == holds))
            node += 1
        fails = node if number + 1 < default else -1 - default
        if any(int((model.right if held else model.left)[at]) != fails for at, held in way):
            raise _no_list()
        yield ("" if not number else "else ") + f"{_conditions(model, tuple(way))} {_outcome(model, number)}"
    if node != len(model.threshold):
        raise _no_list()
    yield ("else " if default else "always ") + _outcome(model, default).removeprefix("then ")


def _number(value: float | np.floating) -> str:
    """The shortest text that reads back as the same float32."""
    return np.format_float_positional(np.float32(value), unique=True, trim="-")


def _no_list() -> RejectedError:
    return RejectedError("the nodes are no list of rules: build the artifact again", code="rules-text")
