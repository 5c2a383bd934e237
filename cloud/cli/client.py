"""A connection to a running control plane, and where to find one."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import grpc

from edgeloop.errors import ConfigError, EdgeloopError, RejectedError, TransientError
from edgeloop.v1 import control_service_pb2 as pb
from edgeloop.v1.control_service_pb2_grpc import ControlServiceStub

Reply = TypeVar("Reply")

DEFAULT_ADDRESS = "127.0.0.1:50062"
MAX_MESSAGE_BYTES = 64 << 20


def find_server(given: str | None, state_dir: Path | None) -> str:
    """The address to call: the flag or ``EDGELOOP_SERVER``, then ``server.json``, then the default port.

    ``server.json`` is what ``edgeloop serve`` leaves in its state folder while it runs.
    """
    if given:
        return given
    folder = state_dir or (
        Path(os.environ["EDGELOOP_STATE_DIR"]) if "EDGELOOP_STATE_DIR" in os.environ else None
    )
    if folder is not None:
        try:
            return str(json.loads((folder / "server.json").read_text())["control"])
        except FileNotFoundError:
            raise TransientError(
                f"no control plane runs in {folder}, or it is starting: start it with 'edgeloop serve "
                f"--state-dir {folder}'",
                code="server-not-running",
            ) from None
        except (ValueError, KeyError, TypeError):
            raise ConfigError(
                f"{folder / 'server.json'} is damaged: restart 'edgeloop serve'", code="server-file"
            ) from None
    return DEFAULT_ADDRESS


def check_address(address: str) -> None:
    """Raises ``ConfigError`` unless it is HOST:PORT."""
    found = re.fullmatch(r".+:([0-9]{1,5})", address)
    if found is None or not 0 < int(found[1]) < 65_536:
        raise ConfigError(
            f"the server is {address!r}: give HOST:PORT, such as {DEFAULT_ADDRESS} (--server or "
            "EDGELOOP_SERVER)",
            code="server-address",
        )


class ControlClient:
    """Calls ControlService. Every failure comes out as an ``EdgeloopError`` that says what to do next."""

    def __init__(
        self, address: str, *, timeout_s: float = 30.0, ca_pem: bytes | None = None, token: str = ""
    ) -> None:
        check_address(address)
        self.address = address
        self._timeout_s = timeout_s
        options = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES), ("grpc.keepalive_time_ms", 60_000)]
        self._secure = ca_pem is not None
        # Kept off connections that anybody could read.
        self._metadata = (("authorization", f"Bearer {token}"),) if token and self._secure else ()
        if ca_pem is not None:
            credentials = grpc.ssl_channel_credentials(ca_pem)
            self._channel = grpc.secure_channel(address, credentials, options=options)
        else:
            self._channel = grpc.insecure_channel(address, options=options)
        self._stub = ControlServiceStub(self._channel)

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls under way fail."""
        self._channel.close()

    def call(self, method: str, request: object, reply: type[Reply]) -> Reply:
        """Call a unary method by its name in the protocol and return its reply."""
        try:
            answer = getattr(self._stub, method)(request, timeout=self._timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._explained(error) from None
        assert isinstance(answer, reply)
        return answer

    def watch_job(self, job_id: str) -> Iterator[pb.JobInfo]:
        """The job now and at every change, until it ends."""
        try:
            for answer in self._stub.WatchJob(pb.WatchJobRequest(job_id=job_id), metadata=self._metadata):
                yield answer.job
        except grpc.RpcError as error:
            raise self._explained(error) from None

    def watch_rollout(self, rollout_id: str) -> Iterator[pb.RolloutInfo]:
        """The rollout now and at every change, until it ends."""
        request = pb.WatchRolloutRequest(rollout_id=rollout_id)
        try:
            for answer in self._stub.WatchRollout(request, metadata=self._metadata):
                yield answer.rollout
        except grpc.RpcError as error:
            raise self._explained(error) from None

    def watch_logs(self, request: pb.WatchLogsRequest) -> Iterator[pb.WatchLogsResponse]:
        """Whose records they are, then records; ends unless the request follows."""
        timeout_s = None if request.follow else self._timeout_s
        try:
            yield from self._stub.WatchLogs(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._explained(error) from None

    def _explained(self, error: grpc.RpcError) -> EdgeloopError:
        status = error.code()
        text = error.details() or status.name
        if status in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            if not self._secure and ("Socket closed" in text or "http2 preface" in text.lower()):
                return TransientError(
                    f"{self.address} ends connections without TLS: give its certificate authority "
                    "(EDGELOOP_CA, or 'edgeloop context set NAME --ca FILE')",
                    code="server-tls",
                )
            return TransientError(
                f"cannot reach the control plane at {self.address} ({_reason(text)}): start it with "
                "'edgeloop serve', or name it with --server, or its folder with --state-dir",
                code="server-unreachable",
            )
        if status is grpc.StatusCode.UNIMPLEMENTED:
            return ConfigError(
                f"{self.address} answers, but not as a control plane of this version: give its control port "
                "(50062 unless it was chosen otherwise), not the one for agents",
                code="server-other",
            )
        # Settings or a token to mend; what this token may not do is refused, like anything else.
        if status in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNAUTHENTICATED):
            return ConfigError(text, code="server-refused")
        return RejectedError(text, code="server-refused")


def _reason(details: str) -> str:
    """The end of what gRPC says, which is the cause; what precedes it repeats the address."""
    return details.rsplit(": ", 1)[-1].rstrip("])") or details
