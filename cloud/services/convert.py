"""Wire messages to values and back: the boundary of the cloud.

Rules kept here:

- A message from outside is checked here in full or it becomes no value: every number has bounds, every text
  an alphabet or at least a length, every digest is one. What passes may be stored, compared and shown.
- A RejectedError names the field, what was found and what would be accepted.
- Values become messages without checks: they were checked on their way in.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from cloud.domain.devices import DeploymentState, DeploymentStatus, Device, HostedWorkload
from cloud.domain.profiles import Hardware
from cloud.domain.windows import zone_of
from edgeloop import topics
from edgeloop.errors import RejectedError
from edgeloop.v1 import deployment_pb2, device_pb2

#: Far beyond any fleet's life, and below what a signed 64-bit column holds.
MAX_GENERATION: Final = 2**53
MAX_EMULATED_SLOWDOWN: Final = 1000
MAX_MEMORY_BYTES: Final = 2**50
_MAX_CORES: Final = 4096
_MAX_INSTRUCTION_SETS: Final = 64
_MAX_LABELS: Final = 32
_MAX_LABEL_CHARS: Final = 128
#: Workloads that one device may host.
MAX_HOSTED: Final = 16
_MAX_TEXT_CHARS: Final = 200
_MAX_MESSAGE_CHARS: Final = 2000
_MAX_TIME_S: Final = 253402300799  # the year 9999, where Timestamp ends

_ARCHITECTURE = re.compile(r"[A-Za-z0-9_.-]{1,32}", re.ASCII)
_INSTRUCTION_SET = re.compile(r"[a-z0-9_.]{1,32}", re.ASCII)
_LABEL_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}", re.ASCII)
_BOOT_ID = re.compile(r"[A-Za-z0-9-]{1,64}", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
_CODE = re.compile(r"[a-z0-9-]{0,64}", re.ASCII)

_STATES: Final = {
    deployment_pb2.DEPLOYMENT_STATE_PENDING: DeploymentState.PENDING,
    deployment_pb2.DEPLOYMENT_STATE_FETCHING: DeploymentState.FETCHING,
    deployment_pb2.DEPLOYMENT_STATE_VERIFYING: DeploymentState.VERIFYING,
    deployment_pb2.DEPLOYMENT_STATE_TESTING: DeploymentState.TESTING,
    deployment_pb2.DEPLOYMENT_STATE_TRIAL: DeploymentState.TRIAL,
    deployment_pb2.DEPLOYMENT_STATE_ACTIVE: DeploymentState.ACTIVE,
    deployment_pb2.DEPLOYMENT_STATE_REJECTED: DeploymentState.REJECTED,
    deployment_pb2.DEPLOYMENT_STATE_ROLLED_BACK: DeploymentState.ROLLED_BACK,
    deployment_pb2.DEPLOYMENT_STATE_SUPERSEDED: DeploymentState.SUPERSEDED,
    deployment_pb2.DEPLOYMENT_STATE_REFUSED: DeploymentState.REFUSED,
}
_STATES_TO_PROTO: Final = {value: key for key, value in _STATES.items()}


def timestamp(seconds: float) -> Timestamp:
    """Seconds since the epoch as a Timestamp, to the microsecond; 0 gives an empty one."""
    whole = math.floor(seconds)
    micros = round((seconds - whole) * 1e6)
    return Timestamp(seconds=whole + micros // 1_000_000, nanos=micros % 1_000_000 * 1000)


def seconds(message: Timestamp, *, field: str = "time") -> float:
    """A Timestamp as seconds since the epoch. Raises RejectedError when it is outside its own range."""
    if not 0 <= message.seconds <= _MAX_TIME_S or not 0 <= message.nanos < 1_000_000_000:
        raise refusal(field, f"{message.seconds} s", "a time from 1970 to 9999")
    return message.seconds + message.nanos / 1e9


def device_from_proto(registration: device_pb2.Registration) -> Device:
    """Raises RejectedError naming the field."""
    sent = registration.hardware
    hardware = Hardware(
        architecture=matching("hardware.architecture", sent.architecture, _ARCHITECTURE),
        num_cores=within("hardware.num_cores", sent.num_cores, 1, _MAX_CORES),
        memory_bytes=within("hardware.memory_bytes", sent.memory_bytes, 1 << 20, MAX_MEMORY_BYTES),
        instruction_sets=frozenset(_instruction_sets(sent.instruction_sets)),
        processor=_text("hardware.processor", sent.processor),
        runtime=_text("hardware.runtime", sent.runtime),
        runtime_version=_text("hardware.runtime_version", sent.runtime_version),
    )
    if registration.serving_digest:
        topics.check_digest(registration.serving_digest, field="serving_digest")
    return Device(
        device_id=topics.check_device_id(registration.device_id),
        hardware=hardware,
        labels=_labels(registration),
        agent_version=_text("agent_version", registration.agent_version),
        boot_id=check_boot_id(registration.boot_id),
        emulated_slowdown=within(
            "emulated_slowdown", registration.emulated_slowdown, 1, MAX_EMULATED_SLOWDOWN
        ),
        generation=within("generation", registration.generation, 0, MAX_GENERATION),
        serving_digest=registration.serving_digest,
        operating_system=_text("hardware.operating_system", sent.operating_system),
        python_version=_text("hardware.python_version", sent.python_version),
        # One that is not known here is none: a gateway may have newer zones than the cloud.
        time_zone=registration.time_zone if zone_of(registration.time_zone[:65]) is not None else "",
        hosted=_hosted(registration),
    )


def _hosted(registration: device_pb2.Registration) -> tuple[HostedWorkload, ...]:
    if len(registration.workloads) > MAX_HOSTED:
        raise refusal("workloads", f"{len(registration.workloads)} of them", f"at most {MAX_HOSTED}")
    found: dict[str, HostedWorkload] = {}
    for said in registration.workloads:
        name = topics.check_workload(said.workload)
        if name in found:
            raise refusal("workloads", f"{name} twice", "each once")
        if said.serving_digest:
            topics.check_digest(said.serving_digest, field="workloads.serving_digest")
        found[name] = HostedWorkload(
            workload=name,
            generation=within("workloads.generation", said.generation, 0, MAX_GENERATION),
            serving_digest=said.serving_digest,
        )
    return tuple(found.values())


def registration_to_proto(device: Device) -> device_pb2.Registration:
    """What the device last said of itself, with what it has reported since."""
    hardware = device.hardware
    return device_pb2.Registration(
        device_id=device.device_id,
        hardware=device_pb2.Hardware(
            architecture=hardware.architecture,
            processor=hardware.processor,
            num_cores=hardware.num_cores,
            memory_bytes=hardware.memory_bytes,
            instruction_sets=sorted(hardware.instruction_sets),
            runtime=hardware.runtime,
            runtime_version=hardware.runtime_version,
            operating_system=device.operating_system,
            python_version=device.python_version,
        ),
        labels=dict(device.labels),
        agent_version=device.agent_version,
        boot_id=device.boot_id,
        emulated_slowdown=device.emulated_slowdown,
        generation=device.generation,
        serving_digest=device.serving_digest,
        time_zone=device.time_zone,
        workloads=[
            device_pb2.HostedWorkload(
                workload=host.workload, generation=host.generation, serving_digest=host.serving_digest
            )
            for host in device.hosted
        ],
    )


def status_from_proto(message: deployment_pb2.DeploymentStatus) -> DeploymentStatus:
    """Raises RejectedError naming the field."""
    state = _STATES.get(message.state)
    if state is None or state is DeploymentState.PENDING:
        raise refusal("state", str(message.state), "a state that a device reaches, FETCHING or later")
    if not 0 <= message.progress <= 1:  # also false for NaN
        raise refusal("progress", str(message.progress), "a number from 0 to 1")
    return DeploymentStatus(
        device_id=topics.check_device_id(message.device_id),
        generation=within(
            "generation", message.generation, 0 if state is DeploymentState.REFUSED else 1, MAX_GENERATION
        ),
        digest=topics.check_digest(message.digest),
        state=state,
        code=matching("code", message.code, _CODE),
        message=_text("message", message.message, max_chars=_MAX_MESSAGE_CHARS),
        event_time_s=seconds(message.event_time, field="event_time"),
        progress=message.progress,
    )


def status_to_proto(status: DeploymentStatus) -> deployment_pb2.DeploymentStatus:
    """The inverse of ``status_from_proto``."""
    return deployment_pb2.DeploymentStatus(
        device_id=status.device_id,
        generation=status.generation,
        digest=status.digest,
        state=_STATES_TO_PROTO[status.state],
        code=status.code,
        message=status.message,
        event_time=timestamp(status.event_time_s),
        progress=status.progress,
    )


def check_boot_id(boot_id: str) -> str:
    """The id itself. Raises RejectedError when it may not be used as one."""
    return matching("boot_id", boot_id, _BOOT_ID)


def check_workload(name: str) -> str:
    """The name itself. Raises RejectedError when it may not be used as one."""
    return matching("workload", name, _NAME)


def within(field: str, value: int, low: int, high: int) -> int:
    """The value itself. Raises RejectedError when it is outside ``low`` to ``high``."""
    if not low <= value <= high:
        raise refusal(field, str(value), f"{low} to {high}")
    return value


def matching(field: str, text: str, pattern: re.Pattern[str]) -> str:
    """The text itself. Raises RejectedError when the pattern does not fit all of it."""
    if not pattern.fullmatch(text):
        raise refusal(field, repr(text[:80]), f"text that matches {pattern.pattern}")
    return text


def refusal(field: str, found: str, wanted: str) -> RejectedError:
    """An error that says which field was wrong, and how."""
    return RejectedError(f"{field} is {found}: give {wanted}", code="field-invalid")


def _text(field: str, text: str, *, max_chars: int = _MAX_TEXT_CHARS) -> str:
    """Free text for people: of bounded length, and without characters that steer a terminal."""
    if len(text) > max_chars:
        raise refusal(field, f"{len(text)} characters long", f"at most {max_chars}")
    if not text.isprintable():
        return "".join(char if char.isprintable() else " " for char in text)
    return text


def _instruction_sets(names: Iterable[str]) -> list[str]:
    listed = list(names)
    if len(listed) > _MAX_INSTRUCTION_SETS:
        raise refusal("hardware.instruction_sets", f"{len(listed)} long", f"at most {_MAX_INSTRUCTION_SETS}")
    return [matching("hardware.instruction_sets", name, _INSTRUCTION_SET) for name in listed]


def _labels(registration: device_pb2.Registration) -> dict[str, str]:
    if len(registration.labels) > _MAX_LABELS:
        raise refusal("labels", f"{len(registration.labels)} long", f"at most {_MAX_LABELS}")
    return {
        matching("labels key", key, _LABEL_KEY): _text(f"labels[{key}]", value, max_chars=_MAX_LABEL_CHARS)
        for key, value in sorted(registration.labels.items())
    }
