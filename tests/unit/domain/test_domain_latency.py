"""The latency model on layers whose cost is known."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud.domain.latency import LayerKind, LayerShape, Probe, fit_latency


def network(width: int, num_layers: int = 6) -> tuple[LayerShape, ...]:
    """A stem, a trunk of one width, a head."""
    conv = LayerKind.CONVOLUTION
    stem = LayerShape(kind=conv, in_channels=1, out_channels=width, kernel_size=9, positions=196)
    trunk = LayerShape(kind=conv, in_channels=width, out_channels=width, kernel_size=9, positions=49)
    head = LayerShape(kind=conv, in_channels=width, out_channels=10)
    return (stem, *[trunk] * num_layers, head)


def up(count: int, block: int) -> int:
    return -(-count // block) * block


def measured(width: int, *, block: int = 8, noise: float = 0.0, seed: int = 0) -> float:
    """A processor that works on ``block`` channels at once and has a price for each call."""
    total = 0.01
    for layer in network(width):
        inputs = layer.in_channels if layer.in_channels < block else up(layer.in_channels, block)
        total += 0.002 + 2e-8 * inputs * up(layer.out_channels, block) * layer.kernel_size * layer.positions
    return total * (1 + noise * random.Random(f"{width} {seed}").uniform(-1, 1))


PROBED = (8, 20, 32, 44, 56, 68, 80, 92, 104)


def probes(**how: float) -> list[Probe]:
    return [Probe(layers=network(width), latency_ms=measured(width, **how)) for width in PROBED]  # type: ignore[arg-type]


@pytest.mark.parametrize("block", [8, 16])
def test_nine_probes_predict_the_widths_between_them(block: int) -> None:
    model = fit_latency(probes(block=block))
    assert model.block == block
    for width in range(8, 105):
        assert model.predict(network(width)) == pytest.approx(measured(width, block=block), rel=0.05)


def test_padding_is_seen_where_multiply_accumulates_mislead() -> None:
    # One channel over a full block costs a whole block more.
    model = fit_latency(probes(block=16))
    step = model.predict(network(65)) / model.predict(network(64))
    assert step > 1.2
    assert model.predict(network(66)) == pytest.approx(model.predict(network(65)))


def test_noise_is_not_followed_and_the_error_is_told() -> None:
    model = fit_latency(probes(noise=0.05))
    assert 0.0 < model.error_ratio < 0.1
    assert all(coefficient >= 0 for coefficient in model.coefficients)
    for width in range(8, 105, 3):
        assert model.predict(network(width)) == pytest.approx(measured(width), rel=0.1)
    assert fit_latency(probes()).error_ratio < model.error_ratio


def test_another_machine_has_another_model_but_the_same_ratios() -> None:
    here = fit_latency(probes())
    slow = fit_latency([Probe(layers=p.layers, latency_ms=5 * p.latency_ms) for p in probes()])
    assert slow.predict(network(50)) == pytest.approx(5 * here.predict(network(50)), rel=0.02)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.sampled_from(range(8, 120)), min_size=3, max_size=9, unique=True), st.integers(0, 9))
def test_the_same_probes_give_the_same_model_and_it_is_never_negative(widths: list[int], seed: int) -> None:
    made = [Probe(layers=network(w), latency_ms=measured(w, noise=0.2, seed=seed)) for w in widths]
    model = fit_latency(made)
    assert model == fit_latency(made)
    predicted = [model.predict(network(width)) for width in range(8, 120)]
    assert min(predicted) > 0
    assert predicted == sorted(predicted)


def test_too_few_probes_and_impossible_ones_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 3"):
        fit_latency(probes()[:2])
    with pytest.raises(ValueError, match="positive"):
        fit_latency([*probes(), Probe(layers=network(9), latency_ms=0.0)])
