"""``edgeloop pareto``: what is shown of a profile's trade-off, and where it comes from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from control_plane_fakes import PROFILE, SETTINGS, WORKLOAD, World, build, family_of, prepared, teacher_of

from cloud.cli import app as cli
from cloud.cli.scatter import Dot, scatter
from cloud.domain.jobs import JobState
from cloud.domain.latency import LayerKind, LayerShape
from cloud.domain.specs import CompressionSpec, Road
from cloud.domain.tasks import FamilyTask
from cloud.domain.workloads import SearchBudget
from cloud.family_plans import family_settings, save_family
from cloud.job_plans import compress_job
from cloud.services.queries import Queries
from cloud.services.trade_off import trade_off
from edgeloop.errors import RejectedError
from edgeloop.v1 import control_service_pb2 as pb
from edgeloop.v1.control_service_pb2_grpc import ControlServiceServicer, add_ControlServiceServicer_to_server


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    prepared(world)
    return world


def explore(world: World) -> pb.GetTradeOffResponse:
    queries = Queries(world.store, settings=SETTINGS, now_s=lambda: world.now_s)
    return trade_off(world.store, queries, SETTINGS, PROFILE.name)


def with_family(world: World) -> None:
    """Widths whose layers cost as much as ``candidate_of`` says: 0.4 ms at full width."""
    teacher = teacher_of(WORKLOAD)
    task = FamilyTask(task_id="f", workload=WORKLOAD, teacher=teacher, settings=family_settings(WORKLOAD))
    family = family_of(task)
    widths = tuple(
        replace(
            width,
            layers=(
                LayerShape(
                    kind=LayerKind.CONVOLUTION,
                    in_channels=3,
                    out_channels=int(128 * width.width_ratio),
                    kernel_size=9,
                    positions=100,
                ),
            ),
        )
        for width in family.widths
    )
    save_family(world.store, replace(family, widths=widths))


def test_students_the_front_and_the_choice_are_told_apart(world: World) -> None:
    made = build(world.store, PROFILE, 0.25, 0.5, 1.0)
    rejected = replace(made[1], rejected_reason="slower than its parent", proposed_reason="bytes bind")
    world.store.save_candidate(rejected, 2.0)
    answer = explore(world)
    assert [point.latency_p50_ms for point in answer.points] == pytest.approx([0.1, 0.2, 0.4])
    assert [point.on_front for point in answer.points] == [True, False, True]
    assert [point.chosen for point in answer.points] == [False, False, True]
    assert answer.points[1].rejected_reason == "slower than its parent"
    assert [point.proposed_reason for point in answer.points] == ["", "bytes bind", ""]
    assert "most accurate" in answer.reason
    assert answer.prediction_error_ratio == 0


def test_what_cannot_be_met_is_said_with_what_could(world: World) -> None:
    strict = replace(PROFILE, constraints=replace(PROFILE.constraints, min_accuracy=0.999))
    world.store.apply_profile(strict, 2.0)
    build(world.store, strict, 0.25, 0.5)
    answer = explore(world)
    assert not any(point.chosen for point in answer.points)
    assert "accuracy floor" in answer.reason
    assert "floor 0.94" in answer.reason


def test_widths_that_were_not_built_are_predicted_from_three_that_were(world: World) -> None:
    with_family(world)
    build(world.store, PROFILE, 0.25, 1.0)
    assert all(point.digest for point in explore(world).points), "two probes are too few"
    build(world.store, PROFILE, 0.5)
    answer = explore(world)
    (guess,) = [point for point in answer.points if not point.digest]
    assert json.loads(guess.spec_json)["width_ratio"] == 0.75
    assert guess.latency_p50_ms == pytest.approx(0.3, rel=0.05)
    assert guess.accuracy == pytest.approx(0.96)
    assert not guess.chosen
    assert not guess.on_front
    assert 0 < answer.prediction_error_ratio < 0.2


def test_an_unknown_profile_lists_the_known(world: World) -> None:
    queries = Queries(world.store, settings=SETTINGS, now_s=lambda: world.now_s)
    with pytest.raises(RejectedError, match="gateway"):
        trade_off(world.store, queries, SETTINGS, "gatewya")


def test_a_search_grows_by_a_rung_and_survives_a_restart_between_them(world: World) -> None:
    workload = replace(WORKLOAD, search=SearchBudget(max_trials=4, num_epochs=2, family_epochs=2))
    world.store.apply_workload(workload, 2.0)
    cuts = tuple(CompressionSpec(road=Road.ELASTIC, width_ratio=w, num_epochs=0) for w in (0.5, 0.25))
    world.store.create_job(compress_job("c", PROFILE, cuts, 1.0, max_trials=4))
    for restart in (False, False, True, False, False):
        for _ in range(3):
            world.now_s += 1
            world.runner.step()
        world.compute.finish()
        world.now_s += 1
        world.runner.step()
        if restart:
            world.restart(lose_cluster=True)
    job = world.store.job("c")
    assert job is not None
    assert job.state is JobState.SUCCEEDED
    found = [(trial.spec.road, trial.spec.num_epochs) for trial in job.trials if trial.spec]
    assert found == [(Road.ELASTIC, 0), (Road.ELASTIC, 0), (Road.ELASTIC, 2), (Road.PRUNED, 2)]
    assert len(job.candidate_digests) == 4


class Service(ControlServiceServicer):
    def __init__(self, answer: pb.GetTradeOffResponse) -> None:
        self.answer = answer

    def GetTradeOff(self, request: pb.GetTradeOffRequest, context: grpc.ServicerContext) -> object:
        return self.answer

    def CompressStudents(self, request: object, context: grpc.ServicerContext) -> object:
        return pb.CompressStudentsResponse(job=pb.JobInfo(job_id="j", kind="compress", profile="gateway"))

    def WatchJob(self, request: object, context: grpc.ServicerContext) -> Iterator[pb.WatchJobResponse]:
        job = pb.JobInfo(job_id="j", kind="compress", profile="gateway", state=pb.JOB_STATE_RUNNING)
        yield pb.WatchJobResponse(job=job)
        job.candidate_digests.append("ab")
        yield pb.WatchJobResponse(job=job)
        job.state = pb.JOB_STATE_SUCCEEDED
        yield pb.WatchJobResponse(job=job)

    def ListCandidates(self, request: object, context: grpc.ServicerContext) -> object:
        return pb.ListCandidatesResponse()


@pytest.fixture
def served(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    with_family(world)
    build(world.store, PROFILE, 0.25, 0.5, 1.0)
    server = grpc.server(ThreadPoolExecutor(2))
    service = Service(explore(world))
    add_ControlServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv("EDGELOOP_SERVER", f"127.0.0.1:{port}")
    yield service
    server.stop(None).wait()


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["edgeloop", *arguments])
    monkeypatch.setenv("COLUMNS", "200")
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_terminal_shows_the_plot_the_table_and_the_reason(
    served: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "pareto", "gateway") == 0
    shown = capsys.readouterr().out
    plot = shown[: shown.index("STUDENT")]
    assert plot.count("@") == 2, "the chosen one, and the legend"
    assert "98.00 % |" in plot
    assert "0.1 ms" in plot
    assert "not built" in shown
    assert "most accurate" in shown
    assert "mean error" in shown


def test_programs_get_json_and_pictures_are_pictures(
    served: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    picture, page = tmp_path / "front.png", tmp_path / "front.html"
    arguments = ("pareto", "gateway", "-o", "json", "--png", str(picture), "--html", str(page))
    assert run(monkeypatch, *arguments) == 0
    points = json.loads(capsys.readouterr().out)["points"]
    assert [point["chosen"] for point in points] == [False, False, False, True]
    assert points[0]["spec"]["width_ratio"] == 0.25
    assert picture.read_bytes().startswith(b"\x89PNG")
    text = page.read_text()
    assert "<svg" in text
    assert "not built" in text
    assert "http" not in text.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", "")


def test_a_file_that_cannot_be_written_is_named(
    served: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(monkeypatch, "pareto", "gateway", "--png", str(tmp_path / "no" / "front.png")) == 2
    assert "front.png cannot be written" in capsys.readouterr().err


def test_compress_shows_the_front_as_students_arrive(
    served: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "compress", "--profile", "gateway") == 0
    told = capsys.readouterr().err
    assert told.count("front:") == 1
    assert "pruned x0.25 int8 92.00 % 0.1 ms" in told


def test_a_scatter_keeps_its_corners() -> None:
    dots = [Dot(x=1, y=0.5, mark="a"), Dot(x=100, y=0.9, mark="b"), Dot(x=10, y=0.7, mark="c")]
    lines = scatter(dots, width=21, height=5, x_text=lambda x: f"{x:g}", y_text=lambda y: f"{y:g}")
    assert lines[0] == f"{'0.9':>9} |{' ' * 20}b"
    assert lines[2] == f"{'':>9} |{' ' * 10}c"
    assert lines[4] == f"{'0.5':>9} |a"
    assert lines[-1].split() == ["1", "100"]
    assert scatter([], x_text=str, y_text=str) == []
    assert any("z" in line for line in scatter([Dot(x=2, y=2, mark="z")], x_text=str, y_text=str))
