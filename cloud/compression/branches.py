"""Branches of a network beside shortcuts: which there are, and the network without some of them.

What may go is one side of an addition ``a + b`` of equal shapes:

- ``x + f(x)``: ``f`` goes and ``x`` stays (blocks of ResNet and MobileNetV2, attention, MLP);
- ``g(x) + f(x)``, both computed from the same ``x`` alone: the side of more layers goes. The other keeps what
  the sum had: its shape, its stride, its view of the input (the 1x1 convolution of a ResNet's first blocks).

Rules: nothing inside what goes is used elsewhere; it holds a layer; nothing in it changes ``x`` in place.
The shorter network computes what the full one computes with that side replaced by zeros. It is the traced
graph of the network without what nothing reads any more, in evaluation mode (a dropout that is called as a
function does nothing in it). The network given is not changed. At least one branch stays.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn import functional

from cloud.compression.channels import argument, tensor_shape
from cloud.compression.dependency import trace
from cloud.domain.specs import count_branches_kept
from edgeloop.errors import ConfigError

_ADDITIONS = frozenset({operator.add, operator.iadd, torch.add, "add", "add_"})
#: What changes nothing when it is applied twice, by module, function and method.
_RELU = (nn.ReLU, frozenset({torch.relu, functional.relu, "relu", "relu_"}))
_RELU6 = (nn.ReLU6, frozenset({functional.relu6}))
#: What keeps values between the bounds that they have.
_BOUNDED = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.Dropout, nn.Identity)


@dataclass(frozen=True, kw_only=True, slots=True)
class Branch:
    """One side of an addition that may be left out. ``layers`` are those that go with it, in their order.

    ``addition`` and ``kept`` are nodes of the network's graph: the sum, and the side that stands for it then.
    ``beside_identity`` tells ``x + f(x)`` from ``g(x) + f(x)``.
    """

    layers: tuple[str, ...]
    addition: str
    kept: str
    beside_identity: bool

    @property
    def name(self) -> str:
        """The module that all its layers are in, else its first layer."""
        return _common_name(self.layers)


def find_branches(model: nn.Module, input_shape: Sequence[int]) -> tuple[Branch, ...]:
    """All that may be left out, in the order of the network. Raises ``ConfigError`` where it has no graph."""
    traced = trace(model, input_shape)
    modules = dict(traced.named_modules())
    return tuple(_branches(traced.graph, modules))


def check_depth(num_branches: int, depth_ratio: float, network: str) -> int:
    """How many branches stay. Raises ``ConfigError`` when that leaves the network as deep as it is."""
    kept = count_branches_kept(num_branches, depth_ratio)
    if kept < num_branches:
        return kept
    if num_branches < 2:
        has = (
            "no branch beside a shortcut" if not num_branches else "one branch beside a shortcut, which stays"
        )
        todo = "leave depth_ratio out, and make it narrower by width_ratio"
    else:
        has = f"{num_branches} branches beside a shortcut, and so much of them is all"
        todo = f"give at most {(num_branches - 1) / num_branches:.3g}"
    raise ConfigError(
        f"depth_ratio is {depth_ratio:g}: {network} has {has}; {todo}", code="teacher-not-shortenable"
    )


def remove_branch(model: nn.Module, branch: Branch, input_shape: Sequence[int]) -> nn.Module:
    """A copy of ``model`` without it, and without all that only it needed."""
    traced = trace(model, input_shape)
    nodes = {node.name: node for node in traced.graph.nodes}
    _keep_one_side(traced, nodes[branch.addition], nodes[branch.kept])
    return _as_module(traced, model)


def remove_shortcuts(model: nn.Module, input_shape: Sequence[int]) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """A copy of ``model`` in which branches stand alone, and the names of those that had a shortcut.

    Raises ``ConfigError`` where it has no graph.
    """
    traced = trace(model, input_shape)
    modules = dict(traced.named_modules())
    names = []
    while (found := next(_shortcuts(traced.graph, modules), None)) is not None:
        addition, branch, layers = found
        _keep_one_side(traced, addition, branch)
        names.append(_common_name(layers))
    return _as_module(traced, model), tuple(names)


def _keep_one_side(traced: fx.GraphModule, addition: fx.Node, kept: fx.Node) -> None:
    """Put ``kept`` in the place of the sum; what only the other side needed goes."""
    modules = dict(traced.named_modules())
    (gone,) = (side for side in _sides(addition) or () if side is not kept)
    unread = _unread(traced.graph, modules)
    inside = _inside(gone, addition, list(traced.graph.nodes), unread)
    readers = list(addition.users)
    addition.replace_all_uses_with(kept)
    for reader in readers:
        if _repeats(reader, kept, modules):
            reader.replace_all_uses_with(kept)
            traced.graph.erase_node(reader)
    for node in reversed(list(traced.graph.nodes)):
        if node is addition or node in inside or node in unread:
            traced.graph.erase_node(node)


def _as_module(traced: fx.GraphModule, model: nn.Module) -> fx.GraphModule:
    """A new module takes from the old one only what the graph still calls."""
    shorter = fx.GraphModule(traced, traced.graph, type(model).__name__)
    return shorter.to(next(model.parameters()).device).train(model.training)


def _common_name(layers: Sequence[str]) -> str:
    paths = [layer.split(".") for layer in layers]
    shared = [parts[0] for parts in zip(*paths, strict=False) if len(set(parts)) == 1]
    return ".".join(shared) or layers[0]


def without_branches(
    model: nn.Module, layers: Collection[tuple[str, ...]], input_shape: Sequence[int]
) -> nn.Module:
    """``model`` without the branches of these ``layers``; those that it does not have are passed over."""
    while found := next((one for one in find_branches(model, input_shape) if one.layers in layers), None):
        model = remove_branch(model, found, input_shape)
    return model


def absent_branches(branches: Sequence[Branch], state_names: Collection[str]) -> frozenset[tuple[str, ...]]:
    """Layers of those of which a network whose state has these names holds nothing."""
    return frozenset(
        branch.layers
        for branch in branches
        if not any(name.startswith(f"{layer}.") for layer in branch.layers for name in state_names)
    )


def _branches(graph: fx.Graph, modules: dict[str, nn.Module]) -> Iterator[Branch]:
    for node, sides, inner, layers in _sums(graph, modules):
        for out, stays in ((0, 1), (1, 0)):
            identity = _behind_identity(sides[stays], modules) in _sources(inner[out])
            if _may_go(inner[out], inner[stays], sides[stays], node, modules) and (
                identity or len(layers[out]) > len(layers[stays])
            ):
                if layers[out]:
                    yield Branch(
                        layers=layers[out],
                        addition=node.name,
                        kept=sides[stays].name,
                        beside_identity=identity,
                    )
                break


def _shortcuts(
    graph: fx.Graph, modules: dict[str, nn.Module]
) -> Iterator[tuple[fx.Node, fx.Node, tuple[str, ...]]]:
    """Sums of a branch and a shortcut beside it, each with the branch's end and its layers."""
    for node, sides, inner, layers in _sums(graph, modules):
        for branch, beside in ((0, 1), (1, 0)):
            sources = _sources(inner[branch])
            if not layers[branch] or len(sources) != 1:
                continue
            is_identity = _behind_identity(sides[beside], modules) in sources
            is_projection = sources == _sources(inner[beside]) and len(layers[branch]) > len(layers[beside])
            # In place, what is beside the branch would change what the branch reads.
            harmless = not any(
                _in_place(inside, modules) and sources.intersection(inside.all_input_nodes)
                for inside in inner[beside]
            )
            if harmless and (is_identity or is_projection):
                yield node, sides[branch], layers[branch]
                break


def _sums(
    graph: fx.Graph, modules: dict[str, nn.Module]
) -> Iterator[tuple[fx.Node, tuple[fx.Node, fx.Node], list[frozenset[fx.Node]], list[tuple[str, ...]]]]:
    """Each sum of two tensors; of both, the tensor, what is computed for it alone, and the layers of that."""
    order, unread = list(graph.nodes), _unread(graph, modules)
    for node in order:
        sides = _sides(node)
        if sides is not None:
            inner = [_inside(side, node, order, unread) for side in sides]
            yield node, sides, inner, [_layers(nodes, order, modules) for nodes in inner]


def _sides(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The two tensors that a node adds, where both have the shape of the sum."""
    if node.op not in ("call_function", "call_method") or node.target not in _ADDITIONS or node.kwargs:
        return None
    one, other = argument(node, 0, "input"), argument(node, 1, "other")
    if not isinstance(one, fx.Node) or not isinstance(other, fx.Node) or one is other:
        return None
    shape = tensor_shape(node)
    if shape is None or tensor_shape(one) != shape or tensor_shape(other) != shape:
        return None
    return one, other


def _unread(graph: fx.Graph, modules: dict[str, nn.Module]) -> frozenset[fx.Node]:
    """What nothing reads and what changes nothing: sizes that were asked for in passing."""
    unread: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        is_inner = node.op not in ("placeholder", "output")
        if is_inner and unread.issuperset(node.users) and not _in_place(node, modules):
            unread.add(node)
    return frozenset(unread)


def _inside(
    last: fx.Node, addition: fx.Node, order: Sequence[fx.Node], unread: frozenset[fx.Node]
) -> frozenset[fx.Node]:
    """What is computed for ``last`` alone, itself included; nothing where others read it too."""
    if set(last.users) - unread != {addition} or last.op == "placeholder":
        return frozenset()
    inside = {last}
    for node in reversed(order[: order.index(last)]):
        if node.op != "placeholder" and node not in unread and inside.issuperset(set(node.users) - unread):
            inside.add(node)
    return frozenset(inside)


def _sources(inside: frozenset[fx.Node]) -> frozenset[fx.Node]:
    """The tensors that come in. Sizes, and parameters that stand by themselves, are none."""
    return frozenset(
        source
        for node in inside
        for source in node.all_input_nodes
        if source not in inside and source.op != "get_attr" and tensor_shape(source) is not None
    )


def _may_go(
    inside: frozenset[fx.Node],
    other: frozenset[fx.Node],
    kept: fx.Node,
    addition: fx.Node,
    modules: dict[str, nn.Module],
) -> bool:
    sources = _sources(inside)
    if len(sources) != 1 or not (kept in sources or sources == _sources(other)):
        return False
    (source,) = sources
    if any(_in_place(node, modules) and source in node.all_input_nodes for node in inside):
        return False  # the shortcut would see another x
    elsewhere = set(kept.users) - inside - {addition}  # who would see what is done to the sum in place
    return not (elsewhere and any(_in_place(reader, modules) for reader in addition.users))


def _behind_identity(node: fx.Node, modules: dict[str, nn.Module]) -> object:
    """What ``node`` hands on as it is."""
    found: object = node
    while isinstance(found, fx.Node) and _is(found, (nn.Identity, frozenset()), modules):
        found = argument(found, 0, "input")
    return found


def _layers(
    inside: frozenset[fx.Node], order: Sequence[fx.Node], modules: dict[str, nn.Module]
) -> tuple[str, ...]:
    """Modules with parameters that are called inside."""
    names = [str(node.target) for node in order if node in inside and node.op == "call_module"]
    return tuple(dict.fromkeys(name for name in names if next(modules[name].parameters(), None) is not None))


def _in_place(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_")
    name = getattr(node.target, "__name__", "")
    asked = node.kwargs.get("inplace") is True or any(value is True for value in node.args)
    return asked or name.endswith("_") or node.target is operator.iadd


def _repeats(reader: fx.Node, source: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether ``reader`` is an activation that did its work on what ``source`` is made of already."""
    for kind in (_RELU, _RELU6):
        if _is(reader, kind, modules):
            before: object = source
            while isinstance(before, fx.Node) and _is(before, (_BOUNDED, frozenset()), modules):
                before = argument(before, 0, "input")
            return isinstance(before, fx.Node) and _is(before, kind, modules)
    return False


def _is(
    node: fx.Node,
    kind: tuple[type[nn.Module] | tuple[type[nn.Module], ...], frozenset[object]],
    modules: dict[str, nn.Module],
) -> bool:
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], kind[0])
    return node.op in ("call_function", "call_method") and node.target in kind[1]
