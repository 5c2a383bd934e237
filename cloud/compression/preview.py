"""What edgeloop would make of a workload, before anything is trained.

Rules: the data are loaded and checked, the untrained teacher is traced, exported, quantised and run, and so
are the narrowest student that the search would begin with and each network of the workload's own. Whatever
would stop a training or a build stops here with the same words. Accuracies and latencies are not guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from cloud.compression import evaluate
from cloud.compression.attention import open_attention
from cloud.compression.branches import find_branches
from cloud.compression.budget import check_calibration, narrowest
from cloud.compression.cost import Cost, measure_cost
from cloud.compression.dependency import ChannelGraph, Frozen
from cloud.compression.export import export_onnx
from cloud.compression.hints import hint_layer
from cloud.compression.importance import magnitude
from cloud.compression.own_networks import channels_of, own_network, said_of
from cloud.compression.prune import choose_removed, count_kept, remove_units
from cloud.compression.quantise import quantise
from cloud.compression.readiness import check_compressible
from cloud.compression.shortcuts import Shortcuts, find_shortcuts
from cloud.domain.workloads import Workload
from cloud.training.augment import Augmenter
from cloud.training.datasets import SPLITS, Dataset, load_dataset
from cloud.training.networks import build_teacher
from edgeloop.errors import ConfigError, RejectedError


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupPreview:
    """Channels that go together. ``kept`` is how many units stay at each of the search's widths."""

    layers: tuple[str, ...]
    num_units: int
    unit_size: int
    kept: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """One network. ``int8_bytes`` is 0 where it does not quantise, and ``int8_problem`` then says why."""

    width_ratio: float
    cost: Cost
    fp32_bytes: int
    int8_bytes: int
    int8_problem: str


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentPreview:
    """A network of the workload's own. ``least_parameters`` is what it has at its narrowest.

    ``hint_layer`` is where hints would come from, empty where it shares no layer's shape with the teacher.
    """

    name: str
    size: Size
    groups: tuple[GroupPreview, ...]
    frozen: tuple[Frozen, ...]
    least_parameters: int
    hint_layer: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Preview:
    """``sizes`` are of the teacher, and of the narrowest student. ``rewritten`` are layers by their names.

    ``branches`` may be left out by ``depth_ratio``, ``shortcuts`` by ``shortcuts: false``.
    ``least_parameters`` is what the smallest network has that the floors allow, the teacher's narrowest or
    one of the workload's own.
    """

    workload: str
    metric: str
    input_shape: tuple[int, ...]
    num_outputs: int
    num_samples: tuple[int, ...]
    width_ratios: tuple[float, ...]
    groups: tuple[GroupPreview, ...]
    frozen: tuple[Frozen, ...]
    rewritten: tuple[str, ...]
    sizes: tuple[Size, Size]
    least_parameters: int
    branches: tuple[str, ...]
    shortcuts: Shortcuts
    students: tuple[StudentPreview, ...]


def preview(workload: Workload) -> Preview:
    """Raises ``ConfigError`` naming the field, as training would."""
    dataset = load_dataset(workload)
    check_calibration(workload, dataset)
    Augmenter.of(workload.training, dataset.input_shape)
    teacher = build_teacher(workload, dataset).eval()
    depths = workload.search.shorter_depths
    graph = check_compressible(teacher, dataset.input_shape, try_export=False, depth_ratios=depths)
    opened = open_attention(teacher)
    widths = workload.search.width_ratios
    students = tuple(
        _student(workload, dataset, network.name, opened) for network in workload.search.students
    )
    least = narrowest(opened, graph, dataset.input_shape).num_parameters
    removed = choose_removed(graph, magnitude()(opened, graph), min(widths))
    student = remove_units(opened, graph, removed, dataset.input_shape)
    return Preview(
        workload=workload.name,
        metric=dataset.loss.metric,
        input_shape=dataset.input_shape,
        num_outputs=dataset.num_outputs,
        num_samples=tuple(len(getattr(dataset, split)) for split in SPLITS),
        width_ratios=widths,
        groups=_groups(graph, widths),
        frozen=graph.frozen,
        rewritten=_rewritten(teacher, opened),
        sizes=(
            _size(opened, 1.0, workload, dataset),
            _size(student, min(widths), workload, dataset),
        ),
        least_parameters=min([least, *(student.least_parameters for student in students)]),
        branches=tuple(branch.name for branch in find_branches(opened, dataset.input_shape)),
        shortcuts=find_shortcuts(opened, dataset.input_shape),
        students=students,
    )


def _student(workload: Workload, dataset: Dataset, name: str, teacher: nn.Module) -> StudentPreview:
    """One of the workload's own networks. Raises ``ConfigError`` as its build would."""
    network = own_network(workload, dataset, name).eval()
    graph = channels_of(network, dataset, name)
    try:
        hint = hint_layer(network, teacher, torch.from_numpy(dataset.train.inputs[:2]))
    except ConfigError:
        hint = ""
    with said_of(name):
        return StudentPreview(
            name=name,
            size=_size(network, 1.0, workload, dataset),
            groups=_groups(graph, workload.search.width_ratios),
            frozen=graph.frozen,
            least_parameters=narrowest(network, graph, dataset.input_shape).num_parameters,
            hint_layer=hint,
        )


def _groups(graph: ChannelGraph, widths: Sequence[float]) -> tuple[GroupPreview, ...]:
    return tuple(
        GroupPreview(
            layers=group.layers,
            num_units=len(group.units),
            unit_size=group.unit_size,
            kept=tuple(count_kept(len(group.units), width, group.unit_size) for width in widths),
        )
        for group in graph.groups
    )


def _size(model: nn.Module, width_ratio: float, workload: Workload, dataset: Dataset) -> Size:
    data = export_onnx(model, dataset.input_shape)
    samples = dataset.train.inputs[: workload.search.num_calibration_samples]
    evaluate.load(data).run(samples[:1])
    int8, problem = b"", ""
    try:
        int8 = quantise(data, samples, reduced_range=True)
        evaluate.load(int8).run(samples[:1])
    except RejectedError as error:
        problem = error.message
    return Size(
        width_ratio=width_ratio,
        cost=measure_cost(model, dataset.input_shape),
        fp32_bytes=len(data),
        int8_bytes=0 if problem else len(int8),
        int8_problem=problem,
    )


def _rewritten(teacher: nn.Module, opened: nn.Module) -> tuple[str, ...]:
    """Outermost modules that stand in the opened network for another class."""
    kinds = {name: type(module) for name, module in opened.named_modules()}
    found: list[str] = []
    for name, module in teacher.named_modules():
        inside: Sequence[str] = [outer for outer in found if name.startswith(f"{outer}.")]
        if not inside and kinds.get(name) is not type(module):
            found.append(name)
    return tuple(found)
