"""The boundary: what a device may claim, and what it may not."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from cloud_store_values import D1, DEVICE, SKETCH, STATUS
from hypothesis import given
from hypothesis import strategies as st

from cloud.services.convert import (
    device_from_proto,
    registration_to_proto,
    seconds,
    status_from_proto,
    status_to_proto,
    timestamp,
)
from cloud.services.report_check import ReportBounds, check_report
from edgeloop.errors import RejectedError
from edgeloop.sketch import LatencySketch
from edgeloop.v1 import deployment_pb2, device_pb2, telemetry_pb2

NOW_S = 1_800_000_000.0
BOUNDS = ReportBounds()


def good_report() -> telemetry_pb2.LatencyReport:
    return telemetry_pb2.LatencyReport(
        device_id="gw-1",
        boot_id="boot-1",
        sequence=3,
        digest=D1,
        generation=2,
        workload="digits",
        start_time=timestamp(NOW_S - 31),
        end_time=timestamp(NOW_S - 1),
        latency=SKETCH.to_proto(),
        reference=LatencySketch.empty().to_proto(),
        emulated_slowdown=1,
    )


def test_a_registration_comes_back_as_it_was_sent() -> None:
    message = registration_to_proto(DEVICE)
    assert device_from_proto(message) == DEVICE
    assert registration_to_proto(device_from_proto(message)) == message


Change = Callable[[device_pb2.Registration], object]


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("device_id", lambda r: setattr(r, "device_id", "../etc")),
        ("device_id", lambda r: setattr(r, "device_id", "")),
        ("boot_id", lambda r: setattr(r, "boot_id", "")),
        ("boot_id", lambda r: setattr(r, "boot_id", "a b")),
        ("architecture", lambda r: setattr(r.hardware, "architecture", "")),
        ("num_cores", lambda r: setattr(r.hardware, "num_cores", 0)),
        ("num_cores", lambda r: setattr(r.hardware, "num_cores", 5000)),
        ("memory_bytes", lambda r: setattr(r.hardware, "memory_bytes", 2**60)),
        ("instruction_sets", lambda r: r.hardware.instruction_sets.append("AVX2; rm")),
        ("instruction_sets", lambda r: r.hardware.instruction_sets.extend([f"f{n}" for n in range(65)])),
        ("labels", lambda r: r.labels.update({f"k{n}": "" for n in range(33)})),
        ("labels key", lambda r: r.labels.update({"a b": ""})),
        ("labels[note]", lambda r: r.labels.update({"note": "x" * 129})),
        ("agent_version", lambda r: setattr(r, "agent_version", "1" * 201)),
        ("emulated_slowdown", lambda r: setattr(r, "emulated_slowdown", 0)),
        ("emulated_slowdown", lambda r: setattr(r, "emulated_slowdown", 1001)),
        ("generation", lambda r: setattr(r, "generation", 2**64 - 1)),
        ("serving_digest", lambda r: setattr(r, "serving_digest", D1.upper() + "F")),
    ],
)
def test_an_impossible_registration_names_its_field(field: str, change: Change) -> None:
    message = registration_to_proto(DEVICE)
    change(message)
    with pytest.raises(RejectedError) as caught:
        device_from_proto(message)
    assert field in caught.value.message


def test_text_for_people_cannot_steer_a_terminal() -> None:
    message = registration_to_proto(DEVICE)
    message.hardware.processor = "EPYC\x1b[2J\n"
    assert device_from_proto(message).hardware.processor == "EPYC [2J "


def test_a_status_comes_back_as_it_was_sent() -> None:
    assert status_from_proto(status_to_proto(STATUS)) == STATUS


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("state", deployment_pb2.DEPLOYMENT_STATE_UNSPECIFIED),
        ("state", deployment_pb2.DEPLOYMENT_STATE_PENDING),
        ("generation", 0),
        ("generation", 2**63),
        ("digest", "abc"),
        ("progress", math.nan),
        ("progress", 1.5),
        ("code", "Not A Code"),
        ("message", "x" * 2001),
    ],
)
def test_an_impossible_status_names_its_field(field: str, value: object) -> None:
    message = status_to_proto(STATUS)
    setattr(message, field, value)
    with pytest.raises(RejectedError, match=field):
        status_from_proto(message)


@given(st.floats(0, 2**33))
def test_times_survive_to_the_microsecond(time_s: float) -> None:
    message = timestamp(time_s)
    assert 0 <= message.nanos < 10**9
    assert seconds(message) == pytest.approx(time_s, abs=2e-6)


def test_a_good_report_becomes_a_row() -> None:
    row = check_report(good_report(), BOUNDS, NOW_S)
    assert (row.device_id, row.boot_id, row.sequence, row.num_samples) == ("gw-1", "boot-1", 3, SKETCH.count)
    assert (row.start_s, row.end_s) == (NOW_S - 31, NOW_S - 1)
    assert LatencySketch.from_bytes(row.latency) == SKETCH
    assert LatencySketch.from_bytes(row.reference) == LatencySketch.empty()


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("report-future", lambda r: r.end_time.CopyFrom(timestamp(NOW_S + 301))),
        ("report-reversed", lambda r: r.start_time.CopyFrom(timestamp(NOW_S))),
        ("report-too-long", lambda r: r.start_time.CopyFrom(timestamp(NOW_S - 4000))),
        (
            "report-too-old",
            lambda r: (
                r.start_time.CopyFrom(timestamp(NOW_S - 40 * 86400)),
                r.end_time.CopyFrom(timestamp(NOW_S - 40 * 86400)),
            ),
        ),
        ("report-rate", lambda r: r.latency.CopyFrom(LatencySketch.of([1.0]).to_proto()) or _many(r)),
        ("sketch-field", lambda r: setattr(r.latency, "sum_ms", math.inf)),
        ("sketch-field", lambda r: setattr(r.latency, "min_ms", -1.0)),
        ("sketch-field", lambda r: setattr(r.reference, "max_ms", math.nan)),
        ("sketch-version", lambda r: r.latency.Clear()),
        ("digest", lambda r: setattr(r, "digest", "Z" * 64)),
        ("device-id", lambda r: setattr(r, "device_id", "a/b")),
        ("field-invalid", lambda r: setattr(r, "boot_id", "")),
        ("field-invalid", lambda r: setattr(r, "workload", "../x")),
        ("field-invalid", lambda r: setattr(r, "sequence", 2**63)),
        ("field-invalid", lambda r: setattr(r, "generation", 2**60)),
        ("field-invalid", lambda r: setattr(r, "num_errors", 2**40)),
        ("field-invalid", lambda r: setattr(r, "rss_bytes", 2**63)),
        ("field-invalid", lambda r: setattr(r, "emulated_slowdown", 0)),
        ("field-invalid", lambda r: setattr(r.end_time, "nanos", -5)),
    ],
)
def test_an_impossible_report_is_refused(
    code: str, change: Callable[[telemetry_pb2.LatencyReport], object]
) -> None:
    report = good_report()
    change(report)
    with pytest.raises(RejectedError) as caught:
        check_report(report, BOUNDS, NOW_S)
    assert caught.value.code == code


def _many(report: telemetry_pb2.LatencyReport) -> None:
    """More requests than any device serves in this window, in a sketch that is sound by itself."""
    report.latency.counts[0] = 10**8
    report.latency.sum_ms = 1.0 * 10**8


@given(st.binary(max_size=300))
def test_any_bytes_are_a_row_or_a_refusal(raw: bytes) -> None:
    report = telemetry_pb2.LatencyReport()
    try:
        report.MergeFromString(raw)
    except Exception:  # noqa: BLE001 - bytes that are no message never reach the check
        return
    with pytest.raises(RejectedError):
        check_report(report, BOUNDS, NOW_S)
