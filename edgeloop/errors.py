"""Errors, sorted by who must act, and the one table that maps them to gRPC.

Rules kept here:

- ``TransientError``: try again later; nothing is wrong with the input.
- ``RejectedError``: this input can never be accepted; retrying is useless.
- ``ConfigError``: a person must change a file, a flag or an installation.
- Every error has a stable ``code`` (lower case, words joined by "-") for programs, and a message for people
  that names the field and says what to do next.
- Over gRPC the code and the kind travel as trailing metadata, so that ``error_from_grpc`` gives back the
  class and the code that the other side raised. Without that metadata the status code decides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:  # grpc costs memory and start-up time, and most users of this module need none of it
    import grpc

CODE_METADATA_KEY: Final = "edgeloop-code"
KIND_METADATA_KEY: Final = "edgeloop-kind"

_CODE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_MAX_CODE_CHARS = 64
_MAX_DETAIL_CHARS = 2000


class EdgeloopError(Exception):
    """Base of all errors that edgeloop raises on purpose. Raise one of its three kinds, never this."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.message = message
        self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process boundaries in Ray and in the self-test; the default loses the code.
        return _rebuild, (type(self), self.message, self.code)


class TransientError(EdgeloopError):
    """Try again later."""


class RejectedError(EdgeloopError):
    """Never try this again as it is."""


class ConfigError(EdgeloopError):
    """A person must change a file, a flag or an installation."""


def _rebuild(kind: type[EdgeloopError], message: str, code: str) -> EdgeloopError:
    return kind(message, code=code)


#: What is raised here, as gRPC says it.
STATUS_NAMES: Final[Mapping[type[EdgeloopError], str]] = MappingProxyType(
    {
        TransientError: "UNAVAILABLE",
        RejectedError: "INVALID_ARGUMENT",
        ConfigError: "FAILED_PRECONDITION",
        EdgeloopError: "INTERNAL",
    }
)

#: What gRPC says, as it is raised here. Whatever is not listed is worth another try.
ERROR_KINDS: Final[Mapping[str, type[EdgeloopError]]] = MappingProxyType(
    {
        "INVALID_ARGUMENT": RejectedError,
        "NOT_FOUND": RejectedError,
        "ALREADY_EXISTS": RejectedError,
        "OUT_OF_RANGE": RejectedError,
        "DATA_LOSS": RejectedError,
        "FAILED_PRECONDITION": ConfigError,
        "PERMISSION_DENIED": ConfigError,
        "UNAUTHENTICATED": ConfigError,
        "UNIMPLEMENTED": ConfigError,
    }
)

_KINDS: Final[Mapping[str, type[EdgeloopError]]] = MappingProxyType(
    {"transient": TransientError, "rejected": RejectedError, "config": ConfigError}
)


def grpc_status(error: BaseException) -> grpc.StatusCode:
    """The status that a servicer ends a call with; INTERNAL for whatever is not ours."""
    import grpc

    for kind, name in STATUS_NAMES.items():
        if isinstance(error, kind):
            return grpc.StatusCode[name]
    return grpc.StatusCode.INTERNAL


def abort_args(error: EdgeloopError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, str], ...]]:
    """What to pass on: ``await context.abort(*abort_args(error))``."""
    kind = next((name for name, cls in _KINDS.items() if isinstance(error, cls)), "")
    metadata = ((CODE_METADATA_KEY, error.code), (KIND_METADATA_KEY, kind))
    return grpc_status(error), error.message[:_MAX_DETAIL_CHARS], metadata


def error_from_grpc(error: grpc.RpcError) -> EdgeloopError:
    """The error that a failed call stands for. It is returned, so that the caller can ``raise ... from``."""
    status = error.code() if callable(getattr(error, "code", None)) else None
    name = getattr(status, "name", "UNKNOWN")
    details = error.details() if callable(getattr(error, "details", None)) else None
    metadata = _text_metadata(error)
    kind = _KINDS.get(metadata.get(KIND_METADATA_KEY, "")) or ERROR_KINDS.get(name, TransientError)
    code = metadata.get(CODE_METADATA_KEY, "")
    if len(code) > _MAX_CODE_CHARS or not _CODE.fullmatch(code):
        code = "grpc-" + name.lower().replace("_", "-")
    return kind((details or f"the call failed with {name}")[:_MAX_DETAIL_CHARS], code=code)


def _text_metadata(error: grpc.RpcError) -> dict[str, str]:
    read = getattr(error, "trailing_metadata", None)
    pairs = (read() if callable(read) else None) or ()
    return {str(key): value for key, value in pairs if isinstance(value, str)}
