"""Quantisation-aware training of an int8 student: weights and the ranges of activations are learnt.

Activations are rounded where the int8 graph rounds them, to ``scale * (q - zero_point)`` with
``q = clip(round(x / scale) + zero_point)``, gradients straight through the rounding; so the scale learns too
(Esser et al., Learned Step Size Quantization, 2020). It is trained as ``scale * exp(GAIN * theta)``, which
makes steps relative to it (after Jain et al., Trained Quantization Thresholds, 2020); zero points stay.

Rules: where to round is read from the int8 graph itself, and found again in the network by value: a tensor of
the graph is the torch value that equals it on a probe, whatever the exporter called it; tensors that share a
scale in the graph share the learnt one; the scales in the new file are the learnt ones, to the bit.
"""

from __future__ import annotations

import copy
import logging
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, fx, nn

from cloud.compression.answers import TeacherAnswers
from cloud.compression.calibrate import ActivationScale, activations_on, is_batch_free
from cloud.compression.export import export_onnx
from cloud.compression.fake_quantise import QuantisedNetwork, round_weights, settle, tune
from cloud.compression.int8_scales import quantise_network_int8
from cloud.compression.quantise import unshare
from cloud.compression.view_answers import AnswerShelf
from cloud.domain.specs import CompressionSpec
from cloud.domain.workloads import TrainingBudget
from cloud.training.datasets import Dataset
from edgeloop.errors import RejectedError

logger = logging.getLogger(__name__)

Report = Callable[[float, str], None]

#: How much faster scales may move than weights do: about one hundredth of themselves in a step.
GAIN = 20.0
NUM_PROBES = 4
#: What the quantiser appends to the name of a graph's output, whose own name must stay with the output.
RENAMED_OUTPUT = "_QuantizeLinear_Input"
#: What two computations of one tensor may differ by, relative to its largest value.
SAME_RATIO = 1e-4


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrainedInt8:
    """``data`` is the int8 file; ``activations`` are the learnt scales in it, by tensor."""

    data: bytes
    network: QuantisedNetwork
    activations: Mapping[str, ActivationScale]


class LearntRounding(nn.Module):
    """Rounds to unsigned 8 bits with a scale that is trained."""

    def __init__(self, start: ActivationScale) -> None:
        super().__init__()
        self._start = start
        self.theta = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        scale = self._start.scale * torch.exp(GAIN * self.theta)
        ratio = x / scale
        code = ratio + (torch.round(ratio) - ratio).detach() + self._start.zero_point
        return (torch.clamp(code, 0, 255) - self._start.zero_point) * scale

    def learnt(self) -> ActivationScale:
        scale = self._start.scale * torch.exp(GAIN * self.theta.detach().cpu())
        return ActivationScale(scale=float(scale), zero_point=self._start.zero_point)


def train_int8(
    network: QuantisedNetwork,
    int8: bytes,
    samples: NDArray[np.float32],
    teacher: nn.Module,
    dataset: Dataset,
    *,
    spec: CompressionSpec,
    reduced_range: bool,
    training: TrainingBudget,
    device: torch.device,
    report: Report,
    answers: TeacherAnswers | None = None,
    shelf: AnswerShelf | None = None,
) -> TrainedInt8:
    """Train ``network``, whose post-training form is ``int8``, for ``spec.quantisation.qat_epochs``.

    ``answers`` or ``shelf`` hold the teacher's, where they are kept already.
    """
    quantisation = network.spec
    model = fx.symbolic_trace(copy.deepcopy(network.model))
    data = export_onnx(model, dataset.input_shape)
    groups = _groups(int8)
    roundings = insert_roundings(model, data, groups, samples)
    if not roundings:
        raise RejectedError(
            "none of the int8 graph's activations was found in the network: it cannot be trained for int8",
            code="qat-unmatched",
        )
    bits = quantisation.weight_bits(is_int8=True, is_reduced_range=reduced_range)
    rounded = round_weights(model, quantisation, bits)
    tune(
        model,
        teacher,
        dataset,
        spec=spec,
        num_epochs=quantisation.qat_epochs,
        training=training,
        device=device,
        report=report,
        answers=answers,
        shelf=shelf,
    )
    model.cpu().eval()
    tensors = settle(model, rounded)
    learnt = _remove_roundings(model, roundings)
    trained = QuantisedNetwork(model=model, tensors=tensors, spec=quantisation)
    activations = {name: learnt[group] for group in learnt for name in groups[group].names}
    exported = export_onnx(model, dataset.input_shape)
    return TrainedInt8(
        data=quantise_network_int8(
            exported, samples, trained, reduced_range=reduced_range, activations=activations
        ),
        network=trained,
        activations=activations,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundedGroup:
    """Activations of an int8 graph that share one scale."""

    names: tuple[str, ...]
    scale: ActivationScale


def _groups(int8: bytes) -> list[RoundedGroup]:
    """Where an int8 graph rounds its activations."""
    graph = onnx.load_from_string(int8).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    names: dict[tuple[str, str], list[str]] = {}
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] not in constants:
            name = node.input[0].removesuffix(RENAMED_OUTPUT)
            names.setdefault((node.input[1], node.input[2]), []).append(name)
    return [
        RoundedGroup(
            names=tuple(group),
            scale=ActivationScale(scale=float(constants[scale]), zero_point=int(constants[zero_point])),
        )
        for (scale, zero_point), group in names.items()
    ]


def insert_roundings(
    model: fx.GraphModule, data: bytes, groups: list[RoundedGroup], samples: NDArray[np.float32]
) -> dict[int, list[fx.Node]]:
    """Put a ``LearntRounding`` for each group behind the values of ``model`` that belong to it, in place.

    ``data`` is the export of ``model``. The result holds the inserted nodes by the group's index.
    """
    proto = unshare(data)
    probe = samples[: NUM_PROBES if is_batch_free(proto) else 1]
    wanted = activations_on(proto, probe)
    recorder = _Recorder(model)
    with torch.no_grad():
        recorder.run(torch.from_numpy(probe))
    inserted: dict[int, list[fx.Node]] = {}
    taken: set[fx.Node] = set()
    for index, group in enumerate(groups):
        nodes = []
        for name in group.names:
            node = _find(wanted[name], recorder.values, taken) if name in wanted else None
            if node is None:
                logger.debug("activation %s has no value of the network: its scale is not trained", name)
                continue
            taken.add(node)
            nodes.append(node)
        if not nodes:
            continue
        target = f"rounding_{index}"
        model.add_submodule(target, LearntRounding(group.scale))
        for node in nodes:
            with model.graph.inserting_after(node):
                rounding = model.graph.call_module(target, (node,))
            node.replace_all_uses_with(rounding, delete_user_cb=partial(operator.is_not, rounding))
            inserted.setdefault(index, []).append(rounding)
    model.recompile()
    return inserted


def _remove_roundings(
    model: fx.GraphModule, roundings: Mapping[int, list[fx.Node]]
) -> dict[int, ActivationScale]:
    learnt = {}
    for index, nodes in roundings.items():
        module = model.get_submodule(f"rounding_{index}")
        assert isinstance(module, LearntRounding)
        learnt[index] = module.learnt()
        for node in nodes:
            source = node.args[0]
            assert isinstance(source, fx.Node)
            node.replace_all_uses_with(source)
            model.graph.erase_node(node)
        model.delete_submodule(f"rounding_{index}")
    model.recompile()
    return learnt


class _Recorder(fx.Interpreter):
    """Keeps a copy of each value at the moment it is computed: later ones may be written over it."""

    def __init__(self, model: fx.GraphModule) -> None:
        super().__init__(model)
        self.values: dict[fx.Node, NDArray[np.float32]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op not in ("output", "get_attr") and isinstance(value, Tensor) and value.dtype == torch.float32:
            self.values[n] = value.detach().clone().numpy()
        return value


def _find(
    wanted: NDArray[np.float32], values: Mapping[fx.Node, NDArray[np.float32]], taken: set[fx.Node]
) -> fx.Node | None:
    """The first value that equals ``wanted``; what follows it unchanged is rounded with it."""
    bound = SAME_RATIO * max(float(np.abs(wanted).max(initial=0.0)), 1e-12)
    for node, value in values.items():
        same = value.shape == wanted.shape and float(np.abs(value - wanted).max(initial=0.0)) <= bound
        if same and node not in taken:
            return node
    return None
