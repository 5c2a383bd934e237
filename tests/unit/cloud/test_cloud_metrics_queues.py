"""Queues and job times on the page for Prometheus, and the files in deploy/ that read the page."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from cloud_store_values import JOB, PROFILE, ROLLOUT, fill
from machine import wait_until

from cloud.domain.jobs import JobKind, JobState
from cloud.domain.profiles import Constraints
from cloud.domain.rollout import RolloutState
from cloud.domain.settings import PolicySettings
from cloud.metrics import FleetMetrics, PlaneState
from cloud.publisher import Publisher
from cloud.services.report_writer import ReportWriter
from cloud.store import ReportRow, Store
from edgeloop.errors import TransientError

ROOT = Path(__file__).parents[3]
ALERTS = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text())
DASHBOARD = json.loads((ROOT / "deploy/grafana/edgeloop.json").read_text())
_NAME = re.compile(r"\bedgeloop_\w+")
#: What a scrape adds, and what a template of the dashboard stands for.
_FROM_PROMETHEUS = {"job", "instance"}


@pytest.fixture
def metrics(store: Store) -> FleetMetrics:
    fill(store)
    store.apply_profile(replace(PROFILE, constraints=Constraints(latency_p95_ms=12.5)), 200.0)
    running = replace(ROLLOUT, rollout_id="rollout-9", state=RolloutState.RUNNING, create_time_s=190.0)
    store.save_rollout(running, 190.0)
    return new_metrics(store)


def new_metrics(store: Store) -> FleetMetrics:
    return FleetMetrics(
        store,
        settings=PolicySettings(),
        plane=lambda: PlaneState(
            acts=True, broker_connected=True, num_queued_reports=7, num_stored_reports=99, publisher_backlog=2
        ),
        now_s=lambda: 200.0,
    )


def page(metrics: FleetMetrics) -> list[str]:
    return metrics.page().decode().splitlines()


def ended(store: Store, job_id: str, state: JobState, took_s: float, kind: JobKind = JobKind.TRAIN) -> None:
    job = replace(JOB, job_id=job_id, kind=kind, state=JobState.RUNNING, create_time_s=100.0, end_time_s=0.0)
    store.create_job(job)
    store.update_job(replace(job, state=state, end_time_s=100.0 + took_s))


def test_jobs_are_counted_by_how_long_they_took_and_each_once(store: Store) -> None:
    metrics = new_metrics(store)
    assert 'edgeloop_job_duration_seconds_count{kind="train",state="failed"} 0' in page(metrics)
    ended(store, "a", JobState.SUCCEEDED, 30.0)
    ended(store, "b", JobState.SUCCEEDED, 31.0)
    ended(store, "c", JobState.SUCCEEDED, 200_000.0)
    ended(store, "d", JobState.CANCELLED, 5.0, JobKind.COMPRESS)
    metrics._made_s = float("-inf")  # the page is kept for some seconds
    for _ in range(2):
        lines = page(metrics)
        of = 'edgeloop_job_duration_seconds_{}{{kind="train",state="succeeded"{}}} {}'
        assert of.format("bucket", ',le="10"', 0) in lines
        assert of.format("bucket", ',le="30"', 1) in lines
        assert of.format("bucket", ',le="60"', 2) in lines
        assert of.format("bucket", ',le="86400"', 2) in lines
        assert of.format("bucket", ',le="+Inf"', 3) in lines
        assert of.format("count", "", 3) in lines
        assert of.format("sum", "", 200_061) in lines
        assert 'edgeloop_job_duration_seconds_count{kind="compress",state="cancelled"} 1' in lines
        metrics._made_s = float("-inf")
    assert "# TYPE edgeloop_job_duration_seconds histogram" in lines


def test_tasks_of_jobs_wait_run_and_end(store: Store, metrics: FleetMetrics) -> None:
    states = (JobState.PENDING, JobState.RUNNING, JobState.RUNNING, JobState.FAILED, JobState.SUCCEEDED)
    trials = tuple(
        replace(JOB.trials[0], task_id=f"t{number}", state=state) for number, state in enumerate(states)
    )
    store.create_job(
        replace(
            JOB, job_id="runs", kind=JobKind.FAMILY, state=JobState.RUNNING, trials=trials, end_time_s=0.0
        )
    )
    lines = page(metrics)
    for state, count in (("waiting", 1), ("running", 2), ("ended", 2)):
        assert f'edgeloop_job_tasks{{kind="family",state="{state}"}} {count}' in lines


def test_the_queues_of_this_control_plane_are_told(metrics: FleetMetrics) -> None:
    lines = page(metrics)
    assert "edgeloop_report_queue_reports 7" in lines
    assert "edgeloop_reports_stored_total 99" in lines
    assert "# TYPE edgeloop_reports_stored_total counter" in lines
    assert "edgeloop_publisher_backlog 2" in lines


class SlowStore:
    """Takes a batch when it is told to; says that it cannot for a row of sequence 13."""

    def __init__(self) -> None:
        self.may_go = threading.Semaphore(0)

    def insert_reports(self, rows: list[ReportRow], now_s: float) -> int:
        assert self.may_go.acquire(timeout=60)
        if any(row.sequence == 13 for row in rows):
            raise TransientError("the disk is full", code="store-busy")
        return len(rows)


def test_reports_wait_until_they_are_durable_or_refused() -> None:
    def row(sequence: int) -> ReportRow:
        return ReportRow(
            device_id="gw-1", boot_id="b", sequence=sequence, digest="d", generation=1, workload="w",
            start_s=0.0, end_s=1.0, num_samples=1, latency=b"", reference=b"", rss_bytes=1,
        )  # fmt: skip

    async def go() -> None:
        store = SlowStore()
        writer = ReportWriter(store, now_s=lambda: 1.0)  # type: ignore[arg-type]
        await writer.start()
        first = await writer.submit([row(1), row(2), row(3)])
        assert (writer.num_queued, writer.num_stored) == (3, 0)
        store.may_go.release()
        await first
        assert (writer.num_queued, writer.num_stored) == (0, 3)
        refused = await writer.submit([row(13)])
        assert writer.num_queued == 1
        store.may_go.release()
        with pytest.raises(TransientError):
            await refused
        assert (writer.num_queued, writer.num_stored) == (0, 3)
        await writer.stop()

    asyncio.run(go())


# -- the files in deploy/ and docs/ ----------------------------------------------------------------------


def known(metrics: FleetMetrics) -> dict[str, set[str]]:
    """The labels of each series on the page, by name."""
    found: dict[str, set[str]] = {}
    for line in page(metrics):
        if line.startswith("# TYPE"):
            found.setdefault(line.split()[2], set())
        elif not line.startswith("#"):
            name, _, rest = line.partition("{")
            labels = set(re.findall(r'(\w+)="', rest)) if rest else set()
            found.setdefault(name.split()[0], set()).update(labels)
    return found


def expressions() -> Iterator[tuple[str, str]]:
    for group in ALERTS["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def test_every_expression_names_series_and_labels_that_are_on_the_page(metrics: FleetMetrics) -> None:
    there = known(metrics)
    for where, expression in expressions():
        used = set(_NAME.findall(expression))
        assert used, where
        assert used <= set(there), where
        labels = set().union(*(there[name] for name in used)) | _FROM_PROMETHEUS
        for listed in re.findall(r"\b(?:by|on|without) *\(([^)]*)\)", expression):
            assert {item.strip() for item in listed.split(",")} <= labels, where
        for name, matchers in re.findall(r"(edgeloop_\w+)\{([^}]*)\}", expression):
            assert set(re.findall(r"(\w+) *[=!]", matchers)) <= there[name] | _FROM_PROMETHEUS, where
        for state in re.findall(r'state="(\w+)"', expression):
            assert any(f'state="{state}"' in line for line in page(metrics)), where
        for opening, closing in ("()", "{}", "[]"):
            assert expression.count(opening) == expression.count(closing), where


def test_rules_say_how_bad_it_is_and_what_to_do() -> None:
    rules = [rule for group in ALERTS["groups"] for rule in group["rules"]]
    names = [rule["alert"] for rule in rules]
    assert len(set(names)) == len(names)
    for rule in rules:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert len(rule["annotations"]["summary"]) > 20
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"[0-9]+[smh]", rule.get("for", "1m"))
        # What the summary fills in must be a label that the expression leaves.
        for label in re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]):
            assert label in _FROM_PROMETHEUS or re.search(rf"\b{label}\b|_profile_", rule["expr"])


def test_panels_have_ids_of_their_own_and_do_not_lie_on_each_other() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at: dict[str, Any] = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_the_guide_lists_every_metric_with_its_kind_and_labels(metrics: FleetMetrics) -> None:
    kinds = {line.split()[2]: line.split()[3] for line in page(metrics) if line.startswith("# TYPE")}
    there = known(metrics)
    told: dict[str, tuple[str, set[str]]] = {}
    for line in (ROOT / "docs/metrics.md").read_text().splitlines():
        if line.startswith("| `edgeloop_"):
            name, kind, labels = (part.strip() for part in line.split("|")[1:4])
            told[name.strip("`")] = (kind, set(re.findall(r"`(\w+)`", labels)))
    assert {name: kind for name, (kind, _) in told.items()} == kinds
    for name, (kind, labels) in told.items():
        assert labels == (there[name] or there[f"{name}_count"] if kind == "histogram" else there[name]), name


def test_the_publisher_is_behind_until_the_broker_holds_what_is_desired(tmp_path: Path) -> None:
    publisher = Publisher(bus=None, blobs=None, state_path=tmp_path / "published.json")  # type: ignore[arg-type]
    assert publisher.backlog == 0
    publisher.start()
    publisher.set_desired({})
    publisher.set_director_keys(b"")
    wait_until(lambda: publisher._num_taken == 2, "the publisher's thread")
    assert publisher.backlog == 2, "no broker answers"
    publisher.stop()
