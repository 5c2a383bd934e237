"""The cluster beside everything else: what is said of it, and that it comes back."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
from machine import wait_until

from cloud.compute_host import ComputeHost
from cloud.domain.tasks import Task, TaskEvent
from edgeloop.backoff import Backoff


class Cluster:
    """A cluster whose machines come and go."""

    def __init__(self) -> None:
        self.num_cpus = 0
        self.num_starts = 0

    def start(self) -> None:
        self.num_starts += 1

    def stop(self) -> None:
        pass

    def describe(self) -> str:
        return f"{self.num_cpus} CPUs"

    def submit(self, task: Task) -> None:
        raise AssertionError("nobody submits here")

    def poll(self) -> list[TaskEvent]:
        return []

    def cancel(self, task_id: str) -> None:
        raise AssertionError("nobody cancels here")


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def host(cluster: Cluster) -> Iterator[ComputeHost]:
    host = ComputeHost(cluster, backoff=Backoff(0.01, 0.02, random.Random(1)), describe_interval_s=0.01)
    host.start()
    yield host
    host.stop()


def says(host: ComputeHost, text: str) -> Callable[[], bool]:
    return lambda: host.describe() == text


def test_machines_that_join_later_are_told(host: ComputeHost, cluster: Cluster) -> None:
    wait_until(says(host, "0 CPUs"))
    cluster.num_cpus = 2
    wait_until(says(host, "2 CPUs"))


def test_a_lost_cluster_is_started_again(host: ComputeHost, cluster: Cluster) -> None:
    wait_until(lambda: host.ready is not None)
    host.lost()
    wait_until(lambda: cluster.num_starts == 2 and host.ready is not None)
