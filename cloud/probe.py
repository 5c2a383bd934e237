"""Whether a control plane answers: ``python -m cloud.probe HOST:PORT [CA_FILE]``, for health checks.

It asks the gRPC health service, which wants no token. Exit status 0: serving; 1: not, and it says why.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_TIMEOUT_S = 5.0


def probe(address: str, ca_file: Path | None) -> str:
    """Empty when it serves; else what is wrong."""
    try:
        if ca_file is None:
            channel = grpc.insecure_channel(address)
        else:
            channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(ca_file.read_bytes()))
        with channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_S
            )
    except grpc.RpcError as error:
        return str(error.details())
    except OSError as error:
        return str(error)
    if answer.status == health_pb2.HealthCheckResponse.SERVING:
        return ""
    return f"it says {health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)}"


def main(arguments: Sequence[str]) -> int:
    if len(arguments) not in (1, 2):
        print("usage: python -m cloud.probe HOST:PORT [CA_FILE]", file=sys.stderr)
        return 2
    problem = probe(arguments[0], Path(arguments[1]) if len(arguments) == 2 else None)
    if problem:
        print(f"{arguments[0]}: {problem}", file=sys.stderr)
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
