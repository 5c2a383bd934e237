from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Precision(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRECISION_UNSPECIFIED: _ClassVar[Precision]
    PRECISION_FP32: _ClassVar[Precision]
    PRECISION_INT8: _ClassVar[Precision]
PRECISION_UNSPECIFIED: Precision
PRECISION_FP32: Precision
PRECISION_INT8: Precision

class TensorSpec(_message.Message):
    __slots__ = ("name", "datatype", "shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATATYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    datatype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., datatype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class GoldenSet(_message.Message):
    __slots__ = ("inputs", "outputs", "num_samples", "absolute_tolerance")
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    NUM_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    ABSOLUTE_TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    inputs: bytes
    outputs: bytes
    num_samples: int
    absolute_tolerance: float
    def __init__(self, inputs: _Optional[bytes] = ..., outputs: _Optional[bytes] = ..., num_samples: _Optional[int] = ..., absolute_tolerance: _Optional[float] = ...) -> None: ...

class Manifest(_message.Message):
    __slots__ = ("format_version", "digest", "size_bytes", "block_size_bytes", "block_digests", "workload", "profile", "format", "precision", "inputs", "outputs", "golden", "parent_digest", "spec_json", "accuracy", "executable_digest", "executable_size_bytes", "metric")
    FORMAT_VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    BLOCK_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    GOLDEN_FIELD_NUMBER: _ClassVar[int]
    PARENT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SPEC_JSON_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    EXECUTABLE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    EXECUTABLE_SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    format_version: int
    digest: str
    size_bytes: int
    block_size_bytes: int
    block_digests: _containers.RepeatedScalarFieldContainer[bytes]
    workload: str
    profile: str
    format: str
    precision: Precision
    inputs: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    outputs: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    golden: GoldenSet
    parent_digest: str
    spec_json: str
    accuracy: float
    executable_digest: str
    executable_size_bytes: int
    metric: str
    def __init__(self, format_version: _Optional[int] = ..., digest: _Optional[str] = ..., size_bytes: _Optional[int] = ..., block_size_bytes: _Optional[int] = ..., block_digests: _Optional[_Iterable[bytes]] = ..., workload: _Optional[str] = ..., profile: _Optional[str] = ..., format: _Optional[str] = ..., precision: _Optional[_Union[Precision, str]] = ..., inputs: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., golden: _Optional[_Union[GoldenSet, _Mapping]] = ..., parent_digest: _Optional[str] = ..., spec_json: _Optional[str] = ..., accuracy: _Optional[float] = ..., executable_digest: _Optional[str] = ..., executable_size_bytes: _Optional[int] = ..., metric: _Optional[str] = ...) -> None: ...
