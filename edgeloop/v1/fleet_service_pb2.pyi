import datetime

from edgeloop.v1 import deployment_pb2 as _deployment_pb2
from edgeloop.v1 import device_pb2 as _device_pb2
from edgeloop.v1 import telemetry_pb2 as _telemetry_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RegisterRequest(_message.Message):
    __slots__ = ("registration",)
    REGISTRATION_FIELD_NUMBER: _ClassVar[int]
    registration: _device_pb2.Registration
    def __init__(self, registration: _Optional[_Union[_device_pb2.Registration, _Mapping]] = ...) -> None: ...

class RegisterResponse(_message.Message):
    __slots__ = ("profile", "message", "report_interval_s", "profiles", "server_time")
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    REPORT_INTERVAL_S_FIELD_NUMBER: _ClassVar[int]
    PROFILES_FIELD_NUMBER: _ClassVar[int]
    SERVER_TIME_FIELD_NUMBER: _ClassVar[int]
    profile: str
    message: str
    report_interval_s: int
    profiles: _containers.RepeatedCompositeFieldContainer[HostedProfile]
    server_time: _timestamp_pb2.Timestamp
    def __init__(self, profile: _Optional[str] = ..., message: _Optional[str] = ..., report_interval_s: _Optional[int] = ..., profiles: _Optional[_Iterable[_Union[HostedProfile, _Mapping]]] = ..., server_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class HostedProfile(_message.Message):
    __slots__ = ("workload", "profile", "message")
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    workload: str
    profile: str
    message: str
    def __init__(self, workload: _Optional[str] = ..., profile: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class StreamReportsRequest(_message.Message):
    __slots__ = ("batch_id", "reports")
    BATCH_ID_FIELD_NUMBER: _ClassVar[int]
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    batch_id: int
    reports: _containers.RepeatedCompositeFieldContainer[_telemetry_pb2.LatencyReport]
    def __init__(self, batch_id: _Optional[int] = ..., reports: _Optional[_Iterable[_Union[_telemetry_pb2.LatencyReport, _Mapping]]] = ...) -> None: ...

class RejectedReport(_message.Message):
    __slots__ = ("boot_id", "sequence", "code", "message")
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    boot_id: str
    sequence: int
    code: str
    message: str
    def __init__(self, boot_id: _Optional[str] = ..., sequence: _Optional[int] = ..., code: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class StreamReportsResponse(_message.Message):
    __slots__ = ("batch_id", "num_accepted", "rejected")
    BATCH_ID_FIELD_NUMBER: _ClassVar[int]
    NUM_ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    batch_id: int
    num_accepted: int
    rejected: _containers.RepeatedCompositeFieldContainer[RejectedReport]
    def __init__(self, batch_id: _Optional[int] = ..., num_accepted: _Optional[int] = ..., rejected: _Optional[_Iterable[_Union[RejectedReport, _Mapping]]] = ...) -> None: ...

class UpdateDeploymentStatusRequest(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: _deployment_pb2.DeploymentStatus
    def __init__(self, status: _Optional[_Union[_deployment_pb2.DeploymentStatus, _Mapping]] = ...) -> None: ...

class UpdateDeploymentStatusResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
