"""Quantisation of whole networks: handwritten digits, a small convolutional network, the agent's runtime."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import onnx
import pytest
import small_network
import torch
from compression_networks import (
    INPUT_SHAPE,
    Concat,
    Dense,
    Depthwise,
    Gated,
    Repeated,
    Residual,
    Sequence,
    make,
)
from digit_rounding import DIGITS, TRAINING, accuracy
from onnx import numpy_helper
from torch import nn

from cloud.compression import evaluate
from cloud.compression.calibrate import ActivationScale, calibrate
from cloud.compression.export import export_onnx, fold_batch_norm
from cloud.compression.fake_quantise import QuantisedNetwork, quantise_network, round_weights, settle
from cloud.compression.fusion import float_compute_nodes, optimised_graph
from cloud.compression.int8_scales import quantise_network_int8
from cloud.compression.qat import train_int8
from cloud.compression.quantise import quantise, unshare
from cloud.domain.quantisation import Estimator, Granularity, QuantisationSpec, Scheme
from cloud.domain.specs import CompressionSpec
from edgeloop.errors import ConfigError, RejectedError

torch.set_num_threads(1)


CPU = torch.device("cpu")
SAMPLES = DIGITS.train.inputs[:128]
SCHEMES = {
    "symmetric": QuantisationSpec(estimator=Estimator.MSE),
    "asymmetric": QuantisationSpec(symmetric=False, estimator=Estimator.MSE),
    "per-tensor": QuantisationSpec(granularity=Granularity.PER_TENSOR, estimator=Estimator.MSE),
    "power-of-two": QuantisationSpec(scheme=Scheme.POWER_OF_TWO, estimator=Estimator.MSE),
    "codebook": QuantisationSpec(scheme=Scheme.CODEBOOK),
    "codebook-per-tensor": QuantisationSpec(scheme=Scheme.CODEBOOK, granularity=Granularity.PER_TENSOR),
    "logarithmic": QuantisationSpec(scheme=Scheme.LOGARITHMIC, bits=4),
}


def silent(fraction: float, message: str) -> None:
    """A report that nobody reads."""


@pytest.fixture(scope="module")
def small() -> nn.Module:
    model = small_network.trained()
    assert accuracy(export_onnx(model, DIGITS.input_shape)) > 0.95
    return model


def round_network(
    model: nn.Module, spec: QuantisationSpec, teacher: nn.Module | None = None
) -> QuantisedNetwork:
    return quantise_network(
        model,
        model if teacher is None else teacher,
        DIGITS,
        spec=CompressionSpec(quantisation=spec),
        bits=spec.weight_bits(is_int8=True, is_reduced_range=True),
        training=TRAINING,
        device=CPU,
        report=silent,
    )


def int8_weights(data: bytes) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, int]]:
    """Of each weight matrix in an int8 file: codes, scale, zero point, and the channels' axis."""
    graph = onnx.load_from_string(data).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        codes = constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if codes is not None and codes.ndim > 1:
            assert codes.dtype == np.int8
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            found[node.input[0]] = (codes, constants[node.input[1]], constants[node.input[2]], axis)
    return found


def activation_scales(data: bytes) -> dict[str, tuple[float, int]]:
    graph = onnx.load_from_string(data).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return {
        node.input[0].removesuffix("_QuantizeLinear_Input"): (
            float(constants[node.input[1]]),
            int(constants[node.input[2]]),
        )
        for node in graph.node
        if node.op_type == "QuantizeLinear"
    }


@pytest.mark.parametrize("name", SCHEMES)
def test_a_tuned_network_of_few_levels_keeps_its_accuracy_in_both_forms(small: nn.Module, name: str) -> None:
    spec = replace(SCHEMES[name], bits=4, tuning_epochs=2)
    network = round_network(small, spec)
    fp32 = export_onnx(network.model, DIGITS.input_shape)
    int8 = quantise_network_int8(fp32, SAMPLES, network, reduced_range=True)
    assert accuracy(fp32) > 0.93
    assert accuracy(int8) > 0.92
    assert float_compute_nodes(int8) == []
    assert {name.split(".")[0] for name in network.tensors} == {"conv1", "conv2", "head"}
    graph = onnx.load_from_string(fp32).graph
    weights = [numpy_helper.to_array(t) for t in graph.initializer if len(t.dims) > 1 and t.data_type == 1]
    assert len(weights) == 3
    for weight in weights:
        rows = weight.reshape(len(weight) if spec.granularity is Granularity.PER_CHANNEL else 1, -1)
        assert max(len(np.unique(row)) for row in rows) <= 16
    for codes, _, _, _ in int8_weights(int8).values():
        assert np.abs(codes.astype(int)).max() <= 64
        rows = codes.reshape(len(codes) if spec.granularity is Granularity.PER_CHANNEL else 1, -1)
        assert 4 < max(len(np.unique(row)) for row in rows) <= 16


def test_tuning_through_the_rounding_recovers_what_rounding_loses(small: nn.Module) -> None:
    spec = QuantisationSpec(bits=2, estimator=Estimator.MSE, tuning_epochs=0)
    rounded = accuracy(export_onnx(round_network(small, spec).model, DIGITS.input_shape))
    tuned_network = round_network(small, replace(spec, tuning_epochs=3))
    tuned = accuracy(export_onnx(tuned_network.model, DIGITS.input_shape))
    assert tuned > rounded + 0.03
    assert tuned > 0.92
    assert all(tensor.num_levels <= 3 for tensor in tuned_network.tensors.values())


def test_tuning_gives_the_same_weights_again(small: nn.Module) -> None:
    spec = replace(SCHEMES["codebook"], bits=3, tuning_epochs=1)
    first, second = (round_network(small, spec) for _ in range(2))
    for name, tensor in first.tensors.items():
        assert np.array_equal(tensor.dequantise(), second.tensors[name].dequantise())


@pytest.mark.parametrize("name", ["symmetric", "asymmetric", "codebook", "logarithmic"])
def test_pruned_weights_stay_zero_while_the_others_are_tuned(small: nn.Module, name: str) -> None:
    pruned = fold_batch_norm(small)
    weight = pruned.get_parameter("conv2.weight")
    with torch.no_grad():
        weight[weight.abs() < weight.abs().median()] = 0
    zeros = (weight == 0).numpy()
    before = weight.detach().clone().numpy()
    network = round_network(pruned, replace(SCHEMES[name], bits=4))
    after = network.tensors["conv2.weight"].dequantise()
    assert not after[zeros].any()
    assert zeros.mean() >= 0.49
    assert not np.array_equal(after, before)


@pytest.mark.parametrize("name", ["symmetric", "asymmetric", "per-tensor", "power-of-two", "logarithmic"])
def test_the_int8_file_holds_the_very_weights_that_were_trained(small: nn.Module, name: str) -> None:
    network = round_network(small, replace(SCHEMES[name], bits=4, tuning_epochs=0))
    fp32 = export_onnx(network.model, DIGITS.input_shape)
    int8 = quantise_network_int8(fp32, SAMPLES, network, reduced_range=True)
    held = []
    for codes, scale, zero_point, axis in int8_weights(int8).values():
        shape = [-1 if place == axis else 1 for place in range(codes.ndim)]
        shaped = scale.reshape(shape) if scale.ndim else scale
        zeros = zero_point.reshape(shape) if zero_point.ndim else zero_point
        held.append((codes.astype(np.int32) - zeros).astype(np.float32) * shaped)
    for tensor in network.tensors.values():
        wanted = tensor.dequantise()
        assert any(w.shape == wanted.shape and np.array_equal(w, wanted) for w in held)


def test_fixed_point_has_powers_of_two_for_every_scale(small: nn.Module) -> None:
    network = round_network(small, replace(SCHEMES["power-of-two"], tuning_epochs=0))
    fp32 = export_onnx(network.model, DIGITS.input_shape)
    int8 = quantise_network_int8(fp32, SAMPLES, network, reduced_range=True)
    scales = [float(s) for _, scale, _, _ in int8_weights(int8).values() for s in scale]
    scales += [scale for scale, _ in activation_scales(int8).values()]
    assert len(scales) > 50
    assert all(np.frexp(scale)[0] == 0.5 for scale in scales)
    assert accuracy(int8) > 0.9


def test_one_wild_calibration_sample_spoils_min_max_and_no_other_range(small: nn.Module) -> None:
    wild = SAMPLES.copy()
    wild[0, 0, 2:4, 3] = 300.0
    network = round_network(small, QuantisationSpec(tuning_epochs=0))
    fp32 = export_onnx(network.model, DIGITS.input_shape)
    found = {}
    for estimator in Estimator:
        spec = replace(network.spec, activation_estimator=estimator)
        data = quantise_network_int8(fp32, wild, replace(network, spec=spec), reduced_range=True)
        found[estimator] = accuracy(data)
    assert found[Estimator.MIN_MAX] < 0.9
    assert found[Estimator.PERCENTILE] > 0.95
    assert found[Estimator.ENTROPY] > 0.95
    assert found[Estimator.MSE] > found[Estimator.MIN_MAX] + 0.02


def test_calibration_says_which_activation_is_not_finite(small: nn.Module) -> None:
    model = unshare(export_onnx(small, DIGITS.input_shape))
    broken = SAMPLES.copy()
    broken[3] = np.nan
    with pytest.raises(RejectedError, match="activation input is NaN"):
        calibrate(model, broken, QuantisationSpec())


def test_int8_leaves_no_float_convolution_and_fp32_does(small: nn.Module) -> None:
    data = export_onnx(small, DIGITS.input_shape)
    assert len(float_compute_nodes(data)) == 3
    int8 = quantise(data, SAMPLES, reduced_range=True)
    assert float_compute_nodes(int8) == []
    kinds = [node.op_type for node in optimised_graph(int8).node]
    assert kinds.count("QLinearConv") == 2
    assert kinds.count("QGemm") == 1


@pytest.mark.parametrize("kind", [Residual, Concat, Depthwise, Gated, Dense, Sequence, Repeated])
def test_networks_of_each_shape_run_in_int8_alone(kind: type[nn.Module]) -> None:
    samples = np.random.default_rng(0).normal(size=(32, *INPUT_SHAPE)).astype(np.float32)
    spec = QuantisationSpec(bits=4)
    model = fold_batch_norm(make(kind))
    tensors = settle(model, round_weights(model, spec, 4))
    data = export_onnx(model, INPUT_SHAPE)
    network = QuantisedNetwork(model=model, tensors=tensors, spec=spec)
    int8 = quantise_network_int8(data, samples, network, reduced_range=True)
    assert float_compute_nodes(int8) == []
    wanted = evaluate.predict(evaluate.load(data), samples)
    found = evaluate.predict(evaluate.load(int8), samples)
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()


def test_a_weight_that_the_exporter_changed_is_refused(small: nn.Module) -> None:
    network = round_network(small, QuantisationSpec(tuning_epochs=0))
    other = copy.deepcopy(network.model)
    with torch.no_grad():
        other.get_parameter("conv2.weight").mul_(1.01)
    data = export_onnx(other, DIGITS.input_shape)
    with pytest.raises(RejectedError, match=r"does not hold the rounded weight conv2\.weight"):
        quantise_network_int8(data, SAMPLES, network, reduced_range=True)


def test_networks_without_layers_or_with_broken_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match="no convolution and no linear layer"):
        round_weights(nn.Sequential(nn.ReLU()), QuantisationSpec(), 8)
    broken = nn.Sequential(nn.Linear(4, 2))
    with torch.no_grad():
        broken[0].weight[0, 0] = float("nan")
    with pytest.raises(ConfigError, match="layer 0 holds NaN"):
        round_weights(broken, QuantisationSpec(), 8)


def test_taking_the_rounding_away_leaves_what_was_computed(small: nn.Module) -> None:
    model = fold_batch_norm(small)
    rounded = round_weights(model, replace(SCHEMES["codebook"], bits=3), 3)
    inputs = torch.from_numpy(SAMPLES)
    with torch.no_grad():
        before = model(inputs)
        settle(model, rounded)
        assert torch.equal(model(inputs), before)


@pytest.fixture(scope="module")
def unbalanced(small: nn.Module) -> nn.Module:
    """The same function, with one channel 300 times as large as it was: one scale fits no other channel."""
    model = copy.deepcopy(small)
    assert isinstance(model, small_network.Small)
    with torch.no_grad():
        model.norm1.weight[0] *= 300
        model.norm1.bias[0] *= 300
        model.conv2.weight[:, 0] /= 300
    return model


def test_training_for_int8_recovers_what_calibration_loses(small: nn.Module, unbalanced: nn.Module) -> None:
    spec = QuantisationSpec(tuning_epochs=0, qat_epochs=3)
    network = round_network(unbalanced, spec)
    fp32 = export_onnx(network.model, DIGITS.input_shape)
    post_training = quantise_network_int8(fp32, SAMPLES, network, reduced_range=True)
    trained = train_int8(
        network,
        post_training,
        SAMPLES,
        small,
        DIGITS,
        spec=CompressionSpec(quantisation=spec),
        reduced_range=True,
        training=TRAINING,
        device=CPU,
        report=silent,
    )
    full = accuracy(export_onnx(small, DIGITS.input_shape))
    lost = full - accuracy(post_training)
    assert lost > 0.1
    assert full - accuracy(trained.data) < lost / 2
    # The learnt scales are those in the file, to the bit, and they were learnt.
    scales = activation_scales(trained.data)
    assert set(trained.activations) == set(scales)
    for name, learnt in trained.activations.items():
        assert scales[name] == (learnt.scale, learnt.zero_point)
    assert {name for name, before in activation_scales(post_training).items() if before != scales[name]}
    assert float_compute_nodes(trained.data) == []
    for codes, _, _, _ in int8_weights(trained.data).values():
        assert np.abs(codes.astype(int)).max() <= 63
    # What torch trained is what the runtime computes.
    held = [codes for codes, _, _, _ in int8_weights(trained.data).values()]
    for tensor in trained.network.tensors.values():
        assert any(c.shape == tensor.codes.shape and np.array_equal(c, tensor.codes) for c in held)


def test_a_power_of_two_scale_covers_the_range_with_the_next_power() -> None:
    plain = ActivationScale.of(-1.0, 2.9, is_power_of_two=False)
    assert plain.scale == pytest.approx(3.9 / 255)
    assert plain.zero_point == 65
    fixed = ActivationScale.of(-1.0, 2.9, is_power_of_two=True)
    assert fixed == ActivationScale(scale=2**-6, zero_point=64)
    low, high = -fixed.zero_point * fixed.scale, (255 - fixed.zero_point) * fixed.scale
    assert low <= -1.0
    assert high >= 2.9
