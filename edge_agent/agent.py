"""The agent: one thread that owns all state, and an inbox that everything else posts to.

Rules:
- MQTT, gRPC, self-test and signal handlers only post; nothing but the owner thread changes state.
- Serving comes first: the committed model answers before any network library is even imported, and goes on
  when broker and cloud are away. It needs no write to the disk: a report that cannot be kept is counted.
- A message that makes a handler fail in an unforeseen way is logged and costs nothing else.
- A stop ends cleanly and soon: open windows go to the spool, and the next start is told that this was no
  crash.
"""

import gc
import logging
import random
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue

from edge_agent.blobs import BlobStore
from edge_agent.config import AgentConfig
from edge_agent.inbox import (
    BrokerChanged,
    MessageReceived,
    Post,
    Registered,
    SelfTestEnded,
    StopAsked,
    WirePort,
)
from edge_agent.known_time import KnownTime
from edge_agent.network import Network
from edge_agent.orders import Orders
from edge_agent.postbox import Postbox
from edge_agent.release_gate import Gate, gate_for
from edge_agent.self_test_bench import SelfTestBench
from edge_agent.sensors.wiring import Sensors
from edge_agent.served_workload import ServedWorkload
from edge_agent.serving.local_api import LocalApi
from edge_agent.sources import ReplaySource, load_replay
from edge_agent.spool import ReportSpool
from edge_agent.status_board import StatusBoard, agent_version
from edge_agent.supervisor import Supervisor
from edge_agent.update_state import State, StatusNote
from edge_agent.workload_set import WorkloadSet, state_folders
from edge_agent.workload_settings import WorkloadSettings
from edgeloop import topics
from edgeloop.errors import TransientError
from edgeloop.v1 import device_pb2, fleet_service_pb2

logger = logging.getLogger(__name__)

DEFAULT_REPORT_INTERVAL_S = 30.0
PROGRESS_INTERVAL_S = 2.0
MAX_WAIT_S = 1.0
COMPLAIN_INTERVAL_S = 10.0
# What the server says is taken only within these.
MIN_SERVER_INTERVAL_S, MAX_SERVER_INTERVAL_S = 1.0, 86_400.0


class Agent:
    """`run` until `stop` is called or posted; then everything that was started has ended."""

    def __init__(
        self,
        config: AgentConfig,
        *,
        supervisor: Supervisor | None = None,
        # The settings, read anew; asked only where `config` lacks what enrolment told.
        reload: Callable[[], AgentConfig] | None = None,
    ) -> None:
        self._config = config
        self._supervisor = supervisor or Supervisor({})
        self._start_s = time.time()
        self._boot_id = uuid.uuid4().hex
        self._rng = random.Random()
        self._inbox: SimpleQueue[Post] = SimpleQueue()
        self._interval_s = config.report_interval_s or DEFAULT_REPORT_INTERVAL_S
        self._replay_inputs = load_replay(config.replay) if config.replay else None
        self._time = KnownTime(config.state_dir)
        self._network = Network(
            config,
            self._inbox,
            reload=reload or (lambda: config),
            on_config=self._use_enrolment,
            rng=self._rng,
        )
        self._spool = ReportSpool(
            config.state_dir / "spool.db", boot_id=self._boot_id, max_bytes=config.spool_quota_bytes
        )
        self._postbox = Postbox(config, self._spool, wake=self._network.wake)
        self._bench = SelfTestBench()
        self._workloads = WorkloadSet(config.device_id)
        self._orders = Orders(
            config, self._workloads, known_time=self._time, on_refused=self._postbox.refused
        )
        blobs = BlobStore(
            config.state_dir / "blobs",
            reserve_bytes=config.reserve_bytes,
            quota_bytes=config.blob_quota_bytes,
        )
        for settings, folder in state_folders(config):
            self._add_workload(settings, folder, blobs)
        engines = {workload.name: workload.engine for workload in self._workloads}
        self._sensors = Sensors(config, engines)
        self._api = LocalApi(
            config,
            engines,
            status=lambda: self._board.last,
            more_metrics=self._sensors.render,
        )
        self._board = StatusBoard(
            config,
            boot_id=self._boot_id,
            start_s=self._start_s,
            workloads=self._workloads,
            network=self._network,
            spool=self._spool,
            sensors=self._sensors,
            api=self._api,
        )
        self._source: ReplaySource | None = None
        self._num_failures = 0
        self._complain_at_s = 0.0
        self._registered_as: list[tuple[int, str]] = [(0, "")]
        self._progress_at_s = 0.0

    def _add_workload(self, settings: WorkloadSettings | None, folder: Path, blobs: BlobStore) -> None:
        wire = self._network.wire.port()
        name = settings.name if settings else ""
        workload = ServedWorkload(
            self._config,
            settings=settings,
            state_dir=folder,
            blobs=blobs,
            wire=wire,
            post=self._inbox.put,
            deliver=self._postbox.deliver,
            on_ignored=lambda ignored: self._orders.on_ignored(ignored, name),
            kept_elsewhere=lambda: self._workloads.kept_but(workload),
            begin_test=self._bench.begin,
            gate=lambda: self._gate(wire, name),
            window_s=self._interval_s,
            rng=self._rng,
        )
        self._workloads.add(workload)

    def _gate(self, wire: WirePort, name: str) -> Gate | None:
        return gate_for(
            self._config,
            wire=wire,
            known_time=self._time,
            on_trouble=lambda trouble: self._orders.on_ignored(trouble, name),
            rng=self._rng,
        )

    # --- any thread ---------------------------------------------------------------------------------

    def stop(self, reason: str) -> None:
        """Safe in a signal handler."""
        self._inbox.put(StopAsked(reason=reason))

    # --- owner thread -------------------------------------------------------------------------------

    def run(self) -> None:
        logger.info(
            "agent starts device=%s boot=%s state_dir=%s",
            self._config.device_id,
            self._boot_id,
            self._config.state_dir,
        )
        if self._config.tuf_root is None and not self._config.enrolment_problem:
            logger.warning(
                "no TUF root is configured (tuf_root): what the director signs runs, released or not"
            )
        try:
            self._start()
            self._loop()
        finally:
            self._close()

    def _start(self) -> None:
        for workload in self._workloads:
            workload.start()
        if self._replay_inputs is not None:
            self._source = ReplaySource(
                self._replay_inputs, rate_hz=self._config.rate_hz, submit=self._workloads.first.engine.submit
            )
            self._source.start()
        self._board.write()
        # Before the network: an application on this gateway waits for nothing that is elsewhere.
        self._api.start(time.monotonic())
        self._board.write()
        self._supervisor.ready(self._describe())
        self._spool.open()
        self._sensors.start()
        self._connect(time.monotonic())
        # All that was imported until now stays. To look through it for garbage takes some 25 ms of processor,
        # for which every thread waits, and with it every request.
        gc.freeze()
        gc.enable()

    def _connect(self, now_s: float) -> None:
        self._network.connect(self._spool, self._registration, self._workloads.topics, now_s)

    def _use_enrolment(self, config: AgentConfig) -> None:
        """What enrolment told reads again; nothing is connected yet."""
        self._config = config
        self._orders.use(config)
        for workload in self._workloads:
            workload.renew_gate()
        logger.info("what enrolment told reads again server=%s broker=%s", config.server, config.broker)

    def _loop(self) -> None:
        while True:
            try:
                post = self._inbox.get(timeout=self._wait_s())
            except Empty:
                post = None
            if isinstance(post, StopAsked):
                logger.info("agent stops reason=%s", post.reason)
                return
            try:
                if post is not None:
                    self._handle(post)
                self._tick()
                self._supervisor.alive(self._describe())
            except Exception:  # noqa: BLE001 - it is logged, if not each time
                # Whatever one message or tick ran into, the model goes on serving.
                self._complain()

    def _complain(self) -> None:
        """What fails at each tick would fill the disk with the same words."""
        self._num_failures += 1
        if time.monotonic() >= self._complain_at_s:
            self._complain_at_s = time.monotonic() + COMPLAIN_INTERVAL_S
            logger.exception("unforeseen failure, number %d since the start; going on", self._num_failures)

    def _describe(self) -> str:
        return "; ".join(workload.describe() for workload in self._workloads)

    def _wait_s(self) -> float:
        now_s = time.monotonic()
        wait_s = min(MAX_WAIT_S, self._interval_s / 4, self._supervisor.interval_s or MAX_WAIT_S)
        for workload in self._workloads:
            if workload.updater.deadline_s is not None:
                wait_s = min(wait_s, workload.updater.deadline_s - now_s)
        return max(wait_s, 0.01)

    def _handle(self, post: Post) -> None:
        match post:
            case MessageReceived(topic=topic, payload=payload):
                self._network.wire.taken(payload)
                if topic in self._workloads.topics:
                    self._orders.on_deployment(topic, payload)
                elif topic == topics.DIRECTOR_KEYS:
                    self._orders.on_director_keys(payload)
                else:
                    self._on_content(topic, payload)
            case BrokerChanged(connected=connected):
                self._board.broker_connected = connected
                for workload in self._workloads:
                    workload.updater.on_broker(connected)
                if connected:
                    self._network.wire.publish(
                        topics.presence(self._config.device_id), topics.ONLINE, retain=True
                    )
            case SelfTestEnded(process=process, result=result):
                self._bench.ended(process)
                for workload in self._workloads:
                    workload.updater.on_self_test(process, result)
            case Registered(response=response):
                self._on_registered(response)

    def _on_content(self, topic: str, payload: bytes) -> None:
        """A manifest or a block; a device with one workload counts strange ones against its fetch as well."""
        for workload in self._workloads:
            if not workload.name or workload.updater.concerns(topic):
                workload.updater.on_message(topic, payload)

    def _on_registered(self, response: fleet_service_pb2.RegisterResponse) -> None:
        self._board.on_registered(response)
        if response.HasField("server_time"):
            moment = response.server_time
            self._time.hear(moment.seconds + moment.nanos * 1e-9)
        if self._config.report_interval_s is None and response.report_interval_s:
            self._interval_s = min(
                max(float(response.report_interval_s), MIN_SERVER_INTERVAL_S), MAX_SERVER_INTERVAL_S
            )
            for workload in self._workloads:
                workload.meter.set_window(self._interval_s)

    def _tick(self) -> None:
        now_s = time.monotonic()
        if self._network.is_due(now_s):
            self._connect(now_s)
        for workload in self._workloads:
            workload.updater.on_tick()
        self._bench.tick()
        self._time.on_tick()
        if self._time.wants_server_time():
            self._network.register_again()
        self._orders.on_tick()
        self._network.wire.on_tick(now_s)
        self._api.retry(now_s)
        self._spool_windows(flush=False)
        runs = [workload.runs for workload in self._workloads]
        if runs != self._registered_as:
            self._registered_as = runs
            self._network.register_again()
        if now_s >= self._progress_at_s:
            fetching = [w for w in self._workloads if w.state.state is State.FETCHING]
            if fetching:
                self._progress_at_s = now_s + PROGRESS_INTERVAL_S
            for workload in fetching:
                self._report_progress(workload)
        self._board.tick(now_s)

    def _spool_windows(self, *, flush: bool) -> None:
        now_s = time.time()
        for workload in self._workloads:
            meter = workload.meter
            self._postbox.windows(meter.flush(now_s) if flush else meter.roll(now_s))

    # --- to the cloud -------------------------------------------------------------------------------

    def _report_progress(self, workload: ServedWorkload) -> None:
        target, progress = workload.state.target, workload.updater.progress
        if target is None or progress <= 0:
            return
        note = StatusNote(
            generation=target.generation, digest=target.digest, state=State.FETCHING, event_s=time.time()
        )
        try:
            self._postbox.deliver(note, progress)
        except TransientError as error:
            logger.debug("progress is not reported reason=%s", error)

    def _registration(self) -> device_pb2.Registration:
        """Called on the reporter's thread; reads one reference at a time and changes nothing."""
        all_run = [(workload.name, *workload.runs) for workload in self._workloads]
        return device_pb2.Registration(
            device_id=self._config.device_id,
            hardware=self._network.hardware,
            labels=self._config.label_map,
            agent_version=agent_version(),
            boot_id=self._boot_id,
            emulated_slowdown=self._config.emulate_slowdown,
            generation=max(generation for _, generation, _ in all_run),
            serving_digest=all_run[0][2],
            workloads=[
                device_pb2.HostedWorkload(workload=name, generation=generation, serving_digest=digest)
                for name, generation, digest in all_run
                if name
            ],
            time_zone=self._network.time_zone,
        )

    # --- the end ------------------------------------------------------------------------------------

    def _close(self) -> None:
        """Never raises, so that one part that fails to end keeps no other from ending."""
        self._supervisor.stopping()
        for end in (
            self._close_source,
            self._sensors.close,
            self._api.stop,
            *(workload.stop for workload in self._workloads),
            *(workload.close for workload in self._workloads),
            lambda: self._spool_windows(flush=True),
            self._network.close,
            lambda: self._board.write(running=False),
            self._spool.close,
        ):
            try:
                end()
            except Exception:
                logger.exception("failed while stopping; going on")

    def _close_source(self) -> None:
        if self._source is not None:
            self._source.close()
