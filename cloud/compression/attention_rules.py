"""How matrix products and softmax, the parts of attention, treat channels.

Rules: along a batch axis of a product (heads), channel meets channel; along the axis that is summed over too,
and then they are gone. A softmax over channels mixes them.
"""

from __future__ import annotations

from torch import fx

from cloud.compression.channels import (
    Atoms,
    Channels,
    UnknownOperationError,
    Values,
    argument,
    axis_number,
    first_channels,
    first_shape,
    opaque,
    tensor_shape,
)


def matmul(node: fx.Node, values: Values, atoms: Atoms) -> Channels | None:
    """``a @ b`` of two tensors of equal rank, at least 3."""
    left, left_shape = _operand(argument(node, 0, "input"), values)
    right, right_shape = _operand(argument(node, 1, "other", node.kwargs.get("mat2")), values)
    left_axis = left.axis if atoms.count_free(left) else None
    right_axis = right.axis if atoms.count_free(right) else None
    if left_axis is None and right_axis is None:
        return opaque(node)
    rank = len(left_shape)
    if rank != len(right_shape) or rank < 3:
        raise UnknownOperationError("a matrix product of tensors of different or small rank")
    rows, columns = rank - 2, rank - 1
    if left_axis == columns and right_axis == rows:
        atoms.union(left.labels, right.labels)
        return opaque(node)
    if left_axis == rows and right_axis is None:
        return left
    if right_axis == columns and left_axis is None:
        return right
    if left_axis is not None and left_axis == right_axis and left_axis < rows:
        atoms.union(left.labels, right.labels)
        return left
    for channels, axis, other in ((left, left_axis, right_shape), (right, right_axis, left_shape)):
        if axis is not None and axis < rows and other[axis] == 1 and None in (left_axis, right_axis):
            return channels
    raise UnknownOperationError("a matrix product joins channels with an axis that must stay whole")


def softmax(node: fx.Node, values: Values, atoms: Atoms, dim: object = None) -> Channels:
    channels = first_channels(node, values)
    axis = axis_number(argument(node, 1, "dim") if dim is None else dim, len(first_shape(node)))
    if axis == channels.axis:
        raise UnknownOperationError("softmax mixes the channels")
    return channels


def scaled_dot_product(node: fx.Node, values: Values, atoms: Atoms) -> Channels | None:
    """Query, key and value as ``[n, heads, length, size]``: heads go or stay."""
    found = [
        _operand(argument(node, at, name), values)[0] for at, name in enumerate(("query", "key", "value"))
    ]
    free = [channels for channels in found if atoms.count_free(channels)]
    if not free:
        return opaque(node)
    shape = tensor_shape(node)
    if len(free) < 3 or shape is None or len(shape) != 4 or any(channels.axis != 1 for channels in free):
        raise UnknownOperationError("attention without an axis of heads in query, key and value alike")
    if argument(node, 3, "attn_mask") is not None:
        raise UnknownOperationError("attention with a mask")
    query, key, value = found
    atoms.union(query.labels, key.labels)
    atoms.union(query.labels, value.labels)
    return value


def _operand(node: object, values: Values) -> tuple[Channels, tuple[int, ...]]:
    channels = values.get(node) if isinstance(node, fx.Node) else None
    shape = tensor_shape(node)
    if not isinstance(channels, Channels) or shape is None:
        raise UnknownOperationError("a matrix product of something other than two tensors")
    return channels, shape
