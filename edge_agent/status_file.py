"""What a running agent says of itself to whoever stands at the device: `status.json` in its state folder.

Rules:
- Replaced atomically, so that a reader never sees half of it. Not flushed to the disk: it says how things
  are, and nothing depends on it after a crash.
- On a full disk it is written over where it stands: just then somebody wants to know how things are. A
  reader that sees half of it reads again.
- Versioned; a reader refuses what it does not know.
"""

import errno
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from edge_agent.journal import write_atomically
from edgeloop.errors import ConfigError

STATUS_FILE = "status.json"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkloadStatus:
    """One of several workloads on this device."""

    workload: str
    # That the cloud matched it to, or why to none; both empty where the cloud does not say.
    profile: str = ""
    profile_message: str = ""
    state: str
    generation: int = 0
    code: str = ""
    message: str = ""
    progress: float = 0.0
    serving_digest: str = ""
    serving_generation: int = 0
    num_quarantined: int = 0
    num_requests: int = 0
    num_errors: int = 0

    @property
    def headline(self) -> tuple[object, ...]:
        """See that of the agent."""
        return self.state, self.generation, self.serving_digest, self.profile, self.profile_message


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentStatus:
    format_version: int = FORMAT_VERSION
    pid: int
    # False once the agent has stopped on purpose.
    running: bool
    device_id: str
    boot_id: str
    agent_version: str
    profile: str = ""
    # Why the cloud matched no profile.
    profile_message: str = ""
    state: str
    generation: int = 0
    digest: str = ""
    progress: float = 0.0
    code: str = ""
    message: str = ""
    serving_digest: str = ""
    serving_generation: int = 0
    workload: str = ""
    committed_digest: str = ""
    num_quarantined: int = 0
    # Since the start, of all workloads: artifacts made of deltas, and deltas given up for the whole artifact.
    num_deltas: int = 0
    num_deltas_given_up: int = 0
    broker_connected: bool = False
    server_connected: bool = False
    num_pending_reports: int = 0
    # Since the device was installed: the spool was full, or its disk failed.
    num_dropped_reports: int = 0
    # Why no report can be kept now.
    spool_problem: str = ""
    # Why there is no connection to anything: something that enrolment left does not read.
    identity_problem: str = ""
    # Samples of each bridge and folder since the start, by outcome.
    sources: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    num_requests: int = 0
    num_errors: int = 0
    # Where the local inference API listens; empty where it does not.
    grpc_address: str = ""
    rest_address: str = ""
    emulated_slowdown: int = 1
    rss_bytes: int = 0
    start_time_s: float
    # Process start to the first answer; 0 before there was one.
    first_inference_s: float = 0.0
    update_time_s: float
    # Of a device that was configured to host several; what stands above is then of the first, counts of all.
    workloads: list[WorkloadStatus] = field(default_factory=list)

    @property
    def headline(self) -> tuple[object, ...]:
        """What is worth writing down as soon as it changes."""
        return (
            (self.state, self.generation, self.serving_digest, self.profile),
            (self.broker_connected, self.server_connected, self.first_inference_s > 0),
            (self.grpc_address, self.rest_address, self.spool_problem, self.identity_problem),
            [workload.headline for workload in self.workloads],
        )


def write_status(state_dir: Path, status: AgentStatus) -> None:
    data = json.dumps(asdict(status), indent=1).encode() + b"\n"
    path = state_dir / STATUS_FILE
    try:
        write_atomically(path, data, durable=False)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not path.exists():
            raise
        _write_over(path, data)


def _write_over(path: Path, data: bytes) -> None:
    """Takes no room but what the file has; blanks after the JSON fill up what was longer."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        data = data.ljust(os.fstat(descriptor).st_size)
        if os.pwrite(descriptor, data, 0) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(descriptor)


def _load(path: Path) -> object:
    for _ in range(3):
        try:
            return json.loads(path.read_bytes())
        except ValueError:
            time.sleep(0.05)
    return json.loads(path.read_bytes())


def read_status(state_dir: Path) -> AgentStatus:
    path = state_dir / STATUS_FILE
    try:
        said = _load(path)
        if not isinstance(said, dict) or said.get("format_version") != FORMAT_VERSION:
            raise ValueError(f"format_version {FORMAT_VERSION} expected")
        known = {each.name for each in fields(AgentStatus)}
        values = {key: value for key, value in said.items() if key in known}
        of_one = {each.name for each in fields(WorkloadStatus)}
        values["workloads"] = [
            WorkloadStatus(**{key: value for key, value in one.items() if key in of_one})
            for one in values.get("workloads", [])
        ]
        return AgentStatus(**values)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path} is not there: no agent has run with this --state-dir; start `edgeloop-agent run`",
            code="status-missing",
        ) from error
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", code="status-unreadable") from error


def is_alive(status: AgentStatus) -> bool:
    """Whether the process that wrote it still exists."""
    if not status.running:
        return False
    try:
        os.kill(status.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
