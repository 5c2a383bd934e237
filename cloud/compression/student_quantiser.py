"""What a spec's ``quantisation`` adds to the build of one student.

Rules: the fp32 and the int8 form hold the same rounded weights; training for int8 is tried only where
post-training int8 measures, through the agent's runtime, over the tolerance below the student before anything
was rounded, and is kept only where it measures better.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cloud.compression import evaluate
from cloud.compression.fake_quantise import QuantisedNetwork, quantise_network
from cloud.compression.fusion import float_compute_nodes
from cloud.compression.int8_scales import quantise_network_int8
from cloud.compression.qat import train_int8
from cloud.compression.view_answers import AnswerShelf
from cloud.domain.quantisation import QuantisationSpec
from cloud.domain.specs import Precision
from cloud.domain.tasks import StudentTask
from cloud.training.datasets import Dataset
from cloud.training.teacher import measure_accuracy
from edgeloop.errors import RejectedError

logger = logging.getLogger(__name__)

Report = Callable[[float, str], None]


class StudentQuantiser:
    """Rounds one student: ``round_weights`` first, then ``int8`` of what was exported."""

    def __init__(
        self,
        task: StudentTask,
        teacher: nn.Module,
        dataset: Dataset,
        *,
        device: torch.device,
        shelf: AnswerShelf | None = None,
    ) -> None:
        assert task.spec.quantisation is not None
        self._spec: QuantisationSpec = task.spec.quantisation
        self._task, self._teacher, self._dataset, self._device = task, teacher, dataset, device
        self._shelf = shelf
        self._network: QuantisedNetwork | None = None
        self._unrounded_accuracy = 0.0

    def round_weights(self, student: nn.Module, report: Report) -> nn.Module:
        """A copy of ``student`` with rounded weights, in evaluation mode."""
        task, dataset = self._task, self._dataset
        report(0.0, f"rounding weights: {self._spec.scheme}, {self._spec.bits} bits")
        self._unrounded_accuracy = measure_accuracy(
            student, dataset.validation, torch.device("cpu"), dataset.loss
        )
        self._network = quantise_network(
            student,
            self._teacher,
            self._dataset,
            spec=task.spec,
            bits=self._spec.weight_bits(
                is_int8=task.spec.precision is not Precision.FP32,
                is_reduced_range=task.profile.needs_reduced_range,
            ),
            training=task.workload.training,
            device=self._device,
            report=report,
            shelf=self._shelf,
        )
        return self._network.model

    def int8(self, fp32: bytes, samples: NDArray[np.float32], report: Report) -> bytes:
        """The int8 form of ``fp32``, the export of the rounded network, trained for where that pays.

        Raises ``RejectedError`` when the network has no int8 form.
        """
        assert self._network is not None
        reduced = self._task.profile.needs_reduced_range
        data = quantise_network_int8(fp32, samples, self._network, reduced_range=reduced)
        left = float_compute_nodes(data)
        if left:
            logger.warning("%s: left in float32 by the runtime: %s", self._task.task_id, ", ".join(left))
        if self._spec.qat_epochs == 0:
            return data
        wanted, found = self._unrounded_accuracy, self._accuracy(data)
        if wanted - found <= self._spec.tolerance:
            return data
        report(0.0, f"int8 loses {wanted - found:.4f} of accuracy: training for it")
        try:
            trained = train_int8(
                self._network,
                data,
                samples,
                self._teacher,
                self._dataset,
                spec=self._task.spec,
                reduced_range=reduced,
                training=self._task.workload.training,
                device=self._device,
                report=report,
                shelf=self._shelf,
            ).data
        except RejectedError as error:
            logger.warning("%s: no training for int8: %s", self._task.task_id, error)
            return data
        better = self._accuracy(trained)
        logger.info(
            "%s: int8 %.4f, trained for it %.4f, unrounded %.4f", self._task.task_id, found, better, wanted
        )
        return trained if better > found else data

    def _accuracy(self, data: bytes) -> float:
        runtime = evaluate.load(data, num_threads=self._task.profile.num_threads)
        validation = self._dataset.validation
        return evaluate.accuracy(runtime, validation.inputs, validation.labels, self._dataset.loss)
