"""A fleet and its control plane in virtual time, over a network that loses, delays, doubles and reorders.

The policy, rollouts and reconciling are the real ones. The store is a dict of values that survives a crash of
the controller; all else that the controller has, a crash takes. Devices are models of an agent: they obey the
newest generation that they have seen, keep what they accepted over a restart, and go on reporting until they
are heard.

One seed decides everything. ``simulation_invariants`` holds what must never happen against every event.
"""

from __future__ import annotations

import copy
import heapq
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from simulation_agent import Agent, Crash, Faults
from simulation_invariants import check, read
from simulation_student import WORKLOAD, Shape, student

from cloud.domain import codec
from cloud.domain.candidates import Candidate
from cloud.domain.decisions import Action, Decision
from cloud.domain.devices import Deployment, DeploymentState
from cloud.domain.evidence import Window
from cloud.domain.policy import PolicySettings, PolicyState, decide, replay
from cloud.domain.profiles import Constraints, DeviceProfile, MatchRule, RolloutPlan
from cloud.domain.reconcile import ProfileTarget, reconcile
from cloud.domain.rollout import (
    DeploymentIntent,
    FleetDevice,
    Rollout,
    RolloutDeviceState,
    RolloutState,
    advance,
    plan_rollout,
    running_group,
)
from cloud.domain.specs import CompressionSpec
from cloud.domain.workloads import SearchBudget
from cloud.rollout_evidence import group_evidence

WINDOW_S = 60.0
SETTINGS = PolicySettings(
    min_samples=100,
    min_windows=2,
    num_miss_windows=2,
    num_slack_windows=3,
    max_windows_per_device=4,
    cool_down_s=60.0,
    max_age_s=600.0,
    num_resamples=20,
)
SEARCH = SearchBudget(max_trials=4)
PLAN = RolloutPlan(canary_share=0.5, timeout_s=600.0)


class World:
    """``step`` runs the next event; ``run_until`` runs them up to a time and checks after each."""

    def __init__(self, seed: int, *, faults: Faults | None = None) -> None:
        self.rng = random.Random(seed)
        self.faults = faults or Faults()
        self.now_s = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self.profiles: dict[str, DeviceProfile] = {}
        self.agents: dict[str, Agent] = {}
        self.broken: set[str] = set()
        self.truth: dict[str, Candidate] = {}
        # What survives the controller.
        self.store: dict[str, Any] = {
            "deployments": {},
            "devices": {},
            "windows": {},
            "targets": {},
            "rollouts": {},
            "states": {},
            "candidates": {},
            "jobs": {},
            "number": 0,
        }
        # What only the tests look at.
        self.issued: dict[str, list[Deployment]] = {}
        self.decisions: list[Decision] = []
        self.ended: dict[tuple[str, str], RolloutDeviceState] = {}
        self.num_crashes = 0
        self.checked: dict[str, str] = {}

    # Setting up.

    def add_profile(
        self, name: str, *, widths: tuple[float, ...], serving: float, objective: Callable[[float], float],
        num_devices: int = 2,
    ) -> None:  # fmt: skip
        """``objective`` gets the width's p95 function's value for width 1 and gives the objective."""
        slowdown = self.rng.uniform(2.0, 20.0)
        made = {width: student(name, CompressionSpec(width_ratio=width)) for width in widths}
        for candidate in made.values():
            self.truth[candidate.digest] = candidate
            self.store["candidates"][candidate.digest] = codec.to_json(candidate)
        self.profiles[name] = DeviceProfile(
            name=name,
            workload=WORKLOAD,
            match=MatchRule(),
            constraints=Constraints(latency_p95_ms=objective(slowdown)),
            rollout=PLAN,
        )
        current = made[serving]
        self.store["targets"][name] = codec.to_json(
            ProfileTarget(digest=current.digest, manifest_digest=current.manifest_digest, rollout_id="r0")
        )
        for i in range(num_devices):
            self.join(f"{name}-{i}", name, slowdown, at_s=self.rng.uniform(0, 30))

    def join(self, device_id: str, profile: str, slowdown: float, *, at_s: float) -> None:
        agent = Agent(device_id=device_id, profile=profile, slowdown=slowdown)

        def start() -> None:
            self.agents[device_id] = agent
            self.store["devices"][device_id] = profile
            self._agent_tick(agent)

        self.at(at_s, start)

    def start_controller(self) -> None:
        self.at(self.now_s + 1.0, self._controller_tick)

    # Time and network.

    def at(self, time_s: float, run: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (time_s, self._count, run))

    @property
    def is_faulty(self) -> bool:
        return self.now_s < self.faults.until_s

    def send(self, deliver: Callable[[], None]) -> None:
        """Lost, once or twice, now or later."""
        faults = self.faults
        if self.is_faulty and self.rng.random() < faults.drop:
            return
        for _ in range(2 if self.is_faulty and self.rng.random() < faults.double else 1):
            delay_s = self.rng.uniform(0.1, faults.max_delay_s if self.is_faulty else 1.0)
            self.at(self.now_s + delay_s, deliver)

    def run_until(self, time_s: float) -> None:
        while self._events and self._events[0][0] <= time_s:
            self.now_s, _, run = heapq.heappop(self._events)
            before = {name: dict(agent.kept) for name, agent in self.agents.items()}
            run()
            check(self, before)
        self.now_s = time_s

    # Devices.

    def p95_ms(self, agent: Agent, digest: str) -> float:
        return self.truth[digest].metrics.latency_p50_ms * agent.slowdown

    def _agent_tick(self, agent: Agent) -> None:
        self.at(self.now_s + WINDOW_S, lambda: self._agent_tick(agent))
        if self.is_faulty and self.rng.random() < self.faults.crash_agent:
            agent.boot += 1
            agent.sequence = 0
        kept = agent.kept
        if kept["serving"]:
            agent.sequence += 1
            p95_ms = self.p95_ms(agent, kept["serving"]) * self.rng.uniform(0.97, 1.03)
            agent.spool[f"boot-{agent.boot}", agent.sequence] = Window(
                device_id=agent.device_id,
                boot_id=f"boot-{agent.boot}",
                sequence=agent.sequence,
                digest=kept["serving"],
                generation=kept["generation"],
                workload=WORKLOAD,
                start_s=self.now_s - WINDOW_S,
                end_s=self.now_s,
                latency=Shape(p95_ms),
                reference=Shape(0.2),
            )
        self._agent_works(agent)
        self._agent_reports(agent)

    def _agent_works(self, agent: Agent) -> None:
        """One stage of the update at a time, so that a crash finds it in any of them."""
        kept = agent.kept
        if kept["state"] == DeploymentState.FETCHING:
            kept["state"] = DeploymentState.TESTING
        elif kept["state"] == DeploymentState.TESTING:
            if kept["digest"] in self.broken:
                kept["state"] = DeploymentState.REJECTED
            else:
                kept["serving"] = kept["digest"]
                kept["state"] = DeploymentState.ACTIVE

    def _agent_reports(self, agent: Agent) -> None:
        status = dict(agent.kept)
        self.send(lambda: self._receive_status(agent.device_id, status))
        for key, window in list(agent.spool.items()):
            self.send(lambda key=key, window=window: self._receive_window(agent, key, window))

    def _receive_deployment(self, agent: Agent, told: Deployment) -> None:
        if told.generation > agent.kept["generation"]:
            agent.kept |= {"generation": told.generation, "digest": told.digest}
            is_there = told.digest == agent.kept["serving"]
            agent.kept["state"] = DeploymentState.ACTIVE if is_there else DeploymentState.FETCHING

    # The receiving side of the control plane: commits, then acknowledges.

    def _receive_status(self, device_id: str, status: dict[str, Any]) -> None:
        told: Deployment | None = self.store["deployments"].get(device_id)
        if told is None or not status["state"]:
            return
        if told.generation == status["generation"] and not told.state.terminal:
            self.store["deployments"][device_id] = replace(told, state=status["state"])

    def _receive_window(self, agent: Agent, key: tuple[str, int], window: Window) -> None:
        self.store["windows"].setdefault((agent.device_id, *key), window)
        self.send(lambda: agent.spool.pop(key, None) and None)

    # The controller: nothing of it outlives a tick but the store.

    def _controller_tick(self) -> None:
        self.at(self.now_s + 45.0, self._controller_tick)
        self._finish_jobs()
        try:
            for name in sorted(self.profiles):
                self._transaction(lambda store, name=name: self._decide(store, self.profiles[name]))
            for rollout_id in sorted(self.store["rollouts"]):
                self._transaction(lambda store, rollout_id=rollout_id: self._advance(store, rollout_id))
            self._transaction(self._reconcile)
            self._publish()
        except Crash:
            self.num_crashes += 1

    def _transaction(self, change: Callable[[dict[str, Any]], None]) -> None:
        """All of it or nothing, whenever the kill comes."""
        draft = {key: copy.copy(value) for key, value in self.store.items()}
        change(draft)
        self._may_crash()
        self.store = draft
        self._may_crash()

    def _may_crash(self) -> None:
        if self.is_faulty and self.rng.random() < self.faults.crash_controller / 10:
            raise Crash

    def _fleet(self, store: dict[str, Any]) -> list[FleetDevice]:
        return [
            FleetDevice(
                device_id=device_id,
                profile=profile,
                connected=True,
                deployment=store["deployments"].get(device_id),
            )
            for device_id, profile in sorted(store["devices"].items())
        ]

    def _target(self, store: dict[str, Any], name: str) -> ProfileTarget:
        return read(ProfileTarget, store["targets"][name])

    def _windows(self, store: dict[str, Any], name: str) -> list[Window]:
        since_s = self.now_s - SETTINGS.max_age_s
        return [
            window
            for window in store["windows"].values()
            if window.end_s >= since_s and store["devices"][window.device_id] == name
        ]

    def _decide(self, store: dict[str, Any], profile: DeviceProfile) -> None:
        name = profile.name
        busy = ""
        if any(
            rollout.profile == name and not rollout.state.is_terminal
            for rollout in (read(Rollout, text) for text in store["rollouts"].values())
        ):
            busy = "a rollout is running"
        if name in store["jobs"]:
            busy = "a job is building students"
        target = self._target(store, name)
        inputs: dict[str, Any] = {
            "profile": profile,
            "candidates": [read(Candidate, text) for text in store["candidates"].values()],
            "current_digest": target.digest,
            "state": PolicyState.from_json(store["states"].get(name, PolicyState().to_json())),
            "busy": busy,
            "now_s": self.now_s,
            "settings": SETTINGS,
            "search": SEARCH,
        }
        windows = self._windows(store, name)
        decision, state = decide(windows=windows, **inputs)
        if len(self.decisions) % 7 == 0:
            doubled = windows * 2
            self.rng.shuffle(doubled)
            assert decide(windows=doubled, **inputs) == (decision, state)
            assert replay(decision.inputs) == decision
        store["states"][name] = state.to_json()
        if decision.action is Action.BUILD:
            store["jobs"][name] = (self.now_s + self.rng.uniform(10, 120), decision.specs)
        if decision.starts_rollout:
            store["number"] += 1
            chosen = read(Candidate, store["candidates"][decision.chosen_digest])
            rollout = plan_rollout(
                rollout_id=f"r{store['number']}",
                profile=profile,
                digest=chosen.digest,
                manifest_digest=chosen.manifest_digest,
                previous_digest=target.digest,
                previous_manifest_digest=target.manifest_digest,
                devices=self._fleet(store),
                now_s=self.now_s,
                decision_id=f"d{store['number']}",
            )
            store["rollouts"][rollout.rollout_id] = codec.to_json(rollout)
        self.decisions.append(decision)

    def _advance(self, store: dict[str, Any], rollout_id: str) -> None:
        rollout = read(Rollout, store["rollouts"][rollout_id])
        if rollout.state.is_terminal:
            return
        profile = self.profiles[rollout.profile]
        group = running_group(rollout)
        evidence = None
        if group is not None:
            evidence = group_evidence(
                rollout,
                group,
                profile=profile,
                windows=self._windows(store, profile.name),
                state=PolicyState.from_json(store["states"][profile.name]),
                settings=SETTINGS,
                now_s=self.now_s,
            )
        after, intents = advance(rollout, self._fleet(store), self.now_s, evidence=evidence)
        store["rollouts"][rollout_id] = codec.to_json(after)
        if after.state is RolloutState.SUCCEEDED:
            store["targets"][profile.name] = codec.to_json(
                ProfileTarget(
                    digest=after.digest,
                    manifest_digest=after.manifest_digest,
                    rollout_id=after.rollout_id,
                    decision_id=after.decision_id,
                )
            )
        self._issue(store, intents)

    def _reconcile(self, store: dict[str, Any]) -> None:
        intents = reconcile(
            profiles=self.profiles.values(),
            devices=self._fleet(store),
            rollouts=[read(Rollout, text) for text in store["rollouts"].values()],
            targets={name: self._target(store, name) for name in self.profiles},
        )
        self._issue(store, intents)

    def _issue(self, store: dict[str, Any], intents: list[DeploymentIntent]) -> None:
        for intent in intents:
            before: Deployment | None = store["deployments"].get(intent.device_id)
            store["deployments"][intent.device_id] = Deployment(
                device_id=intent.device_id,
                workload=intent.workload,
                profile=intent.profile,
                generation=before.generation + 1 if before else 1,
                digest=intent.digest,
                manifest_digest=intent.manifest_digest,
                rollout_id=intent.rollout_id,
                decision_id=intent.decision_id,
            )

    def _publish(self) -> None:
        for device in self._fleet(self.store):
            self._may_crash()
            agent, told = self.agents[device.device_id], device.deployment
            if told is not None:
                self.send(lambda agent=agent, told=told: self._receive_deployment(agent, told))

    def _finish_jobs(self) -> None:
        """The cluster is a process of its own: it delivers whether the controller lives or not."""
        for name, (end_s, specs) in list(self.store["jobs"].items()):
            if end_s <= self.now_s:
                for spec in specs:
                    made = student(name, spec)
                    self.truth[made.digest] = made
                    self.store["candidates"][made.digest] = codec.to_json(made)
                del self.store["jobs"][name]
