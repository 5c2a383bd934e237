"""A control plane with keys, Mosquitto with the configuration that ships, and agents: each a real process."""

from __future__ import annotations

import json
import os
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
from cryptography.hazmat.primitives.serialization import Encoding
from machine import dying_with_us, free_port, wait_until

from cloud.pki.authority import Authority
from cloud.pki.key_folder import KeyFolder, init_folder
from edgeloop.identity import certificate_request, new_private_key, requested_key
from edgeloop.v1.control_service_pb2_grpc import ControlServiceStub

DEPLOY = Path(__file__).parents[2] / "deploy" / "mosquitto"
WAIT_S = 60.0


def new_keys(folder: Path) -> KeyFolder:
    """Of a server on this machine, for two control planes."""
    init_folder(folder / "keys", ["localhost"], num_controls=2)
    return KeyFolder(folder / "keys")


class SecureBroker:
    """``deploy/mosquitto/run.sh`` with the files beside it, their paths aside."""

    host = "127.0.0.1"

    def __init__(self, folder: Path, keys: KeyFolder) -> None:
        self.port = free_port()
        self.log_path = folder / "mosquitto.log"
        text = (DEPLOY / "mosquitto.conf").read_text()
        for old, new in (
            ("listener 8883", f"user {os.environ.get('USER') or 'root'}\nlistener {self.port} {self.host}"),
            ("/mosquitto/certs", str(keys.root / "broker")),
            ("/mosquitto/crl", str(keys.root / "crl")),
            ("/mosquitto/config/acl", str(DEPLOY / "acl")),
        ):
            assert old in text
            text = text.replace(old, new)
        config = folder / "mosquitto.conf"
        config.write_text(text)
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                ["/bin/sh", str(DEPLOY / "run.sh"), str(config), str(keys.revoked)],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(self._answers, what=lambda: f"mosquitto to listen: {self.log[-2000:]}")

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log
        try:
            socket.create_connection((self.host, self.port), timeout=5).close()
        except OSError:
            return False
        return True

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise


class SecurePlane:
    """``edgeloop serve --tls-dir``."""

    def __init__(
        self,
        folder: Path,
        *flags: str,
        broker: SecureBroker | None = None,
        keys: KeyFolder | None = None,
    ) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.keys = keys or new_keys(folder)
        self.state_dir = folder / "state"
        self.log_path = folder / "serve.log"
        self._flags = [*flags]
        if broker is not None:
            self._flags += ["--broker", f"{broker.host}:{broker.port}"]
        self.process: subprocess.Popen[bytes] | None = None
        self.info: dict[str, Any] = {}

    def start(self) -> SecurePlane:
        command = [sys.executable, "-m", "cloud.cli", "serve", "--state-dir", str(self.state_dir)]
        command += ["--tls-dir", str(self.keys.root), "--compute", "none", "--step-interval-s", "0.2"]
        for name in ("fleet", "control", "enrol", "broker"):
            command += [f"--{name}-port", "0"]
        with self.log_path.open("ab") as log:
            words = dying_with_us([*command, *self._flags])
            self.process = subprocess.Popen(words, stdout=log, stderr=log, env=clean_env())
        path = self.state_dir / "server.json"
        wait_until(
            lambda: path.exists() or self.process.poll() is not None,  # type: ignore[union-attr]
            what=lambda: f"server.json: {self.log[-3000:]}",
        )
        assert self.process.poll() is None, self.log
        self.info = json.loads(path.read_text())
        return self

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    @property
    def ca_pem(self) -> bytes:
        return self.keys.server_ca.read_bytes()

    @property
    def admin_token(self) -> str:
        return (self.keys.root / "operator" / "admin.token").read_text().strip()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(WAIT_S)

    def edgeloop(self, *words: str, token: str | None = None, status: int = 0) -> str:
        """The control script as an operator runs it; returns what it prints."""
        environment = clean_env() | {
            "EDGELOOP_SERVER": self.info["control"],
            "EDGELOOP_CA": str(self.keys.server_ca),
            "EDGELOOP_TOKEN": self.admin_token if token is None else token,
        }
        done = subprocess.run(
            [sys.executable, "-m", "cloud.cli", *words],
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
            env=environment,
        )
        assert done.returncode == status, f"{words} ended with {done.returncode}: {done.stderr}{done.stdout}"
        return done.stdout if status == 0 else done.stderr

    def control(self, token: str | None = None) -> Operated:
        return Operated(self, self.admin_token if token is None else token)


class Operated:
    """ControlService in the test's own process, which is quicker than the control script."""

    def __init__(self, plane: SecurePlane, token: str) -> None:
        self._channel = grpc.secure_channel(plane.info["control"], grpc.ssl_channel_credentials(plane.ca_pem))
        self._stub = ControlServiceStub(self._channel)
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()

    def __enter__(self) -> Operated:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def __getattr__(self, method: str) -> Callable[[Any], Any]:
        call = getattr(self._stub, method)
        return lambda request: call(request, timeout=WAIT_S, metadata=self._metadata)


class SecureAgent:
    """``edgeloop-agent enroll`` and ``run`` on a state folder."""

    def __init__(self, plane: SecurePlane, name: str) -> None:
        self.plane = plane
        self.state_dir = plane.folder / name
        self.log_path = plane.folder / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def enroll(self, token: str, *flags: str, status: int = 0) -> str:
        words = ["enroll", "--server", self.plane.info["enrol"], "--ca", str(self.plane.keys.server_ca)]
        words += ["--token", token, "--state-dir", str(self.state_dir), *flags]
        done = subprocess.run(
            [sys.executable, "-m", "edge_agent.cli", *words],
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
            env=clean_env(),
        )
        assert done.returncode == status, f"enroll ended with {done.returncode}: {done.stderr}"
        return done.stdout + done.stderr

    def run(self, *flags: str) -> SecureAgent:
        words = ["run", "--state-dir", str(self.state_dir), "--serve-grpc", "off", "--serve-rest", "off"]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                dying_with_us([sys.executable, "-m", "edge_agent.cli", *words, *flags]),
                stdout=log,
                stderr=log,
                env=clean_env(),
            )
        return self

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def status(self) -> dict[str, Any]:
        try:
            said: dict[str, Any] = json.loads((self.state_dir / "status.json").read_bytes())
        except FileNotFoundError:
            return {}
        return said if self.process is not None and said.get("pid") == self.process.pid else {}

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(WAIT_S)


@dataclass(frozen=True, slots=True)
class Device:
    """A device without an agent: its key and certificate, in a file and in memory."""

    name: str
    key_pem: bytes
    certificate_pem: bytes
    path: Path

    def credentials(self, plane: SecurePlane) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(plane.ca_pem, self.key_pem, self.certificate_pem)


def device(
    authority: Authority, folder: Path, name: str, *, begin_s: float = 0, life_s: float = 3600
) -> Device:
    """One that the authority vouches for, whether or not a control plane knows of it."""
    key_pem = new_private_key()
    key = requested_key(certificate_request(key_pem, name))
    made = authority.issue_client(name, key, now_s=time.time() + begin_s, life_s=life_s)
    certificate_pem = made.public_bytes(Encoding.PEM)
    path = folder / f"{name}-{made.serial_number:x}.pem"
    path.write_bytes(key_pem + certificate_pem)
    return Device(name, key_pem, certificate_pem, path)


def clean_env() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if "EDGELOOP" not in name}


def mosquitto_program() -> str | None:
    return shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
