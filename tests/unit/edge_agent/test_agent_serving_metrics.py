"""What the page of metrics says of requests and of the agent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from serving_gateway import DIGEST, Gateway, grpc_request, status

from edge_agent.serving.metrics import BUCKETS_S, ServingMetrics, render_status
from edge_agent.status_file import WorkloadStatus


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    gateway = Gateway()
    gateway.install()
    yield gateway.start()
    gateway.close()


def test_metrics_count_requests_by_transport_and_end(gateway) -> None:
    gateway.infer()
    gateway.infer(shape=[2])
    gateway.call("ModelInfer", grpc_request())
    code, body = gateway.ask("GET", "/metrics")
    assert code == 200
    lines = body.decode().splitlines()
    assert 'edgeloop_serving_requests_total{transport="rest",code="ok"} 1' in lines
    assert 'edgeloop_serving_requests_total{transport="rest",code="input-shape"} 1' in lines
    assert 'edgeloop_serving_requests_total{transport="grpc",code="ok"} 1' in lines
    assert 'edgeloop_serving_request_duration_seconds_count{transport="rest"} 2' in lines
    assert 'edgeloop_agent_info{device_id="gw-1",version="0",profile=""} 1' in lines


def test_each_of_several_workloads_has_its_profile_and_state_on_the_page() -> None:
    eyes = WorkloadStatus(workload="eyes", state="active", profile="small", serving_digest=DIGEST)
    ears = WorkloadStatus(workload="ears", state="rejected", code="self-test-load")
    lines = render_status(replace(status(), workloads=[eyes, ears]))
    assert 'edgeloop_workload_info{workload="eyes",profile="small",state="active",code=""} 1' in lines
    assert (
        'edgeloop_workload_info{workload="ears",profile="",state="rejected",code="self-test-load"} 1' in lines
    )


def test_the_page_is_what_prometheus_reads() -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    metrics = ServingMetrics()
    for elapsed_s in (0.0001, BUCKETS_S[3], 60.0):
        metrics.record("grpc", "ok", elapsed_s)
    hostile = status(device_id='a"b\\c\nd', serving_digest=DIGEST, workload="digits", num_requests=7)
    text = "\n".join([*render_status(hostile), *metrics.render()]) + "\n"
    families = {family.name: family for family in parser.text_string_to_metric_families(text)}
    assert families["edgeloop_agent_info"].samples[0].labels["device_id"] == 'a"b\\c\nd'
    assert families["edgeloop_inferences"].samples[0].value == 7
    buckets = [
        sample.value
        for sample in families["edgeloop_serving_request_duration_seconds"].samples
        if sample.name.endswith("_bucket") and sample.labels["transport"] == "grpc"
    ]
    assert buckets == sorted(buckets)
    assert (buckets[0], buckets[3], buckets[-1]) == (1, 2, 3)
