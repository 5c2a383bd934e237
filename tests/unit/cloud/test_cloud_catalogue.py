"""Profiles and workloads changed one by one: by the control script, through a real ControlService."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import typer
from control_desk import call, run, served
from control_plane_fakes import PROFILE, SETTINGS, WORKLOAD, World, build, prepared
from machine import wait_until

from cloud.cli import app as cli
from cloud.cli import completion
from cloud.domain.identities import Role
from cloud.domain.jobs import JobState
from cloud.domain.profiles import Constraints, MatchRule
from cloud.domain.specs import CompressionSpec
from cloud.job_plans import compress_job
from cloud.services.control import ControlServicer
from edgeloop.v1 import control_service_pb2 as pb


class Desk:
    def __init__(self, folder: Path) -> None:
        self.world = World(folder)
        prepared(self.world)
        self.num_pokes = 0
        self.servicer = ControlServicer(
            self.world.store,
            settings=SETTINGS,
            info=pb.GetServerInfoResponse,
            read_blob=lambda _digest: b"",
            poke=self._poke,
            now_s=lambda: self.world.now_s,
        )

    def _poke(self) -> None:
        self.num_pokes += 1

    def constraints(self) -> Constraints:
        profile = self.world.store.profile(PROFILE.name)
        assert profile is not None
        return profile.constraints

    def await_audit(self, *expected: tuple[str, str, str]) -> None:
        """A refusal is written down after it was answered."""
        wait_until(
            lambda: (
                [(e.action, e.target, e.outcome) for e in reversed(self.world.store.audit(limit=10))]
                == list(expected)
            ),
            "the audit log",
        )


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.fixture
def address(desk: Desk) -> Iterator[str]:
    with served(desk.world.store, desk.servicer) as address:
        yield address


def test_an_objective_is_set_the_rest_stays_and_the_controller_looks(
    desk: Desk, address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, address, "profile", "set-objective", "gateway", "--min-accuracy", "0.9") == 0
    said = capsys.readouterr()
    assert "profile/gateway updated: p95 at most 10 ms, accuracy at least 90.00 %" in said.out
    assert "Fleet document" in said.err
    assert desk.constraints() == Constraints(latency_p95_ms=10.0, min_accuracy=0.9)
    assert desk.num_pokes == 1
    assert (
        run(monkeypatch, address, "profile", "set-objective", "gateway", "--p95-ms", "none", "-o", "json")
        == 0
    )
    answer = json.loads(capsys.readouterr().out)
    assert answer["resource"]["change"] == "updated"
    assert answer["constraints"] == {
        "latency_p95_ms": 0.0, "artifact_bytes": 0, "peak_rss_bytes": 0, "min_accuracy": 0.9,
    }  # fmt: skip
    assert desk.constraints() == Constraints(min_accuracy=0.9)
    desk.await_audit(*[("SetProfileConstraints", "gateway", "done")] * 2)


def test_an_objective_that_nothing_meets_is_set_and_said(
    desk: Desk, address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build(desk.world.store, PROFILE, 0.5)
    assert run(monkeypatch, address, "profile", "set-objective", "gateway", "--artifact-bytes", "1000") == 0
    assert "binding: artifact size; nearest: 50000 artifact bytes" in capsys.readouterr().out
    assert desk.constraints().artifact_bytes == 1000


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--p95-ms", "-3"], "--p95-ms is '-3': give a number over 0"),
        (["--p95-ms", "fast"], "--p95-ms is 'fast'"),
        (["--p95-ms", "nan"], "--p95-ms is 'nan'"),
        (["--artifact-bytes", "1.5"], "give whole bytes"),
        (["--min-accuracy", "93"], "min_accuracy: input should be less than or equal to 1, not 93"),
        ([], "no constraint is given"),
    ],
    ids=["negative", "word", "nan", "fraction", "per cent", "nothing"],
)
def test_an_objective_out_of_bounds_is_refused_with_its_name(
    desk: Desk,
    address: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    said: str,
) -> None:
    assert run(monkeypatch, address, "profile", "set-objective", "gateway", *flags) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert desk.constraints() == PROFILE.constraints


def test_a_profile_in_use_is_not_deleted_and_all_that_stands_in_the_way_is_named(
    desk: Desk, address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = desk.world
    world.register("gw-1")
    build(world.store, PROFILE, 0.5)
    rollout = desk.servicer._operations.start_rollout(pb.StartRolloutRequest(profile="gateway")).rollout
    job = compress_job("compress-1", PROFILE, (CompressionSpec(width_ratio=0.25),), world.now_s)
    world.store.create_job(job)
    assert run(monkeypatch, address, "profile", "delete", "gateway") == 1
    said = capsys.readouterr().err
    assert "1 device belongs to it (gw-1)" in said
    assert f"'edgeloop rollout abort {rollout.rollout_id}'" in said
    assert "'edgeloop cancel compress-1'" in said
    assert world.store.profile("gateway") is not None
    desk.await_audit(("DeleteProfile", "gateway", "refused"))


def test_a_workload_goes_after_its_profiles_and_comes_back_with_its_teacher(
    desk: Desk, address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = desk.world.store
    job = compress_job("compress-1", PROFILE, (CompressionSpec(width_ratio=0.25),), desk.world.now_s)
    store.create_job(job)
    assert run(monkeypatch, address, "workload", "delete", "digits") == 1
    said = capsys.readouterr().err
    assert "1 profile belongs to it (gateway): 'edgeloop profile delete gateway'" in said
    assert "1 job has not ended (compress-1)" in said
    store.update_job(replace(job, state=JobState.CANCELLED, end_time_s=desk.world.now_s))
    assert run(monkeypatch, address, "profile", "delete", "gateway") == 0
    assert run(monkeypatch, address, "workload", "delete", "digits", "-o", "json") == 0
    assert store.workloads() == []
    assert store.profiles() == []
    capsys.readouterr()
    assert run(monkeypatch, address, "workload", "delete", "digits") == 1
    assert "workload 'digits' is not known" in capsys.readouterr().err
    store.apply_workload(WORKLOAD, desk.world.now_s)
    assert run(monkeypatch, address, "workload", "list", "-o", "json") == 0
    assert json.loads(capsys.readouterr().out)[0]["teacher"]["accuracy"] == 0.99


def test_devices_without_a_profile_hear_that_one_is_gone(desk: Desk, address: str) -> None:
    store = desk.world.store
    store.apply_profile(
        replace(PROFILE, name="other", match=MatchRule(labels={"class": "x"})), desk.world.now_s
    )
    desk.world.register("gw-1", profile=None)
    desk.servicer._catalogue.delete_profile(pb.DeleteProfileRequest(profile="gateway"))
    device = store.device("gw-1")
    assert device is not None
    assert device.profile == ""
    assert "other: label class" in device.message
    assert "gateway:" not in device.message


def test_viewers_look_and_operators_change(desk: Desk) -> None:
    change = pb.SetProfileConstraintsRequest(profile="gateway", latency_p95_ms=5.0)
    with served(desk.world.store, desk.servicer, with_tokens=True) as address:
        assert call(address, "ListProfiles", pb.ListProfilesRequest(), Role.VIEWER).profiles
        for method, request in (
            ("SetProfileConstraints", change),
            ("DeleteProfile", pb.DeleteProfileRequest(profile="gateway")),
            ("DeleteWorkload", pb.DeleteWorkloadRequest(workload="digits")),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call(address, method, request, Role.VIEWER)
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert desk.constraints() == PROFILE.constraints
        call(address, "SetProfileConstraints", change, Role.OPERATOR)
    assert desk.constraints().latency_p95_ms == 5.0


def test_the_shell_completes_names_and_stays_silent_when_nothing_answers(
    desk: Desk, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.world.register("gw-1")
    command = typer.main.get_command(cli.app)

    def completed(complete: object, start: str, server: str) -> list[str]:
        context = typer.Context(command)
        context.params = {"server": server, "state_dir": None}
        assert callable(complete)
        return list(complete(context, start))

    assert completed(completion.profile_names, "ga", address) == ["gateway"]
    assert completed(completion.profile_names, "x", address) == []
    assert completed(completion.workload_names, "", address) == ["digits"]
    assert completed(completion.device_names, "gw", address) == ["gw-1"]
    assert completed(completion.profile_names, "", "127.0.0.1:1") == []
