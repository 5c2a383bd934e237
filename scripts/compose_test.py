"""``make compose-test``: the compose file, built and run for real, until the loop closed; then services die.

What it shows, each with a figure:

- ``up`` on built images starts everything, and a second ``up`` changes nothing;
- a gateway that misses its objective, since it has little processor time, meets it with a new student;
- after ``kill`` and ``up`` of each service the system is as it was: same generations, nothing lost, devices
  connected, reports counted, the cluster ready to build; and the control plane's container was restarted by
  no kill but its own.

With ``--agent-from COMMIT`` the gateways run the agent as it was at that commit until all of that has passed;
then they are upgraded to this one, which may change nothing either.

It needs an engine and docker-compose (or ``docker compose``), and takes 10 to 20 minutes on two cores. It
uses a project name and ports of its own, and removes what it made; with --keep all of it stays for a look.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import ssl
import subprocess
import sys
import time
from functools import partial

from compose_loop import CONVERGE_TIMEOUT_S, LOOP_TIMEOUT_S, PROFILES, Loop, wait
from compose_stack import (
    OPERATOR,
    WEB_PORT,
    Compose,
    build_agent_of,
    choose_ports,
    say,
    say_cpu,
    say_figures,
)

#: What the control plane logs of each driver that has Ray (cloud.jobs.remote).
JOINED = "driven by process"
SERVICES = ("control", "mosquitto", "postgres", "ray-worker", "ray-head", "agent-small")


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
        control, killed_s = compose.start_of("control"), time.time()
        compose("kill", service)
        compose("up", "-d", "--no-build")
        whole, taken_s = partial(loop.is_whole, time.time()), 0.0
        if service == "ray-head":  # until that is noticed, the control plane goes by what it knew before
            rejoined = partial(has_joined_ray, compose, killed_s)
            taken_s = wait("the control plane joins the new head", rejoined, CONVERGE_TIMEOUT_S)
        taken_s += wait(
            f"whole again after kill of {service}", whole, CONVERGE_TIMEOUT_S, lambda: loop.lacking
        )
        if service != "control" and (now := compose.start_of("control")) != control:
            raise SystemExit(f"FAILED: kill of {service} restarted the control plane: {control}; now {now}")
        after = loop.state()
        if after != before:
            raise SystemExit(f"FAILED: kill of {service} changed the state:\n{before}\n{after}")
        say(f"killed {service}: whole again in {taken_s:.0f} s, same generations, nothing lost")


def has_joined_ray(compose: Compose, since_s: float) -> bool:
    """Whether the control plane got a driver with Ray behind it since then."""
    return JOINED in compose.log_since("control", since_s)


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


def upgrade_agents(compose: Compose, loop: Loop) -> None:
    before = loop.state()
    compose.use_agent("")
    compose("up", "-d", "--no-build")
    taken_s = wait("whole with upgraded agents", partial(loop.is_whole, time.time()), CONVERGE_TIMEOUT_S)
    if loop.state() != before:
        raise SystemExit("FAILED: the upgrade of the agents changed the state")
    say(f"agents upgraded: whole again in {taken_s:.0f} s, same generations, nothing lost")


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
    ports = choose_ports(again=options.attach)
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
        say_figures()
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
