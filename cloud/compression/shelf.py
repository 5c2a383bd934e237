"""Trained students, kept by what their training depended on: a second profile does not train them again.

Two profiles that ask for the same student differ in how it is quantised and in what it measures, not in its
fp32 weights. Rules: the key holds everything that training depends on and nothing else; of the network only
weights are kept, and the architecture is made again from what it was narrowed from; what does not fit counts
as absent. Two who want the same at once train it once: the second waits for the first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Protocol

from torch import nn

from cloud.compression.branches import absent_branches, find_branches, without_branches
from cloud.compression.dependency import trace_channels
from cloud.compression.depth import without_shortcuts
from cloud.compression.distil import learning_rate_of
from cloud.compression.prune import choose_removed, remove_units
from cloud.domain.specs import CompressionSpec, Precision
from cloud.domain.tasks import StudentTask
from cloud.training import checkpoints
from cloud.workload_source import network_identity
from edgeloop.errors import EdgeloopError

Report = Callable[[float, str], None]


class WeightsShelf(Protocol):
    """Where things are kept between tasks. ``lock`` is held by one at a time, and dies with its holder.

    Who waits for it reports ``what`` is done meanwhile.
    """

    def get(self, key: str) -> bytes | None: ...

    def put(self, key: str, data: bytes) -> None: ...

    def lock(self, key: str, report: Report, what: str) -> AbstractContextManager[None]: ...


def shelved(
    task: StudentTask,
    whole: nn.Module,
    input_shape: tuple[int, ...],
    make: Callable[[], nn.Module],
    *,
    shelf: WeightsShelf | None,
    report: Report,
) -> nn.Module:
    """The trained student, from the shelf when it is there, else made and put there.

    ``whole`` is what it is narrowed from: the teacher, or a network of the workload's own.
    """
    if shelf is None:
        return make()
    key = training_key(task)
    with shelf.lock(key, report, "the same student is being trained"):
        data = shelf.get(key)
        found = None if data is None else _restore(data, task.spec, whole, input_shape)
        if found is not None:
            report(0.8, "trained for another profile already")
            return found
        student = make()
        shelf.put(key, checkpoints.to_bytes({"version": 1, "model": student.state_dict()}))
        return student


def training_key(task: StudentTask) -> str:
    """Of everything that the student's fp32 weights depend on."""
    # Rounding comes after: one training serves every number of bits.
    rate = learning_rate_of(task.spec, task.workload.training)
    spec = replace(task.spec, precision=Precision.AUTO, quantisation=None, network=None, learning_rate=rate)
    identity = {
        "teacher": task.teacher.identity,
        "family": task.family.checkpoint_digest if task.family is not None else "",
        "workload": task.workload.teacher_key,
        "student": task.workload.student,
        "spec": spec.to_json(),
    }
    if task.spec.network is not None:
        identity["network"] = network_identity(task.workload, task.spec.network)
    plain = {*json.loads(CompressionSpec().to_json()), "depth_ratio", "shortcuts", "learning_rate"}
    if json.loads(spec.to_json()).keys() - plain:
        # Further dimensions may train for the arithmetic of the target.
        identity["instruction_sets"] = ",".join(sorted(task.profile.instruction_sets))
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _restore(
    data: bytes, spec: CompressionSpec, whole: nn.Module, input_shape: tuple[int, ...]
) -> nn.Module | None:
    """Which units left does not matter for the shapes, only how many; branches that left have no weights."""
    try:
        state = checkpoints.from_bytes(data)
        if spec.depth_ratio is not None:
            gone = absent_branches(find_branches(whole, input_shape), state["model"])
            whole = without_branches(whole, gone, input_shape)
        whole = without_shortcuts(spec, whole, input_shape)
        graph = trace_channels(whole, input_shape)
        scores = {unit: 0.0 for group in graph.groups for unit in group.units}
        student = remove_units(whole, graph, choose_removed(graph, scores, spec.width_ratio), input_shape)
        student.load_state_dict(state["model"])
    except (EdgeloopError, KeyError, RuntimeError):
        return None
    return student.eval()
