"""The project that the compose test starts: docker-compose, its own ports, what its containers cost."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PROJECT = "edgeloop-test"
#: A container that stays, to ask from: one for each question would cost more than the question.
OPERATOR = f"{PROJECT}-operator"
WEB_PORT = "EDGELOOP_WEB_PORT"
PORTS = ("EDGELOOP_BROKER_PORT", "EDGELOOP_FLEET_PORT", "EDGELOOP_ENROL_PORT", WEB_PORT)
WITH_HEALTH_CHECK = ("control", "mosquitto", "postgres", "ray-head")


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


class Compose:
    """docker-compose with this project's name, profiles and ports."""

    def __init__(self, ports: dict[str, str]) -> None:
        self._command = ["docker-compose"] if shutil.which("docker-compose") else ["docker", "compose"]
        self._environment = {
            **os.environ,
            "EDGELOOP_REPORT_INTERVAL_S": "5",
            "EDGELOOP_POLICY_COOL_DOWN_S": "15",
            "EDGELOOP_POLICY_MAX_AGE_S": "180",
            **ports,
        }

    def use_agent(self, image: str) -> None:
        """From the next ``up`` on; "" stands for the agent of this checkout."""
        self._environment["EDGELOOP_AGENT_IMAGE"] = image

    def __call__(self, *arguments: str, check: bool = True) -> str:
        command = [*self._command, "-p", PROJECT, "--profile", "agents", *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=self._environment, capture_output=True, text=True, check=False
        )
        if check and done.returncode != 0:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        return done.stdout

    def edgeloop(self, *arguments: str) -> str:
        """The control script, as the first operator."""
        return self("run", "--rm", "-T", "edgeloop", *arguments)

    def listed(self, *arguments: str) -> Any:
        """What a list command prints as JSON; None while the control plane does not answer."""
        command = ["docker", "exec", OPERATOR, "edgeloop", *arguments, "-o", "json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        try:
            return json.loads(done.stdout)
        except ValueError:
            return None

    def start_operator(self) -> None:
        self.stop_operator()
        self("run", "-d", "--name", OPERATOR, "--entrypoint", "sleep", "edgeloop", "infinity")

    def stop_operator(self) -> None:
        subprocess.run(["docker", "rm", "-f", OPERATOR], capture_output=True, check=False)

    def are_healthy(self) -> bool:
        """Whether all that others wait for says so: ``up`` gives up on what depends on one that does not."""
        ids = self("ps", "-q", *WITH_HEALTH_CHECK).split()
        found = _docker_json("inspect", *ids) if ids else []
        return len(found) == len(WITH_HEALTH_CHECK) and all(
            item["State"].get("Health", {}).get("Status") == "healthy" for item in found
        )

    def start_of(self, service: str) -> str:
        """Of the one container of a service: what is another text after any restart or replacement of it."""
        item = self._inspected(service)
        started = item["State"]["StartedAt"]
        return f"container {item['Id'][:12]}, started {started}, {item['RestartCount']} restarts"

    def log_since(self, service: str, time_s: float) -> str:
        """What the one container of a service has logged since then (seconds since the epoch)."""
        command = ["docker", "logs", "--since", f"{time_s:.3f}", self._inspected(service)["Id"]]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    def _inspected(self, service: str) -> Any:
        ids = self("ps", "-q", "-a", service).split()
        if len(ids) != 1:
            raise SystemExit(f"FAILED: {service} has {len(ids)} containers, and should have one")
        return _docker_json("inspect", ids[0])[0]

    def exit_codes(self) -> dict[str, int]:
        """Of the containers that ended."""
        ids = self("ps", "-q", "-a").split()
        found = {}
        for item in _docker_json("inspect", *ids) if ids else []:
            if item["State"]["Status"] == "exited":
                found[item["Config"]["Labels"]["com.docker.compose.service"]] = item["State"]["ExitCode"]
        return found


def choose_ports(*, again: bool) -> dict[str, str]:
    """Free ones, or those of the run before."""
    path = ROOT / "out" / "compose-test-ports.json"
    if again:
        found: dict[str, str] = json.loads(path.read_text())
        return found
    ports = {name: str(_free_port()) for name in PORTS}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(ports))
    return ports


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _docker_json(*arguments: str) -> Any:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


class _EngineConnection(http.client.HTTPConnection):
    """To the engine's own socket."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect("/var/run/docker.sock")


def cpu_seconds() -> dict[str, float]:
    """Processor time that each running container of this project has used since it started."""
    ids = subprocess.run(
        ["docker", "ps", "-q", "--filter", f"label=com.docker.compose.project={PROJECT}"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    with ThreadPoolExecutor(max_workers=max(1, len(ids))) as pool:
        return dict(pool.map(_cpu_seconds_of, ids))


def _cpu_seconds_of(container: str) -> tuple[str, float]:
    connection = _EngineConnection("localhost")
    connection.request("GET", f"/containers/{container}/stats?stream=false&one-shot=true")
    stats = json.loads(connection.getresponse().read())
    connection.close()
    name = stats["name"].lstrip("/").removeprefix(f"{PROJECT}_").removeprefix(f"{PROJECT}-")
    return name, stats["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9


def say_cpu() -> None:
    """So that times can be judged which were taken on a machine with other work."""
    used = cpu_seconds()
    parts = [f"{name} {seconds:.0f}" for name, seconds in sorted(used.items(), key=lambda item: -item[1])]
    say(f"  processor seconds so far: {sum(used.values()):.0f} ({', '.join(parts)})")


def say_figures() -> None:
    ids = subprocess.run(
        ["docker", "ps", "-q", "--filter", f"label=com.docker.compose.project={PROJECT}"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    done = subprocess.run(
        ["docker", "stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}", *ids],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    for line in sorted(done.stdout.splitlines()):
        say(f"  memory: {line}")
    for image in ("edgeloop-agent", "edgeloop-cloud"):
        size = _docker_json("image", "inspect", image)[0]["Size"]
        say(f"  image:  {image} {size / 1e6:.0f} MB with its base")


def build_agent_of(commit: str) -> str:
    """The image of the agent as it was at that commit."""
    image = f"edgeloop-agent:{commit}"
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True)
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        command = ["docker", "build", "-q", "-f", f"{folder}/edge_agent/Dockerfile", "-t", image, folder]
        subprocess.run(command, capture_output=True, check=True)
    return image
