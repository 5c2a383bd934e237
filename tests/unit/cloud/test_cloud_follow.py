"""Following rollouts and the fleet: the funnel, why devices wait, what a script can tell by the exit code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from control_plane_fakes import PROFILE, SETTINGS, World, build, prepared

from cloud.cli import app as cli
from cloud.domain.devices import DeploymentState
from cloud.domain.profiles import RolloutPlan
from cloud.domain.windows import MaintenanceWindow
from cloud.services.operations import Operations
from cloud.services.queries import Queries
from cloud.services.rollouts import followed, rollout_of
from cloud.services.summary import summarise
from edgeloop.errors import RejectedError
from edgeloop.v1 import control_service_pb2 as pb
from edgeloop.v1.control_service_pb2_grpc import ControlServiceServicer, add_ControlServiceServicer_to_server


class Desk:
    def __init__(self, folder: Path, plan: RolloutPlan) -> None:
        self.world = World(folder)
        self.profile = replace(PROFILE, rollout=plan)
        prepared(self.world, profile=self.profile)
        self.queries = Queries(self.world.store, settings=SETTINGS, now_s=lambda: self.world.now_s)
        self.operations = Operations(
            self.world.store,
            self.queries,
            settings=SETTINGS,
            now_s=lambda: self.world.now_s,
            poke=lambda: None,
        )

    def start(self) -> str:
        digest = build(self.world.store, self.profile, 0.5)[0].digest
        request = pb.StartRolloutRequest(profile=self.profile.name, digest=digest)
        return self.operations.start_rollout(request).rollout.rollout_id

    def look(self, rollout_id: str) -> pb.RolloutInfo:
        store = self.world.store
        return followed(store, rollout_of(store, rollout_id), self.world.now_s, with_devices=True)


def stages(info: pb.RolloutInfo) -> dict[str, dict[str, int]]:
    return {group.name: dict(group.num_by_stage) for group in info.groups}


def test_the_funnel_says_where_devices_are_why_they_wait_and_what_is_next(tmp_path: Path) -> None:
    desk = Desk(tmp_path, RolloutPlan(canary_share=0.5))
    for number in range(4):
        desk.world.register(f"gw-{number}", desk.profile)
    rollout_id = desk.start()
    desk.world.step()
    info = desk.look(rollout_id)
    assert stages(info) == {"canary": {"pending": 2}, "rest": {"waiting": 2}}
    assert [(wait.reason, wait.num_devices) for wait in info.waits] == [("group rest starts after canary", 2)]
    assert info.next == "rest starts once 2 more of canary have ended"
    canaries = [device.device_id for device in info.devices if device.group == "canary"]
    desk.world.obey(canaries[:1], DeploymentState.TRIAL)
    assert stages(desk.look(rollout_id))["canary"] == {"pending": 1, "trial": 1}
    desk.world.obey(canaries, DeploymentState.ACTIVE)
    desk.world.measure(canaries, 3.0, num_windows=4)
    info = desk.look(rollout_id)
    assert info.num_samples > 0
    assert info.measured_p95_ms == pytest.approx(3.0, rel=0.1)
    assert info.objective_p95_ms == desk.profile.constraints.latency_p95_ms


def test_a_device_waits_for_its_window_and_the_reason_names_it(tmp_path: Path) -> None:
    window = MaintenanceWindow(schedule="0 2 * * *", duration="01:00", timezone="Europe/Berlin")
    desk = Desk(tmp_path, RolloutPlan(canary_share=1.0, maintenance_window=window))
    desk.world.register("gw-1", desk.profile)
    desk.world.step()
    desk.world.obey(["gw-1"])
    first = desk.start()
    desk.world.step()
    desk.world.obey(["gw-1"])  # its first model: there was nothing to disturb
    desk.world.step()
    assert desk.look(first).devices[0].stage == "active"
    digest = build(desk.world.store, desk.profile, 0.25)[0].digest
    request = pb.StartRolloutRequest(profile=desk.profile.name, digest=digest)
    second = desk.operations.start_rollout(request).rollout.rollout_id
    desk.world.step()
    info = desk.look(second)
    (device,) = info.devices
    assert device.stage == "waiting"
    assert device.wait_reason.startswith("window opens ")
    assert device.wait_reason.endswith("02:00 Europe/Berlin")
    assert info.next == f"canary: {device.wait_reason}"
    until_s = info.waits[0].until_time.seconds
    assert until_s > desk.world.now_s
    desk.world.step(until_s - desk.world.now_s)
    assert desk.look(second).devices[0].stage == "pending"


def test_a_rollout_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(RejectedError, match="rollout-1"):
        rollout_of(World(tmp_path).store, "rollout-1")


def test_the_summary_counts_devices_by_profile_and_state(tmp_path: Path) -> None:
    desk = Desk(tmp_path, RolloutPlan(canary_share=1.0))
    for number in range(3):
        desk.world.register(f"gw-{number}", desk.profile)
    desk.world.register("stranger", None)
    desk.start()
    desk.world.step()
    desk.world.obey(["gw-0"])
    desk.world.measure(["gw-0"], 3.0)
    answer = summarise(desk.world.store, desk.queries, pb.GetFleetSummaryRequest(), desk.world.now_s)
    found = {profile.name: profile for profile in answer.profiles}
    assert dict(found[desk.profile.name].num_by_state) == {"active": 1, "pending": 2}
    assert dict(found[""].num_by_state) == {"none": 1}
    assert found[desk.profile.name].requests_per_s > 0
    assert found[desk.profile.name].max_rss_bytes > 0
    assert [rollout.profile for rollout in answer.rollouts] == [desk.profile.name]


class Service(ControlServiceServicer):
    """A rollout that goes on, and ends as it is told; once its control plane goes away in between."""

    def __init__(self) -> None:
        self.end = pb.ROLLOUT_STATE_SUCCEEDED
        self.goes_away = False

    def ListRollouts(self, request: Any, context: Any) -> pb.ListRolloutsResponse:
        running = pb.RolloutInfo(rollout_id="r2", profile="small", state=pb.ROLLOUT_STATE_RUNNING)
        ended = pb.RolloutInfo(rollout_id="r1", profile="small", state=pb.ROLLOUT_STATE_FAILED)
        return pb.ListRolloutsResponse(rollouts=[ended, running])

    def WatchRollout(
        self, request: pb.WatchRolloutRequest, context: Any
    ) -> Iterator[pb.WatchRolloutResponse]:
        group = pb.RolloutGroupInfo(
            name="canary", state="running", num_devices=2, num_by_stage={"trial": 1, "fetching": 1}
        )
        info = pb.RolloutInfo(
            rollout_id=request.rollout_id,
            state=pb.ROLLOUT_STATE_RUNNING,
            groups=[group],
            objective_p95_ms=8.0,
            next="rest starts once 2 more of canary have ended",
        )
        yield pb.WatchRolloutResponse(rollout=info)
        if self.goes_away:
            self.goes_away = False
            context.abort(grpc.StatusCode.UNAVAILABLE, "it restarts")
        info.state, info.next, info.message = self.end, "", "2 of 2 devices serve it"
        yield pb.WatchRolloutResponse(rollout=info)

    def GetFleetSummary(self, request: Any, context: Any) -> pb.GetFleetSummaryResponse:
        profile = pb.ProfileSummary(
            name="small", num_devices=3, num_connected=2, measured_p95_ms=7.5, objective_p95_ms=8.0,
            requests_per_s=12.25, num_by_state={"active": 2, "fetching": 1},
        )  # fmt: skip
        return pb.GetFleetSummaryResponse(profiles=[profile])


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


def run(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["edgeloop", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
    return int(caught.value.code or 0)


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (pb.ROLLOUT_STATE_SUCCEEDED, 0),
        (pb.ROLLOUT_STATE_FAILED, 1),
        (pb.ROLLOUT_STATE_ABORTED, 4),
        (pb.ROLLOUT_STATE_SUPERSEDED, 5),
    ],
)
def test_watching_ends_with_the_rollout_and_says_how_it_ended(service: Service, end: Any, code: int) -> None:
    service.end = end
    assert run("rollout", "watch", "r2") == code


def test_watching_without_a_terminal_prints_a_line_at_each_change(service: Service, capsys: Any) -> None:
    assert run("rollout", "watch", "--profile", "small") == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "canary running: fetching=1 trial=1" in first
    assert "p95 not measured yet of 8 ms" in first
    assert "next: rest starts once 2 more of canary have ended" in first
    assert "succeeded" in second
    assert "2 of 2 devices serve it" in second


def test_watching_as_json_prints_an_object_a_line_and_outlives_a_restart(
    service: Service, capsys: Any
) -> None:
    service.goes_away = True
    assert run("rollout", "watch", "r2", "-o", "json") == 0
    states = [json.loads(text)["state"] for text in capsys.readouterr().out.splitlines()]
    assert states == ["running", "running", "succeeded"]


def test_top_prints_once_for_scripts(service: Service, capsys: Any) -> None:
    assert run("top", "--once") == 0
    text = capsys.readouterr().out
    assert "2 of 3 devices connected  12.2 requests/s" in text
    assert "2 active, 1 fetching" in text
    assert run("top", "--once", "-o", "json") == 0
    (found,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert found["profiles"][0]["num_by_state"] == {"active": 2, "fetching": 1}
