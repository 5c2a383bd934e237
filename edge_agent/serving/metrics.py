"""What the local API counts, and all of the agent's figures as Prometheus reads them.

Rules that this module keeps:

- The text format is written by hand: it is small, and a client library would cost a gateway another package.
- Every series that can exist exists from the start, or has a label from a closed set: nothing that a caller
  sends becomes a label.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from edge_agent.status_file import AgentStatus, WorkloadStatus

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
TRANSPORTS: Final = ("grpc", "rest")


class ServingMetrics:
    """Counts inference requests of the local API; from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str], int] = {(transport, "ok"): 0 for transport in TRANSPORTS}
        self._buckets = {transport: [0] * (len(BUCKETS_S) + 1) for transport in TRANSPORTS}
        self._sums_s = dict.fromkeys(TRANSPORTS, 0.0)

    def record(self, transport: str, code: str, elapsed_s: float) -> None:
        """One request that ended, ``ok`` or with the code of its error."""
        bucket = bisect_left(BUCKETS_S, elapsed_s)
        with self._lock:
            self._counts[transport, code] = self._counts.get((transport, code), 0) + 1
            self._buckets[transport][bucket] += 1
            self._sums_s[transport] += elapsed_s

    def num_requests(self) -> int:
        """How many requests the API has answered or refused."""
        with self._lock:
            return sum(self._counts.values())

    def render(self) -> list[str]:
        with self._lock:
            counts = sorted(self._counts.items())
            buckets = {transport: list(row) for transport, row in self._buckets.items()}
            sums_s = dict(self._sums_s)
        lines = _head("edgeloop_serving_requests_total", "counter", "Requests to infer, by how they ended.")
        lines += [
            _line("edgeloop_serving_requests_total", {"transport": transport, "code": code}, count)
            for (transport, code), count in counts
        ]
        name = "edgeloop_serving_request_duration_seconds"
        lines += _head(name, "histogram", "From a parsed request to its answer, the wait included.")
        for transport, row in buckets.items():
            total = 0
            for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), row, strict=True):
                total += count
                lines.append(_line(f"{name}_bucket", {"transport": transport, "le": bound}, total))
            lines.append(_line(f"{name}_sum", {"transport": transport}, sums_s[transport]))
            lines.append(_line(f"{name}_count", {"transport": transport}, total))
        return lines


def render_status(status: AgentStatus) -> list[str]:
    """The agent's own figures, as it last wrote them down."""
    info = {"device_id": status.device_id, "version": status.agent_version, "profile": status.profile}
    lines = _head("edgeloop_agent_info", "gauge", "Who this is.")
    lines.append(_line("edgeloop_agent_info", info, 1))
    lines += _head("edgeloop_model_info", "gauge", "The model that serves; absent when none does.")
    for hosted in status.workloads:
        if hosted.serving_digest:
            labels = {"workload": hosted.workload, "digest": hosted.serving_digest}
            lines.append(_line("edgeloop_model_info", labels, 1))
    if status.serving_digest and not status.workloads:
        model = {"workload": status.workload, "digest": status.serving_digest}
        lines.append(_line("edgeloop_model_info", model, 1))
    lines += _head("edgeloop_deployment_info", "gauge", "State of the newest deployment.")
    lines.append(_line("edgeloop_deployment_info", {"state": status.state, "code": status.code}, 1))
    for name, kind, text, value in (
        ("edgeloop_serving_ready", "gauge", "1 while a verified model serves.", _is_ready(status)),
        ("edgeloop_serving_generation", "gauge", "Generation that serves.", status.serving_generation),
        ("edgeloop_deployment_generation", "gauge", "Newest generation seen.", status.generation),
        ("edgeloop_inferences_total", "counter", "Samples that models served.", status.num_requests),
        ("edgeloop_inference_errors_total", "counter", "Samples that a model failed on.", status.num_errors),
        ("edgeloop_broker_connected", "gauge", "1 while the broker is.", status.broker_connected),
        ("edgeloop_server_connected", "gauge", "1 while the control plane is.", status.server_connected),
        ("edgeloop_reports_pending", "gauge", "Reports not yet acknowledged.", status.num_pending_reports),
        (
            "edgeloop_reports_dropped_total",
            "counter",
            "Reports lost to the quota, or to a disk that failed.",
            status.num_dropped_reports,
        ),
        (
            "edgeloop_reports_spool_failed",
            "gauge",
            "1 while the disk lets no report be kept.",
            bool(status.spool_problem),
        ),
        ("edgeloop_quarantined_models", "gauge", "Models that failed here.", status.num_quarantined),
        ("edgeloop_deltas_total", "counter", "Models made of a delta.", status.num_deltas),
        (
            "edgeloop_deltas_given_up_total",
            "counter",
            "Deltas given up for the whole model.",
            status.num_deltas_given_up,
        ),
        ("process_resident_memory_bytes", "gauge", "Resident memory size in bytes.", status.rss_bytes),
        ("process_start_time_seconds", "gauge", "Start of the process.", status.start_time_s),
        ("edgeloop_status_time_seconds", "gauge", "When these were written down.", status.update_time_s),
    ):
        lines += _head(name, kind, text)
        lines.append(_line(name, {}, value))
    return lines + _render_workloads(status.workloads)


def _render_workloads(workloads: Sequence[WorkloadStatus]) -> list[str]:
    """Each of several workloads by its name, which comes from this device's own settings."""
    lines: list[str] = []
    if workloads:
        lines += _head("edgeloop_workload_info", "gauge", "What it is matched to, and how its deployment is.")
    for one in workloads:
        labels = {"workload": one.workload, "profile": one.profile, "state": one.state, "code": one.code}
        lines.append(_line("edgeloop_workload_info", labels, 1))
    for name, kind, text, value in (
        ("ready", "gauge", "1 while its verified model serves.", lambda w: bool(w.serving_digest)),
        ("serving_generation", "gauge", "Generation that serves.", lambda w: w.serving_generation),
        ("deployment_generation", "gauge", "Newest generation seen.", lambda w: w.generation),
        ("inferences_total", "counter", "Samples that its models served.", lambda w: w.num_requests),
        ("inference_errors_total", "counter", "Samples that its models failed on.", lambda w: w.num_errors),
        ("quarantined_models", "gauge", "Models that failed here.", lambda w: w.num_quarantined),
    ):
        if workloads:
            lines += _head(f"edgeloop_workload_{name}", kind, text)
        lines += [_line(f"edgeloop_workload_{name}", {"workload": w.workload}, value(w)) for w in workloads]
    return lines


def _is_ready(status: AgentStatus) -> bool:
    """Whether all that is hosted serves."""
    if status.workloads:
        return all(workload.serving_digest for workload in status.workloads)
    return bool(status.serving_digest)


def exposition(lines: Iterable[str]) -> bytes:
    """The whole page."""
    return ("\n".join(lines) + "\n").encode()


def _head(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _line(name: str, labels: Mapping[str, str], value: float) -> str:
    said = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    number = repr(float(value)) if isinstance(value, float) else str(int(value))
    return f"{name}{{{said}}} {number}" if said else f"{name} {number}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
