import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DeploymentState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DEPLOYMENT_STATE_UNSPECIFIED: _ClassVar[DeploymentState]
    DEPLOYMENT_STATE_PENDING: _ClassVar[DeploymentState]
    DEPLOYMENT_STATE_FETCHING: _ClassVar[DeploymentState]
    DEPLOYMENT_STATE_VERIFYING: _ClassVar[DeploymentState]
    DEPLOYMENT_STATE_TESTING: _ClassVar[DeploymentState]
    DEPLOYMENT_STATE_TRIAL: _ClassVar[DeploymentState]
    DEPLOYMENT_STATE_ACTIVE: _ClassVar[DeploymentState]
    DEPLOYMENT_STATE_REJECTED: _ClassVar[DeploymentState]
    DEPLOYMENT_STATE_ROLLED_BACK: _ClassVar[DeploymentState]
    DEPLOYMENT_STATE_SUPERSEDED: _ClassVar[DeploymentState]
    DEPLOYMENT_STATE_REFUSED: _ClassVar[DeploymentState]
DEPLOYMENT_STATE_UNSPECIFIED: DeploymentState
DEPLOYMENT_STATE_PENDING: DeploymentState
DEPLOYMENT_STATE_FETCHING: DeploymentState
DEPLOYMENT_STATE_VERIFYING: DeploymentState
DEPLOYMENT_STATE_TESTING: DeploymentState
DEPLOYMENT_STATE_TRIAL: DeploymentState
DEPLOYMENT_STATE_ACTIVE: DeploymentState
DEPLOYMENT_STATE_REJECTED: DeploymentState
DEPLOYMENT_STATE_ROLLED_BACK: DeploymentState
DEPLOYMENT_STATE_SUPERSEDED: DeploymentState
DEPLOYMENT_STATE_REFUSED: DeploymentState

class Deployment(_message.Message):
    __slots__ = ("device_id", "workload", "profile", "generation", "digest", "manifest_digest", "issue_time", "expire_time", "decision_id", "rollout_id", "delta")
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ISSUE_TIME_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    ROLLOUT_ID_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    workload: str
    profile: str
    generation: int
    digest: str
    manifest_digest: str
    issue_time: _timestamp_pb2.Timestamp
    expire_time: _timestamp_pb2.Timestamp
    decision_id: str
    rollout_id: str
    delta: Delta
    def __init__(self, device_id: _Optional[str] = ..., workload: _Optional[str] = ..., profile: _Optional[str] = ..., generation: _Optional[int] = ..., digest: _Optional[str] = ..., manifest_digest: _Optional[str] = ..., issue_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., decision_id: _Optional[str] = ..., rollout_id: _Optional[str] = ..., delta: _Optional[_Union[Delta, _Mapping]] = ...) -> None: ...

class Delta(_message.Message):
    __slots__ = ("base_digest", "digest", "size_bytes", "block_digests", "format")
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    BLOCK_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    base_digest: str
    digest: str
    size_bytes: int
    block_digests: _containers.RepeatedScalarFieldContainer[bytes]
    format: str
    def __init__(self, base_digest: _Optional[str] = ..., digest: _Optional[str] = ..., size_bytes: _Optional[int] = ..., block_digests: _Optional[_Iterable[bytes]] = ..., format: _Optional[str] = ...) -> None: ...

class SignedDeployment(_message.Message):
    __slots__ = ("deployment", "key_id", "signature")
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    deployment: bytes
    key_id: str
    signature: bytes
    def __init__(self, deployment: _Optional[bytes] = ..., key_id: _Optional[str] = ..., signature: _Optional[bytes] = ...) -> None: ...

class DirectorKeys(_message.Message):
    __slots__ = ("version", "public_keys", "issue_time")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEYS_FIELD_NUMBER: _ClassVar[int]
    ISSUE_TIME_FIELD_NUMBER: _ClassVar[int]
    version: int
    public_keys: _containers.RepeatedScalarFieldContainer[bytes]
    issue_time: _timestamp_pb2.Timestamp
    def __init__(self, version: _Optional[int] = ..., public_keys: _Optional[_Iterable[bytes]] = ..., issue_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class SignedDirectorKeys(_message.Message):
    __slots__ = ("keys", "key_id", "signature")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    keys: bytes
    key_id: str
    signature: bytes
    def __init__(self, keys: _Optional[bytes] = ..., key_id: _Optional[str] = ..., signature: _Optional[bytes] = ...) -> None: ...

class DirectorKeyChain(_message.Message):
    __slots__ = ("changes",)
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    changes: _containers.RepeatedCompositeFieldContainer[SignedDirectorKeys]
    def __init__(self, changes: _Optional[_Iterable[_Union[SignedDirectorKeys, _Mapping]]] = ...) -> None: ...

class BlockRequest(_message.Message):
    __slots__ = ("device_id", "digest", "manifest_digest", "manifest", "blocks", "tuf")
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    TUF_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    digest: str
    manifest_digest: str
    manifest: bool
    blocks: _containers.RepeatedScalarFieldContainer[int]
    tuf: bool
    def __init__(self, device_id: _Optional[str] = ..., digest: _Optional[str] = ..., manifest_digest: _Optional[str] = ..., manifest: _Optional[bool] = ..., blocks: _Optional[_Iterable[int]] = ..., tuf: _Optional[bool] = ...) -> None: ...

class DeploymentStatus(_message.Message):
    __slots__ = ("device_id", "generation", "digest", "state", "code", "message", "event_time", "progress")
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIME_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    generation: int
    digest: str
    state: DeploymentState
    code: str
    message: str
    event_time: _timestamp_pb2.Timestamp
    progress: float
    def __init__(self, device_id: _Optional[str] = ..., generation: _Optional[int] = ..., digest: _Optional[str] = ..., state: _Optional[_Union[DeploymentState, str]] = ..., code: _Optional[str] = ..., message: _Optional[str] = ..., event_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., progress: _Optional[float] = ...) -> None: ...
