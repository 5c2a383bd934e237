"""The page that Prometheus reads, of a fleet in a database."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace

import pytest
from cloud_store_values import DEVICE, JOB, PROFILE, ROLLOUT, fill

from cloud.domain.jobs import JobState
from cloud.domain.profiles import Constraints
from cloud.domain.rollout import RolloutState
from cloud.domain.settings import PolicySettings
from cloud.metrics import CONTENT_TYPE, FleetMetrics, MetricsServer, PlaneState
from cloud.store import Store

_LINE = re.compile(r'[a-z0-9_]+(\{[a-z]+="(\\.|[^"\\])*"(,[a-z]+="(\\.|[^"\\])*")*\})? -?[0-9.e+]+')


@pytest.fixture
def metrics(store: Store) -> FleetMetrics:
    fill(store)
    store.apply_profile(replace(PROFILE, constraints=Constraints(latency_p95_ms=12.5)), 200.0)
    return FleetMetrics(
        store,
        settings=PolicySettings(),
        plane=lambda: PlaneState(acts=True, broker_connected=False),
        now_s=lambda: 200.0,
    )


def lines(metrics: FleetMetrics) -> list[str]:
    return metrics.page().decode().splitlines()


def test_every_line_is_of_the_format_and_each_series_is_there_once(metrics: FleetMetrics) -> None:
    series = [line for line in lines(metrics) if not line.startswith("#")]
    assert [line for line in series if not _LINE.fullmatch(line)] == []
    assert len({line.rpartition(" ")[0] for line in series}) == len(series)


def test_devices_and_objectives_are_told_by_profile(store: Store, metrics: FleetMetrics) -> None:
    store.register_device(replace(DEVICE, device_id="gw-2"), PROFILE.name, "", 150.0)
    store.set_presence("gw-2", False, 160.0)
    store.register_device(replace(DEVICE, device_id="lost"), None, "no profile matches", 150.0)
    page = lines(metrics)
    name = PROFILE.name
    assert f'edgeloop_devices{{profile="{name}",state="connected"}} 1' in page
    assert f'edgeloop_devices{{profile="{name}",state="away"}} 1' in page
    assert 'edgeloop_devices{profile="",state="connected"} 1' in page
    assert f'edgeloop_profile_objective_p95_seconds{{profile="{name}"}} 0.0125' in page
    assert "edgeloop_controller_acts 1" in page
    assert "edgeloop_broker_connected 0" in page


def test_what_has_not_ended_is_counted(store: Store, metrics: FleetMetrics) -> None:
    store.create_job(replace(JOB, job_id="waits", state=JobState.PENDING, create_time_s=150.0))
    running = replace(ROLLOUT, rollout_id="rollout-9", state=RolloutState.RUNNING, create_time_s=190.0)
    store.save_rollout(running, 190.0)
    page = lines(metrics)
    assert any(re.fullmatch(r'edgeloop_jobs\{kind="\w+",state="pending"\} 1', line) for line in page)
    oldest = next(line for line in page if line.startswith("edgeloop_oldest_job_seconds "))
    assert float(oldest.split()[1]) >= 50.0
    assert 'edgeloop_rollouts{state="running"} ' in "\n".join(page)
    assert f'edgeloop_rollout_progress_ratio{{profile="{PROFILE.name}"}}' in "\n".join(page)


@pytest.fixture
def server(metrics: FleetMetrics) -> Iterator[MetricsServer]:
    server = MetricsServer(metrics, host="127.0.0.1", port=0)
    server.start()
    yield server
    server.stop()


def test_the_page_is_served_and_nothing_else_is(server: MetricsServer, metrics: FleetMetrics) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=60) as answer:
        assert answer.headers["Content-Type"] == CONTENT_TYPE
        assert answer.read() == metrics.page()
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"http://127.0.0.1:{server.port}/etc/passwd", timeout=60)
    assert caught.value.code == 404
