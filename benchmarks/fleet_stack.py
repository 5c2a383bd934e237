"""The servers of the fleet benchmark, each a real process: PostgreSQL, Mosquitto and one control plane.

They are started as docker-compose starts them, from this checkout: mutual TLS on the broker and on the
fleet's port, a private authority, and a database that flushes what it commits to the disk. The control plane
is held on one core, and everything else on the others.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from cloud.domain.candidates import Candidate, CandidateMetrics
from cloud.domain.specs import CompressionSpec, Precision
from cloud.pki.key_folder import KeyFolder, init_folder
from cloud.registry import Registry
from cloud.store import Store
from edgeloop import artifact
from edgeloop.v1 import artifact_pb2
from edgeloop.v1 import control_service_pb2 as pb
from edgeloop.v1.control_service_pb2_grpc import ControlServiceStub

HOST = "127.0.0.1"
WORKLOAD, PROFILE = "digits", "gateway"
_DEPLOY = Path(__file__).parents[1] / "deploy" / "mosquitto"
_START_S = 60.0
_CALL_S = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """``cpu_s`` since the start; ``rss_bytes`` now, and at most until now."""

    cpu_s: float
    rss_bytes: int
    peak_rss_bytes: int


def busy_s(cores: set[int]) -> float:
    """Processor seconds of these cores since the machine started, spent by anybody on anything."""
    found = 0.0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cores:
            idle = int(ticks[3]) + int(ticks[4])  # the second of them waits for the disk
            found += (sum(map(int, ticks[:8])) - idle) / os.sysconf("SC_CLK_TCK")
    return found


def cpu_s(pid: int) -> float:
    """Processor seconds of a process so far."""
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


def _as_user(user: str) -> dict[str, Any]:
    """Keywords of ``subprocess``; none for whoever runs this."""
    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []} if user else {}


class Process:
    """A server; ``cores`` are those that it may use."""

    def __init__(
        self, name: str, command: list[str], *, folder: Path, cores: set[int], user: str = ""
    ) -> None:
        self.log_path = folder / f"{name}.log"
        as_user = _as_user(user)
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores)  # inherited from the first instruction on
        try:
            with self.log_path.open("wb") as log:
                self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, **as_user)
        finally:
            os.sched_setaffinity(0, allowed)

    def wait_for(self, what: str, ready: Callable[[], bool]) -> None:
        """Raises ``SystemExit`` with the end of the log when it does not become ready."""
        until_s = time.monotonic() + _START_S
        while not ready():
            if self._process.poll() is not None or time.monotonic() > until_s:
                raise SystemExit(
                    f"{what} did not start:\n{self.log_path.read_text(errors='replace')[-2000:]}"
                )
            time.sleep(0.05)

    def usage(self) -> Usage:
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        values = dict(line.split(":", 1) for line in status.splitlines())
        return Usage(
            cpu_s=cpu_s(self._process.pid),
            rss_bytes=int(values["VmRSS"].split()[0]) << 10,
            peak_rss_bytes=int(values["VmHWM"].split()[0]) << 10,
        )

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self._process.poll() is None:
            self._process.send_signal(how)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def start_postgres(folder: Path, cores: set[int]) -> tuple[Process, str] | None:
    """A server with the defaults of a fresh cluster (fsync on), and its URL; None where none is installed."""
    programs = _postgres_programs()
    if programs is None:
        return None
    user = "" if os.getuid() else next(name for name in ("postgres", "nobody") if _is_user(name))
    home = folder / "postgres"
    home.mkdir()
    if user:
        folder.chmod(0o711)
        shutil.chown(home, user)
    as_user = _as_user(user)
    subprocess.run(
        [
            programs / "initdb",
            "-D",
            home / "data",
            "-U",
            "edgeloop",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-locale",
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        cwd=home,
        **as_user,
    )
    command = [
        str(programs / "postgres"),
        "-D",
        str(home / "data"),
        "-k",
        str(home),
        "-c",
        "listen_addresses=",
    ]
    server = Process("postgres", command, folder=folder, cores=cores, user=user)

    def answers() -> bool:
        asked = [str(programs / "pg_isready"), "-h", str(home), "-q"]
        return subprocess.run(asked, check=False, capture_output=True).returncode == 0

    server.wait_for("PostgreSQL", answers)
    subprocess.run(
        [programs / "createdb", "-h", home, "-U", "edgeloop", "-T", "template0", "edgeloop"], check=True
    )
    return server, f"postgresql://edgeloop@/edgeloop?host={home}"


def start_broker(folder: Path, keys: KeyFolder, cores: set[int]) -> tuple[Process, str] | None:
    """Mosquitto with the configuration that ships, and its address; None where none is installed."""
    search = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
    program = shutil.which("mosquitto", path=search)
    if program is None:
        return None
    port = _free_port()
    text = (_DEPLOY / "mosquitto.conf").read_text()
    user = pwd.getpwuid(os.getuid()).pw_name
    for old, new in (
        ("listener 8883", f"user {user}\nlistener {port} {HOST}"),
        ("/mosquitto/certs", str(keys.root / "broker")),
        ("/mosquitto/crl", str(keys.root / "crl")),
        ("/mosquitto/config/acl", str(_DEPLOY / "acl")),
    ):
        text = text.replace(old, new)
    config = folder / "mosquitto.conf"
    config.write_text(text)
    broker = Process("mosquitto", [program, "-c", str(config)], folder=folder, cores=cores)
    broker.wait_for("Mosquitto", lambda: _listens(port))
    return broker, f"{HOST}:{port}"


class ControlPlane:
    """``edgeloop serve --tls-dir`` with one profile that deploys one artifact."""

    def __init__(
        self,
        folder: Path,
        keys: KeyFolder,
        *,
        database_url: str,
        broker: str,
        core: int,
        report_interval_s: int,
    ) -> None:
        self.keys = keys
        state_dir = folder / "state"
        self.database_url = database_url or f"sqlite:///{state_dir / 'edgeloop.db'}"
        command = [sys.executable, "-m", "cloud.cli", "serve", "--state-dir", str(state_dir)]
        command += ["--tls-dir", str(keys.root), "--compute", "none", "--database-url", self.database_url]
        command += ["--report-interval-s", str(report_interval_s)]
        for name in ("fleet", "control", "enrol", "broker"):
            command += [f"--{name}-port", "0"]
        command += ["--broker", broker] if broker else []
        state_dir.mkdir()
        self.process = Process("serve", command, folder=folder, cores={core})
        announced = state_dir / "server.json"
        self.process.wait_for("the control plane", announced.exists)
        self.addresses: dict[str, str] = json.loads(announced.read_text())
        self._channel = grpc.secure_channel(
            self.addresses["control"], grpc.ssl_channel_credentials(keys.server_ca.read_bytes())
        )
        self._control = ControlServiceStub(self._channel)
        token = (keys.root / "operator" / "admin.token").read_text().strip()
        self._metadata = (("authorization", f"Bearer {token}"),)

    def deploy(self, registry: Registry) -> str:
        """Make a profile and an artifact for it, as if a rollout had succeeded; its digest."""
        documents = (
            {"kind": "Workload", "name": WORKLOAD, "dataset": "digits"},
            {
                "kind": "Fleet",
                "workload": WORKLOAD,
                "profiles": [{"name": PROFILE, "match": {"labels": {"class": PROFILE}}}],
            },
        )
        self._control.Apply(
            pb.ApplyRequest(
                documents=[
                    pb.Document(kind=str(d["kind"]), json=json.dumps(d), source="benchmark")
                    for d in documents
                ]
            ),
            timeout=_CALL_S,
            metadata=self._metadata,
        )
        candidate = _candidate(registry)
        store, now_s = Store(self.database_url), time.time()
        store.save_candidate(candidate, now_s)
        store.set_current(
            PROFILE,
            candidate.digest,
            manifest_digest=candidate.manifest_digest,
            rollout_id="",
            now_s=now_s,
        )
        store.close()
        return candidate.digest

    def new_tokens(self, device_ids: list[str]) -> dict[str, str]:
        """A one-time token for each, as ``edgeloop device enroll`` gives it."""
        tokens = {}
        for device_id in device_ids:
            request = pb.EnrolDeviceRequest(device_id=device_id, profile=PROFILE)
            answer = self._control.EnrolDevice(request, timeout=_CALL_S, metadata=self._metadata)
            tokens[device_id] = answer.token
        return tokens

    def stop(self) -> None:
        self._channel.close()
        self.process.stop()


def new_keys(folder: Path) -> KeyFolder:
    """All that ``edgeloop keys init`` makes, for servers on this machine."""
    init_folder(folder / "keys", [HOST])
    return KeyFolder(folder / "keys")


def _candidate(registry: Registry) -> Candidate:
    data = os.urandom(100_000)
    tensor = artifact_pb2.TensorSpec(name="x", datatype="FP32", shape=[0, 2])
    manifest = artifact.build_manifest(
        data,
        workload=WORKLOAD,
        profile=PROFILE,
        precision=artifact_pb2.PRECISION_INT8,
        inputs=[tensor],
        outputs=[tensor],
        golden=artifact.golden_set([[0.0, 0.0]], [[0.0, 0.0]], absolute_tolerance=0.1),
        accuracy=0.9,
    )
    return Candidate(
        digest=registry.put(data),
        manifest_digest=registry.put(artifact.encode_manifest(manifest)),
        workload=WORKLOAD,
        profile=PROFILE,
        parent_digest="",
        spec=CompressionSpec(),
        precision=Precision.INT8,
        metrics=CandidateMetrics(
            accuracy=0.9,
            test_accuracy=0.9,
            latency_p50_ms=3.0,
            latency_p95_ms=4.0,
            reference_p50_ms=0.1,
            artifact_bytes=len(data),
            peak_rss_bytes=1 << 26,
            macs=1,
            num_parameters=1,
        ),
    )


def _postgres_programs() -> Path | None:
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    return max(folders, key=lambda path: int(path.parent.name), default=None)


def _is_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        return int(sock.getsockname()[1])


def _listens(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True
