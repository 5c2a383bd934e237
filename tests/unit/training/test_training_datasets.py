"""Datasets: what is accepted, what is refused, and with which words."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloud.domain.workloads import Workload
from cloud.training.datasets import check_dataset, load_dataset
from edgeloop.errors import ConfigError


def arrays(**changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    answer: dict[str, Any] = {}
    for split in ("train", "validation", "test"):
        answer[f"{split}_inputs"] = rng.normal(size=(6, 3, 4)).astype(np.float32)
        answer[f"{split}_labels"] = np.array([0, 1, 2, 0, 1, 2])
    return {**answer, **changes}


def test_digits_are_split_by_class_scaled_and_enlarged() -> None:
    dataset = load_dataset(Workload(name="d", dataset="digits", dataset_options={"image_size": 16}))
    assert dataset.input_shape == (1, 16, 16)
    assert len(dataset.train) + len(dataset.validation) + len(dataset.test) == 1797
    for split in (dataset.train, dataset.validation, dataset.test):
        share = np.bincount(split.labels, minlength=10) / len(split)
        assert share.min() > 0.09
        assert share.max() < 0.11
        assert split.inputs.dtype == np.float32
        assert split.inputs.min() == -1.0
        assert split.inputs.max() == 1.0


def test_digits_splits_do_not_overlap_and_repeat_exactly() -> None:
    workload = Workload(name="d", dataset="digits", dataset_options={"image_size": 8})
    first, again = load_dataset(workload), load_dataset(workload)
    assert np.array_equal(first.train.inputs, again.train.inputs)
    rows = [row.tobytes() for s in (first.train, first.validation, first.test) for row in s.inputs]
    assert len(set(rows)) == len(rows)


def test_enlarging_keeps_corners_and_a_constant_image() -> None:
    from cloud.training.digits import enlarge

    image = np.arange(64, dtype=np.float32).reshape(1, 8, 8)
    large = enlarge(image, 20)
    assert large[0, 0, 0] == 0.0
    assert large[0, -1, -1] == 63.0
    assert np.allclose(enlarge(np.full((1, 8, 8), 3.0, np.float32), 31), 3.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"validation_inputs": None}, "validation_inputs is missing"),
        ({"train_inputs": np.zeros((6, 3, 4), np.uint8)}, "train_inputs is uint8"),
        ({"train_inputs": np.full((6, 3, 4), np.nan, np.float32)}, "NaN or infinity, first in sample 0"),
        ({"test_inputs": np.zeros((6, 3, 5), np.float32)}, "test_inputs holds inputs of shape"),
        ({"test_labels": np.array([0, 1, 2])}, "test_labels has shape"),
        ({"train_labels": np.zeros(6)}, "train_labels is float64"),
        ({"validation_labels": np.array([0, 1, 3, 0, 1, 2])}, "validation_labels runs from 0 to 3"),
        ({"test_labels": np.array([0, 0, 1, 0, 1, 1])}, "test_labels has no sample of class 2"),
        ({"num_classes": 1}, "num_classes is 1: it must be a whole number from 2 to 100000"),
        ({"train_labels": np.zeros(6, np.int64)}, r"num_classes is 1 \(the highest of train_labels"),
        ({"train_inputs": np.full((6, 3, 4), 1e300)}, r"train_inputs holds values up to 1e\+300: scale it"),
        ({"train_inputs": np.zeros((0, 3, 4), np.float32)}, "train_inputs has shape"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_array_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        check_dataset(arrays(**changes), name="mine:load")
    assert caught.value.code == "dataset-invalid"
    assert "mine:load" in str(caught.value)


def test_good_arrays_become_float32_and_int64() -> None:
    wide = {
        key: value.astype(np.float64) if "inputs" in key else value.astype(np.int8)
        for key, value in arrays().items()
    }
    dataset = check_dataset(wide, name="mine:load")
    assert dataset.train.inputs.dtype == np.float32
    assert dataset.train.labels.dtype == np.int64
    assert dataset.num_classes == 3


def test_an_object_serves_as_well_as_a_mapping() -> None:
    class Bag:
        pass

    bag = Bag()
    for key, value in arrays().items():
        setattr(bag, key, value)
    assert check_dataset(bag, name="mine:load").input_shape == (3, 4)


def workload_with(tmp_path: Path, code: str, **options: Any) -> Workload:
    (tmp_path / "my_data.py").write_text(code)
    return Workload(name="w", dataset="my_data:load", dataset_options=options, source_dir=str(tmp_path))


GOOD_CODE = """
import numpy as np
def load(count=6):
    out = {}
    for split in ("train", "validation", "test"):
        out[split + "_inputs"] = np.ones((count, 5), np.float32)
        out[split + "_labels"] = np.arange(count) % 2
    return out
"""


def test_a_callable_gets_its_options(tmp_path: Path) -> None:
    assert len(load_dataset(workload_with(tmp_path, GOOD_CODE, count=10)).train) == 10


def test_two_workloads_may_have_modules_of_one_name(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    one = workload_with(first, GOOD_CODE)
    other = workload_with(second, GOOD_CODE.replace("count=6", "count=8"))
    assert [len(load_dataset(w).train) for w in (one, other, one)] == [6, 8, 6]


def test_source_dir_does_not_stay_on_the_import_path(tmp_path: Path) -> None:
    import sys

    before = list(sys.path)
    load_dataset(workload_with(tmp_path, GOOD_CODE))
    assert sys.path == before


@pytest.mark.parametrize(
    ("code", "options", "said"),
    [
        (
            "def load():\n    raise KeyError('gone')",
            {},
            r"my_data:load raised KeyError: 'gone' at my_data.py:2",
        ),
        (
            "import sys\ndef load():\n    sys.exit(3)",
            {},
            "my_data:load raised SystemExit: 3 at my_data.py:3",
        ),
        ("import sys\nsys.exit(3)", {}, "importing my_data .*SystemExit: 3 at my_data.py:2"),
        (
            "import json\ndef load():\n    return json.loads('{')",
            {},
            r"my_data:load raised JSONDecodeError: .* at my_data.py:3$",
        ),
        ("import no_such_module_here", {}, "importing my_data .*no_such_module_here"),
        ("x = 1", {}, "no callable named load"),
        (GOOD_CODE, {"cuont": 3}, "takes no argument 'cuont'; it takes count"),
        ("def load():\n    return 3", {}, "train_inputs is missing"),
    ],
    ids=[
        "raises",
        "exits",
        "exits-at-import",
        "raises-deep",
        "import",
        "missing",
        "options",
        "returns-nonsense",
    ],
)
def test_what_is_wrong_with_a_callable_is_said(
    tmp_path: Path, code: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        load_dataset(workload_with(tmp_path, code, **options))


@pytest.mark.parametrize("name", ["nope", "a b:load", ":load", "os:"])
def test_a_name_that_is_no_dataset(name: str) -> None:
    with pytest.raises(ConfigError, match="dataset"):
        load_dataset(Workload(name="w", dataset=name))


@pytest.mark.parametrize(
    ("options", "said"),
    [({"sise": 8}, "dataset_options.sise is unknown"), ({"image_size": "8"}, "must be of type int"),
     ({"image_size": 4}, "from 8 to 128"), ({"image_size": True}, "must be of type int")],
    ids=["unknown", "type", "range", "bool"],
)  # fmt: skip
def test_built_in_options_are_checked(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_dataset(Workload(name="w", dataset="digits", dataset_options=options))


def write_idx(folder: Path, name: str, array: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    (folder / f"{name}.gz").write_bytes(gzip.compress(header + array.tobytes(), 1))


@pytest.fixture(scope="module")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fashion")
    for name, count in (("train", 10_100), ("t10k", 50)):
        images = np.full((count, 28, 28), 255, np.uint8)
        write_idx(folder, f"{name}-images-idx3-ubyte", images)
        write_idx(folder, f"{name}-labels-idx1-ubyte", (np.arange(count) % 10).astype(np.uint8))
    return folder


def test_fashion_mnist_takes_validation_from_training(fashion: Path) -> None:
    options = {"path": str(fashion), "num_validation": 500}
    dataset = load_dataset(Workload(name="f", dataset="fashion-mnist", dataset_options=options))
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (100, 500, 50)
    assert dataset.input_shape == (1, 28, 28)
    assert dataset.train.inputs.max() == 1.0


def test_fashion_mnist_absent_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="apt install dataset-fashion-mnist"):
        load_dataset(Workload(name="f", dataset="fashion-mnist", dataset_options={"path": str(tmp_path)}))


@pytest.mark.parametrize("damage", [lambda raw: raw[:2000], lambda raw: b"\x00\x00\x0d" + raw[3:]])
def test_a_damaged_idx_file_is_refused(fashion: Path, tmp_path: Path, damage: Any) -> None:
    from cloud.training.fashion_mnist import read_idx

    raw = gzip.decompress((fashion / "t10k-images-idx3-ubyte.gz").read_bytes())
    (tmp_path / "x.gz").write_bytes(gzip.compress(damage(raw)))
    with pytest.raises(ConfigError, match="fetch it again"):
        read_idx(tmp_path, "x")


def test_a_truncated_gzip_file_is_refused(fashion: Path, tmp_path: Path) -> None:
    from cloud.training.fashion_mnist import read_idx

    raw = (fashion / "t10k-images-idx3-ubyte.gz").read_bytes()
    (tmp_path / "x.gz").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ConfigError, match="cannot be read"):
        read_idx(tmp_path, "x")
