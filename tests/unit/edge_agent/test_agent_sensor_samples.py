"""What sensors send: honest samples become inputs, all else a refusal with its reason."""

from __future__ import annotations

import io
import json
import pickle

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge_agent.inference import InferenceResult
from edge_agent.sensors.answers import encode_answer, encode_error
from edge_agent.sensors.samples import Sample, UnfitError, parse_sample
from edgeloop.errors import RejectedError

SHAPE = (2, 3)
ONE = np.arange(6, dtype=np.float32).reshape(SHAPE)
FORMATS = st.sampled_from(["json", "raw", "npy"])


def parse(payload: bytes, sample_format: str) -> Sample:
    return parse_sample(payload, sample_format=sample_format, sample_shape=SHAPE)


def npy(array: object, **options: object) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)  # type: ignore[arg-type]
    return file.getvalue()


def result(outputs: object, metric: str = "") -> InferenceResult:
    return InferenceResult(
        outputs=np.array(outputs, np.float32), digest="d" * 64, generation=7, metric=metric, service_ms=0.25
    )


@pytest.mark.parametrize(
    ("payload", "sample_format"),
    [
        (json.dumps(ONE.tolist()).encode(), "json"),
        (json.dumps(ONE.ravel().tolist()).encode(), "json"),
        (json.dumps({"inputs": ONE.tolist(), "unit": "mm"}).encode(), "json"),
        (ONE.astype("<f4").tobytes(), "raw"),
        (npy(ONE), "npy"),
        (npy(np.asfortranarray(ONE)), "npy"),
        (npy(ONE.astype(">f4")), "npy"),
    ],
)
def test_one_sample_in_each_format(payload: bytes, sample_format: str) -> None:
    sample = parse(payload, sample_format)
    np.testing.assert_array_equal(sample.inputs, ONE[np.newaxis])
    assert not sample.is_batch
    assert sample.inputs.dtype == np.float32


@pytest.mark.parametrize(
    ("payload", "sample_format"),
    [
        (json.dumps([ONE.tolist()] * 3).encode(), "json"),
        (ONE.tobytes() * 3, "raw"),
        (npy(np.stack([ONE] * 3)), "npy"),
    ],
)
def test_several_samples_are_a_batch(payload: bytes, sample_format: str) -> None:
    sample = parse(payload, sample_format)
    assert (sample.inputs.shape, sample.is_batch) == ((3, *SHAPE), True)


BAD_HEADER = b"\x93NUMPY\x01\x00\x46\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)"


@pytest.mark.parametrize(
    ("payload", "sample_format", "code"),
    [
        (b"", "raw", "input-size"),
        (ONE.tobytes()[:-1], "raw", "input-size"),
        (ONE.tobytes() * 65, "raw", "input-size"),
        (np.full(6, np.nan, "<f4").tobytes(), "raw", "input-value"),
        (b"", "json", "input-json"),
        (b"\xff\xfe", "json", "input-json"),
        (b"[" * 100_000, "json", "input-json"),
        (b"[NaN]", "json", "input-json"),
        (b"[1" + b"0" * 5000 + b"]", "json", "input-json"),
        (b'{"input": []}', "json", "input-json"),
        (b'{"inputs": [1, 2], "id": "a"}', "json", "input-size"),
        (b'{"inputs": [[1, 2], [3]]}', "json", "input-shape"),
        (b'{"inputs": 5}', "json", "input-shape"),
        (b"[]", "json", "input-shape"),
        (b'[[1, 2, 3], [4, 5, "6"]]', "json", "input-value"),
        (b"[[1, 2, 3], [4, 5, true]]", "json", "input-value"),
        (b"[[1, 2, 3], [4, 5, 1e39]]", "json", "input-value"),
        (b'{"inputs": [1], "id": [1]}', "json", "input-id"),
        (json.dumps([ONE.tolist()] * 65).encode(), "json", "input-shape"),
        (b"", "npy", "input-npy"),
        (pickle.dumps(ONE), "npy", "input-npy"),
        (BAD_HEADER, "npy", "input-npy"),
        (npy(np.array([{"a": 1}], object), allow_pickle=True), "npy", "input-type"),
        (npy(ONE.astype(np.float64)), "npy", "input-type"),
        (npy(ONE.T), "npy", "input-shape"),
        (npy(ONE)[:-1], "npy", "input-size"),
        (npy(ONE) + b"x", "npy", "input-size"),
        (npy(np.full(SHAPE, np.inf, np.float32)), "npy", "input-value"),
        # 2 GiB that the header merely claims.
        (npy(ONE[None]).replace(b"(1, 2, 3), }       ", b"(99999999, 2, 3), }"), "npy", "input-shape"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_code(payload: bytes, sample_format: str, code: str) -> None:
    with np.errstate(invalid="ignore"), pytest.raises(RejectedError) as caught:
        parse(payload, sample_format)
    assert caught.value.code == code, caught.value.message
    assert json.loads(encode_error(caught.value, source="s"))["code"] == code


@given(payload=st.binary(max_size=300), sample_format=FORMATS)
@example(payload=b'{"inputs": [1,2,3,4,5,6], "id": "\\ud800"}', sample_format="json")
def test_any_bytes_give_a_sample_or_a_refusal(payload: bytes, sample_format: str) -> None:
    try:
        sample = parse(payload, sample_format)
    except RejectedError as error:
        said = json.loads(encode_error(error, source="s"))
    else:
        assert sample.inputs.shape[1:] == SHAPE
        assert np.isfinite(sample.inputs).all()
        answer = encode_answer(sample, result(sample.inputs), source="s", more={})
        said = json.loads(answer)
    assert ("code" in said) != ("outputs" in said)
    assert len(json.dumps(said)) < 4000


@given(
    position=st.integers(0, 200),
    change=st.binary(max_size=8),
    genuine=st.sampled_from(
        [(npy(ONE), "npy"), (json.dumps({"inputs": ONE.tolist(), "id": 3}).encode(), "json")]
    ),
)
def test_spliced_samples_give_a_sample_or_a_refusal(
    position: int, change: bytes, genuine: tuple[bytes, str]
) -> None:
    payload, sample_format = genuine
    try:
        sample = parse(payload[:position] + change + payload[position + len(change) :], sample_format)
    except RejectedError:
        return
    assert sample.inputs.shape[1:] == SHAPE
    assert np.isfinite(sample.inputs).all()


def test_an_answer_names_its_model_and_the_class() -> None:
    sample = parse(b'{"inputs": [1,2,3,4,5,6], "id": "n-1"}', "json")
    said = json.loads(encode_answer(sample, result([[0.5, 2.0, -1.0]]), source="in/a", more={}))
    assert said == {
        "id": "n-1",
        "source": "in/a",
        "outputs": [0.5, 2.0, -1.0],
        "class": 1,
        "model": "d" * 64,
        "generation": 7,
        "latency_ms": 0.25,
    }


@pytest.mark.parametrize(
    ("outputs", "metric", "expected"),
    [
        ([[0.5, 2.0, -1.0]], "accuracy", 1),
        ([[0.5, 2.0, -1.0]], "r2", None),
        ([[3.5]], "r2", None),
        ([[3.5]], "", 1),
        ([[-0.1]], "accuracy", 0),
    ],
)
def test_only_a_classifier_answers_a_class(
    outputs: list[list[float]], metric: str, expected: int | None
) -> None:
    answer = encode_answer(parse(ONE.tobytes(), "raw"), result(outputs, metric), source="s", more={})
    said = json.loads(answer)
    assert said.get("class") == expected
    assert "id" not in said


def test_a_batch_has_a_class_for_each_of_its_samples() -> None:
    sample = parse(ONE.tobytes() * 2, "raw")
    said = json.loads(encode_answer(sample, result([[1, 0], [0, 1]]), source="s", more={}))
    assert (said["outputs"], said["class"]) == ([[1.0, 0.0], [0.0, 1.0]], [0, 1])


def test_a_model_that_answers_nan_is_an_error_and_no_invalid_json() -> None:
    with pytest.raises(RejectedError) as caught:
        encode_answer(parse(ONE.tobytes(), "raw"), result([[np.nan]]), source="s", more={})
    assert caught.value.code == "output-value"


def test_an_error_keeps_the_id_that_could_be_read() -> None:
    with pytest.raises(UnfitError) as caught:
        parse(b'{"inputs": [1, 2], "id": "n-2"}', "json")
    said = json.loads(encode_error(caught.value, source="in/a", sample_id=caught.value.sample_id))
    assert (said["id"], said["source"], said["code"]) == ("n-2", "in/a", "input-size")
