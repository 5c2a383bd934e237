"""What each quantiser costs in accuracy and buys in bytes and time.

    python -m benchmarks.quantisation

For more than one seed give ``--seed 1`` and so on: teacher, tuning and calibration all follow it. One
network (a residual CNN on handwritten digits, or ``--workload fashion-mnist``), trained once, goes through
every method. Sizes on the wire are those of the packed artifact, as shares of the peer's; latencies are
shares of fp32's in one interleaved run of the agent's runtime. The peer is ONNX Runtime's own
``quantize_static`` as it is advised for processors without VNNI: per channel, unsigned activations, reduced
range.
"""

from __future__ import annotations

import argparse
import logging
import time
from dataclasses import dataclass, replace

import torch
from torch import nn

from cloud.compression import evaluate
from cloud.compression.build import calibration_samples, export_verified
from cloud.compression.export import fold_batch_norm
from cloud.compression.fake_quantise import quantise_network
from cloud.compression.fusion import float_compute_nodes
from cloud.compression.int8_scales import quantise_network_int8
from cloud.compression.pack import pack_onnx
from cloud.compression.qat import train_int8
from cloud.compression.quantise import quantise
from cloud.domain.quantisation import Estimator, Granularity, QuantisationSpec, Scheme
from cloud.domain.specs import CompressionSpec
from cloud.domain.workloads import TrainingBudget, Workload
from cloud.training.datasets import Dataset
from cloud.training.teacher import TeacherTrainer

CPU = torch.device("cpu")
WORKLOADS = {
    "digits": Workload(
        name="digits",
        dataset="digits",
        teacher_options={"base_width": 16, "num_stages": 2, "stem_stride": 2},
        training=TrainingBudget(num_epochs=8, batch_size=32, learning_rate=5e-3),
    ),
    "fashion-mnist": Workload(
        name="fashion-mnist",
        dataset="fashion-mnist",
        teacher_options={"base_width": 16, "num_stages": 3},
        training=TrainingBudget(num_epochs=4, batch_size=64, augment_pixels=2, augment_flip=True),
    ),
}
BASE = QuantisationSpec(estimator=Estimator.MSE, tuning_epochs=0, qat_epochs=0)
METHODS: dict[str, QuantisationSpec] = {
    "uniform 8, min-max": replace(BASE, estimator=Estimator.MIN_MAX),
    "uniform 8, activations percentile": replace(BASE, activation_estimator=Estimator.PERCENTILE),
    "uniform 8, activations entropy": replace(BASE, activation_estimator=Estimator.ENTROPY),
    "uniform 8, activations mse": replace(BASE, activation_estimator=Estimator.MSE),
    "uniform 8, asymmetric per tensor": replace(BASE, symmetric=False, granularity=Granularity.PER_TENSOR),
    "uniform 4, min-max": replace(BASE, bits=4, estimator=Estimator.MIN_MAX),
    "uniform 4, percentile": replace(BASE, bits=4, estimator=Estimator.PERCENTILE, percentile=99.0),
    "uniform 4, entropy": replace(BASE, bits=4, estimator=Estimator.ENTROPY),
    "uniform 4, mse": replace(BASE, bits=4),
    "uniform 4, mse, per tensor": replace(BASE, bits=4, granularity=Granularity.PER_TENSOR),
    "uniform 4, mse, asymmetric": replace(BASE, bits=4, symmetric=False),
    "uniform 4, mse, tuned": replace(BASE, bits=4, tuning_epochs=2),
    "uniform 2, mse": replace(BASE, bits=2),
    "uniform 2, mse, tuned": replace(BASE, bits=2, tuning_epochs=2),
    "power-of-two 4": replace(BASE, scheme=Scheme.POWER_OF_TWO, bits=4),
    "power-of-two 4, tuned": replace(BASE, scheme=Scheme.POWER_OF_TWO, bits=4, tuning_epochs=2),
    "codebook 4, per channel": replace(BASE, scheme=Scheme.CODEBOOK, bits=4),
    "codebook 4, per layer": replace(
        BASE, scheme=Scheme.CODEBOOK, bits=4, granularity=Granularity.PER_TENSOR
    ),
    "codebook 3, per layer, tuned": replace(
        BASE, scheme=Scheme.CODEBOOK, bits=3, granularity=Granularity.PER_TENSOR, tuning_epochs=2
    ),
    "logarithmic 4": replace(BASE, scheme=Scheme.LOGARITHMIC, bits=4),
    "logarithmic 4, tuned": replace(BASE, scheme=Scheme.LOGARITHMIC, bits=4, tuning_epochs=2),
}
#: One channel this many times as large as it was, and the weights behind it as much smaller.
IMBALANCE = 1000.0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Row:
    """One method. ``fp32`` is its fp32 form or None, ``weight_bytes`` its packed codes and tables."""

    name: str
    fp32: bytes | None
    int8: bytes | None
    weight_bytes: int


def silent(fraction: float, message: str) -> None:
    """Progress is not the matter here."""


class Bench:
    def __init__(self, workload: Workload, num_validation: int, seed: int = 0) -> None:
        workload = replace(workload, training=replace(workload.training, seed=seed))
        self.workload, self.seed = workload, seed
        trainer = TeacherTrainer(workload, device="cpu")
        while trainer.epoch < trainer.num_epochs:
            trainer.run_epoch()
        self.seconds = trainer.train_s
        self.model, self.dataset = trainer.model.eval(), trainer.dataset
        self.num_validation = num_validation
        self.samples = calibration_samples(self.dataset, 256, seed)

    def accuracy(self, data: bytes) -> float:
        validation = self.dataset.validation
        inputs, labels = validation.inputs[: self.num_validation], validation.labels[: self.num_validation]
        return evaluate.accuracy(evaluate.load(data), inputs, labels)

    def build(self, name: str, spec: QuantisationSpec, model: nn.Module | None = None) -> Row:
        network = quantise_network(
            self.model if model is None else model,
            self.model,
            self.dataset,
            spec=CompressionSpec(quantisation=spec, seed=self.seed),
            bits=spec.weight_bits(is_int8=True, is_reduced_range=True),
            training=self.workload.training,
            device=CPU,
            report=silent,
        )
        fp32 = export_verified(network.model, self.dataset)
        int8 = quantise_network_int8(fp32, self.samples, network, reduced_range=True)
        return Row(
            name=name,
            fp32=fp32,
            int8=int8,
            weight_bytes=sum(tensor.num_bytes for tensor in network.tensors.values()),
        )

    def train(self, name: str, spec: QuantisationSpec, model: nn.Module) -> tuple[Row, Row]:
        """Post-training int8 of ``model``, and the same trained for int8."""
        compression = CompressionSpec(quantisation=spec, seed=self.seed)
        bits = spec.weight_bits(is_int8=True, is_reduced_range=True)
        network = quantise_network(
            model,
            self.model,
            self.dataset,
            spec=compression,
            bits=bits,
            training=self.workload.training,
            device=CPU,
            report=silent,
        )
        fp32 = export_verified(network.model, self.dataset)
        before = quantise_network_int8(fp32, self.samples, network, reduced_range=True)
        trained = train_int8(
            network,
            before,
            self.samples,
            self.model,
            self.dataset,
            spec=compression,
            reduced_range=True,
            training=self.workload.training,
            device=CPU,
            report=silent,
        )
        size = sum(tensor.num_bytes for tensor in network.tensors.values())
        return (
            Row(name=name, fp32=fp32, int8=before, weight_bytes=size),
            Row(name=f"{name}, trained for int8", fp32=None, int8=trained.data, weight_bytes=size),
        )


def unbalance(model: nn.Module, dataset: Dataset) -> nn.Module:
    """The same function with a channel that spoils the scale of all others: it is what QAT is for."""
    folded = fold_batch_norm(model)
    first, second = folded.get_submodule("blocks.0.conv1"), folded.get_submodule("blocks.0.conv2")
    assert isinstance(first, nn.Conv2d)
    assert isinstance(second, nn.Conv2d)
    assert first.bias is not None
    with torch.no_grad():
        before = folded(torch.from_numpy(dataset.validation.inputs[:8]))
        first.weight[0] *= IMBALANCE
        first.bias[0] *= IMBALANCE
        second.weight[:, 0] /= IMBALANCE
        after = folded(torch.from_numpy(dataset.validation.inputs[:8]))
    assert torch.allclose(before, after, atol=1e-2)
    return folded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--workload", choices=sorted(WORKLOADS), default="digits")
    parser.add_argument("--num-validation", type=int, default=2000, help="samples that score a method")
    parser.add_argument("--seed", type=int, default=0, help="of the teacher, of tuning and of calibration")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger().setLevel(logging.ERROR)
    started = time.perf_counter()
    bench = Bench(WORKLOADS[arguments.workload], arguments.num_validation, arguments.seed)
    fp32 = export_verified(bench.model, bench.dataset)
    peer = quantise(fp32, bench.samples, reduced_range=True)
    rows = [
        Row(name="fp32", fp32=fp32, int8=None, weight_bytes=0),
        Row(name="onnxruntime quantize_static", fp32=None, int8=peer, weight_bytes=0),
    ]
    rows += [bench.build(name, spec) for name, spec in METHODS.items()]
    unbalanced = unbalance(bench.model, bench.dataset)
    plain = quantise(export_verified(unbalanced, bench.dataset), bench.samples, reduced_range=True)
    rows.append(Row(name="unbalanced: quantize_static", fp32=None, int8=plain, weight_bytes=0))
    hard = replace(BASE, estimator=Estimator.MIN_MAX, qat_epochs=3)
    rows += bench.train("unbalanced", hard, unbalanced)
    _print(bench, rows, len(fp32), len(pack_onnx(peer)))
    num_scored = min(arguments.num_validation, len(bench.dataset.validation))
    print(
        f"\n{arguments.workload}, {num_scored} validation samples, teacher trained in {bench.seconds:.0f} s, "
        f"all in {time.perf_counter() - started:.0f} s"
    )


def _print(bench: Bench, rows: list[Row], fp32_bytes: int, peer_wire_bytes: int) -> None:
    forms = [row.int8 or row.fp32 or b"" for row in rows]
    timing = evaluate.time_artifacts(
        [evaluate.load(data) for data in forms], bench.dataset.validation.inputs[:1]
    )
    print("| method | fp32 form | int8 form | weights packed | file on the wire | p50 | floats left |")
    print("|---|---|---|---|---|---|---|")
    for place, (row, data) in enumerate(zip(rows, forms, strict=True)):
        cells = [
            row.name,
            "-" if row.fp32 is None else f"{100 * bench.accuracy(row.fp32):.2f}",
            "-" if row.int8 is None else f"{100 * bench.accuracy(row.int8):.2f}",
            "-" if not row.weight_bytes else f"{row.weight_bytes / fp32_bytes:.3f}",
            f"{len(pack_onnx(data)) / peer_wire_bytes:.2f}",
            f"{timing.p50_ms(place) / timing.p50_ms(0):.2f}",
            "-" if row.int8 is None else str(len(float_compute_nodes(row.int8))),
        ]
        print(f"| {' | '.join(cells)} |")
    print(
        "\nAccuracy in % on the validation split. Weights packed: share of the fp32 file. On the wire: share "
        "of\nquantize_static's packed file. p50: share of fp32's, one thread, batch 1."
    )


if __name__ == "__main__":
    main()
