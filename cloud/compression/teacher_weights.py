"""Trained teachers, from their weights in the registry: the one that is narrowed, and all that teach.

Rule: weights fit the code that they were trained with, or it is said that the teacher must be trained again.
"""

from __future__ import annotations

from typing import Protocol

from torch import nn

from cloud.compression.attention import open_attention
from cloud.domain.tasks import TeacherResult
from cloud.domain.workloads import Workload
from cloud.training import checkpoints
from cloud.training.datasets import Dataset
from cloud.training.ensemble import MeanOfOutputs
from cloud.training.networks import build_teacher
from edgeloop.errors import ConfigError


class Blobs(Protocol):
    """What is needed of the registry."""

    def get(self, digest: str) -> bytes: ...


def load_teacher(
    workload: Workload, dataset: Dataset, result: TeacherResult, *, registry: Blobs
) -> nn.Module:
    """The trained teacher, on the CPU, in evaluation mode, its attention written out (``open_attention``)."""
    return _load(workload, dataset, result.checkpoint_digest, registry=registry)


def load_wisdom(
    workload: Workload, dataset: Dataset, result: TeacherResult, teacher: nn.Module, *, registry: Blobs
) -> nn.Module:
    """What students learn from: ``teacher``, or the mean of it and the others of its ensemble."""
    if not result.other_checkpoints:
        return teacher
    others = [_load(workload, dataset, digest, registry=registry) for digest in result.other_checkpoints]
    return MeanOfOutputs([teacher, *others])


def _load(workload: Workload, dataset: Dataset, digest: str, *, registry: Blobs) -> nn.Module:
    state = checkpoints.from_bytes(registry.get(digest))
    model = build_teacher(workload, dataset)
    try:
        model.load_state_dict(state["model"])
    except (KeyError, RuntimeError) as error:
        raise ConfigError(
            f"teacher: the weights in the registry do not fit {workload.teacher}: its code changed "
            f"since it was trained; train it again ({error})",
            code="teacher-changed",
        ) from error
    return open_attention(model.eval())
