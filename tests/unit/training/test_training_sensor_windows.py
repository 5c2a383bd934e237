"""The sensor example: a simulation that repeats exactly and suits every loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cloud.documents import load_documents
from cloud.domain.losses import Loss
from cloud.resources import FleetDocument, WorkloadDocument
from cloud.training.datasets import load_dataset
from cloud.training.networks import build_teacher
from edgeloop.errors import ConfigError

FOLDER = Path(__file__).parents[3] / "examples" / "sensor_windows"
(DOCUMENT,) = load_documents(FOLDER / "workload.yaml")
assert isinstance(DOCUMENT, WorkloadDocument)
WORKLOAD = DOCUMENT.to_domain()


@pytest.mark.parametrize(
    ("target", "loss", "outputs"),
    [("fault", Loss.CROSS_ENTROPY, 4), ("alarm", Loss.BINARY, 1), ("speed", Loss.REGRESSION, 1)],
)
def test_each_target_suits_its_loss(target: str, loss: Loss, outputs: int) -> None:
    workload = replace(WORKLOAD, dataset_options={"num_windows": 200, "target": target}, loss=loss)
    dataset = load_dataset(workload)
    assert dataset.input_shape == (3, 256)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (120, 40, 40)
    assert np.abs(dataset.train.inputs).max() <= 1.0
    assert dataset.num_outputs == outputs
    build_teacher(workload, dataset)
    assert np.array_equal(dataset.train.inputs, load_dataset(workload).train.inputs)


def test_an_unknown_target_is_named() -> None:
    with pytest.raises(ConfigError, match="target is 'fualt': it must be fault, alarm or speed"):
        load_dataset(replace(WORKLOAD, dataset_options={"target": "fualt"}))


def test_the_fleet_belongs_to_the_workload() -> None:
    (fleet,) = load_documents(FOLDER / "fleet.yaml")
    assert isinstance(fleet, FleetDocument)
    assert fleet.workload == WORKLOAD.name


def test_the_mlp_gets_spectra_in_which_a_turning_mass_is_one_line() -> None:
    options = {"num_windows": 80, "spectrum": True}
    workload = replace(
        WORKLOAD, dataset_options=options, teacher="sensor_windows:build_mlp", teacher_options={}
    )
    dataset = load_dataset(workload)
    inputs = dataset.train.inputs
    assert inputs.shape == (48, 3, 128)
    assert np.abs(inputs).max() < 2
    unbalanced = inputs[dataset.train.labels == 1]
    # 12 to 35 turns a second, in steps of 1000 / 256 Hz: lines 3 to 9, and the first of a spectrum is line 1.
    loudest = unbalanced.max(axis=1).argmax(axis=1) + 1
    assert (loudest <= 10).mean() > 0.8
    assert build_teacher(workload, dataset).eval()(torch.from_numpy(inputs)).shape == (48, 4)
