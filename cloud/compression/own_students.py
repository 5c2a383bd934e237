"""Students that are networks of the workload's own: fresh, narrower where that was asked for, and taught.

Rules: at its own width a network begins as its callable made it, under the spec's seed; narrower, it has
fewer of its channels (which ones does not matter, none has learnt anything), and its layers begin afresh. A
width that would change nothing is refused, since the same student would be measured twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from cloud.compression.budget import check_artifact_bytes, check_calibration, check_epochs
from cloud.compression.cost import count_parameters
from cloud.compression.distil import distil
from cloud.compression.own_networks import channels_of, own_network, said_of
from cloud.compression.prune import choose_removed, reinitialise, remove_units
from cloud.compression.sparsify import sparsifier_for
from cloud.compression.view_answers import AnswerShelf
from cloud.domain.networks import network_name
from cloud.domain.specs import CompressionSpec, Road
from cloud.domain.tasks import StudentTask
from cloud.training.datasets import Dataset
from edgeloop.errors import RejectedError

Report = Callable[[float, str], None]


def make_own(
    task: StudentTask,
    wisdom: nn.Module,
    dataset: Dataset,
    *,
    device: torch.device,
    report: Report,
    shelf: AnswerShelf | None = None,
) -> nn.Module:
    """The trained student, on the CPU. ``report`` gets 0 to 1; ``wisdom`` is what it learns from.

    Raises ``ConfigError`` naming the field, ``RejectedError`` for a width that the network cannot have.
    """
    spec, training = task.spec, task.workload.training
    assert spec.network is not None
    name = network_name(spec.network)
    check_epochs(spec)
    check_calibration(task.workload, dataset)
    student = fresh(own_network(task.workload, dataset, spec.network, seed=spec.seed), dataset, spec)
    check_artifact_bytes(
        task.profile.constraints, count_parameters(student), task.profile.name, what=f"network {name}"
    )
    lesson = spec
    if spec.road is Road.SCRATCH:
        lesson = replace(spec, alpha=0.0, hint_weight=None)
    with said_of(name):
        distil(
            student, wisdom, dataset, spec=lesson, training=training, device=device, report=report,
            rule=sparsifier_for(task, dataset), shelf=shelf,
        )  # fmt: skip
    return student.cpu().eval()


def fresh(network: nn.Module, dataset: Dataset, spec: CompressionSpec) -> nn.Module:
    """``network`` as wide as ``spec`` asks, untrained. Raises ``RejectedError`` when it cannot be."""
    name = network_name(spec.network or "")
    graph = channels_of(network, dataset, name)
    if spec.width_ratio >= 1.0:
        return network
    if not graph.groups:
        whole = "; ".join(f"{frozen.operation}: {frozen.reason}" for frozen in graph.frozen)
        raise RejectedError(
            f"width_ratio is {spec.width_ratio:g}, but network {name} has no channels that can be removed "
            f"({whole or 'it has no hidden layer'}): take width_ratio=1",
            code="student-not-prunable",
        )
    scores = {unit: 0.0 for group in graph.groups for unit in group.units}
    removed = choose_removed(graph, scores, spec.width_ratio)
    if not removed:
        raise RejectedError(
            f"width_ratio is {spec.width_ratio:g}, but network {name} stays as it is, with 8 channels at "
            "least in each group: take width_ratio=1",
            code="student-not-narrower",
        )
    with said_of(name):
        student = remove_units(network, graph, removed, dataset.input_shape)
    reinitialise(student, spec.seed)
    return student
