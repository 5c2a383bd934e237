from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Hardware(_message.Message):
    __slots__ = ("architecture", "processor", "num_cores", "memory_bytes", "instruction_sets", "runtime", "runtime_version", "operating_system", "python_version")
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    PROCESSOR_FIELD_NUMBER: _ClassVar[int]
    NUM_CORES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_SETS_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_VERSION_FIELD_NUMBER: _ClassVar[int]
    OPERATING_SYSTEM_FIELD_NUMBER: _ClassVar[int]
    PYTHON_VERSION_FIELD_NUMBER: _ClassVar[int]
    architecture: str
    processor: str
    num_cores: int
    memory_bytes: int
    instruction_sets: _containers.RepeatedScalarFieldContainer[str]
    runtime: str
    runtime_version: str
    operating_system: str
    python_version: str
    def __init__(self, architecture: _Optional[str] = ..., processor: _Optional[str] = ..., num_cores: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., instruction_sets: _Optional[_Iterable[str]] = ..., runtime: _Optional[str] = ..., runtime_version: _Optional[str] = ..., operating_system: _Optional[str] = ..., python_version: _Optional[str] = ...) -> None: ...

class Registration(_message.Message):
    __slots__ = ("device_id", "hardware", "labels", "agent_version", "boot_id", "emulated_slowdown", "generation", "serving_digest", "time_zone", "workloads")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    EMULATED_SLOWDOWN_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    SERVING_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TIME_ZONE_FIELD_NUMBER: _ClassVar[int]
    WORKLOADS_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    hardware: Hardware
    labels: _containers.ScalarMap[str, str]
    agent_version: str
    boot_id: str
    emulated_slowdown: int
    generation: int
    serving_digest: str
    time_zone: str
    workloads: _containers.RepeatedCompositeFieldContainer[HostedWorkload]
    def __init__(self, device_id: _Optional[str] = ..., hardware: _Optional[_Union[Hardware, _Mapping]] = ..., labels: _Optional[_Mapping[str, str]] = ..., agent_version: _Optional[str] = ..., boot_id: _Optional[str] = ..., emulated_slowdown: _Optional[int] = ..., generation: _Optional[int] = ..., serving_digest: _Optional[str] = ..., time_zone: _Optional[str] = ..., workloads: _Optional[_Iterable[_Union[HostedWorkload, _Mapping]]] = ...) -> None: ...

class HostedWorkload(_message.Message):
    __slots__ = ("workload", "generation", "serving_digest")
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    SERVING_DIGEST_FIELD_NUMBER: _ClassVar[int]
    workload: str
    generation: int
    serving_digest: str
    def __init__(self, workload: _Optional[str] = ..., generation: _Optional[int] = ..., serving_digest: _Optional[str] = ...) -> None: ...
