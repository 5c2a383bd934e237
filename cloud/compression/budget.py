"""Budgets that leave room for nothing, found before anything is trained for them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import nn

from cloud.compression.cost import Cost, measure_cost
from cloud.compression.dependency import ChannelGraph
from cloud.compression.importance import magnitude
from cloud.compression.prune import choose_removed, remove_units
from cloud.domain.profiles import Constraints
from cloud.domain.specs import CompressionSpec, Road
from cloud.domain.workloads import Workload
from cloud.training.datasets import Dataset
from edgeloop.errors import ConfigError

#: No way of storing weights that is known here takes less than this for one.
LEAST_BITS_A_WEIGHT = 0.5
MIN_CALIBRATION_SAMPLES = 8
#: The least rules: two leaves, each a float32 for every class.
_LEAST_LEAVES, _NUMBER_BYTES = 2, 4


def narrowest(model: nn.Module, graph: ChannelGraph, input_shape: Sequence[int]) -> Cost:
    """What the narrowest network costs that the floors allow."""
    removed = choose_removed(graph, magnitude()(model, graph), 1e-9)
    return measure_cost(remove_units(model, graph, removed, input_shape), input_shape)


def check_artifact_bytes(
    constraints: Constraints,
    least_parameters: int,
    profile: str,
    *,
    what: str = "the narrowest student of this teacher",
) -> None:
    """Raises ``ConfigError`` when ``what`` cannot be as small as the profile asks."""
    least = int(least_parameters * LEAST_BITS_A_WEIGHT / 8)
    wanted = constraints.artifact_bytes
    if wanted is not None and wanted < least:
        raise ConfigError(
            f"profile {profile}: constraints.artifact_bytes is {wanted}: {what} has {least_parameters} "
            f"parameters, over {least} bytes however they are stored; allow more, or name a smaller network",
            code="budget-too-small",
        )


def check_rule_bytes(constraints: Constraints, num_classes: int, profile: str) -> None:
    """Raises ``ConfigError`` when no rules for so many classes can be as small as the profile asks."""
    least = _LEAST_LEAVES * _NUMBER_BYTES * num_classes
    wanted = constraints.artifact_bytes
    if wanted is not None and wanted < least:
        raise ConfigError(
            f"profile {profile}: constraints.artifact_bytes is {wanted}: rules for {num_classes} classes "
            f"take over {least} bytes with a single test; allow more",
            code="budget-too-small",
        )


def check_epochs(spec: CompressionSpec, family_depths: Collection[float] = ()) -> None:
    """Raises ``ConfigError`` when a network would ship that was never trained as what it is.

    ``family_depths`` are those under 1 at which the elastic family was trained.
    """
    if spec.num_epochs:
        return
    if spec.shortcuts is not None:
        raise ConfigError(
            "shortcuts is false with num_epochs 0: a network without its shortcuts must learn anew; give "
            "num_epochs at least 1, or leave shortcuts out",
            code="budget-too-small",
        )
    if spec.road is Road.PRUNED:
        return
    if spec.road is Road.ELASTIC and spec.depth_ratio not in (None, *family_depths):
        raise ConfigError(
            f"depth_ratio is {spec.depth_ratio:g} with num_epochs 0 on road elastic: the family was not "
            "trained at this depth, at which it must learn anew; give num_epochs at least 1, or name the "
            "depth in search.depth_ratios",
            code="budget-too-small",
        )
    if spec.road is not Road.ELASTIC:
        raise ConfigError(
            f"num_epochs is 0 on road {spec.road}: a network of random weights would ship untrained; give "
            "search.num_epochs at least 1, or take road=pruned",
            code="budget-too-small",
        )


def check_calibration(workload: Workload, dataset: Dataset) -> None:
    """Raises ``ConfigError`` when there is too little to calibrate an int8 student on."""
    wanted, there = workload.search.num_calibration_samples, len(dataset.train)
    if min(wanted, there) < MIN_CALIBRATION_SAMPLES:
        field = "search.num_calibration_samples" if wanted < MIN_CALIBRATION_SAMPLES else "train_inputs"
        raise ConfigError(
            f"{field}: {min(wanted, there)} samples are too few to calibrate on: at least "
            f"{MIN_CALIBRATION_SAMPLES} are needed",
            code="calibration-empty",
        )
