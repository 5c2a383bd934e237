from __future__ import annotations

import pickle
import subprocess
import sys

import grpc
import pytest

from edgeloop.errors import (
    ERROR_KINDS,
    ConfigError,
    EdgeloopError,
    RejectedError,
    TransientError,
    abort_args,
    error_from_grpc,
    grpc_status,
)


class FailedCall(grpc.RpcError):
    """A call that ended as a servicer's ``context.abort`` made it end."""

    def __init__(self, status: object, details: object = "", metadata: object = ()) -> None:
        self._answers = (status, details, metadata)

    def code(self) -> object:
        return self._answers[0]

    def details(self) -> object:
        return self._answers[1]

    def trailing_metadata(self) -> object:
        return self._answers[2]


@pytest.mark.parametrize("kind", [TransientError, RejectedError, ConfigError])
def test_kind_code_and_message_survive_a_call(kind: type[EdgeloopError]) -> None:
    sent = kind("port is 0: give 1 to 65535", code="bad-port")
    received = error_from_grpc(FailedCall(*abort_args(sent)))
    assert type(received) is kind
    assert (received.code, received.message) == (sent.code, sent.message)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, TransientError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, TransientError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, TransientError),
        (grpc.StatusCode.UNKNOWN, TransientError),
        (grpc.StatusCode.INTERNAL, TransientError),
        (grpc.StatusCode.INVALID_ARGUMENT, RejectedError),
        (grpc.StatusCode.NOT_FOUND, RejectedError),
        (grpc.StatusCode.FAILED_PRECONDITION, ConfigError),
        (grpc.StatusCode.UNAUTHENTICATED, ConfigError),
        (grpc.StatusCode.UNIMPLEMENTED, ConfigError),
    ],
    ids=lambda value: getattr(value, "name", getattr(value, "__name__", None)),
)
def test_status_of_a_foreign_server_decides_the_kind(status: grpc.StatusCode, kind: type) -> None:
    error = error_from_grpc(FailedCall(status, "why"))
    assert type(error) is kind
    assert error.code == "grpc-" + status.name.lower().replace("_", "-")
    assert error.message == "why"


def test_kind_that_the_other_side_states_outweighs_its_status() -> None:
    metadata = (("edgeloop-code", "busy"), ("edgeloop-kind", "transient"))
    error = error_from_grpc(FailedCall(grpc.StatusCode.FAILED_PRECONDITION, "why", metadata))
    assert type(error) is TransientError
    assert error.code == "busy"


def test_every_status_in_the_table_exists() -> None:
    assert set(ERROR_KINDS) <= {status.name for status in grpc.StatusCode}


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        (("edgeloop-code", b"\xff"), ("edgeloop-kind", b"x")),
        (("edgeloop-code", "Not A Code\n"), ("edgeloop-kind", "emperor")),
        (("edgeloop-code", "x" * 1000),),
    ],
    ids=["none", "bytes", "nonsense", "long"],
)
def test_hostile_metadata_falls_back_to_the_status(metadata: object) -> None:
    error = error_from_grpc(FailedCall(grpc.StatusCode.NOT_FOUND, None, metadata))
    assert type(error) is RejectedError
    assert error.code == "grpc-not-found"
    assert error.message


def test_error_without_any_answer_is_worth_another_try() -> None:
    assert type(error_from_grpc(grpc.RpcError())) is TransientError


def test_statuses_of_our_kinds_and_of_bugs() -> None:
    assert grpc_status(TransientError("", code="x")) is grpc.StatusCode.UNAVAILABLE
    assert grpc_status(RejectedError("", code="x")) is grpc.StatusCode.INVALID_ARGUMENT
    assert grpc_status(ConfigError("", code="x")) is grpc.StatusCode.FAILED_PRECONDITION
    assert grpc_status(KeyError("bug")) is grpc.StatusCode.INTERNAL


def test_errors_cross_a_process_boundary_whole() -> None:
    error = pickle.loads(pickle.dumps(RejectedError("field", code="some-code")))
    assert type(error) is RejectedError
    assert (error.message, error.code, str(error)) == ("field", "some-code", "field")


def test_errors_and_topics_load_without_grpc() -> None:
    # The self-test child of an agent imports them, and grpc would cost it a third of its start.
    program = "import sys, edgeloop.errors, edgeloop.topics; sys.exit('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
