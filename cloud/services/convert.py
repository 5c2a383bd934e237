"""Wire messages to values and back; a message from outside is checked here, or nowhere."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from cloud.domain.devices import DeploymentStatus, Device
from edgeloop.v1 import deployment_pb2, device_pb2


def timestamp(seconds: float) -> Timestamp:
    """Seconds since the epoch as a Timestamp; 0 gives an empty one."""
    raise NotImplementedError


def seconds(message: Timestamp) -> float:
    raise NotImplementedError


def device_from_proto(registration: device_pb2.Registration) -> Device:
    """Raises RejectedError naming the field."""
    raise NotImplementedError


def registration_to_proto(device: Device) -> device_pb2.Registration:
    raise NotImplementedError


def status_from_proto(message: deployment_pb2.DeploymentStatus) -> DeploymentStatus:
    """Raises RejectedError naming the field."""
    raise NotImplementedError


def status_to_proto(status: DeploymentStatus) -> deployment_pb2.DeploymentStatus:
    raise NotImplementedError
