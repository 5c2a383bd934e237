"""Tensors of the protocol: what goes in comes out, and hostile data gives a clear error."""

from __future__ import annotations

import json
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_agent.serving import tensors
from edge_agent.serving.tensors import DATATYPES, MAX_RANK
from edgeloop.errors import RejectedError

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
CODES = {"input-type", "input-shape", "input-size", "input-value"}

arrays = st.sampled_from(sorted(DATATYPES)).flatmap(lambda name: hnp.arrays(DATATYPES[name], SHAPES))
finite = st.sampled_from(sorted(DATATYPES)).flatmap(
    lambda name: hnp.arrays(
        DATATYPES[name],
        SHAPES,
        elements={"allow_nan": False, "allow_infinity": False} if name.startswith("FP") else None,
    )
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=20,
)


def outcome(call):
    """The result, or the one kind of error that hostile data may lead to."""
    try:
        return call(), None
    except RejectedError as error:
        return None, error


@given(arrays)
def test_raw_data_come_back_as_they_went(array) -> None:
    found = tensors.from_raw("x", tensors.datatype_of(array), array.shape, tensors.to_raw(array))
    assert found.shape == array.shape
    assert found.dtype == array.dtype
    assert tensors.to_raw(found) == array.tobytes()


@given(finite, st.booleans())
def test_json_data_come_back_as_they_went_flat_or_nested(array, nested) -> None:
    data = array.tolist() if nested and array.ndim else tensors.to_values("y", array)
    found = tensors.from_values(
        "x", tensors.datatype_of(array), list(array.shape), json.loads(json.dumps(data))
    )
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype


@given(
    st.sampled_from(sorted(DATATYPES)) | st.text(max_size=6),
    st.lists(json_values | st.integers(-1, 3), max_size=4),
    st.binary(max_size=64),
)
def test_any_raw_data_give_that_very_tensor_or_a_clear_error(datatype, shape, raw) -> None:
    found, error = outcome(lambda: tensors.from_raw("x", datatype, shape, raw))
    if error is not None:
        assert error.code in CODES
        assert "'x'" in error.message
    else:
        assert found.shape == tuple(shape)
        assert found.nbytes == len(raw)


@given(
    st.sampled_from(sorted(DATATYPES)) | st.text(max_size=6) | json_values,
    st.lists(json_values | st.integers(-1, 3), max_size=4),
    json_values,
)
def test_any_json_data_give_that_very_tensor_or_a_clear_error(datatype, shape, data) -> None:
    found, error = outcome(lambda: tensors.from_values("x", datatype, shape, data))
    if error is not None:
        assert error.code in CODES
        assert "'x'" in error.message
        assert len(error.message) < 1000
    else:
        assert found.shape == tuple(shape)
        assert found.dtype == DATATYPES[datatype]
        assert np.isfinite(found.astype(np.float64)).all()


@pytest.mark.parametrize(
    ("datatype", "value"),
    [
        ("FP32", 1e39),
        ("FP32", 10**400),
        ("FP32", "1"),
        ("FP32", None),
        ("FP32", True),
        ("FP16", 70000.0),
        ("INT8", 128),
        ("UINT8", -1),
        ("INT32", 1.0),
        ("UINT64", 1 << 64),
        ("BOOL", 1),
    ],
)
def test_no_value_is_bent_to_fit(datatype, value) -> None:
    with pytest.raises(RejectedError) as caught:
        tensors.from_values("x", datatype, [1], [value])
    assert caught.value.code == "input-value"


@pytest.mark.parametrize("datatype", ["BYTES", "BF16", "fp32", "", None, 3, "F" * 5000])
def test_datatypes_that_are_not_served_are_named(datatype) -> None:
    with pytest.raises(RejectedError, match="known are BOOL") as caught:
        tensors.from_values("x", datatype, [1], [1.0])
    assert caught.value.code == "input-type"
    assert len(caught.value.message) < 500


@pytest.mark.parametrize(
    ("shape", "data"),
    [([2, 2], [[1, 2], [3]]), ([2, 2], [[1, 2, 3, 4]]), ([2, 2], [[1, 2], 3]), ([1, 1, 1], [[1]])],
)
def test_lists_that_are_nested_otherwise_than_the_shape_are_refused(shape, data) -> None:
    with pytest.raises(RejectedError) as caught:
        tensors.from_values("x", "FP32", shape, data)
    assert caught.value.code in ("input-shape", "input-size", "input-value")


def test_a_claimed_shape_allocates_nothing() -> None:
    texts = ["x" * 100_000] + [1] * 1000  # as one numpy array of texts: 400 MB
    tracemalloc.start()
    try:
        for shape in ([1 << 39], [1 << 30, 1 << 30], [0, 1 << 39, 5], [1] * (MAX_RANK + 1)):
            with pytest.raises(RejectedError):
                tensors.from_raw("x", "FP64", shape, b"\0")
            with pytest.raises(RejectedError):
                tensors.from_values("x", "FP64", shape, [0.5])
        with pytest.raises(RejectedError):
            tensors.from_values("x", "FP32", [len(texts)], texts)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_outputs_that_json_cannot_say_are_refused_there_and_only_there() -> None:
    array = np.array([1, math.inf], np.float32)
    with pytest.raises(RejectedError, match="ask for binary data"):
        tensors.to_values("y", array)
    assert len(tensors.to_raw(array)) == 8
