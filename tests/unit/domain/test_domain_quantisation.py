"""Quantisation specs: what validates, what is refused by name, and identities that stay."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cloud.domain.quantisation import Estimator, Granularity, QuantisationSpec, Scheme
from cloud.domain.specs import CompressionSpec


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("bits", 9, "bits is 9: it must be a whole number from 2 to 8"),
        ("bits", 1, "bits is 1"),
        ("bits", 4.0, "bits is 4.0"),
        ("bits", True, "bits is True"),
        ("scheme", "ternary", "scheme is 'ternary': it must be one of uniform, power-of-two"),
        ("granularity", "per-row", "granularity is 'per-row'"),
        ("estimator", "kl", "estimator is 'kl'"),
        ("activation_estimator", None, "activation_estimator is None"),
        ("percentile", 101, "percentile is 101"),
        ("percentile", float("nan"), "percentile is nan"),
        ("tuning_epochs", -1, "tuning_epochs is -1"),
        ("tuning_learning_rate", 0, "tuning_learning_rate is 0"),
        ("qat_epochs", "2", "qat_epochs is '2'"),
        ("tolerance", -0.1, "tolerance is -0.1"),
        ("symmetric", 1, "symmetric is 1: it must be true or false"),
        ("step", 1, "step is no key: known are"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(field: str, value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"quantisation.{said}"):
        CompressionSpec.from_mapping({"quantisation": {field: value}})


@pytest.mark.parametrize("value", [4, "int4", [4]])
def test_a_quantisation_that_is_no_mapping_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"quantisation is .*mapping such as bits: 4"):
        CompressionSpec.from_mapping({"quantisation": value})


@pytest.mark.parametrize("scheme", [Scheme.POWER_OF_TWO, Scheme.CODEBOOK, Scheme.LOGARITHMIC])
def test_only_uniform_levels_have_a_zero_point(scheme: Scheme) -> None:
    with pytest.raises(ValueError, match="symmetric is false"):
        QuantisationSpec(scheme=scheme, bits=4, symmetric=False)


def test_logarithmic_levels_end_before_denormal_numbers() -> None:
    assert QuantisationSpec(scheme=Scheme.LOGARITHMIC, bits=6).bits == 6
    with pytest.raises(ValueError, match="bits is 7: scheme logarithmic takes 2 to 6"):
        QuantisationSpec(scheme=Scheme.LOGARITHMIC, bits=7)


def test_a_quantised_spec_is_itself_again_after_json() -> None:
    spec = CompressionSpec(
        quantisation=QuantisationSpec(
            scheme=Scheme.CODEBOOK,
            bits=3,
            granularity=Granularity.PER_TENSOR,
            activation_estimator=Estimator.ENTROPY,
        )
    )
    again = CompressionSpec.from_mapping(json.loads(spec.to_json()))
    assert again == spec
    assert again.digest == spec.digest != CompressionSpec().digest


def test_specs_without_quantisation_keep_the_identity_that_they_had() -> None:
    assert "quantisation" not in CompressionSpec().to_json()
    assert CompressionSpec.from_mapping({"quantisation": None}) == CompressionSpec()


@pytest.mark.parametrize(
    ("spec", "int8", "reduced", "wanted"),
    [
        (QuantisationSpec(bits=8), False, True, 8),
        (QuantisationSpec(bits=8), True, False, 8),
        (QuantisationSpec(bits=8), True, True, 7),
        (QuantisationSpec(bits=4), True, True, 4),
        (QuantisationSpec(bits=8, symmetric=False), True, False, 7),
        (QuantisationSpec(bits=8, symmetric=False), True, True, 6),
        (QuantisationSpec(bits=8, symmetric=False, granularity=Granularity.PER_TENSOR), True, True, 7),
        (QuantisationSpec(bits=8, scheme=Scheme.CODEBOOK), True, True, 8),
    ],
)
def test_weights_have_as_many_bits_as_the_kernels_take(
    spec: QuantisationSpec, int8: bool, reduced: bool, wanted: int
) -> None:
    assert spec.weight_bits(is_int8=int8, is_reduced_range=reduced) == wanted
