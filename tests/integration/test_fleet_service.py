"""FleetService over real gRPC and SQLite, down to a server that dies between commit and acknowledgement."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import grpc.aio
import pytest
from fleet_scene import DIGEST, Fleet, GatedStore, Run, batch, registration, report, run_alone

from cloud.domain.devices import DeploymentState
from cloud.domain.profiles import DeviceProfile, MatchRule
from cloud.domain.rollout import DeploymentIntent
from cloud.services.convert import timestamp
from cloud.services.fleet import SERVER_OPTIONS
from edgeloop.errors import RejectedError, TransientError, error_from_grpc
from edgeloop.v1 import (
    deployment_pb2,
    device_pb2,
    fleet_service_pb2,
)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a scenario against a server of its own."""

    return partial(run_alone, tmp_path)


def test_registering_answers_with_the_profile(run: Run) -> None:
    async def scenario(fleet: Fleet, store: GatedStore) -> None:
        before_s = time.time()
        answer = await fleet.register()
        assert (answer.profile, answer.report_interval_s) == ("", 7)
        assert before_s - 1e-3 <= answer.server_time.ToNanoseconds() / 1e9 <= time.time() + 1e-3
        assert "no profile exists yet" in answer.message
        store.apply_profile(
            DeviceProfile(name="small", workload="digits", match=MatchRule(labels={"class": "small"})), 1.0
        )
        assert (await fleet.register()).profile == "small"
        assert (await fleet.register()).profile == "small"
        assert [device.profile for device in store.devices()] == ["small"]
        assert fleet.registered == ["gw-1"] * 3
        # A device that hosts several hears of each, in its own order.
        message = registration("gw-2")
        message.workloads.extend(device_pb2.HostedWorkload(workload=name) for name in ("ears", "digits"))
        ears, digits = (await fleet.register(message)).profiles
        assert (ears.workload, ears.profile) == ("ears", "")
        assert ears.message != ""
        assert (digits.workload, digits.profile, digits.message) == ("digits", "small", "")
        assert not (await fleet.register()).profiles

    run(scenario)


def test_a_bad_registration_gets_a_clear_error_and_changes_nothing(run: Run) -> None:
    async def scenario(fleet: Fleet, store: GatedStore) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await fleet.register(registration(device_id="no/such"))
        error = error_from_grpc(caught.value)
        assert isinstance(error, RejectedError)
        assert (error.code, caught.value.code()) == ("device-id", grpc.StatusCode.INVALID_ARGUMENT)
        assert (store.devices(), fleet.registered) == ([], [])

    run(scenario)


def test_a_generation_that_the_device_claims_is_the_floor_of_the_next(run: Run) -> None:
    async def scenario(fleet: Fleet, store: GatedStore) -> None:
        await fleet.register(registration(generation=17))
        intent = DeploymentIntent(
            device_id="gw-1", workload="digits", profile="small", digest=DIGEST, manifest_digest=DIGEST
        )
        assert store.issue_deployment(intent, 1.0).generation == 18

    run(scenario)


def test_deployment_states_are_told_once(run: Run) -> None:
    async def scenario(fleet: Fleet, store: GatedStore) -> None:
        await fleet.register()
        intent = DeploymentIntent(
            device_id="gw-1", workload="digits", profile="small", digest=DIGEST, manifest_digest=DIGEST
        )
        store.issue_deployment(intent, 1.0)
        await fleet.say()
        await fleet.say()
        await fleet.say(state=deployment_pb2.DEPLOYMENT_STATE_ROLLED_BACK)
        assert [status.state for status in fleet.statuses] == [DeploymentState.ACTIVE]
        deployment = store.deployment("gw-1")
        assert deployment is not None
        assert deployment.state is DeploymentState.ACTIVE
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await fleet.say(generation=2, digest="no digest")
        assert isinstance(error_from_grpc(caught.value), RejectedError)

    run(scenario)


def test_a_status_before_the_registration_is_to_be_sent_again(run: Run) -> None:
    async def scenario(fleet: Fleet, store: GatedStore) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await fleet.say()
        error = error_from_grpc(caught.value)
        assert isinstance(error, TransientError)
        assert error.code == "device-unknown"
        await fleet.register()
        await fleet.say()

    run(scenario)


def test_a_clock_ahead_does_not_put_later_words_in_the_shade(run: Run) -> None:
    async def scenario(fleet: Fleet, store: GatedStore) -> None:
        await fleet.register()
        ahead = deployment_pb2.DeploymentStatus(
            device_id="gw-1",
            generation=1,
            digest="2" * 64,
            state=deployment_pb2.DEPLOYMENT_STATE_TRIAL,
            event_time=timestamp(time.time() + 1e6),
        )
        await fleet.stub.UpdateDeploymentStatus(fleet_service_pb2.UpdateDeploymentStatusRequest(status=ahead))
        await fleet.send(batch(1, report(0, ago_s=-1.0)))
        device = store.device("gw-1")
        assert device is not None
        assert device.serving_digest == DIGEST

    run(scenario)


def test_a_port_in_use_is_an_error(run: Run) -> None:
    async def scenario(fleet: Fleet, store: GatedStore) -> None:
        first = grpc.aio.server(options=SERVER_OPTIONS)
        port = first.add_insecure_port("127.0.0.1:0")
        await first.start()
        with pytest.raises(RuntimeError):
            grpc.aio.server(options=SERVER_OPTIONS).add_insecure_port(f"127.0.0.1:{port}")
        await first.stop(0)

    run(scenario)
