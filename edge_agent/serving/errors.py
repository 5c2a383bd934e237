"""Errors of the local API as HTTP and gRPC say them: one table, so that both transports agree.

A code that is not listed goes by its kind: what may be tried again is 503 and UNAVAILABLE, what is wrong with
the request is 400 and INVALID_ARGUMENT.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from edgeloop.errors import EdgeloopError, RejectedError, TransientError

_STATUSES: Final = MappingProxyType(
    {
        "model-unknown": (404, "NOT_FOUND"),
        "version-unknown": (404, "NOT_FOUND"),
        "path-unknown": (404, "NOT_FOUND"),
        "method-wrong": (405, "UNIMPLEMENTED"),
        "length-missing": (411, "INVALID_ARGUMENT"),
        "request-too-large": (413, "RESOURCE_EXHAUSTED"),
        "request-deadline": (503, "DEADLINE_EXCEEDED"),
        # The model failed on an input that fits it: not the sender's fault.
        "model-run": (500, "INTERNAL"),
        "inference-internal": (500, "INTERNAL"),
        "output-value": (500, "INTERNAL"),
    }
)


def http_status(error: EdgeloopError) -> int:
    """The status code of the response."""
    if error.code in _STATUSES:
        return _STATUSES[error.code][0]
    return 503 if isinstance(error, TransientError) else 400 if isinstance(error, RejectedError) else 500


def grpc_status_name(error: EdgeloopError) -> str:
    """The name of the gRPC status."""
    if error.code in _STATUSES:
        return _STATUSES[error.code][1]
    if isinstance(error, TransientError):
        return "UNAVAILABLE"
    return "INVALID_ARGUMENT" if isinstance(error, RejectedError) else "INTERNAL"
