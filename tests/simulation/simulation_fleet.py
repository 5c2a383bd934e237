"""Fifty agents and the rollouts over them in virtual time, with the agents' own update and fetch rules.

Rollouts, reconciling, `edge_agent.update` and `edge_agent.fetch` are the real ones; disks, the broker, the
network and the models' behaviour are simulated. Messages are lost, delayed, doubled and reordered; devices
are partitioned off and crash between saving a state and acting on it; senders trickle, or corrupt what they
send; the broker forgets everything; the controller is killed around every commit. One seed decides it all.

What must never happen is checked after every event, for the device or the tables that the event may have
touched.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from simulation_device import MODELS, Agent, CrashError, Model

from cloud.domain.devices import Deployment, DeploymentState
from cloud.domain.profiles import DeviceProfile, MatchRule, RolloutPlan
from cloud.domain.reconcile import ProfileTarget, reconcile
from cloud.domain.rollout import DeploymentIntent, FleetDevice, Rollout, RolloutState, advance, plan_rollout
from edge_agent import fetch
from edge_agent.update_state import (
    TERMINAL_STATES,
    Slot,
    State,
    StatusNote,
)
from edgeloop import topics

PROFILE = DeviceProfile(
    name="small",
    workload="tiny",
    match=MatchRule(),
    rollout=RolloutPlan(canary_share=0.1, error_threshold=0.5, success_threshold=0.5, timeout_s=1500.0),
)


@dataclass(frozen=True, kw_only=True)
class Faults:
    """Chances, each for one message or one saved state. All end at ``until_s``."""

    drop: float = 0.15
    double: float = 0.15
    max_delay_s: float = 40.0
    corrupt: float = 0.05
    crash_agent: float = 0.01
    crash_controller: float = 0.03
    partition: float = 0.3
    until_s: float = 900.0


class FleetWorld:
    def __init__(self, seed: int, *, num_agents: int = 50, faults: Faults | None = None) -> None:
        self.rng = random.Random(seed)
        self.faults = faults or Faults()
        self.now_s = 0.0
        self.models = {model.digest: model for model in MODELS}
        self._events: list[tuple[float, int, Callable[[], None], Agent | None]] = []
        self._count = 0
        self.retained: dict[str, bytes] = {}
        self.signed: dict[bytes, Slot] = {}
        self.partitioned: set[str] = set()
        self.corrupting: set[str] = set()
        self.trickling: set[str] = set()
        # The database.
        first = MODELS[0]
        self.deployments: dict[str, Deployment] = {}
        self.rollouts: dict[str, Rollout] = {}
        self.target = ProfileTarget(digest=first.digest, manifest_digest=first.manifest_digest, rollout_id="")
        self.device_ids: list[str] = []
        # What only the checks look at.
        self.agents: dict[str, Agent] = {}
        self.generations: dict[str, int] = {}
        self.endings: dict[tuple[str, int], State] = {}
        self.was_good: set[str] = set()
        self.exposed: dict[str, set[str]] = {}
        self.counts = dict.fromkeys(("crash", "controller-crash", "lost", "corrupt", "forgot"), 0)
        for number in range(num_agents):
            self._join(f"gw-{number}")
        for model in self.rng.sample(MODELS[1:], 2):
            self.at(self.rng.uniform(200, 700), lambda model=model: self._roll_out(model))
        for _ in range(3):
            self.at(self.rng.uniform(50, self.faults.until_s), self._misfortune)
        self.at(1.0, self._controller_tick)

    def _join(self, device_id: str) -> None:
        agent = self.agents[device_id] = Agent(self, device_id)
        self.device_ids.append(device_id)
        self.at(self.rng.uniform(0, 30), agent.start, agent)

    # Time and network.

    def at(self, time_s: float, run: Callable[[], None], agent: Agent | None = None) -> None:
        self._count += 1
        heapq.heappush(self._events, (time_s, self._count, run, agent))

    def run_until(self, time_s: float) -> None:
        while self._events and self._events[0][0] <= time_s:
            self.now_s, _, run, agent = heapq.heappop(self._events)
            run()
            if agent is not None:
                self.check_agent(agent)
        self.now_s = time_s
        for agent in self.agents.values():
            self.check_agent(agent)

    @property
    def is_faulty(self) -> bool:
        return self.now_s < self.faults.until_s

    def send(self, device_id: str, deliver: Callable[[], None], agent: Agent | None = None) -> None:
        """Lost, once or twice, now or later, and so in any order."""
        faults, rng = self.faults, self.rng
        copies, longest_s = 1, 1.0
        if self.is_faulty:
            if device_id in self.partitioned or rng.random() < faults.drop:
                self.counts["lost"] += 1
                return
            copies += rng.random() < faults.double
            longest_s = faults.max_delay_s * (5 if device_id in self.trickling else 1)
        for _ in range(copies):
            self.at(self.now_s + rng.uniform(0.1, longest_s), deliver, agent)

    def deliver_retained(self, agent: Agent, topic: str) -> None:
        payload = self.retained.get(topic)
        if payload is None:
            return
        is_content = not topic.endswith("/deployment")
        is_bad = agent.device_id in self.corrupting or self.rng.random() < self.faults.corrupt
        if self.is_faulty and is_content and is_bad:
            self.counts["corrupt"] += 1
            payload = bytes([payload[0] ^ 1]) + payload[1:]
        self.send(agent.device_id, lambda: agent.on_message(topic, payload), agent)

    def put(self, topic: str, payload: bytes) -> None:
        """Retained, and to whoever listens now."""
        self.retained[topic] = payload
        for agent in self.agents.values():
            if topic in agent.subscribed:
                self.deliver_retained(agent, topic)

    def request(self, slot: Slot, request: fetch.Request) -> None:
        def answer() -> None:
            model = self.models[slot.digest]
            if request.manifest:
                self.put(topics.manifest(model.manifest_digest), model.raw)
            for n in request.blocks:
                self.put(topics.block(model.digest, n), model.blocks[n])

        self.send("", answer)

    def may_crash_agent(self) -> None:
        if self.is_faulty and self.rng.random() < self.faults.crash_agent:
            self.counts["crash"] += 1
            raise CrashError

    def _misfortune(self) -> None:
        """A part of the fleet falls off, meets a bad sender, or the broker comes back empty."""
        some = set(self.rng.sample(self.device_ids, len(self.device_ids) // 5))
        kind = self.rng.choice(("partition", "corrupt", "trickle", "forget"))
        if kind == "forget":
            self.retained.clear()
            self.counts["forgot"] += 1
            return
        group = {"partition": self.partitioned, "corrupt": self.corrupting, "trickle": self.trickling}[kind]
        group |= some
        self.at(self.now_s + self.rng.uniform(20, 200), lambda: group.difference_update(some))

    # The cloud.

    def spool(self, device_id: str, note: StatusNote) -> None:
        """At least once, until the cloud has it."""

        def receive() -> None:
            self._record(device_id, note)
            heard.append(True)

        def again() -> None:
            if not heard:
                self.send(device_id, receive)
                self.at(self.now_s + 60.0, again)

        heard: list[bool] = []
        again()

    def _record(self, device_id: str, note: StatusNote) -> None:
        if note.state in TERMINAL_STATES:
            first = self.endings.setdefault((device_id, note.generation), note.state)
            assert first is note.state, f"{device_id} ended generation {note.generation} twice"
        told = self.deployments.get(device_id)
        if told is not None and told.generation == note.generation and not told.state.terminal:
            self.deployments[device_id] = replace(
                told, state=DeploymentState(note.state.value), code=note.code
            )

    def _fleet(self) -> list[FleetDevice]:
        return [
            FleetDevice(
                device_id=device_id,
                profile="small",
                connected=True,
                deployment=self.deployments.get(device_id),
            )
            for device_id in self.device_ids
        ]

    def _roll_out(self, model: Model) -> None:
        if any(not rollout.state.is_terminal for rollout in self.rollouts.values()):
            self.at(self.now_s + 100.0, lambda: self._roll_out(model))
            return
        rollout = plan_rollout(
            rollout_id=f"r{len(self.rollouts)}",
            profile=PROFILE,
            digest=model.digest,
            manifest_digest=model.manifest_digest,
            previous_digest=self.target.digest,
            previous_manifest_digest=self.target.manifest_digest,
            devices=self._fleet(),
            now_s=self.now_s,
        )
        self.rollouts[rollout.rollout_id] = rollout

    def _controller_tick(self) -> None:
        self.at(self.now_s + 15.0, self._controller_tick)
        try:
            for rollout_id, rollout in list(self.rollouts.items()):
                after, intents = advance(rollout, self._fleet(), self.now_s)
                self._may_crash_controller()
                # One transaction.
                self.rollouts[rollout_id] = after
                if after.state is RolloutState.SUCCEEDED and not rollout.state.is_terminal:
                    self.target = ProfileTarget(
                        digest=after.digest, manifest_digest=after.manifest_digest, rollout_id=rollout_id
                    )
                self._issue(intents)
                self._may_crash_controller()
            self._issue(
                reconcile(
                    profiles=[PROFILE],
                    devices=self._fleet(),
                    rollouts=list(self.rollouts.values()),
                    targets={"small": self.target},
                )
            )
            self._may_crash_controller()
            self._publish()
        except CrashError:
            self.counts["controller-crash"] += 1

    def _may_crash_controller(self) -> None:
        if self.is_faulty and self.rng.random() < self.faults.crash_controller:
            raise CrashError

    def _issue(self, intents: list[DeploymentIntent]) -> None:
        for intent in intents:
            before = self.deployments.get(intent.device_id)
            generation = before.generation + 1 if before else 1
            if before is not None:
                asked = (before.rollout_id, before.digest)
                assert asked != (intent.rollout_id, intent.digest), "a second generation for one decision"
            self.deployments[intent.device_id] = Deployment(
                device_id=intent.device_id,
                workload=intent.workload,
                profile=intent.profile,
                generation=generation,
                digest=intent.digest,
                manifest_digest=intent.manifest_digest,
                rollout_id=intent.rollout_id,
                decision_id=intent.decision_id,
            )

    def _publish(self) -> None:
        for digest in sorted({told.digest for told in self.deployments.values()}):
            model = self.models[digest]
            topic = topics.manifest(model.manifest_digest)
            if topic not in self.retained:
                for n, block in enumerate(model.blocks):
                    self.put(topics.block(digest, n), block)
                self.put(topic, model.raw)
        for device_id, told in self.deployments.items():
            payload = hashlib.sha256(f"{device_id} {told.generation} {told.digest}".encode()).digest()
            if self.retained.get(topics.deployment(device_id)) != payload:
                self.signed[payload] = Slot(
                    generation=told.generation,
                    digest=told.digest,
                    manifest_digest=told.manifest_digest,
                    workload="tiny",
                    profile="small",
                    signed=payload,
                )
                self.put(topics.deployment(device_id), payload)
            elif told.state is DeploymentState.PENDING:
                # The broker holds it; a device that lost the message hears it when it connects again.
                self.deliver_retained(self.agents[device_id], topics.deployment(device_id))

    # What must never happen.

    def check_agent(self, agent: Agent) -> None:
        name, state = agent.device_id, agent.disk.state
        assert state.generation >= self.generations.get(name, 0), "a generation went down"
        self.generations[name] = state.generation
        _, serving = agent.serving
        assert not serving or serving in agent.verified, "bytes were served that were not verified"
        if state.committed is not None:
            self.was_good.add(name)
            assert not self.models[state.committed.digest].ill, "an ill model was committed"
            assert state.committed.digest in agent.disk.artifacts, "the good model's bytes are gone"
        assert state.committed is not None or name not in self.was_good, "a good model was lost"
        if agent.up and name in self.was_good:
            assert serving, "a device that had a good model serves none"
        if serving and self.models[serving].ill:
            self.exposed.setdefault(serving, set()).add(name)
        assert len(agent.disk.artifacts) <= 3, "old artifacts leak"

    def check_rested(self) -> None:
        """After the faults: everybody runs what was decided, and no ill model got past its canaries."""
        num_right = 0
        for name, agent in self.agents.items():
            assert agent.up, name
            told = self.deployments[name]
            assert agent.disk.state.generation == told.generation, f"{name} was forgotten"
            # What was accepted has ended, once, and the cloud knows how.
            ending = self.endings.get((name, told.generation))
            assert ending is not None, f"the cloud does not know how {name} ended"
            if ending is State.ACTIVE:
                assert agent.serving[1] == told.digest == self.target.digest, f"{name} is elsewhere"
                num_right += 1
            else:
                # A corrupting sender, or crashes that looked like a loop: it kept what it had.
                committed = agent.disk.state.committed
                assert agent.serving[1] == (committed.digest if committed else ""), name
        assert num_right > len(self.agents) / 2
        assert all(rollout.state.is_terminal for rollout in self.rollouts.values())
        canaries = max(1, len(self.agents) // 10)
        for digest, names in self.exposed.items():
            assert len(names) <= canaries, f"{len(names)} devices saw {self.models[digest].ill}"
