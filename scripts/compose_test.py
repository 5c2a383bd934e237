"""``make compose-test``: the compose file, built and run for real, until the loop closed; then services die.

What it shows, each with a figure:

- ``up`` on built images starts everything, and a second ``up`` changes nothing;
- a gateway that misses its objective, since it has little processor time, meets it with a new student;
- after ``kill`` and ``up`` of each service the system is as it was: same generations, nothing lost, devices
  connected, reports counted, the cluster ready to build.

With ``--agent-from COMMIT`` the gateways run the agent as it was at that commit until all of that has passed;
then they are upgraded to this one, which may change nothing either.

It needs an engine and docker-compose (or ``docker compose``), and takes 10 to 20 minutes on two cores. It
uses a project name and ports of its own, and removes what it made; with --keep all of it stays for a look.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PROJECT = "edgeloop-test"
#: A container that stays, to ask from: one for each question would cost more than the question.
OPERATOR = f"{PROJECT}-operator"
POLL_S = 2.0
EXAMPLE = "examples/gateways"
SMALL = "gateway-small"
WEB_PORT = "EDGELOOP_WEB_PORT"
PORTS = ("EDGELOOP_BROKER_PORT", "EDGELOOP_FLEET_PORT", "EDGELOOP_ENROL_PORT", WEB_PORT)
PROFILES = (SMALL, "gateway-medium", "gateway-large")
#: What is served first: the small gateway gets the teacher's own width, which is too much for it.
FIRST_WIDTHS = {SMALL: 1.0, "gateway-medium": 0.25, "gateway-large": 0.5}
#: The objective of the small gateway, as a share of what it measured with its first student.
OBJECTIVE_RATIO = 0.6
#: A figure has settled when so many looks in a row differ by less than this share of it.
NUM_LOOKS, SETTLED_RATIO, LOOK_INTERVAL_S = 3, 0.1, 10.0
MIN_SAMPLES = 300
SERVICES = ("control", "mosquitto", "postgres", "ray-worker", "ray-head", "agent-small")
WITH_HEALTH_CHECK = ("control", "mosquitto", "postgres", "ray-head")
LOOP_TIMEOUT_S = 600.0
CONVERGE_TIMEOUT_S = 180.0


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

    def exit_codes(self) -> dict[str, int]:
        """Of the containers that ended."""
        ids = self("ps", "-q", "-a").split()
        found = {}
        for item in _docker_json("inspect", *ids) if ids else []:
            if item["State"]["Status"] == "exited":
                found[item["Config"]["Labels"]["com.docker.compose.service"]] = item["State"]["ExitCode"]
        return found


def _ports(*, again: bool) -> dict[str, str]:
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


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def wait(
    what: str, done: Callable[[], bool], timeout_s: float, lacking: Callable[[], str] = lambda: ""
) -> float:
    """Seconds until it held. Ends the test when it does not, with what was ``lacking``."""
    began_s = time.monotonic()
    while not done():
        if time.monotonic() - began_s > timeout_s:
            why = f": {lacking()}" if lacking() else ""
            raise SystemExit(f"FAILED: {what}: not within {timeout_s:.0f} s{why}")
        time.sleep(POLL_S)
    return time.monotonic() - began_s


class Loop:
    """The example's fleet, and what is asked of it."""

    def __init__(self, compose: Compose) -> None:
        self._compose = compose
        self.began_s = time.monotonic()
        # What the last look for it being whole found missing.
        self.lacking = ""

    def profiles(self) -> dict[str, Any]:
        return {item["name"]: item for item in self._compose.listed("get", "profiles") or []}

    def devices(self) -> dict[str, Any]:
        found = self._compose.listed("get", "devices") or []
        return {_id_of(item): item for item in found}

    def serve_first_students(self) -> None:
        compose = self._compose
        compose.edgeloop("info")
        say(f"the cluster is there, {self._elapsed()} after up")
        compose.edgeloop("pause")
        compose.edgeloop("apply", "-f", f"{EXAMPLE}/workload.yaml", "-f", f"{EXAMPLE}/fleet.yaml")
        compose.edgeloop("train", "digits")
        say(f"teacher trained, {self._elapsed()} after up")
        say_cpu()
        for profile, width in FIRST_WIDTHS.items():
            compose.edgeloop("compress", "-p", profile, "--spec", f"road=pruned,width_ratio={width}")
        say(f"first students built, {self._elapsed()} after up")
        say_cpu()
        wait("three devices connected", lambda: self._num_connected() == len(PROFILES), CONVERGE_TIMEOUT_S)
        for profile in PROFILES:
            compose.edgeloop("rollout", "start", "-p", profile)
        wait(
            "first students measured",
            lambda: all(self._is_measured(name) for name in PROFILES),
            LOOP_TIMEOUT_S,
        )

    def close(self) -> tuple[float, str]:
        """Set objectives and let the controller act; p95 and digest of the new student, once it fits."""
        say(f"first students serve and are measured, {self._elapsed()} after up")
        say_cpu()
        first_digest = self.profiles()[SMALL]["current_digest"]
        measured = self._settled()
        objective = round(measured[SMALL] * OBJECTIVE_RATIO, 2)
        say(f"measured with the first students: {measured}; {SMALL} shall do {objective} ms")
        self._apply_objective(objective)
        self._compose.edgeloop("resume")

        def fits() -> bool:
            nonlocal objective
            now = self.profiles().get(SMALL)
            if now is None or not self._is_measured(SMALL) or float(now["measured_p95_ms"]) > objective:
                return False
            if now["current_digest"] == first_digest:
                # A machine that was busy with other things is free again: there is nothing to close yet.
                measured[SMALL] = self._settled()[SMALL]
                objective = round(measured[SMALL] * OBJECTIVE_RATIO, 2)
                say(f"the first student does {measured[SMALL]:.2f} ms now, and shall do {objective} ms")
                self._apply_objective(objective)
                return False
            return now["current_digest"] != ""

        wait(f"{SMALL} meets its objective with a new student", fits, LOOP_TIMEOUT_S)
        after = self.profiles()[SMALL]
        say_cpu()
        say(
            f"loop closed {self._elapsed()} after up: {SMALL} went from {first_digest[:12]} at "
            f"{measured[SMALL]:.2f} ms to {after['current_digest'][:12]} at "
            f"{float(after['measured_p95_ms']):.2f} ms"
        )
        return float(after["measured_p95_ms"]), str(after["current_digest"])

    def _settled(self) -> dict[str, float]:
        """What each profile measures, once the noise of installing and training is out of it.

        An objective made from that noise is met by whatever serves, and nothing would be built.
        """
        began_s, looks = time.monotonic(), list[float]()
        while True:
            now = self.profiles()
            looks = [*looks, float(now[SMALL]["measured_p95_ms"])][-NUM_LOOKS:]
            if len(looks) == NUM_LOOKS and max(looks) - min(looks) <= SETTLED_RATIO * max(looks):
                return {name: float(now[name]["measured_p95_ms"]) for name in PROFILES}
            if time.monotonic() - began_s > LOOP_TIMEOUT_S:
                raise SystemExit(f"FAILED: what {SMALL} measures does not settle: {looks} ms")
            time.sleep(LOOK_INTERVAL_S)

    def state(self) -> dict[str, Any]:
        """What a kill may not change."""
        compose = self._compose
        return {
            "generations": {name: _generation(item) for name, item in self.devices().items()},
            "current": {name: item["current_digest"] for name, item in self.profiles().items()},
            "candidates": sorted(
                item["digest"] + item["profile"] for item in compose.listed("get", "candidates")
            ),
            "rollouts": sorted(item["rollout_id"] for item in compose.listed("get", "rollouts")),
        }

    def is_whole(self, since_s: float) -> bool:
        """Devices connected and heard of since then, what they measure known, the cluster there."""
        self.lacking = self._what_is_lacking(since_s)
        return not self.lacking

    def _what_is_lacking(self, since_s: float) -> str:
        info = self._compose.listed("info")
        if not info:
            return "the control plane does not answer"
        if not info.get("broker_connected"):
            return "the control plane is not connected to the broker"
        if " 2 CPU" not in str(info.get("compute")):
            return f"the cluster is {info.get('compute')!r}"
        devices = self.devices()
        for name, item in devices.items():
            if not item.get("connected"):
                return f"{name} is not connected: docker-compose logs {name}"
            if datetime.fromisoformat(item["last_seen_time"]).timestamp() <= since_s:
                return f"{name} was not heard of since"
        if len(devices) != len(PROFILES):
            return f"devices are {sorted(devices)}"
        thin = [name for name in PROFILES if not self._is_measured(name)]
        if thin:
            return f"fewer than {MIN_SAMPLES} samples of {thin}"
        return "" if self._compose.are_healthy() else "a service is not healthy: docker-compose ps"

    def is_quiet(self) -> bool:
        """No job is left that could bring something new."""
        jobs = self._compose.listed("get", "jobs")
        return jobs is not None and all(
            item["state"] in ("succeeded", "failed", "cancelled") for item in jobs
        )

    def _num_connected(self) -> int:
        return sum(bool(item.get("connected")) for item in self.devices().values())

    def _is_measured(self, name: str) -> bool:
        item = self.profiles().get(name)
        return item is not None and int(item.get("num_samples") or 0) >= MIN_SAMPLES

    def _apply_objective(self, objective_ms: float) -> None:
        text = (ROOT / EXAMPLE / "fleet.yaml").read_text()
        head, _, tail = text.partition("{min_accuracy: 0.9}")
        document = f"{head}{{min_accuracy: 0.9, latency_p95_ms: {objective_ms}}}{tail}"
        target = ROOT / "out" / "compose-test-fleet.yaml"
        target.parent.mkdir(exist_ok=True)
        target.write_text(document)
        self._compose.edgeloop("apply", "-f", "out/compose-test-fleet.yaml")

    def _elapsed(self) -> str:
        return f"{time.monotonic() - self.began_s:.0f} s"


def _id_of(item: dict[str, Any]) -> str:
    return str(item.get("device_id") or item["registration"]["device_id"])


def _generation(item: dict[str, Any]) -> Any:
    return item.get("generation") or item.get("deployment", {}).get("generation")


def kill_each(compose: Compose, loop: Loop, services: tuple[str, ...]) -> None:
    compose.edgeloop("pause")  # so that whatever changes was changed by what is done here
    wait("jobs have ended", loop.is_quiet, LOOP_TIMEOUT_S)
    before = loop.state()
    compose("up", "-d", "--no-build")
    wait("whole after a second up", partial(loop.is_whole, time.time()), CONVERGE_TIMEOUT_S)
    if loop.state() != before:
        raise SystemExit("FAILED: a second up changed something")
    say("a second up changed nothing")
    for service in services:
        compose("kill", service)
        compose("up", "-d", "--no-build")
        whole = partial(loop.is_whole, time.time())
        taken_s = wait(
            f"whole again after kill of {service}", whole, CONVERGE_TIMEOUT_S, lambda: loop.lacking
        )
        after = loop.state()
        if after != before:
            raise SystemExit(f"FAILED: kill of {service} changed the state:\n{before}\n{after}")
        say(f"killed {service}: whole again in {taken_s:.0f} s, same generations, nothing lost")


def look_at_page(port: int) -> None:
    """The fleet's page, from outside: nothing without the token, every profile with it."""

    def key(name: str) -> str:
        command = ["docker", "exec", OPERATOR, "cat", f"/keys/operator/{name}"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    trusting = ssl.create_default_context(cadata=key("ca.crt"))
    proof = base64.b64encode(f"admin:{key('admin.token')}".encode()).decode()

    def get(headers: dict[str, str]) -> tuple[int, str]:
        connection = http.client.HTTPSConnection("localhost", port, timeout=30, context=trusting)
        connection.request("GET", "/", headers=headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, text

    closed, _ = get({})
    code, page = get({"Authorization": f"Basic {proof}"})
    lacking = [name for name in PROFILES if name not in page]
    if (closed, code, lacking) != (401, 200, []):
        raise SystemExit(f"FAILED: the page says {closed} without and {code} with a token; lacks {lacking}")
    say("the fleet's page shows every profile, and nothing without a token")


def build_agent_of(commit: str) -> str:
    """The image of the agent as it was at that commit."""
    image = f"edgeloop-agent:{commit}"
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True)
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        command = ["docker", "build", "-q", "-f", f"{folder}/edge_agent/Dockerfile", "-t", image, folder]
        subprocess.run(command, capture_output=True, check=True)
    return image


def upgrade_agents(compose: Compose, loop: Loop) -> None:
    before = loop.state()
    compose.use_agent("")
    compose("up", "-d", "--no-build")
    taken_s = wait("whole with upgraded agents", partial(loop.is_whole, time.time()), CONVERGE_TIMEOUT_S)
    if loop.state() != before:
        raise SystemExit("FAILED: the upgrade of the agents changed the state")
    say(f"agents upgraded: whole again in {taken_s:.0f} s, same generations, nothing lost")


def figures() -> None:
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


def main() -> int:
    parser = argparse.ArgumentParser(description="Build and run the compose file until the loop has closed.")
    parser.add_argument("--keep", action="store_true", help="leave everything running")
    parser.add_argument("--no-build", action="store_true", help="use the images that are there")
    parser.add_argument("--kill", default=",".join(SERVICES), help="services to kill, separated by commas")
    parser.add_argument(
        "--agent-from", metavar="COMMIT", default="", help="first run the agent of this commit"
    )
    parser.add_argument("--attach", action="store_true", help="to what --keep left: only kill its services")
    options = parser.parse_args()
    ports = _ports(again=options.attach)
    compose = Compose(ports)
    services = tuple(name for name in options.kill.split(",") if name)
    if options.attach:
        kill_each(compose, Loop(compose), services)
        say("PASSED")
        return 0
    compose.stop_operator()
    compose("down", "-v", "--remove-orphans", check=False)
    try:
        if not options.no_build:
            began_s = time.monotonic()
            compose("build", "-q", "init", "agent-small")
            say(f"images built in {time.monotonic() - began_s:.0f} s")
        if options.agent_from:
            compose.use_agent(build_agent_of(options.agent_from))
            say(f"the gateways run the agent of {options.agent_from}")
        loop = Loop(compose)
        compose("up", "-d", "--no-build")
        say(f"up in {time.monotonic() - loop.began_s:.0f} s")
        say_cpu()
        compose.start_operator()
        failed = {name: code for name, code in compose.exit_codes().items() if code}
        if failed:
            raise SystemExit(f"FAILED: ended with an error: {failed}")
        wait(
            "the cluster is there",
            lambda: " 2 CPU" in str((compose.listed("info") or {}).get("compute")),
            120,
        )
        loop.serve_first_students()
        loop.close()
        look_at_page(int(ports[WEB_PORT]))
        figures()
        kill_each(compose, loop, services)
        if options.agent_from:
            upgrade_agents(compose, loop)
        say("PASSED")
    finally:
        if not options.keep:
            compose.stop_operator()
            compose("down", "-v", "--remove-orphans", check=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
