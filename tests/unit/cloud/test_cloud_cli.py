"""The control script against a real ControlService that answers from memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
import yaml

from cloud.cli import app as cli
from cloud.cli.jobs import parse_spec
from cloud.cli.plain import plain
from edgeloop.errors import ConfigError
from edgeloop.v1 import control_service_pb2 as pb
from edgeloop.v1 import deployment_pb2
from edgeloop.v1.control_service_pb2_grpc import ControlServiceServicer, add_ControlServiceServicer_to_server


class Service(ControlServiceServicer):
    """Answers as a control plane with one device would; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def ListDevices(self, request: Any, context: grpc.ServicerContext) -> pb.ListDevicesResponse:
        self.asked.append(request)
        device = pb.DeviceInfo(
            profile="small", desired_generation=3, generation=2, connected=True, p95_ms=4.25
        )
        device.registration.device_id = "gw-1"
        device.registration.labels["site"] = "north"
        device.deployment.state = deployment_pb2.DEPLOYMENT_STATE_TRIAL
        return pb.ListDevicesResponse(devices=[device])

    def ListCandidates(self, request: Any, context: grpc.ServicerContext) -> pb.ListCandidatesResponse:
        """The same student of two profiles, and another one."""
        found = [("ab" * 32, "large"), ("ab" * 32, "small"), ("cd" * 32, "small")]
        return pb.ListCandidatesResponse(
            candidates=[
                pb.CandidateInfo(digest=digest, profile=profile)
                for digest, profile in found
                if request.profile in ("", profile)
            ]
        )

    def Apply(self, request: pb.ApplyRequest, context: grpc.ServicerContext) -> pb.ApplyResponse:
        self.asked.append(request)
        change = pb.AppliedResource.CHANGE_UNCHANGED
        name = json.loads(request.documents[0].json)["name"]
        return pb.ApplyResponse(resources=[pb.AppliedResource(kind="Workload", name=name, change=change)])

    def CompressStudents(self, request: Any, context: grpc.ServicerContext) -> pb.CompressStudentsResponse:
        self.asked.append(request)
        return pb.CompressStudentsResponse(job=pb.JobInfo(job_id="job-1", kind="compress"))

    def WatchJob(
        self, request: pb.WatchJobRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.WatchJobResponse]:
        yield pb.WatchJobResponse(job=pb.JobInfo(job_id="job-1", state=pb.JOB_STATE_RUNNING, progress=0.5))
        failed = pb.JobInfo(
            job_id="job-1", state=pb.JOB_STATE_FAILED, message="every trial failed: NaN in epoch 2"
        )
        yield pb.WatchJobResponse(job=failed)

    def ExplainDevice(self, request: pb.ExplainDeviceRequest, context: grpc.ServicerContext) -> Any:
        context.abort(grpc.StatusCode.NOT_FOUND, f"no device {request.device_id!r}: known are gw-1")


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    server = grpc.server(ThreadPoolExecutor(2))
    servicer = Service()
    add_ControlServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv("EDGELOOP_SERVER", f"127.0.0.1:{port}")
    yield servicer
    server.stop(None).wait()


@pytest.fixture
def fleet_port() -> Iterator[str]:
    """A server that is not a control plane."""
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["edgeloop", *arguments])
    monkeypatch.setenv("COLUMNS", "200")
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_a_list_reads_as_a_table_and_as_json_and_yaml(
    service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "get", "devices", "--profile", "small") == 0
    table = capsys.readouterr().out
    assert "gw-1" in table
    assert "2/3" in table
    assert "trial" in table
    assert "4.25 ms" in table
    assert service.asked[0].profile == "small"
    assert run(monkeypatch, "get", "devices", "-o", "json") == 0
    as_json = json.loads(capsys.readouterr().out)
    assert run(monkeypatch, "get", "devices", "-o", "yaml") == 0
    assert yaml.safe_load(capsys.readouterr().out) == as_json
    (device,) = as_json
    assert device["registration"]["labels"] == {"site": "north"}
    assert device["deployment"]["state"] == "trial"
    assert device["desired_generation"] == 3


def test_a_student_of_several_profiles_is_described_for_one_of_them(
    service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = "ab" * 32
    assert run(monkeypatch, "describe", "candidate", digest) == cli.EXIT_FAILED
    assert "several profiles (large, small): say which with --profile" in capsys.readouterr().err
    assert run(monkeypatch, "describe", "candidate", digest, "--profile", "large") == 0
    lines = capsys.readouterr().out.splitlines()
    assert ["digest", digest] in [line.split() for line in lines]  # on one line, to be copied
    assert ["profile", "large"] in [line.split() for line in lines]
    assert run(monkeypatch, "describe", "candidate", "ef") == cli.EXIT_FAILED
    assert "known are abababababab, cdcdcdcdcdcd\n" in capsys.readouterr().err


def test_apply_sends_the_checked_document_and_tells_the_change(
    service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    path = tmp_path / "workload.yaml"
    path.write_text("kind: Workload\nname: digits\ndataset: digits\n")
    assert run(monkeypatch, "apply", "-f", str(path), "--dry-run") == 0
    assert "workload/digits unchanged (dry run)" in capsys.readouterr().out
    assert service.asked[0].validate_only
    assert json.loads(service.asked[0].documents[0].json)["source_dir"] == ""


def test_a_bad_file_is_told_before_anything_is_sent(
    service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    path = tmp_path / "workload.yaml"
    path.write_text("kind: Workload\nname: digits\ndata: digits\n")
    assert run(monkeypatch, "apply", "-f", str(path)) == cli.EXIT_USAGE
    assert f"{path}:3: data: unknown key: did you mean 'dataset'?" in capsys.readouterr().err
    assert service.asked == []


def test_a_failed_job_fails_the_command_with_its_reason(
    service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "compress", "--profile", "small", "--spec", "width_ratio=0.25") == cli.EXIT_FAILED
    assert "NaN in epoch 2" in capsys.readouterr().err
    assert json.loads(service.asked[0].spec_json[0])["width_ratio"] == 0.25


def test_what_the_server_refuses_is_told_in_its_words(
    service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "why", "gw-9") == cli.EXIT_FAILED
    assert "no device 'gw-9': known are gw-1" in capsys.readouterr().err


def test_an_absent_control_plane_has_its_own_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    assert run(monkeypatch, "get", "jobs", "--server", "127.0.0.1:1") == cli.EXIT_UNREACHABLE
    assert "start it with 'edgeloop serve'" in capsys.readouterr().err
    assert run(monkeypatch, "get", "jobs", "--state-dir", str(tmp_path)) == cli.EXIT_UNREACHABLE
    assert "no control plane runs in" in capsys.readouterr().err


def test_a_folder_that_cannot_be_used_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    (tmp_path / "file").write_text("")
    inside = str(tmp_path / "file" / "state")
    assert run(monkeypatch, "keys", "tuf-status", "--state-dir", inside) == cli.EXIT_FAILED
    said = capsys.readouterr().err
    assert inside in said
    assert said.count("\n") == 1


def test_a_spec_on_the_command_line_names_what_is_wrong() -> None:
    assert parse_spec("road=scratch,width_ratio=0.25").width_ratio == 0.25
    quantisation = parse_spec("width_ratio=0.5,quantisation.bits=4,quantisation.scheme=codebook").quantisation
    assert quantisation is not None
    assert (quantisation.bits, quantisation.scheme) == (4, "codebook")
    with pytest.raises(ConfigError, match="'wide' is not key=value"):
        parse_spec("wide")
    with pytest.raises(ConfigError, match=r"quantisation\.bits is 9"):
        parse_spec("quantisation.bits=9")
    with pytest.raises(ConfigError, match="quantisation is given twice"):
        parse_spec("quantisation=4,quantisation.bits=4")
    with pytest.raises(ConfigError, match="unknown key 'width'"):
        parse_spec("width=0.5")
    with pytest.raises(ConfigError, match=r"width_ratio is 2: it must be a number from 0\.01 to 1"):
        parse_spec("width_ratio=2")


def test_plain_values_open_embedded_json_and_keep_64_bit_counts_as_numbers() -> None:
    candidate = pb.CandidateInfo(digest="ab", spec_json='{"width_ratio": 0.5}', artifact_bytes=2**40)
    values = plain(candidate)
    assert values["spec"] == {"width_ratio": 0.5}
    assert values["artifact_bytes"] == 2**40
    assert values["create_time"] is None


def test_the_port_of_the_agents_is_told_from_the_control_port(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fleet_port: str
) -> None:
    assert run(monkeypatch, "get", "devices", "--server", fleet_port) == 2
    assert "give its control port" in capsys.readouterr().err


def test_a_server_without_a_port_is_refused_before_anything_is_called(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "get", "devices", "--server", "cloud.example.org") == 2
    assert "give HOST:PORT" in capsys.readouterr().err
