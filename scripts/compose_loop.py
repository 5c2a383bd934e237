"""The example's fleet in the compose test: brought to where its loop closes, asked whether it is whole."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from compose_stack import ROOT, Compose, say, say_cpu

POLL_S = 2.0
EXAMPLE = "examples/gateways"
SMALL = "gateway-small"
PROFILES = (SMALL, "gateway-medium", "gateway-large")
#: What is served first: the small gateway gets the teacher's own width, which is too much for it.
FIRST_WIDTHS = {SMALL: 1.0, "gateway-medium": 0.25, "gateway-large": 0.5}
#: The objective of the small gateway, as a share of what it measured with its first student.
OBJECTIVE_RATIO = 0.6
#: A figure has settled when so many looks in a row differ by less than this share of it.
NUM_LOOKS, SETTLED_RATIO, LOOK_INTERVAL_S = 3, 0.1, 10.0
MIN_SAMPLES = 300
LOOP_TIMEOUT_S = 600.0
CONVERGE_TIMEOUT_S = 180.0


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
            return bool(now["current_digest"])

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
