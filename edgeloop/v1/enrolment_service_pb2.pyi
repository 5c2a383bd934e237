import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class IssuedCertificate(_message.Message):
    __slots__ = ("device_id", "certificate_pem", "expire_time")
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_PEM_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    certificate_pem: bytes
    expire_time: _timestamp_pb2.Timestamp
    def __init__(self, device_id: _Optional[str] = ..., certificate_pem: _Optional[bytes] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class EnrolRequest(_message.Message):
    __slots__ = ("token", "certificate_request")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_REQUEST_FIELD_NUMBER: _ClassVar[int]
    token: str
    certificate_request: bytes
    def __init__(self, token: _Optional[str] = ..., certificate_request: _Optional[bytes] = ...) -> None: ...

class EnrolResponse(_message.Message):
    __slots__ = ("issued", "fleet_host", "fleet_port", "broker_host", "broker_port", "director_public_key", "tuf_root")
    ISSUED_FIELD_NUMBER: _ClassVar[int]
    FLEET_HOST_FIELD_NUMBER: _ClassVar[int]
    FLEET_PORT_FIELD_NUMBER: _ClassVar[int]
    BROKER_HOST_FIELD_NUMBER: _ClassVar[int]
    BROKER_PORT_FIELD_NUMBER: _ClassVar[int]
    DIRECTOR_PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    TUF_ROOT_FIELD_NUMBER: _ClassVar[int]
    issued: IssuedCertificate
    fleet_host: str
    fleet_port: int
    broker_host: str
    broker_port: int
    director_public_key: bytes
    tuf_root: bytes
    def __init__(self, issued: _Optional[_Union[IssuedCertificate, _Mapping]] = ..., fleet_host: _Optional[str] = ..., fleet_port: _Optional[int] = ..., broker_host: _Optional[str] = ..., broker_port: _Optional[int] = ..., director_public_key: _Optional[bytes] = ..., tuf_root: _Optional[bytes] = ...) -> None: ...

class ReEnrolRequest(_message.Message):
    __slots__ = ("certificate_pem", "certificate_request", "signature")
    CERTIFICATE_PEM_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_REQUEST_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    certificate_pem: bytes
    certificate_request: bytes
    signature: bytes
    def __init__(self, certificate_pem: _Optional[bytes] = ..., certificate_request: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class ReEnrolResponse(_message.Message):
    __slots__ = ("issued",)
    ISSUED_FIELD_NUMBER: _ClassVar[int]
    issued: IssuedCertificate
    def __init__(self, issued: _Optional[_Union[IssuedCertificate, _Mapping]] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("certificate_request",)
    CERTIFICATE_REQUEST_FIELD_NUMBER: _ClassVar[int]
    certificate_request: bytes
    def __init__(self, certificate_request: _Optional[bytes] = ...) -> None: ...

class RenewResponse(_message.Message):
    __slots__ = ("issued",)
    ISSUED_FIELD_NUMBER: _ClassVar[int]
    issued: IssuedCertificate
    def __init__(self, issued: _Optional[_Union[IssuedCertificate, _Mapping]] = ...) -> None: ...
