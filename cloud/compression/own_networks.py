"""Networks that a workload names for its students: made, and seen to be fit before hours are spent.

Rules: what is wrong with one is said of ``search.students.NAME``, in the words that are used of a teacher. A
network of which no channels can be removed is fit, at its own width alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from cloud.compression.attention import open_attention
from cloud.compression.dependency import ChannelGraph, trace_channels
from cloud.compression.export import export_onnx
from cloud.domain.networks import StudentNetwork, find_network
from cloud.domain.workloads import Workload
from cloud.training.callables import is_callable_path
from cloud.training.datasets import Dataset
from cloud.training.networks import NetworkSource, build_network
from edgeloop.errors import ConfigError


def own_network(workload: Workload, dataset: Dataset, reference: str, *, seed: int = 0) -> nn.Module:
    """The network that a spec refers to, fresh, on the CPU, its attention written out.

    Raises ``ConfigError`` naming the field when there is none, or none that runs on the data.
    """
    try:
        network = find_network(workload.search.students, reference)
    except ValueError as error:
        raise ConfigError(str(error), code="student-unknown") from None
    return _build(workload, dataset, network, seed)


def check_own_networks(workload: Workload, dataset: Dataset) -> None:
    """Raises ``ConfigError`` naming the field when one of them cannot be traced or exported."""
    for network in workload.search.students:
        model = _build(workload, dataset, network, seed=0).eval()
        channels_of(model, dataset, network.name)
        if is_callable_path(network.network):  # the built-in one is known to export
            with said_of(network.name):
                export_onnx(model, dataset.input_shape)


def channels_of(model: nn.Module, dataset: Dataset, name: str) -> ChannelGraph:
    """What of it may go. Raises ``ConfigError`` when it cannot be traced."""
    with said_of(name):
        return trace_channels(model, dataset.input_shape)


@contextmanager
def said_of(name: str) -> Iterator[None]:
    """What goes wrong inside with any network is said of this one."""
    try:
        yield
    except ConfigError as error:
        message = error.message.removeprefix("teacher: ")
        code = f"student-{error.code.removeprefix('teacher-')}"
        raise ConfigError(f"search.students.{name}: {message}", code=code) from error


def _build(workload: Workload, dataset: Dataset, network: StudentNetwork, seed: int) -> nn.Module:
    field = f"search.students.{network.name}"
    source = NetworkSource(
        name=network.network, options=network.options, source_dir=workload.source_dir,
        field=field, options_field=f"{field}.options",
    )  # fmt: skip
    return open_attention(build_network(source, dataset, seed=seed))
