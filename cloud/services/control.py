"""ControlService: what the control script calls.

Rules that this module keeps:

* Only plumbing: what is listed comes from ``queries``, what is changed goes through ``operations``, both on
  worker threads, so that the event loop never waits for the database.
* Every error leaves through the table in ``edgeloop.errors``; what is not ours is logged and told as such.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, NoReturn, TypeVar

import grpc.aio

from cloud.domain.settings import PolicySettings
from cloud.log_ring import LogRing
from cloud.services import views
from cloud.services.catalogue import Catalogue
from cloud.services.explaining import explain_device
from cloud.services.identities import Identities
from cloud.services.logs import Logs
from cloud.services.operations import Operations
from cloud.services.queries import Queries
from cloud.services.rollouts import followed, rollout_of
from cloud.services.rules import describe_candidate
from cloud.services.summary import summarise
from cloud.services.trade_off import trade_off
from cloud.store import Store
from edgeloop.errors import EdgeloopError, abort_args
from edgeloop.v1 import control_service_pb2 as pb
from edgeloop.v1 import control_service_pb2_grpc

logger = logging.getLogger(__name__)

#: Pass to ``grpc.aio.server(options=...)``. A port in use is an error instead of a silent share.
SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.max_concurrent_streams", 100),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
)

_WATCH_INTERVAL_S = 0.25
#: Following a rollout reads the whole fleet.
_FOLLOW_INTERVAL_S = 1.0

Request = TypeVar("Request")
Response = TypeVar("Response")
Context = grpc.aio.ServicerContext[Any, Any]


class ControlServicer(control_service_pb2_grpc.ControlServiceServicer):
    """``info`` gives what only the process knows of itself; ``poke`` has the controller look at once.

    ``enrols`` is whether this control plane has the keys to enrol devices with.
    ``read_blob`` gives an artifact by its digest. ``logs`` is what this process logged, ``plane`` its name.
    """

    def __init__(
        self,
        store: Store,
        *,
        settings: PolicySettings,
        info: Callable[[], pb.GetServerInfoResponse],
        read_blob: Callable[[str], bytes],
        poke: Callable[[], None] = lambda: None,
        now_s: Callable[[], float] = time.time,
        enrols: bool = False,
        logs: LogRing | None = None,
        plane: str = "",
    ) -> None:
        self._info = info
        self._read_blob = read_blob
        self._queries = Queries(store, settings=settings, now_s=now_s)
        self._operations = Operations(store, self._queries, settings=settings, now_s=now_s, poke=poke)
        self._catalogue = Catalogue(store, self._queries, settings=settings, now_s=now_s, poke=poke)
        self._logs = Logs(store, self._queries, logs or LogRing(), plane=plane, now_s=now_s)
        self._identities = Identities(store, enrols=enrols, now_s=now_s, poke=poke)
        self._store = store
        self._settings = settings
        self._now_s = now_s

    # The names below are those of the protocol.

    async def GetServerInfo(
        self, request: pb.GetServerInfoRequest, context: Context
    ) -> pb.GetServerInfoResponse:
        return await _call(context, lambda _: self._info(), request)

    async def Apply(self, request: pb.ApplyRequest, context: Context) -> pb.ApplyResponse:
        return await _call(context, self._operations.apply, request)

    async def ListWorkloads(
        self, request: pb.ListWorkloadsRequest, context: Context
    ) -> pb.ListWorkloadsResponse:
        return await _call(context, self._queries.workloads, request)

    async def GetTradeOff(self, request: pb.GetTradeOffRequest, context: Context) -> pb.GetTradeOffResponse:
        return await _call(context, self._trade_off, request)

    async def ListProfiles(
        self, request: pb.ListProfilesRequest, context: Context
    ) -> pb.ListProfilesResponse:
        return await _call(context, self._queries.profiles, request)

    async def ListDevices(self, request: pb.ListDevicesRequest, context: Context) -> pb.ListDevicesResponse:
        return await _call(context, self._queries.devices, request)

    async def ListCandidates(
        self, request: pb.ListCandidatesRequest, context: Context
    ) -> pb.ListCandidatesResponse:
        return await _call(context, self._queries.candidates, request)

    async def ListRollouts(
        self, request: pb.ListRolloutsRequest, context: Context
    ) -> pb.ListRolloutsResponse:
        return await _call(context, self._queries.rollouts, request)

    async def ListDecisions(
        self, request: pb.ListDecisionsRequest, context: Context
    ) -> pb.ListDecisionsResponse:
        return await _call(context, self._queries.decisions, request)

    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:
        return await _call(context, self._queries.jobs, request)

    async def ListMeasurements(
        self, request: pb.ListMeasurementsRequest, context: Context
    ) -> pb.ListMeasurementsResponse:
        return await _call(context, self._queries.measurements, request)

    async def ExplainDevice(
        self, request: pb.ExplainDeviceRequest, context: Context
    ) -> pb.ExplainDeviceResponse:
        return await _call(context, self._explain, request)

    async def ExplainRules(
        self, request: pb.ExplainRulesRequest, context: Context
    ) -> pb.ExplainRulesResponse:
        return await _call(context, self._describe_rules, request)

    async def TrainTeacher(
        self, request: pb.TrainTeacherRequest, context: Context
    ) -> pb.TrainTeacherResponse:
        return await _call(context, self._operations.train, request)

    async def CompressStudents(
        self, request: pb.CompressStudentsRequest, context: Context
    ) -> pb.CompressStudentsResponse:
        return await _call(context, self._operations.compress, request)

    async def CancelJob(self, request: pb.CancelJobRequest, context: Context) -> pb.CancelJobResponse:
        return await _call(context, self._operations.cancel, request)

    async def StartRollout(
        self, request: pb.StartRolloutRequest, context: Context
    ) -> pb.StartRolloutResponse:
        return await _call(context, self._operations.start_rollout, request)

    async def PauseRollout(
        self, request: pb.PauseRolloutRequest, context: Context
    ) -> pb.PauseRolloutResponse:
        return await _call(context, self._operations.pause_rollout, request)

    async def ResumeRollout(
        self, request: pb.ResumeRolloutRequest, context: Context
    ) -> pb.ResumeRolloutResponse:
        return await _call(context, self._operations.resume_rollout, request)

    async def AbortRollout(
        self, request: pb.AbortRolloutRequest, context: Context
    ) -> pb.AbortRolloutResponse:
        return await _call(context, self._operations.abort_rollout, request)

    async def SetControllerPaused(
        self, request: pb.SetControllerPausedRequest, context: Context
    ) -> pb.SetControllerPausedResponse:
        return await _call(context, self._operations.set_paused, request)

    async def ListIdentities(
        self, request: pb.ListIdentitiesRequest, context: Context
    ) -> pb.ListIdentitiesResponse:
        return await _call(context, self._identities.identities, request)

    async def EnrolDevice(self, request: pb.EnrolDeviceRequest, context: Context) -> pb.EnrolDeviceResponse:
        return await _call(context, self._identities.enrol, request)

    async def RevokeDevice(
        self, request: pb.RevokeDeviceRequest, context: Context
    ) -> pb.RevokeDeviceResponse:
        return await _call(context, self._identities.revoke, request)

    async def LabelDevice(self, request: pb.LabelDeviceRequest, context: Context) -> pb.LabelDeviceResponse:
        return await _call(context, self._identities.label, request)

    async def DeleteDevice(
        self, request: pb.DeleteDeviceRequest, context: Context
    ) -> pb.DeleteDeviceResponse:
        return await _call(context, self._identities.delete, request)

    async def ListOperators(
        self, request: pb.ListOperatorsRequest, context: Context
    ) -> pb.ListOperatorsResponse:
        return await _call(context, self._identities.operators, request)

    async def CreateOperator(
        self, request: pb.CreateOperatorRequest, context: Context
    ) -> pb.CreateOperatorResponse:
        return await _call(context, self._identities.create_operator, request)

    async def RevokeOperator(
        self, request: pb.RevokeOperatorRequest, context: Context
    ) -> pb.RevokeOperatorResponse:
        return await _call(context, self._identities.revoke_operator, request)

    async def ListAudit(self, request: pb.ListAuditRequest, context: Context) -> pb.ListAuditResponse:
        return await _call(context, self._identities.audit, request)

    async def WatchJob(
        self, request: pb.WatchJobRequest, context: Context
    ) -> AsyncIterator[pb.WatchJobResponse]:
        """The job now and at every change, until it ends."""
        last: pb.JobInfo | None = None
        while True:
            job = views.job_info(await _call(context, self._operations.job, request.job_id))
            if job != last:
                yield pb.WatchJobResponse(job=job)
                last = job
            if job.state not in (pb.JOB_STATE_PENDING, pb.JOB_STATE_RUNNING):
                return
            await asyncio.sleep(_WATCH_INTERVAL_S)

    async def GetRollout(self, request: pb.GetRolloutRequest, context: Context) -> pb.GetRolloutResponse:
        return await _call(context, self._rollout, request)

    async def WatchRollout(
        self, request: pb.WatchRolloutRequest, context: Context
    ) -> AsyncIterator[pb.WatchRolloutResponse]:
        """The rollout now and at every change, until it ends."""
        last: pb.RolloutInfo | None = None
        while True:
            info = await _call(context, self._followed, request.rollout_id)
            if info != last:
                yield pb.WatchRolloutResponse(rollout=info)
                last = info
            if info.state not in (pb.ROLLOUT_STATE_RUNNING, pb.ROLLOUT_STATE_PAUSED):
                return
            await asyncio.sleep(_FOLLOW_INTERVAL_S)

    async def GetFleetSummary(
        self, request: pb.GetFleetSummaryRequest, context: Context
    ) -> pb.GetFleetSummaryResponse:
        return await _call(context, self._summary, request)

    async def SetProfileConstraints(
        self, request: pb.SetProfileConstraintsRequest, context: Context
    ) -> pb.SetProfileConstraintsResponse:
        return await _call(context, self._catalogue.set_constraints, request)

    async def DeleteProfile(
        self, request: pb.DeleteProfileRequest, context: Context
    ) -> pb.DeleteProfileResponse:
        return await _call(context, self._catalogue.delete_profile, request)

    async def DeleteWorkload(
        self, request: pb.DeleteWorkloadRequest, context: Context
    ) -> pb.DeleteWorkloadResponse:
        return await _call(context, self._catalogue.delete_workload, request)

    async def WatchLogs(
        self, request: pb.WatchLogsRequest, context: Context
    ) -> AsyncIterator[pb.WatchLogsResponse]:
        """Whose records they are, what is there, and with ``follow`` what comes."""
        following = await _call(context, self._logs.begin, request)
        yield await _call(context, lambda _: self._logs.header(), request)
        while True:
            if records := await _call(context, self._logs.more, following):
                yield pb.WatchLogsResponse(records=records)
            if not request.follow:
                return
            await asyncio.sleep(_FOLLOW_INTERVAL_S)

    def _rollout(self, request: pb.GetRolloutRequest) -> pb.GetRolloutResponse:
        rollout = rollout_of(self._store, request.rollout_id)
        info = followed(self._store, rollout, self._now_s(), with_devices=True)
        return pb.GetRolloutResponse(rollout=info)

    def _followed(self, rollout_id: str) -> pb.RolloutInfo:
        rollout = rollout_of(self._store, rollout_id)
        return followed(self._store, rollout, self._now_s(), with_devices=False)

    def _summary(self, request: pb.GetFleetSummaryRequest) -> pb.GetFleetSummaryResponse:
        return summarise(self._store, self._queries, request, self._now_s())

    def _trade_off(self, request: pb.GetTradeOffRequest) -> pb.GetTradeOffResponse:
        return trade_off(self._store, self._queries, self._settings, request.profile)

    def _explain(self, request: pb.ExplainDeviceRequest) -> pb.ExplainDeviceResponse:
        return explain_device(self._store, self._queries, request.device_id)

    def _describe_rules(self, request: pb.ExplainRulesRequest) -> pb.ExplainRulesResponse:
        return describe_candidate(self._store, request.digest, read_blob=self._read_blob)


def add_control_service(server: grpc.aio.Server, servicer: ControlServicer) -> None:
    """Attach the service to a server that has not started yet."""
    control_service_pb2_grpc.add_ControlServiceServicer_to_server(servicer, server)


async def _call(context: Context, method: Callable[[Request], Response], request: Request) -> Response:
    try:
        return await asyncio.to_thread(method, request)
    except Exception as error:  # noqa: BLE001 - _abort sorts and logs it
        await _abort(context, error)


async def _abort(context: Context, error: Exception) -> NoReturn:
    if isinstance(error, EdgeloopError):
        await context.abort(*abort_args(error))
    logger.error("a call failed", exc_info=error)
    await context.abort(grpc.StatusCode.INTERNAL, "the control plane failed: its log says why")
