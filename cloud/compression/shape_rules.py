"""How operations that only move numbers about (reshape, index, split, swap axes) move channels.

Rules: a reshape that takes channels apart, as attention does into heads, ties all channels of one part: parts
go or stay whole. Sizes that are written out in a reshape are noted, so that the narrower network can be given
smaller ones; nothing is left to luck.
"""

from __future__ import annotations

import numpy as np
from torch import fx

from cloud.compression.channels import (
    FIXED,
    Atoms,
    Channels,
    Labels,
    Resize,
    UnknownOperationError,
    Values,
    argument,
    axis_number,
    first_channels,
    first_shape,
    opaque,
    operation_name,
    tensor_shape,
)


def reshape(node: fx.Node, values: Values, atoms: Atoms) -> Channels | None:
    """``view`` and ``reshape`` to given sizes."""
    channels = first_channels(node, values)
    before, after = first_shape(node), tensor_shape(node)
    assert after is not None
    if not atoms.count_free(channels):
        return opaque(node)
    found = regroup(channels, before, after, atoms)
    given = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], list | tuple) else node.args[1:]
    if not isinstance(given, list | tuple) or len(given) != len(after):
        raise UnknownOperationError(f"{operation_name(node)} to sizes that cannot be read: use flatten(1)")
    follows = given[found.axis] == -1 and all(isinstance(size, int) for size in given[1:])
    if not follows:
        sizes = (-1, *after[1:])
        atoms.resizes.append(Resize(node=node.name, sizes=sizes, axis=found.axis, labels=found.labels))
    return found


def flatten(node: fx.Node, values: Values, atoms: Atoms) -> Channels | None:
    """Any ``flatten``, called or as a module: it takes its sizes from what comes."""
    channels = first_channels(node, values)
    after = tensor_shape(node)
    assert after is not None
    if not atoms.count_free(channels):
        return opaque(node)
    return regroup(channels, first_shape(node), after, atoms)


def regroup(channels: Channels, before: tuple[int, ...], after: tuple[int, ...], atoms: Atoms) -> Channels:
    """Channels of a tensor of shape ``before`` once it is read, in the same order, as shape ``after``."""
    if channels.axis == 0 or before[0] != after[0]:
        raise UnknownOperationError("it mixes the batch with other axes")
    (b0, b1), (a0, a1) = _block(before, after, channels.axis)
    shape = [1] * (b1 - b0)
    shape[channels.axis - b0] = -1
    table = np.broadcast_to(channels.labels.reshape(shape), before[b0:b1]).reshape(after[a0:a1])
    wide = [at for at, size in enumerate(table.shape) if size > 1] or [0]
    if len(wide) == 1:
        return Channels(axis=a0 + wide[0], labels=table.reshape(-1).copy())
    carrier = next((at for at in wide if _is_constant_beside(table, at)), wide[-2])
    columns = np.moveaxis(table, carrier, -1).reshape(-1, table.shape[carrier])
    return Channels(axis=a0 + carrier, labels=atoms.tie_columns(columns))


def _is_constant_beside(table: Labels, axis: int) -> bool:
    columns = np.moveaxis(table, axis, -1).reshape(-1, table.shape[axis])
    return bool((columns == columns[0]).all())


def _block(
    before: tuple[int, ...], after: tuple[int, ...], axis: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The shortest runs of axes, on both sides, that hold the same numbers, ``axis`` among them."""
    b = a = 0
    while b < len(before) and a < len(after):
        b0, a0 = b, a
        left, right = before[b], after[a]
        b, a = b + 1, a + 1
        while left != right:
            if left < right:
                left, b = left * before[b], b + 1
            else:
                right, a = right * after[a], a + 1
        if b0 <= axis < b:
            return (b0, b), (a0, a)
    raise UnknownOperationError("it drops an axis of size 1 that counts as channels")


def unsqueeze(node: fx.Node, values: Values, atoms: Atoms) -> Channels:
    channels = first_channels(node, values)
    at = axis_number(argument(node, 1, "dim"), len(first_shape(node)) + 1)
    return Channels(axis=channels.axis + (at <= channels.axis), labels=channels.labels)


def squeeze(node: fx.Node, values: Values, atoms: Atoms) -> Channels:
    channels, before = first_channels(node, values), first_shape(node)
    given = argument(node, 1, "dim")
    if given is None:
        raise UnknownOperationError("squeeze of all axes: name the axis")
    axes = {axis_number(one, len(before)) for one in (given if isinstance(given, list | tuple) else (given,))}
    gone = {axis for axis in axes if before[axis] == 1}
    if channels.axis in gone:
        raise UnknownOperationError("squeeze drops the channels")
    return Channels(axis=channels.axis - sum(a < channels.axis for a in gone), labels=channels.labels)


def index(node: fx.Node, values: Values, atoms: Atoms) -> Channels:
    """``x[:, 0]``, ``x[..., None]`` and the like, which leave the channels whole."""
    channels, before = first_channels(node, values), first_shape(node)
    given = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    used = sum(one is not None and one is not Ellipsis for one in given)
    spread: list[object] = []
    for one in given:
        spread += [slice(None)] * (len(before) - used) if one is Ellipsis else [one]
    source = result = 0
    found: int | None = None
    for one in spread + [slice(None)] * (len(before) - sum(one is not None for one in spread)):
        if one is None:
            result += 1
            continue
        if source == channels.axis:
            if one != slice(None):
                raise UnknownOperationError("it takes some of the channels by number")
            found = result
        if isinstance(one, slice):
            result += 1
        elif isinstance(one, bool) or not isinstance(one, int):
            raise UnknownOperationError("it is indexed by something other than numbers and slices")
        source += 1
    assert found is not None
    return Channels(axis=found, labels=channels.labels)


def transpose(node: fx.Node, values: Values, atoms: Atoms) -> Channels:
    channels, rank = first_channels(node, values), len(first_shape(node))
    one = axis_number(argument(node, 1, "dim0"), rank)
    other = axis_number(argument(node, 2, "dim1"), rank)
    moved = {one: other, other: one}.get(channels.axis, channels.axis)
    return Channels(axis=moved, labels=channels.labels)


def permute(node: fx.Node, values: Values, atoms: Atoms) -> Channels:
    channels, rank = first_channels(node, values), len(first_shape(node))
    given = argument(node, 1, "dims")
    order = given if isinstance(given, list | tuple) else node.args[1:]
    axes = [axis_number(axis, rank) for axis in order]
    return Channels(axis=axes.index(channels.axis), labels=channels.labels)


def concatenate(node: fx.Node, values: Values, atoms: Atoms) -> Channels:
    parts = argument(node, 0, "tensors")
    known = (
        [values[part] for part in parts if isinstance(part, fx.Node)]
        if isinstance(parts, list | tuple)
        else []
    )
    channels = [value for value in known if isinstance(value, Channels)]
    shape = tensor_shape(node)
    if shape is None or not isinstance(parts, list | tuple) or not channels or len(channels) != len(parts):
        raise UnknownOperationError("cat of something other than a list of tensors")
    axis = axis_number(argument(node, 1, "dim", 0), len(shape))
    free = {c.axis for c in channels if atoms.count_free(c)}
    if len(free) > 1:
        raise UnknownOperationError("cat joins tensors of different axes")
    follow = next(iter(free), channels[0].axis)
    labels = [_along(c, follow, part) for c, part in zip(channels, parts, strict=True)]
    if axis == follow:
        return Channels(axis=axis, labels=np.concatenate(labels))
    for other in labels[1:]:
        atoms.union(labels[0], other)
    return Channels(axis=follow, labels=labels[0])


def _along(channels: Channels, axis: int, node: object) -> Labels:
    """Labels along ``axis``: those known, or, of a tensor that is fixed anyway, fixed ones."""
    shape = tensor_shape(node)
    assert shape is not None
    return channels.labels if channels.axis == axis else np.full(shape[axis], FIXED)


def chunk(node: fx.Node, values: Values, atoms: Atoms) -> tuple[Channels, ...]:
    """Equal parts. Of parts of the channels, the indices that stand at the same place go together."""
    channels, before = first_channels(node, values), first_shape(node)
    count, axis = argument(node, 1, "chunks"), axis_number(argument(node, 2, "dim", 0), len(before))
    if axis != channels.axis:
        return _parts(node, channels)
    if not isinstance(count, int) or count < 1 or before[axis] % count:
        raise UnknownOperationError(f"chunk of {before[axis]} channels into {count} parts")
    table = channels.labels.reshape(count, -1)
    atoms.tie_columns(table)
    return tuple(Channels(axis=axis, labels=row.copy()) for row in table)


def split(node: fx.Node, values: Values, atoms: Atoms) -> tuple[Channels, ...]:
    channels, before = first_channels(node, values), first_shape(node)
    if axis_number(argument(node, 2, "dim", 0), len(before)) == channels.axis:
        raise UnknownOperationError("split of the channels into sizes that are written out: use chunk")
    return _parts(node, channels)


def unbind(node: fx.Node, values: Values, atoms: Atoms) -> tuple[Channels, ...]:
    channels = first_channels(node, values)
    axis = axis_number(argument(node, 1, "dim", 0), len(first_shape(node)))
    if axis == channels.axis:
        raise UnknownOperationError("unbind takes the channels one by one")
    return _parts(node, Channels(axis=channels.axis - (axis < channels.axis), labels=channels.labels))


def _parts(node: fx.Node, channels: Channels) -> tuple[Channels, ...]:
    meta = node.meta.get("tensor_meta")
    assert isinstance(meta, list | tuple)
    return (channels,) * len(meta)
