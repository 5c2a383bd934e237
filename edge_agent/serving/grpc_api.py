"""The Open Inference Protocol over gRPC, and gRPC's own health check.

Rules that this module keeps:

- A call in flight has a thread: what comes beyond is refused at once, and nothing waits where no deadline
  would find it. A client that keeps ``MAX_CALLS`` under way is never refused: gRPC counts a call until its
  thread is done with it, and by then its caller may have had the answer and sent the next. So there is room
  for both.
- A port that another process listens on is an error. (gRPC by default shares it, and the kernel would deal
  the calls out between two agents.)
- Every refusal carries its stable code as trailing metadata.
"""

from __future__ import annotations

import logging
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any, Final, NoReturn

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2

from edge_agent.serving import addresses, grpc_messages
from edge_agent.serving.errors import grpc_status_name
from edge_agent.serving.inference import grpc_service_pb2 as pb
from edge_agent.serving.metrics import ServingMetrics
from edge_agent.serving.model_service import EXTENSIONS, SERVER_NAME, ModelService
from edgeloop.errors import CODE_METADATA_KEY, EdgeloopError, RejectedError

logger = logging.getLogger(__name__)

SERVICE: Final = "inference.GRPCInferenceService"
HEALTH_SERVICE: Final = "grpc.health.v1.Health"
MAX_CALLS: Final = 32
_TRANSPORT: Final = "grpc"

Servicer = Callable[[Any, grpc.ServicerContext], Message]


class GrpcApi:
    """`start` binds and serves; `stop` lets calls in flight end."""

    def __init__(
        self,
        service: ModelService,
        address: addresses.Address,
        *,
        metrics: ServingMetrics,
        max_request_bytes: int,
    ) -> None:
        self._service = service
        self._address = address
        self._metrics = metrics
        self._max_request_bytes = max_request_bytes
        self._server: grpc.Server | None = None

    def start(self) -> addresses.Address:
        """Serves, and returns the address with its actual port. Raises ``OSError``."""
        address = addresses.claim(self._address)
        server = grpc.server(
            # Made when they are needed, and there for good.
            ThreadPoolExecutor(2 * MAX_CALLS, thread_name_prefix="oip-grpc"),
            maximum_concurrent_rpcs=2 * MAX_CALLS,
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", self._max_request_bytes),
                ("grpc.max_send_message_length", -1),
            ],
        )
        server.add_generic_rpc_handlers((self._handlers(), self._health_handlers()))
        try:
            port = server.add_insecure_port(addresses.show(address))
        except RuntimeError as error:
            raise OSError(None, str(error)) from error
        if isinstance(address, Path):
            address.chmod(stat.S_IRUSR | stat.S_IWUSR | stat.S_IRGRP | stat.S_IWGRP)
        server.start()
        self._server = server
        return address if isinstance(address, Path) else addresses.with_port(address, port)

    def stop(self, grace_s: float) -> None:
        if self._server is not None:
            self._server.stop(grace_s).wait(grace_s + 1)

    # --- the service ----------------------------------------------------------------------------------

    def _handlers(self) -> grpc.GenericRpcHandler:
        def handler(serve: Servicer, request: type[Message]) -> grpc.RpcMethodHandler[Any, Any]:
            return grpc.unary_unary_rpc_method_handler(
                serve, request_deserializer=_parser(request), response_serializer=_serialize
            )

        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "ServerLive": handler(lambda _, __: pb.ServerLiveResponse(live=True), pb.ServerLiveRequest),
                "ServerReady": handler(
                    lambda _, __: pb.ServerReadyResponse(ready=self._service.ready), pb.ServerReadyRequest
                ),
                "ModelReady": handler(self._checked(self._model_ready), pb.ModelReadyRequest),
                "ServerMetadata": handler(self._server_metadata, pb.ServerMetadataRequest),
                "ModelMetadata": handler(self._checked(self._model_metadata), pb.ModelMetadataRequest),
                "ModelInfer": handler(self._infer, pb.ModelInferRequest),
            },
        )

    def _health_handlers(self) -> grpc.GenericRpcHandler:
        def check(request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext) -> Message:
            if not isinstance(request, health_pb2.HealthCheckRequest) or request.service not in ("", SERVICE):
                context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
            kind = health_pb2.HealthCheckResponse
            response: Message = kind(status=kind.SERVING if self._service.ready else kind.NOT_SERVING)
            return response

        method = grpc.unary_unary_rpc_method_handler(
            check,
            request_deserializer=_parser(health_pb2.HealthCheckRequest),
            response_serializer=_serialize,
        )
        return grpc.method_handlers_generic_handler(HEALTH_SERVICE, {"Check": method})

    def _model_ready(self, request: pb.ModelReadyRequest) -> Message:
        return pb.ModelReadyResponse(ready=self._service.is_ready(request.name, request.version))

    def _model_metadata(self, request: pb.ModelMetadataRequest) -> Message:
        return grpc_messages.metadata_response(self._service.metadata(request.name, request.version))

    @staticmethod
    def _server_metadata(request: object, context: grpc.ServicerContext) -> Message:
        return pb.ServerMetadataResponse(
            name=SERVER_NAME, version=metadata.version("edgeloop"), extensions=EXTENSIONS
        )

    def _infer(
        self, request: pb.ModelInferRequest | RejectedError, context: grpc.ServicerContext
    ) -> pb.ModelInferResponse:
        begin_s = time.perf_counter()
        try:
            if isinstance(request, RejectedError):
                raise request
            timeout_s = context.time_remaining()
            if request.parameters:
                asked_s = grpc_messages.parse_timeout_s(request.parameters)
                if asked_s is not None:
                    timeout_s = asked_s if timeout_s is None else min(timeout_s, asked_s)
            answer = self._service.infer(
                request.model_name,
                request.model_version,
                inputs=grpc_messages.parse_inputs(request),
                output_names=grpc_messages.parse_output_names(request) if request.outputs else (),
                timeout_s=timeout_s,
            )
            response = grpc_messages.infer_response(request, answer)
        except EdgeloopError as error:
            self._metrics.record(_TRANSPORT, error.code, time.perf_counter() - begin_s)
            _abort(context, error)
        self._metrics.record(_TRANSPORT, "ok", time.perf_counter() - begin_s)
        return response

    @staticmethod
    def _checked(serve: Callable[[Any], Message]) -> Servicer:
        def checked(request: Any, context: grpc.ServicerContext) -> Message:
            try:
                if isinstance(request, RejectedError):
                    raise request
                answer = serve(request)
            except EdgeloopError as error:
                _abort(context, error)
            return answer

        return checked


def _abort(context: grpc.ServicerContext, error: EdgeloopError) -> NoReturn:
    context.set_trailing_metadata(((CODE_METADATA_KEY, error.code),))
    context.abort(grpc.StatusCode[grpc_status_name(error)], error.message[:2000])


def _parser(kind: type[Message]) -> Callable[[bytes], Message | RejectedError]:
    """Hands a malformed message on as an error: gRPC would call it a fault of the server, and log a trace."""

    def parse(data: bytes) -> Message | RejectedError:
        try:
            return kind.FromString(data)
        except DecodeError:
            return RejectedError(f"the bytes are no {kind.DESCRIPTOR.name}", code="request-malformed")

    return parse


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
