"""What a change of a model costs as a delta, against the whole artifact.

    python -m benchmarks deltas

One network on handwritten digits, int8; then the same calibrated on other samples, with its last layer tuned
alone, tuned as a whole, and trained again from another start. For each: the delta from the first, as the
product makes it, over the artifact that ships (packed where that saves), and the same of the int8 ONNX
files, in which deltas find more. Peers are what xz makes of the whole file, and zstd without a base.
A delta is offered from ``edgeloop.delta.MAX_RATIO`` of the artifact that ships on.
"""

from __future__ import annotations

import argparse
import copy
import lzma
from dataclasses import replace

import numpy as np
import torch
import zstandard
from torch import nn

from cloud.compression.build import calibration_samples, export_verified
from cloud.compression.pack import ship
from cloud.compression.quantise import quantise
from cloud.domain.workloads import TrainingBudget, Workload
from cloud.training.datasets import Dataset, load_dataset
from cloud.training.teacher import TeacherTrainer
from edgeloop.delta import MAX_RATIO, make_delta

LEVEL = 19


def trained(workload: Workload, dataset: Dataset) -> nn.Module:
    trainer = TeacherTrainer(workload, dataset, device="cpu")
    while trainer.epoch < trainer.num_epochs:
        trainer.run_epoch()
    return trainer.model.eval()


def tuned(model: nn.Module, dataset: Dataset, *, last_layer: bool) -> nn.Module:
    """One more epoch, of everything or of the last layer alone."""
    model = copy.deepcopy(model)
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    parameters = (last if last_layer else model).parameters()
    optimiser = torch.optim.AdamW(parameters, lr=1e-3)
    inputs, labels = torch.from_numpy(dataset.train.inputs), torch.from_numpy(dataset.train.labels)
    # Statistics of normalisation stay: where only a layer changes, nothing else may.
    model.eval()
    for rows in torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0)).split(64):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(inputs[rows]), labels[rows].long()).backward()
        optimiser.step()
    return model


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=6)
    options = parser.parse_args()
    torch.set_num_threads(1)
    workload = Workload(name="deltas", dataset="digits", training=TrainingBudget(num_epochs=options.epochs))
    dataset = load_dataset(workload)
    first = trained(workload, dataset)
    other = replace(workload, training=replace(workload.training, seed=1))
    again = trained(other, dataset)

    def int8(model: nn.Module, seed: int = 0) -> bytes:
        samples: np.ndarray = calibration_samples(dataset, 256, seed)
        return quantise(export_verified(model, dataset), samples, reduced_range=True)

    base = int8(first)
    heads = ("ships", "delta", "ratio", "of the ONNX", "zstd", "xz")
    print(f"{'what changed':<30}" + "".join(f"{head:>12}" for head in heads))
    for name, changed in (
        ("calibrated on other samples", int8(first, 1)),
        ("last layer tuned", int8(tuned(first, dataset, last_layer=True))),
        ("tuned for an epoch", int8(tuned(first, dataset, last_layer=False))),
        ("trained again", int8(again)),
    ):
        shipped = ship(changed).data
        of_shipped = len(make_delta(ship(base).data, shipped))
        plain = make_delta(base, changed)
        peers = (
            len(zstandard.ZstdCompressor(level=LEVEL).compress(changed)),
            len(lzma.compress(changed, preset=9 | lzma.PRESET_EXTREME)),
        )
        ratio = of_shipped / len(shipped)
        ratios = (ratio, *(size / len(changed) for size in (len(plain), *peers)))
        print(
            f"{name:<30}{len(shipped):>12}{of_shipped:>12}"
            + "".join(f"{each:>12.3f}" for each in ratios)
            + ("  offered" if ratio <= MAX_RATIO else ""),
            flush=True,
        )


if __name__ == "__main__":
    main()
