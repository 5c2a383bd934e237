import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LatencySketch(_message.Message):
    __slots__ = ("format_version", "indexes", "counts", "sum_ms", "min_ms", "max_ms")
    FORMAT_VERSION_FIELD_NUMBER: _ClassVar[int]
    INDEXES_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    SUM_MS_FIELD_NUMBER: _ClassVar[int]
    MIN_MS_FIELD_NUMBER: _ClassVar[int]
    MAX_MS_FIELD_NUMBER: _ClassVar[int]
    format_version: int
    indexes: _containers.RepeatedScalarFieldContainer[int]
    counts: _containers.RepeatedScalarFieldContainer[int]
    sum_ms: float
    min_ms: float
    max_ms: float
    def __init__(self, format_version: _Optional[int] = ..., indexes: _Optional[_Iterable[int]] = ..., counts: _Optional[_Iterable[int]] = ..., sum_ms: _Optional[float] = ..., min_ms: _Optional[float] = ..., max_ms: _Optional[float] = ...) -> None: ...

class LatencyReport(_message.Message):
    __slots__ = ("device_id", "boot_id", "sequence", "digest", "generation", "workload", "start_time", "end_time", "latency", "reference", "num_errors", "rss_bytes", "emulated_slowdown", "num_dropped_reports")
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    LATENCY_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    NUM_ERRORS_FIELD_NUMBER: _ClassVar[int]
    RSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    EMULATED_SLOWDOWN_FIELD_NUMBER: _ClassVar[int]
    NUM_DROPPED_REPORTS_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    boot_id: str
    sequence: int
    digest: str
    generation: int
    workload: str
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    latency: LatencySketch
    reference: LatencySketch
    num_errors: int
    rss_bytes: int
    emulated_slowdown: int
    num_dropped_reports: int
    def __init__(self, device_id: _Optional[str] = ..., boot_id: _Optional[str] = ..., sequence: _Optional[int] = ..., digest: _Optional[str] = ..., generation: _Optional[int] = ..., workload: _Optional[str] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., latency: _Optional[_Union[LatencySketch, _Mapping]] = ..., reference: _Optional[_Union[LatencySketch, _Mapping]] = ..., num_errors: _Optional[int] = ..., rss_bytes: _Optional[int] = ..., emulated_slowdown: _Optional[int] = ..., num_dropped_reports: _Optional[int] = ...) -> None: ...
