import datetime

from edgeloop.v1 import deployment_pb2 as _deployment_pb2
from edgeloop.v1 import device_pb2 as _device_pb2
from edgeloop.v1 import telemetry_pb2 as _telemetry_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RolloutState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLLOUT_STATE_UNSPECIFIED: _ClassVar[RolloutState]
    ROLLOUT_STATE_RUNNING: _ClassVar[RolloutState]
    ROLLOUT_STATE_PAUSED: _ClassVar[RolloutState]
    ROLLOUT_STATE_SUCCEEDED: _ClassVar[RolloutState]
    ROLLOUT_STATE_FAILED: _ClassVar[RolloutState]
    ROLLOUT_STATE_ABORTED: _ClassVar[RolloutState]
    ROLLOUT_STATE_SUPERSEDED: _ClassVar[RolloutState]

class JobState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_STATE_UNSPECIFIED: _ClassVar[JobState]
    JOB_STATE_PENDING: _ClassVar[JobState]
    JOB_STATE_RUNNING: _ClassVar[JobState]
    JOB_STATE_SUCCEEDED: _ClassVar[JobState]
    JOB_STATE_FAILED: _ClassVar[JobState]
    JOB_STATE_CANCELLED: _ClassVar[JobState]
ROLLOUT_STATE_UNSPECIFIED: RolloutState
ROLLOUT_STATE_RUNNING: RolloutState
ROLLOUT_STATE_PAUSED: RolloutState
ROLLOUT_STATE_SUCCEEDED: RolloutState
ROLLOUT_STATE_FAILED: RolloutState
ROLLOUT_STATE_ABORTED: RolloutState
ROLLOUT_STATE_SUPERSEDED: RolloutState
JOB_STATE_UNSPECIFIED: JobState
JOB_STATE_PENDING: JobState
JOB_STATE_RUNNING: JobState
JOB_STATE_SUCCEEDED: JobState
JOB_STATE_FAILED: JobState
JOB_STATE_CANCELLED: JobState

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("version", "broker_host", "broker_port", "broker_embedded", "broker_connected", "director_public_key", "state_dir", "compute", "start_time", "controller_paused", "tuf_root")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BROKER_HOST_FIELD_NUMBER: _ClassVar[int]
    BROKER_PORT_FIELD_NUMBER: _ClassVar[int]
    BROKER_EMBEDDED_FIELD_NUMBER: _ClassVar[int]
    BROKER_CONNECTED_FIELD_NUMBER: _ClassVar[int]
    DIRECTOR_PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    STATE_DIR_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    CONTROLLER_PAUSED_FIELD_NUMBER: _ClassVar[int]
    TUF_ROOT_FIELD_NUMBER: _ClassVar[int]
    version: str
    broker_host: str
    broker_port: int
    broker_embedded: bool
    broker_connected: bool
    director_public_key: bytes
    state_dir: str
    compute: str
    start_time: _timestamp_pb2.Timestamp
    controller_paused: bool
    tuf_root: bytes
    def __init__(self, version: _Optional[str] = ..., broker_host: _Optional[str] = ..., broker_port: _Optional[int] = ..., broker_embedded: _Optional[bool] = ..., broker_connected: _Optional[bool] = ..., director_public_key: _Optional[bytes] = ..., state_dir: _Optional[str] = ..., compute: _Optional[str] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., controller_paused: _Optional[bool] = ..., tuf_root: _Optional[bytes] = ...) -> None: ...

class Document(_message.Message):
    __slots__ = ("kind", "json", "source")
    KIND_FIELD_NUMBER: _ClassVar[int]
    JSON_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    kind: str
    json: str
    source: str
    def __init__(self, kind: _Optional[str] = ..., json: _Optional[str] = ..., source: _Optional[str] = ...) -> None: ...

class ApplyRequest(_message.Message):
    __slots__ = ("documents", "validate_only")
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    documents: _containers.RepeatedCompositeFieldContainer[Document]
    validate_only: bool
    def __init__(self, documents: _Optional[_Iterable[_Union[Document, _Mapping]]] = ..., validate_only: _Optional[bool] = ...) -> None: ...

class AppliedResource(_message.Message):
    __slots__ = ("kind", "name", "change", "note")
    class Change(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        CHANGE_UNSPECIFIED: _ClassVar[AppliedResource.Change]
        CHANGE_CREATED: _ClassVar[AppliedResource.Change]
        CHANGE_UPDATED: _ClassVar[AppliedResource.Change]
        CHANGE_UNCHANGED: _ClassVar[AppliedResource.Change]
        CHANGE_DELETED: _ClassVar[AppliedResource.Change]
    CHANGE_UNSPECIFIED: AppliedResource.Change
    CHANGE_CREATED: AppliedResource.Change
    CHANGE_UPDATED: AppliedResource.Change
    CHANGE_UNCHANGED: AppliedResource.Change
    CHANGE_DELETED: AppliedResource.Change
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    kind: str
    name: str
    change: AppliedResource.Change
    note: str
    def __init__(self, kind: _Optional[str] = ..., name: _Optional[str] = ..., change: _Optional[_Union[AppliedResource.Change, str]] = ..., note: _Optional[str] = ...) -> None: ...

class ApplyResponse(_message.Message):
    __slots__ = ("resources",)
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    resources: _containers.RepeatedCompositeFieldContainer[AppliedResource]
    def __init__(self, resources: _Optional[_Iterable[_Union[AppliedResource, _Mapping]]] = ...) -> None: ...

class TeacherInfo(_message.Message):
    __slots__ = ("digest", "accuracy", "macs", "num_parameters", "artifact_bytes", "test_accuracy", "metric", "ensemble_accuracy", "ensemble_test_accuracy")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    MACS_FIELD_NUMBER: _ClassVar[int]
    NUM_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_BYTES_FIELD_NUMBER: _ClassVar[int]
    TEST_ACCURACY_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    ENSEMBLE_ACCURACY_FIELD_NUMBER: _ClassVar[int]
    ENSEMBLE_TEST_ACCURACY_FIELD_NUMBER: _ClassVar[int]
    digest: str
    accuracy: float
    macs: int
    num_parameters: int
    artifact_bytes: int
    test_accuracy: float
    metric: str
    ensemble_accuracy: float
    ensemble_test_accuracy: float
    def __init__(self, digest: _Optional[str] = ..., accuracy: _Optional[float] = ..., macs: _Optional[int] = ..., num_parameters: _Optional[int] = ..., artifact_bytes: _Optional[int] = ..., test_accuracy: _Optional[float] = ..., metric: _Optional[str] = ..., ensemble_accuracy: _Optional[float] = ..., ensemble_test_accuracy: _Optional[float] = ...) -> None: ...

class WorkloadInfo(_message.Message):
    __slots__ = ("name", "spec_json", "teacher", "update_time")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SPEC_JSON_FIELD_NUMBER: _ClassVar[int]
    TEACHER_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    spec_json: str
    teacher: TeacherInfo
    update_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., spec_json: _Optional[str] = ..., teacher: _Optional[_Union[TeacherInfo, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ConstraintsInfo(_message.Message):
    __slots__ = ("latency_p95_ms", "artifact_bytes", "peak_rss_bytes", "min_accuracy")
    LATENCY_P95_MS_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_BYTES_FIELD_NUMBER: _ClassVar[int]
    PEAK_RSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    MIN_ACCURACY_FIELD_NUMBER: _ClassVar[int]
    latency_p95_ms: float
    artifact_bytes: int
    peak_rss_bytes: int
    min_accuracy: float
    def __init__(self, latency_p95_ms: _Optional[float] = ..., artifact_bytes: _Optional[int] = ..., peak_rss_bytes: _Optional[int] = ..., min_accuracy: _Optional[float] = ...) -> None: ...

class ProfileInfo(_message.Message):
    __slots__ = ("name", "workload", "constraints", "spec_json", "num_devices", "current_digest", "measured_p95_ms", "num_samples", "verdict", "message")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    CONSTRAINTS_FIELD_NUMBER: _ClassVar[int]
    SPEC_JSON_FIELD_NUMBER: _ClassVar[int]
    NUM_DEVICES_FIELD_NUMBER: _ClassVar[int]
    CURRENT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MEASURED_P95_MS_FIELD_NUMBER: _ClassVar[int]
    NUM_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    name: str
    workload: str
    constraints: ConstraintsInfo
    spec_json: str
    num_devices: int
    current_digest: str
    measured_p95_ms: float
    num_samples: int
    verdict: str
    message: str
    def __init__(self, name: _Optional[str] = ..., workload: _Optional[str] = ..., constraints: _Optional[_Union[ConstraintsInfo, _Mapping]] = ..., spec_json: _Optional[str] = ..., num_devices: _Optional[int] = ..., current_digest: _Optional[str] = ..., measured_p95_ms: _Optional[float] = ..., num_samples: _Optional[int] = ..., verdict: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class HostedWorkloadInfo(_message.Message):
    __slots__ = ("workload", "profile", "desired_generation", "desired_digest", "generation", "serving_digest", "deployment", "p95_ms", "message")
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    DESIRED_GENERATION_FIELD_NUMBER: _ClassVar[int]
    DESIRED_DIGEST_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    SERVING_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    P95_MS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    workload: str
    profile: str
    desired_generation: int
    desired_digest: str
    generation: int
    serving_digest: str
    deployment: _deployment_pb2.DeploymentStatus
    p95_ms: float
    message: str
    def __init__(self, workload: _Optional[str] = ..., profile: _Optional[str] = ..., desired_generation: _Optional[int] = ..., desired_digest: _Optional[str] = ..., generation: _Optional[int] = ..., serving_digest: _Optional[str] = ..., deployment: _Optional[_Union[_deployment_pb2.DeploymentStatus, _Mapping]] = ..., p95_ms: _Optional[float] = ..., message: _Optional[str] = ...) -> None: ...

class DeviceInfo(_message.Message):
    __slots__ = ("registration", "profile", "connected", "last_seen_time", "desired_generation", "desired_digest", "generation", "serving_digest", "deployment", "p95_ms", "rss_bytes", "message", "identity_state", "certificate_expire_time", "workloads")
    REGISTRATION_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_TIME_FIELD_NUMBER: _ClassVar[int]
    DESIRED_GENERATION_FIELD_NUMBER: _ClassVar[int]
    DESIRED_DIGEST_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    SERVING_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    P95_MS_FIELD_NUMBER: _ClassVar[int]
    RSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_STATE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    WORKLOADS_FIELD_NUMBER: _ClassVar[int]
    registration: _device_pb2.Registration
    profile: str
    connected: bool
    last_seen_time: _timestamp_pb2.Timestamp
    desired_generation: int
    desired_digest: str
    generation: int
    serving_digest: str
    deployment: _deployment_pb2.DeploymentStatus
    p95_ms: float
    rss_bytes: int
    message: str
    identity_state: str
    certificate_expire_time: _timestamp_pb2.Timestamp
    workloads: _containers.RepeatedCompositeFieldContainer[HostedWorkloadInfo]
    def __init__(self, registration: _Optional[_Union[_device_pb2.Registration, _Mapping]] = ..., profile: _Optional[str] = ..., connected: _Optional[bool] = ..., last_seen_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., desired_generation: _Optional[int] = ..., desired_digest: _Optional[str] = ..., generation: _Optional[int] = ..., serving_digest: _Optional[str] = ..., deployment: _Optional[_Union[_deployment_pb2.DeploymentStatus, _Mapping]] = ..., p95_ms: _Optional[float] = ..., rss_bytes: _Optional[int] = ..., message: _Optional[str] = ..., identity_state: _Optional[str] = ..., certificate_expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., workloads: _Optional[_Iterable[_Union[HostedWorkloadInfo, _Mapping]]] = ...) -> None: ...

class CandidateInfo(_message.Message):
    __slots__ = ("digest", "workload", "profile", "parent_digest", "spec_json", "precision", "accuracy", "test_accuracy", "artifact_bytes", "macs", "num_parameters", "latency_p50_ms", "latency_p95_ms", "peak_rss_bytes", "on_front", "rejected_reason", "predicted_p95_ms", "create_time", "metric", "executable_bytes", "proposed_reason", "int8_loss")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    PARENT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SPEC_JSON_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    TEST_ACCURACY_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MACS_FIELD_NUMBER: _ClassVar[int]
    NUM_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    LATENCY_P50_MS_FIELD_NUMBER: _ClassVar[int]
    LATENCY_P95_MS_FIELD_NUMBER: _ClassVar[int]
    PEAK_RSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    ON_FRONT_FIELD_NUMBER: _ClassVar[int]
    REJECTED_REASON_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_P95_MS_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    EXECUTABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    PROPOSED_REASON_FIELD_NUMBER: _ClassVar[int]
    INT8_LOSS_FIELD_NUMBER: _ClassVar[int]
    digest: str
    workload: str
    profile: str
    parent_digest: str
    spec_json: str
    precision: str
    accuracy: float
    test_accuracy: float
    artifact_bytes: int
    macs: int
    num_parameters: int
    latency_p50_ms: float
    latency_p95_ms: float
    peak_rss_bytes: int
    on_front: bool
    rejected_reason: str
    predicted_p95_ms: float
    create_time: _timestamp_pb2.Timestamp
    metric: str
    executable_bytes: int
    proposed_reason: str
    int8_loss: float
    def __init__(self, digest: _Optional[str] = ..., workload: _Optional[str] = ..., profile: _Optional[str] = ..., parent_digest: _Optional[str] = ..., spec_json: _Optional[str] = ..., precision: _Optional[str] = ..., accuracy: _Optional[float] = ..., test_accuracy: _Optional[float] = ..., artifact_bytes: _Optional[int] = ..., macs: _Optional[int] = ..., num_parameters: _Optional[int] = ..., latency_p50_ms: _Optional[float] = ..., latency_p95_ms: _Optional[float] = ..., peak_rss_bytes: _Optional[int] = ..., on_front: _Optional[bool] = ..., rejected_reason: _Optional[str] = ..., predicted_p95_ms: _Optional[float] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., metric: _Optional[str] = ..., executable_bytes: _Optional[int] = ..., proposed_reason: _Optional[str] = ..., int8_loss: _Optional[float] = ...) -> None: ...

class RolloutGroupInfo(_message.Message):
    __slots__ = ("name", "state", "num_devices", "num_pending", "num_in_progress", "num_active", "num_failed", "num_by_stage")
    class NumByStageEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    NUM_DEVICES_FIELD_NUMBER: _ClassVar[int]
    NUM_PENDING_FIELD_NUMBER: _ClassVar[int]
    NUM_IN_PROGRESS_FIELD_NUMBER: _ClassVar[int]
    NUM_ACTIVE_FIELD_NUMBER: _ClassVar[int]
    NUM_FAILED_FIELD_NUMBER: _ClassVar[int]
    NUM_BY_STAGE_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: str
    num_devices: int
    num_pending: int
    num_in_progress: int
    num_active: int
    num_failed: int
    num_by_stage: _containers.ScalarMap[str, int]
    def __init__(self, name: _Optional[str] = ..., state: _Optional[str] = ..., num_devices: _Optional[int] = ..., num_pending: _Optional[int] = ..., num_in_progress: _Optional[int] = ..., num_active: _Optional[int] = ..., num_failed: _Optional[int] = ..., num_by_stage: _Optional[_Mapping[str, int]] = ...) -> None: ...

class RolloutWaitInfo(_message.Message):
    __slots__ = ("reason", "num_devices", "until_time")
    REASON_FIELD_NUMBER: _ClassVar[int]
    NUM_DEVICES_FIELD_NUMBER: _ClassVar[int]
    UNTIL_TIME_FIELD_NUMBER: _ClassVar[int]
    reason: str
    num_devices: int
    until_time: _timestamp_pb2.Timestamp
    def __init__(self, reason: _Optional[str] = ..., num_devices: _Optional[int] = ..., until_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class RolloutDeviceInfo(_message.Message):
    __slots__ = ("device_id", "group", "stage", "message", "wait_reason", "until_time")
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    WAIT_REASON_FIELD_NUMBER: _ClassVar[int]
    UNTIL_TIME_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    group: str
    stage: str
    message: str
    wait_reason: str
    until_time: _timestamp_pb2.Timestamp
    def __init__(self, device_id: _Optional[str] = ..., group: _Optional[str] = ..., stage: _Optional[str] = ..., message: _Optional[str] = ..., wait_reason: _Optional[str] = ..., until_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class RolloutInfo(_message.Message):
    __slots__ = ("rollout_id", "workload", "profile", "digest", "previous_digest", "state", "groups", "decision_id", "message", "create_time", "update_time", "measured_p95_ms", "objective_p95_ms", "num_samples", "next", "waits", "devices")
    ROLLOUT_ID_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    MEASURED_P95_MS_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_P95_MS_FIELD_NUMBER: _ClassVar[int]
    NUM_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    WAITS_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    rollout_id: str
    workload: str
    profile: str
    digest: str
    previous_digest: str
    state: RolloutState
    groups: _containers.RepeatedCompositeFieldContainer[RolloutGroupInfo]
    decision_id: str
    message: str
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    measured_p95_ms: float
    objective_p95_ms: float
    num_samples: int
    next: str
    waits: _containers.RepeatedCompositeFieldContainer[RolloutWaitInfo]
    devices: _containers.RepeatedCompositeFieldContainer[RolloutDeviceInfo]
    def __init__(self, rollout_id: _Optional[str] = ..., workload: _Optional[str] = ..., profile: _Optional[str] = ..., digest: _Optional[str] = ..., previous_digest: _Optional[str] = ..., state: _Optional[_Union[RolloutState, str]] = ..., groups: _Optional[_Iterable[_Union[RolloutGroupInfo, _Mapping]]] = ..., decision_id: _Optional[str] = ..., message: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., measured_p95_ms: _Optional[float] = ..., objective_p95_ms: _Optional[float] = ..., num_samples: _Optional[int] = ..., next: _Optional[str] = ..., waits: _Optional[_Iterable[_Union[RolloutWaitInfo, _Mapping]]] = ..., devices: _Optional[_Iterable[_Union[RolloutDeviceInfo, _Mapping]]] = ...) -> None: ...

class DecisionInfo(_message.Message):
    __slots__ = ("decision_id", "profile", "workload", "action", "reason", "current_digest", "chosen_digest", "objective_p95_ms", "measured_p95_ms", "num_samples", "decide_time", "inputs_json")
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CURRENT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_P95_MS_FIELD_NUMBER: _ClassVar[int]
    MEASURED_P95_MS_FIELD_NUMBER: _ClassVar[int]
    NUM_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    DECIDE_TIME_FIELD_NUMBER: _ClassVar[int]
    INPUTS_JSON_FIELD_NUMBER: _ClassVar[int]
    decision_id: str
    profile: str
    workload: str
    action: str
    reason: str
    current_digest: str
    chosen_digest: str
    objective_p95_ms: float
    measured_p95_ms: float
    num_samples: int
    decide_time: _timestamp_pb2.Timestamp
    inputs_json: str
    def __init__(self, decision_id: _Optional[str] = ..., profile: _Optional[str] = ..., workload: _Optional[str] = ..., action: _Optional[str] = ..., reason: _Optional[str] = ..., current_digest: _Optional[str] = ..., chosen_digest: _Optional[str] = ..., objective_p95_ms: _Optional[float] = ..., measured_p95_ms: _Optional[float] = ..., num_samples: _Optional[int] = ..., decide_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., inputs_json: _Optional[str] = ...) -> None: ...

class JobInfo(_message.Message):
    __slots__ = ("job_id", "kind", "workload", "profile", "state", "progress", "message", "num_trials", "num_finished_trials", "num_failed_trials", "decision_id", "create_time", "end_time", "candidate_digests")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    NUM_TRIALS_FIELD_NUMBER: _ClassVar[int]
    NUM_FINISHED_TRIALS_FIELD_NUMBER: _ClassVar[int]
    NUM_FAILED_TRIALS_FIELD_NUMBER: _ClassVar[int]
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    kind: str
    workload: str
    profile: str
    state: JobState
    progress: float
    message: str
    num_trials: int
    num_finished_trials: int
    num_failed_trials: int
    decision_id: str
    create_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    candidate_digests: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, job_id: _Optional[str] = ..., kind: _Optional[str] = ..., workload: _Optional[str] = ..., profile: _Optional[str] = ..., state: _Optional[_Union[JobState, str]] = ..., progress: _Optional[float] = ..., message: _Optional[str] = ..., num_trials: _Optional[int] = ..., num_finished_trials: _Optional[int] = ..., num_failed_trials: _Optional[int] = ..., decision_id: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., candidate_digests: _Optional[_Iterable[str]] = ...) -> None: ...

class Measurement(_message.Message):
    __slots__ = ("device_id", "profile", "digest", "generation", "start_time", "end_time", "num_samples", "p50_ms", "p95_ms", "reference_p50_ms", "rss_bytes", "emulated_slowdown", "latency")
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    NUM_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    P50_MS_FIELD_NUMBER: _ClassVar[int]
    P95_MS_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_P50_MS_FIELD_NUMBER: _ClassVar[int]
    RSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    EMULATED_SLOWDOWN_FIELD_NUMBER: _ClassVar[int]
    LATENCY_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    profile: str
    digest: str
    generation: int
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    num_samples: int
    p50_ms: float
    p95_ms: float
    reference_p50_ms: float
    rss_bytes: int
    emulated_slowdown: int
    latency: _telemetry_pb2.LatencySketch
    def __init__(self, device_id: _Optional[str] = ..., profile: _Optional[str] = ..., digest: _Optional[str] = ..., generation: _Optional[int] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., num_samples: _Optional[int] = ..., p50_ms: _Optional[float] = ..., p95_ms: _Optional[float] = ..., reference_p50_ms: _Optional[float] = ..., rss_bytes: _Optional[int] = ..., emulated_slowdown: _Optional[int] = ..., latency: _Optional[_Union[_telemetry_pb2.LatencySketch, _Mapping]] = ...) -> None: ...

class ListWorkloadsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListWorkloadsResponse(_message.Message):
    __slots__ = ("workloads",)
    WORKLOADS_FIELD_NUMBER: _ClassVar[int]
    workloads: _containers.RepeatedCompositeFieldContainer[WorkloadInfo]
    def __init__(self, workloads: _Optional[_Iterable[_Union[WorkloadInfo, _Mapping]]] = ...) -> None: ...

class ListProfilesRequest(_message.Message):
    __slots__ = ("workload",)
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    workload: str
    def __init__(self, workload: _Optional[str] = ...) -> None: ...

class ListProfilesResponse(_message.Message):
    __slots__ = ("profiles",)
    PROFILES_FIELD_NUMBER: _ClassVar[int]
    profiles: _containers.RepeatedCompositeFieldContainer[ProfileInfo]
    def __init__(self, profiles: _Optional[_Iterable[_Union[ProfileInfo, _Mapping]]] = ...) -> None: ...

class ListDevicesRequest(_message.Message):
    __slots__ = ("profile", "device_id")
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    profile: str
    device_id: str
    def __init__(self, profile: _Optional[str] = ..., device_id: _Optional[str] = ...) -> None: ...

class ListDevicesResponse(_message.Message):
    __slots__ = ("devices",)
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    devices: _containers.RepeatedCompositeFieldContainer[DeviceInfo]
    def __init__(self, devices: _Optional[_Iterable[_Union[DeviceInfo, _Mapping]]] = ...) -> None: ...

class ListCandidatesRequest(_message.Message):
    __slots__ = ("workload", "profile")
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    workload: str
    profile: str
    def __init__(self, workload: _Optional[str] = ..., profile: _Optional[str] = ...) -> None: ...

class ListCandidatesResponse(_message.Message):
    __slots__ = ("candidates",)
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    candidates: _containers.RepeatedCompositeFieldContainer[CandidateInfo]
    def __init__(self, candidates: _Optional[_Iterable[_Union[CandidateInfo, _Mapping]]] = ...) -> None: ...

class ListRolloutsRequest(_message.Message):
    __slots__ = ("profile",)
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    profile: str
    def __init__(self, profile: _Optional[str] = ...) -> None: ...

class ListRolloutsResponse(_message.Message):
    __slots__ = ("rollouts",)
    ROLLOUTS_FIELD_NUMBER: _ClassVar[int]
    rollouts: _containers.RepeatedCompositeFieldContainer[RolloutInfo]
    def __init__(self, rollouts: _Optional[_Iterable[_Union[RolloutInfo, _Mapping]]] = ...) -> None: ...

class ListDecisionsRequest(_message.Message):
    __slots__ = ("profile", "limit", "changes_only")
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    CHANGES_ONLY_FIELD_NUMBER: _ClassVar[int]
    profile: str
    limit: int
    changes_only: bool
    def __init__(self, profile: _Optional[str] = ..., limit: _Optional[int] = ..., changes_only: _Optional[bool] = ...) -> None: ...

class ListDecisionsResponse(_message.Message):
    __slots__ = ("decisions",)
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    decisions: _containers.RepeatedCompositeFieldContainer[DecisionInfo]
    def __init__(self, decisions: _Optional[_Iterable[_Union[DecisionInfo, _Mapping]]] = ...) -> None: ...

class ListJobsRequest(_message.Message):
    __slots__ = ("unfinished_only",)
    UNFINISHED_ONLY_FIELD_NUMBER: _ClassVar[int]
    unfinished_only: bool
    def __init__(self, unfinished_only: _Optional[bool] = ...) -> None: ...

class ListJobsResponse(_message.Message):
    __slots__ = ("jobs",)
    JOBS_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[JobInfo]
    def __init__(self, jobs: _Optional[_Iterable[_Union[JobInfo, _Mapping]]] = ...) -> None: ...

class ListMeasurementsRequest(_message.Message):
    __slots__ = ("profile", "device_id", "since_time")
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    SINCE_TIME_FIELD_NUMBER: _ClassVar[int]
    profile: str
    device_id: str
    since_time: _timestamp_pb2.Timestamp
    def __init__(self, profile: _Optional[str] = ..., device_id: _Optional[str] = ..., since_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ListMeasurementsResponse(_message.Message):
    __slots__ = ("measurements",)
    MEASUREMENTS_FIELD_NUMBER: _ClassVar[int]
    measurements: _containers.RepeatedCompositeFieldContainer[Measurement]
    def __init__(self, measurements: _Optional[_Iterable[_Union[Measurement, _Mapping]]] = ...) -> None: ...

class ExplainDeviceRequest(_message.Message):
    __slots__ = ("device_id",)
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    def __init__(self, device_id: _Optional[str] = ...) -> None: ...

class ExplainDeviceResponse(_message.Message):
    __slots__ = ("device", "profile", "candidate", "rollout", "decisions", "history", "sentences")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    ROLLOUT_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    SENTENCES_FIELD_NUMBER: _ClassVar[int]
    device: DeviceInfo
    profile: ProfileInfo
    candidate: CandidateInfo
    rollout: RolloutInfo
    decisions: _containers.RepeatedCompositeFieldContainer[DecisionInfo]
    history: _containers.RepeatedCompositeFieldContainer[_deployment_pb2.DeploymentStatus]
    sentences: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, device: _Optional[_Union[DeviceInfo, _Mapping]] = ..., profile: _Optional[_Union[ProfileInfo, _Mapping]] = ..., candidate: _Optional[_Union[CandidateInfo, _Mapping]] = ..., rollout: _Optional[_Union[RolloutInfo, _Mapping]] = ..., decisions: _Optional[_Iterable[_Union[DecisionInfo, _Mapping]]] = ..., history: _Optional[_Iterable[_Union[_deployment_pb2.DeploymentStatus, _Mapping]]] = ..., sentences: _Optional[_Iterable[str]] = ...) -> None: ...

class TradeOffPoint(_message.Message):
    __slots__ = ("digest", "spec_json", "precision", "accuracy", "latency_p50_ms", "artifact_bytes", "on_front", "chosen", "rejected_reason", "predicted_p95_ms", "proposed_reason")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SPEC_JSON_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    LATENCY_P50_MS_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_BYTES_FIELD_NUMBER: _ClassVar[int]
    ON_FRONT_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    REJECTED_REASON_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_P95_MS_FIELD_NUMBER: _ClassVar[int]
    PROPOSED_REASON_FIELD_NUMBER: _ClassVar[int]
    digest: str
    spec_json: str
    precision: str
    accuracy: float
    latency_p50_ms: float
    artifact_bytes: int
    on_front: bool
    chosen: bool
    rejected_reason: str
    predicted_p95_ms: float
    proposed_reason: str
    def __init__(self, digest: _Optional[str] = ..., spec_json: _Optional[str] = ..., precision: _Optional[str] = ..., accuracy: _Optional[float] = ..., latency_p50_ms: _Optional[float] = ..., artifact_bytes: _Optional[int] = ..., on_front: _Optional[bool] = ..., chosen: _Optional[bool] = ..., rejected_reason: _Optional[str] = ..., predicted_p95_ms: _Optional[float] = ..., proposed_reason: _Optional[str] = ...) -> None: ...

class GetTradeOffRequest(_message.Message):
    __slots__ = ("profile",)
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    profile: str
    def __init__(self, profile: _Optional[str] = ...) -> None: ...

class GetTradeOffResponse(_message.Message):
    __slots__ = ("profile", "points", "reason", "prediction_error_ratio")
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_ERROR_RATIO_FIELD_NUMBER: _ClassVar[int]
    profile: str
    points: _containers.RepeatedCompositeFieldContainer[TradeOffPoint]
    reason: str
    prediction_error_ratio: float
    def __init__(self, profile: _Optional[str] = ..., points: _Optional[_Iterable[_Union[TradeOffPoint, _Mapping]]] = ..., reason: _Optional[str] = ..., prediction_error_ratio: _Optional[float] = ...) -> None: ...

class ExplainRulesRequest(_message.Message):
    __slots__ = ("digest",)
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    digest: str
    def __init__(self, digest: _Optional[str] = ...) -> None: ...

class ExplainRulesResponse(_message.Message):
    __slots__ = ("digest", "kind", "accuracy", "fidelity", "lines")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    FIDELITY_FIELD_NUMBER: _ClassVar[int]
    LINES_FIELD_NUMBER: _ClassVar[int]
    digest: str
    kind: str
    accuracy: float
    fidelity: float
    lines: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, digest: _Optional[str] = ..., kind: _Optional[str] = ..., accuracy: _Optional[float] = ..., fidelity: _Optional[float] = ..., lines: _Optional[_Iterable[str]] = ...) -> None: ...

class TrainTeacherRequest(_message.Message):
    __slots__ = ("workload", "force")
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    workload: str
    force: bool
    def __init__(self, workload: _Optional[str] = ..., force: _Optional[bool] = ...) -> None: ...

class TrainTeacherResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: JobInfo
    def __init__(self, job: _Optional[_Union[JobInfo, _Mapping]] = ...) -> None: ...

class CompressStudentsRequest(_message.Message):
    __slots__ = ("workload", "profile", "spec_json", "max_trials")
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    SPEC_JSON_FIELD_NUMBER: _ClassVar[int]
    MAX_TRIALS_FIELD_NUMBER: _ClassVar[int]
    workload: str
    profile: str
    spec_json: _containers.RepeatedScalarFieldContainer[str]
    max_trials: int
    def __init__(self, workload: _Optional[str] = ..., profile: _Optional[str] = ..., spec_json: _Optional[_Iterable[str]] = ..., max_trials: _Optional[int] = ...) -> None: ...

class CompressStudentsResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: JobInfo
    def __init__(self, job: _Optional[_Union[JobInfo, _Mapping]] = ...) -> None: ...

class CancelJobRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class CancelJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: JobInfo
    def __init__(self, job: _Optional[_Union[JobInfo, _Mapping]] = ...) -> None: ...

class WatchJobRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class WatchJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: JobInfo
    def __init__(self, job: _Optional[_Union[JobInfo, _Mapping]] = ...) -> None: ...

class StartRolloutRequest(_message.Message):
    __slots__ = ("profile", "digest", "canary_share", "request_id", "max_per_minute")
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    CANARY_SHARE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MAX_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    profile: str
    digest: str
    canary_share: float
    request_id: str
    max_per_minute: int
    def __init__(self, profile: _Optional[str] = ..., digest: _Optional[str] = ..., canary_share: _Optional[float] = ..., request_id: _Optional[str] = ..., max_per_minute: _Optional[int] = ...) -> None: ...

class StartRolloutResponse(_message.Message):
    __slots__ = ("rollout",)
    ROLLOUT_FIELD_NUMBER: _ClassVar[int]
    rollout: RolloutInfo
    def __init__(self, rollout: _Optional[_Union[RolloutInfo, _Mapping]] = ...) -> None: ...

class PauseRolloutRequest(_message.Message):
    __slots__ = ("rollout_id",)
    ROLLOUT_ID_FIELD_NUMBER: _ClassVar[int]
    rollout_id: str
    def __init__(self, rollout_id: _Optional[str] = ...) -> None: ...

class PauseRolloutResponse(_message.Message):
    __slots__ = ("rollout",)
    ROLLOUT_FIELD_NUMBER: _ClassVar[int]
    rollout: RolloutInfo
    def __init__(self, rollout: _Optional[_Union[RolloutInfo, _Mapping]] = ...) -> None: ...

class ResumeRolloutRequest(_message.Message):
    __slots__ = ("rollout_id",)
    ROLLOUT_ID_FIELD_NUMBER: _ClassVar[int]
    rollout_id: str
    def __init__(self, rollout_id: _Optional[str] = ...) -> None: ...

class ResumeRolloutResponse(_message.Message):
    __slots__ = ("rollout",)
    ROLLOUT_FIELD_NUMBER: _ClassVar[int]
    rollout: RolloutInfo
    def __init__(self, rollout: _Optional[_Union[RolloutInfo, _Mapping]] = ...) -> None: ...

class AbortRolloutRequest(_message.Message):
    __slots__ = ("rollout_id",)
    ROLLOUT_ID_FIELD_NUMBER: _ClassVar[int]
    rollout_id: str
    def __init__(self, rollout_id: _Optional[str] = ...) -> None: ...

class AbortRolloutResponse(_message.Message):
    __slots__ = ("rollout",)
    ROLLOUT_FIELD_NUMBER: _ClassVar[int]
    rollout: RolloutInfo
    def __init__(self, rollout: _Optional[_Union[RolloutInfo, _Mapping]] = ...) -> None: ...

class SetControllerPausedRequest(_message.Message):
    __slots__ = ("paused",)
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    paused: bool
    def __init__(self, paused: _Optional[bool] = ...) -> None: ...

class SetControllerPausedResponse(_message.Message):
    __slots__ = ("paused",)
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    paused: bool
    def __init__(self, paused: _Optional[bool] = ...) -> None: ...

class IdentityInfo(_message.Message):
    __slots__ = ("device_id", "state", "labels", "serial", "expire_time", "token_expire_time", "create_time")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    TOKEN_EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    state: str
    labels: _containers.ScalarMap[str, str]
    serial: str
    expire_time: _timestamp_pb2.Timestamp
    token_expire_time: _timestamp_pb2.Timestamp
    create_time: _timestamp_pb2.Timestamp
    def __init__(self, device_id: _Optional[str] = ..., state: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., serial: _Optional[str] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., token_expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class OperatorInfo(_message.Message):
    __slots__ = ("name", "role", "state", "create_time", "expire_time")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    role: str
    state: str
    create_time: _timestamp_pb2.Timestamp
    expire_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., role: _Optional[str] = ..., state: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class AuditEntry(_message.Message):
    __slots__ = ("event_time", "actor", "action", "target", "outcome", "message", "peer")
    EVENT_TIME_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    event_time: _timestamp_pb2.Timestamp
    actor: str
    action: str
    target: str
    outcome: str
    message: str
    peer: str
    def __init__(self, event_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., actor: _Optional[str] = ..., action: _Optional[str] = ..., target: _Optional[str] = ..., outcome: _Optional[str] = ..., message: _Optional[str] = ..., peer: _Optional[str] = ...) -> None: ...

class ListIdentitiesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListIdentitiesResponse(_message.Message):
    __slots__ = ("identities",)
    IDENTITIES_FIELD_NUMBER: _ClassVar[int]
    identities: _containers.RepeatedCompositeFieldContainer[IdentityInfo]
    def __init__(self, identities: _Optional[_Iterable[_Union[IdentityInfo, _Mapping]]] = ...) -> None: ...

class EnrolDeviceRequest(_message.Message):
    __slots__ = ("device_id", "labels", "profile", "ttl_s")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    labels: _containers.ScalarMap[str, str]
    profile: str
    ttl_s: int
    def __init__(self, device_id: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., profile: _Optional[str] = ..., ttl_s: _Optional[int] = ...) -> None: ...

class EnrolDeviceResponse(_message.Message):
    __slots__ = ("token", "identity")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    token: str
    identity: IdentityInfo
    def __init__(self, token: _Optional[str] = ..., identity: _Optional[_Union[IdentityInfo, _Mapping]] = ...) -> None: ...

class RevokeDeviceRequest(_message.Message):
    __slots__ = ("device_id",)
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    def __init__(self, device_id: _Optional[str] = ...) -> None: ...

class RevokeDeviceResponse(_message.Message):
    __slots__ = ("identity",)
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    identity: IdentityInfo
    def __init__(self, identity: _Optional[_Union[IdentityInfo, _Mapping]] = ...) -> None: ...

class LabelDeviceRequest(_message.Message):
    __slots__ = ("device_id", "set", "remove")
    class SetEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    SET_FIELD_NUMBER: _ClassVar[int]
    REMOVE_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    set: _containers.ScalarMap[str, str]
    remove: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, device_id: _Optional[str] = ..., set: _Optional[_Mapping[str, str]] = ..., remove: _Optional[_Iterable[str]] = ...) -> None: ...

class LabelDeviceResponse(_message.Message):
    __slots__ = ("identity", "profile", "message")
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    identity: IdentityInfo
    profile: str
    message: str
    def __init__(self, identity: _Optional[_Union[IdentityInfo, _Mapping]] = ..., profile: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class DeleteDeviceRequest(_message.Message):
    __slots__ = ("device_id",)
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    def __init__(self, device_id: _Optional[str] = ...) -> None: ...

class DeleteDeviceResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListOperatorsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListOperatorsResponse(_message.Message):
    __slots__ = ("operators",)
    OPERATORS_FIELD_NUMBER: _ClassVar[int]
    operators: _containers.RepeatedCompositeFieldContainer[OperatorInfo]
    def __init__(self, operators: _Optional[_Iterable[_Union[OperatorInfo, _Mapping]]] = ...) -> None: ...

class CreateOperatorRequest(_message.Message):
    __slots__ = ("name", "role", "ttl_s")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    name: str
    role: str
    ttl_s: int
    def __init__(self, name: _Optional[str] = ..., role: _Optional[str] = ..., ttl_s: _Optional[int] = ...) -> None: ...

class CreateOperatorResponse(_message.Message):
    __slots__ = ("token", "operator")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    token: str
    operator: OperatorInfo
    def __init__(self, token: _Optional[str] = ..., operator: _Optional[_Union[OperatorInfo, _Mapping]] = ...) -> None: ...

class RevokeOperatorRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class RevokeOperatorResponse(_message.Message):
    __slots__ = ("operator",)
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    operator: OperatorInfo
    def __init__(self, operator: _Optional[_Union[OperatorInfo, _Mapping]] = ...) -> None: ...

class ListAuditRequest(_message.Message):
    __slots__ = ("limit", "refused_only")
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    REFUSED_ONLY_FIELD_NUMBER: _ClassVar[int]
    limit: int
    refused_only: bool
    def __init__(self, limit: _Optional[int] = ..., refused_only: _Optional[bool] = ...) -> None: ...

class ListAuditResponse(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[AuditEntry]
    def __init__(self, entries: _Optional[_Iterable[_Union[AuditEntry, _Mapping]]] = ...) -> None: ...

class GetRolloutRequest(_message.Message):
    __slots__ = ("rollout_id",)
    ROLLOUT_ID_FIELD_NUMBER: _ClassVar[int]
    rollout_id: str
    def __init__(self, rollout_id: _Optional[str] = ...) -> None: ...

class GetRolloutResponse(_message.Message):
    __slots__ = ("rollout",)
    ROLLOUT_FIELD_NUMBER: _ClassVar[int]
    rollout: RolloutInfo
    def __init__(self, rollout: _Optional[_Union[RolloutInfo, _Mapping]] = ...) -> None: ...

class WatchRolloutRequest(_message.Message):
    __slots__ = ("rollout_id",)
    ROLLOUT_ID_FIELD_NUMBER: _ClassVar[int]
    rollout_id: str
    def __init__(self, rollout_id: _Optional[str] = ...) -> None: ...

class WatchRolloutResponse(_message.Message):
    __slots__ = ("rollout",)
    ROLLOUT_FIELD_NUMBER: _ClassVar[int]
    rollout: RolloutInfo
    def __init__(self, rollout: _Optional[_Union[RolloutInfo, _Mapping]] = ...) -> None: ...

class ProfileSummary(_message.Message):
    __slots__ = ("name", "num_devices", "num_connected", "measured_p95_ms", "objective_p95_ms", "verdict", "requests_per_s", "max_rss_bytes", "num_by_state")
    class NumByStateEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    NUM_DEVICES_FIELD_NUMBER: _ClassVar[int]
    NUM_CONNECTED_FIELD_NUMBER: _ClassVar[int]
    MEASURED_P95_MS_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_P95_MS_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_PER_S_FIELD_NUMBER: _ClassVar[int]
    MAX_RSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_BY_STATE_FIELD_NUMBER: _ClassVar[int]
    name: str
    num_devices: int
    num_connected: int
    measured_p95_ms: float
    objective_p95_ms: float
    verdict: str
    requests_per_s: float
    max_rss_bytes: int
    num_by_state: _containers.ScalarMap[str, int]
    def __init__(self, name: _Optional[str] = ..., num_devices: _Optional[int] = ..., num_connected: _Optional[int] = ..., measured_p95_ms: _Optional[float] = ..., objective_p95_ms: _Optional[float] = ..., verdict: _Optional[str] = ..., requests_per_s: _Optional[float] = ..., max_rss_bytes: _Optional[int] = ..., num_by_state: _Optional[_Mapping[str, int]] = ...) -> None: ...

class GetFleetSummaryRequest(_message.Message):
    __slots__ = ("num_decisions",)
    NUM_DECISIONS_FIELD_NUMBER: _ClassVar[int]
    num_decisions: int
    def __init__(self, num_decisions: _Optional[int] = ...) -> None: ...

class GetFleetSummaryResponse(_message.Message):
    __slots__ = ("time", "profiles", "jobs", "rollouts", "decisions", "controller_paused")
    TIME_FIELD_NUMBER: _ClassVar[int]
    PROFILES_FIELD_NUMBER: _ClassVar[int]
    JOBS_FIELD_NUMBER: _ClassVar[int]
    ROLLOUTS_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    CONTROLLER_PAUSED_FIELD_NUMBER: _ClassVar[int]
    time: _timestamp_pb2.Timestamp
    profiles: _containers.RepeatedCompositeFieldContainer[ProfileSummary]
    jobs: _containers.RepeatedCompositeFieldContainer[JobInfo]
    rollouts: _containers.RepeatedCompositeFieldContainer[RolloutInfo]
    decisions: _containers.RepeatedCompositeFieldContainer[DecisionInfo]
    controller_paused: bool
    def __init__(self, time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., profiles: _Optional[_Iterable[_Union[ProfileSummary, _Mapping]]] = ..., jobs: _Optional[_Iterable[_Union[JobInfo, _Mapping]]] = ..., rollouts: _Optional[_Iterable[_Union[RolloutInfo, _Mapping]]] = ..., decisions: _Optional[_Iterable[_Union[DecisionInfo, _Mapping]]] = ..., controller_paused: _Optional[bool] = ...) -> None: ...

class SetProfileConstraintsRequest(_message.Message):
    __slots__ = ("profile", "latency_p95_ms", "artifact_bytes", "peak_rss_bytes", "min_accuracy")
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    LATENCY_P95_MS_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_BYTES_FIELD_NUMBER: _ClassVar[int]
    PEAK_RSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    MIN_ACCURACY_FIELD_NUMBER: _ClassVar[int]
    profile: str
    latency_p95_ms: float
    artifact_bytes: int
    peak_rss_bytes: int
    min_accuracy: float
    def __init__(self, profile: _Optional[str] = ..., latency_p95_ms: _Optional[float] = ..., artifact_bytes: _Optional[int] = ..., peak_rss_bytes: _Optional[int] = ..., min_accuracy: _Optional[float] = ...) -> None: ...

class SetProfileConstraintsResponse(_message.Message):
    __slots__ = ("resource", "constraints")
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    CONSTRAINTS_FIELD_NUMBER: _ClassVar[int]
    resource: AppliedResource
    constraints: ConstraintsInfo
    def __init__(self, resource: _Optional[_Union[AppliedResource, _Mapping]] = ..., constraints: _Optional[_Union[ConstraintsInfo, _Mapping]] = ...) -> None: ...

class DeleteProfileRequest(_message.Message):
    __slots__ = ("profile",)
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    profile: str
    def __init__(self, profile: _Optional[str] = ...) -> None: ...

class DeleteProfileResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DeleteWorkloadRequest(_message.Message):
    __slots__ = ("workload",)
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    workload: str
    def __init__(self, workload: _Optional[str] = ...) -> None: ...

class DeleteWorkloadResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LogRecord(_message.Message):
    __slots__ = ("event_time", "level", "source", "logger", "message")
    EVENT_TIME_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    LOGGER_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    event_time: _timestamp_pb2.Timestamp
    level: str
    source: str
    logger: str
    message: str
    def __init__(self, event_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., level: _Optional[str] = ..., source: _Optional[str] = ..., logger: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class WatchLogsRequest(_message.Message):
    __slots__ = ("device_id", "profile", "job_id", "since_time", "min_level", "limit", "follow")
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    SINCE_TIME_FIELD_NUMBER: _ClassVar[int]
    MIN_LEVEL_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    profile: str
    job_id: str
    since_time: _timestamp_pb2.Timestamp
    min_level: str
    limit: int
    follow: bool
    def __init__(self, device_id: _Optional[str] = ..., profile: _Optional[str] = ..., job_id: _Optional[str] = ..., since_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., min_level: _Optional[str] = ..., limit: _Optional[int] = ..., follow: _Optional[bool] = ...) -> None: ...

class WatchLogsResponse(_message.Message):
    __slots__ = ("plane", "acting_plane", "records")
    PLANE_FIELD_NUMBER: _ClassVar[int]
    ACTING_PLANE_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    plane: str
    acting_plane: str
    records: _containers.RepeatedCompositeFieldContainer[LogRecord]
    def __init__(self, plane: _Optional[str] = ..., acting_plane: _Optional[str] = ..., records: _Optional[_Iterable[_Union[LogRecord, _Mapping]]] = ...) -> None: ...
