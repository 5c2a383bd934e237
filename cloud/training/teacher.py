"""Training a teacher, one epoch at a time.

Rules: an epoch depends on the workload, the epoch's number and the state before it, on nothing else, so that
a trainer restored from ``state_dict`` goes on as if it had never stopped. The test split is not touched.
A loss that is not finite stops training at once, naming epoch and batch; a network that could not be
compressed afterwards is refused before the first epoch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cloud.compression.budget import check_calibration
from cloud.compression.own_networks import check_own_networks
from cloud.compression.readiness import check_compressible
from cloud.domain.losses import Loss
from cloud.domain.workloads import Workload
from cloud.training import arithmetic
from cloud.training.augment import Augmenter
from cloud.training.callables import is_callable_path
from cloud.training.datasets import Dataset, Split, load_dataset
from cloud.training.networks import build_teacher
from cloud.training.objectives import label_loss
from cloud.training.schedule import one_cycle, seeded
from cloud.training.scores import score
from edgeloop.errors import ConfigError, RejectedError

logger = logging.getLogger(__name__)

Report = Callable[[float, str], None]
EVALUATION_BATCH = 512
MAX_GRADIENT_NORM = 5.0
#: Samples of a bad batch that a message names.
SHOWN_ROWS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochMetrics:
    """``epoch`` counts from 1. ``loss`` is the mean over the epoch's batches."""

    epoch: int
    loss: float
    validation_accuracy: float
    seconds: float


class TeacherTrainer:
    """Trains the workload's teacher. ``epoch`` is how many epochs are done, of ``num_epochs``."""

    def __init__(self, workload: Workload, dataset: Dataset | None = None, device: str = "auto") -> None:
        self.workload = workload
        self.dataset = load_dataset(workload) if dataset is None else dataset
        self.device = choose_device(device)
        self.num_epochs = workload.training.num_epochs
        self.epoch = 0
        self.train_s = 0.0
        self._augmenter = Augmenter.of(workload.training, self.dataset.input_shape)
        self.model = build_teacher(workload, self.dataset)
        # Said before hours go into training; the built-in network is known to export.
        own_network = is_callable_path(workload.teacher)
        check_compressible(
            self.model,
            self.dataset.input_shape,
            try_export=own_network,
            depth_ratios=workload.search.shorter_depths,
        )
        check_calibration(workload, self.dataset)
        check_own_networks(workload, self.dataset)
        self.model.to(self.device)
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=workload.training.learning_rate,
            weight_decay=workload.training.weight_decay,
        )
        self._inputs = torch.from_numpy(self.dataset.train.inputs).to(self.device)
        self._labels = torch.from_numpy(self.dataset.train.labels).to(self.device)

    def run_epoch(self, report: Report | None = None) -> EpochMetrics:
        """Train one more epoch and measure it on the validation split.

        ``report(fraction_of_all_training, message)`` is called now and then; what it raises stops the epoch.
        """
        started = time.perf_counter()
        loss = self._train(report)
        self.epoch += 1
        accuracy = measure_accuracy(self.model, self.dataset.validation, self.device, self.dataset.loss)
        seconds = time.perf_counter() - started
        self.train_s += seconds
        metrics = EpochMetrics(epoch=self.epoch, loss=loss, validation_accuracy=accuracy, seconds=seconds)
        message = (
            f"epoch {self.epoch}/{self.num_epochs}: loss {loss:.4f}, "
            f"validation {self.dataset.loss.metric} {accuracy:.4f}"
        )
        logger.debug("%s in %.1f s", message, seconds)
        if report is not None:
            report(self.epoch / self.num_epochs, message)
        return metrics

    def _train(self, report: Report | None) -> float:
        training = self.workload.training
        num_batches = count_batches(len(self._labels), training.batch_size)
        total = torch.zeros((), device=self.device)
        self.model.train()
        with seeded(training.seed, self.epoch) as generator:
            order = torch.randperm(len(self._labels), generator=generator).to(self.device)
            for batch in range(num_batches):
                step = self.epoch * num_batches + batch
                set_learning_rate(
                    self._optimizer, one_cycle(step, num_batches * self.num_epochs, training.learning_rate)
                )
                rows = order[batch * training.batch_size :][: training.batch_size]
                draws = self._augmenter.draw(len(rows), generator)
                inputs = self._augmenter.apply(self._inputs[rows], draws)
                logits = arithmetic.run(self.model, inputs, bfloat16=training.bfloat16)
                loss = label_loss(self.dataset.loss, logits, self._labels[rows], training.label_smoothing)
                check_loss(
                    loss, epoch=self.epoch + 1, batch=batch + 1, rows=rows, field="training.learning_rate"
                )
                step_optimizer(self._optimizer, self.model, loss)
                total += loss.detach()
                if report is not None and batch % 50 == 49:
                    done = (step + 1) / (num_batches * self.num_epochs)
                    report(done, f"epoch {self.epoch + 1}/{self.num_epochs}: batch {batch + 1}/{num_batches}")
        return float(total) / num_batches

    def state_dict(self) -> dict[str, Any]:
        """All that the next epoch depends on: tensors and plain values, as ``checkpoints.to_bytes`` takes."""
        return {
            "version": 1,
            "teacher_key": self.workload.teacher_key,
            "epoch": self.epoch,
            "train_s": self.train_s,
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``. Raises ``RejectedError`` when it belongs to another teacher."""
        if state.get("version") != 1 or state.get("teacher_key") != self.workload.teacher_key:
            raise RejectedError(
                f"the checkpoint is of teacher {state.get('teacher_key')!r}, not of "
                f"{self.workload.teacher_key}: start the training afresh",
                code="checkpoint-other-teacher",
            )
        try:
            self.model.load_state_dict(state["model"])
            self._optimizer.load_state_dict(state["optimizer"])
            self.epoch, self.train_s = int(state["epoch"]), float(state["train_s"])
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise RejectedError(f"the checkpoint does not fit: {error}", code="checkpoint-invalid") from error


def choose_device(device: str = "auto") -> torch.device:
    """``auto`` is CUDA where it is, else the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def count_batches(num_samples: int, batch_size: int) -> int:
    """Batches of one epoch. A rest of a single sample is dropped: BatchNorm cannot train on it."""
    rest = num_samples % batch_size
    return max(1, num_samples // batch_size + (1 if rest > 1 else 0))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def step_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, loss: Tensor) -> None:
    """One step down the gradient, its norm bounded."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
    optimizer.step()


def check_loss(loss: Tensor, *, epoch: int, batch: int, rows: Tensor, field: str) -> None:
    """Raises ``ConfigError`` when the loss is not finite. ``rows`` are the samples of the train split."""
    if not torch.isfinite(loss):
        shown = ", ".join(map(str, rows[:SHOWN_ROWS].tolist())) + (", ..." if len(rows) > SHOWN_ROWS else "")
        raise ConfigError(
            f"the loss is {loss.item()} at epoch {epoch}, batch {batch} (samples {shown} of the train "
            f"split): lower {field}, or scale the data",
            code="training-diverged",
        )


@torch.no_grad()
def predict(model: nn.Module, inputs: NDArray[np.float32], device: torch.device) -> Tensor:
    """Logits of all ``inputs``, in evaluation mode, on the CPU. The model's mode is put back."""
    was_training = model.training
    model.eval()
    batches = [
        model(torch.from_numpy(inputs[start : start + EVALUATION_BATCH]).to(device)).cpu()
        for start in range(0, len(inputs), EVALUATION_BATCH)
    ]
    model.train(was_training)
    return torch.cat(batches)


def measure_accuracy(
    model: nn.Module, split: Split, device: torch.device, loss: Loss = Loss.CROSS_ENTROPY
) -> float:
    """How good the model is on ``split``, 0 to 1, by the loss's metric."""
    return score(loss, predict(model, split.inputs, device).numpy(), split.labels)
