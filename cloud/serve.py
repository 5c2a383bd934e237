"""``edgeloop serve``: one process that is the control plane of one machine; broker and Ray are its children.

Rules that this module keeps:

* Wiring alone: what things do is said in their own modules; here is who owns which thread.
* One control plane a state folder: a lock that dies with the process, whatever ends it.
* Any number on one database: all of them serve agents and people, and one acts (cloud.elector, cloud.acting).
* ``server.json`` appears, whole, once everything listens, and goes away at a clean end. Ports that were asked
  for as 0 stay what they were at the first start, so that agents find a restarted control plane again.
* Ready within about a second: the cluster comes up beside the rest.
* SIGTERM and SIGINT end everything that was started, in the reverse order.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import logging.handlers
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import grpc.aio

from cloud import tuf_root
from cloud.acting import Acting, ActingParts
from cloud.audit import AuditLog
from cloud.broker import EmbeddedBroker, start_embedded
from cloud.compute_host import ComputeHost, NoCompute
from cloud.controller import PAUSED_KEY
from cloud.director_keys import DirectorKeys
from cloud.elector import holder_name
from cloud.jobs.remote import RemoteCompute, take_secrets
from cloud.listening import allow_many_sessions, listen, service_name
from cloud.log_ring import LogRing
from cloud.pages import start_pages
from cloud.registry import Registry
from cloud.secure_parts import SecureParts
from cloud.services import control, fleet
from cloud.services.convert import timestamp
from cloud.services.enrolment import Directions
from cloud.services.operator_guard import OperatorGuard
from cloud.settings import ServeSettings, is_loopback, reachable, spelled_address
from cloud.state_folder import RememberedPorts, locked, write_json
from cloud.store import Store
from cloud.tuf_files import TufFiles
from cloud.turns import Turns
from edgeloop import __version__
from edgeloop.backoff import Backoff
from edgeloop.errors import ConfigError, TransientError
from edgeloop.mqtt import MqttSession
from edgeloop.trust import DirectorKey
from edgeloop.v1 import control_service_pb2, fleet_service_pb2

logger = logging.getLogger(__name__)

_DATABASE_WAIT_S = 60.0


class ControlPlane:
    """Everything that ``serve`` starts. ``start`` once, then ``stop`` once; both from the event loop."""

    def __init__(self, settings: ServeSettings, logs: LogRing | None = None) -> None:
        self.settings = settings
        self._logs = logs
        self._ray_secrets = take_secrets(os.environ)  # before anything is started that would inherit them
        self.fleet_port = 0
        self.control_port = 0
        self.broker_host = ""
        self.broker_port = 0
        self._start_time_s = time.time()
        self._stack = contextlib.AsyncExitStack()
        self._store: Store | None = None
        self._acting: Acting | None = None
        self._director: DirectorKeys | None = None
        self._keys: SecureParts | None = None
        self.enrol_port = 0

    async def start(self) -> None:
        """Returns once agents and the control script can be served.

        Raises ``ConfigError`` that names the field; whatever was started by then is stopped again.
        """
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop everything that was started, last first. Safe to call twice."""
        await self._stack.aclose()

    async def _start(self) -> None:
        settings, stack = self.settings, self._stack
        state_dir = settings.state_dir.resolve()
        stack.enter_context(locked(state_dir))
        ports = RememberedPorts(state_dir / "ports.json")
        broker = await self._start_broker(state_dir, ports)

        store = self._store = Store(settings.database)
        stack.callback(store.close)
        await self._await_database(store)
        registry = Registry(settings.registry)
        settings.director.mkdir(mode=0o700, parents=True, exist_ok=True)
        director = self._director = DirectorKeys(settings.director)
        tuf_root.ensure(TufFiles(settings.director), now_s=time.time())

        keys = self._keys = SecureParts.load(settings, stack) if settings.tls_dir is not None else None
        acting = self._acting = Acting(
            ActingParts(
                settings=settings,
                state_dir=state_dir,
                store=store,
                registry=registry,
                broker_forgets=broker is not None,
                new_compute=lambda: self._new_compute(registry, state_dir),
                new_session=lambda: self._new_session(director.key, keys if broker is None else None),
            )
        )
        fleet_servicer = await self._start_servers(store, acting.poke, ports)
        turns = Turns(store, acting, holder=holder_name(state_dir))
        stack.push_async_callback(turns.stop)
        await turns.start()
        await start_pages(settings, store, acting, fleet_servicer, keys, stack)
        ports.save(
            fleet=self.fleet_port,
            control=self.control_port,
            broker=self.broker_port,
            **({"enrol": self.enrol_port} if keys is not None else {}),
        )
        self._announce(state_dir, director)

    async def _await_database(self, store: Store) -> None:
        """A server may come up after us, as after a power cut."""
        until_s = time.monotonic() + _DATABASE_WAIT_S
        while True:
            try:
                await asyncio.to_thread(store.migrate)
                return
            except TransientError as error:
                if time.monotonic() > until_s:
                    raise
                logger.warning("waiting for the database: %s", error)
            await asyncio.sleep(1.0)

    # -- parts -------------------------------------------------------------------------------------------

    async def _start_broker(self, state_dir: Path, ports: RememberedPorts) -> EmbeddedBroker | None:
        address = self.settings.broker_address()
        if address is not None:
            self.broker_host, self.broker_port = address
            return None
        broker = await asyncio.to_thread(
            start_embedded,
            host=self.settings.host,
            ports=ports.to_try("broker", self.settings.broker_port),
            state_dir=state_dir,
        )
        self._stack.push_async_callback(asyncio.to_thread, broker.stop)
        self.broker_host, self.broker_port = reachable(self.settings.host), broker.port
        if not is_loopback(self.settings.host):
            logger.warning(
                "the embedded broker takes anonymous clients on %s: use one with certificates (--broker) "
                "wherever others can reach it",
                self.settings.host,
            )
        return broker

    def _new_session(self, director: DirectorKey, keys: SecureParts | None) -> MqttSession:
        return MqttSession(
            self.broker_host,
            self.broker_port,
            f"edgeloop-cloud-{director.key_id}" if keys is None else keys.client_id,
            backoff=Backoff(0.1, 10.0),
            tls=None if keys is None else keys.broker_context(),
        )

    def _new_compute(self, registry: Registry, state_dir: Path) -> ComputeHost | NoCompute:
        if self.settings.compute == "none":
            return NoCompute()
        return ComputeHost(
            RemoteCompute(
                work_dir=state_dir / "checkpoints",
                registry_url=registry.url,
                address=self.settings.ray_address,
                num_cpus=self.settings.num_cpus,
                secrets=self._ray_secrets,
            )
        )

    async def _start_servers(
        self, store: Store, poke: Callable[[], None], ports: RememberedPorts
    ) -> fleet.FleetServicer:
        settings = self.settings
        fleet_servicer = fleet.FleetServicer(
            store,
            settings=fleet.FleetSettings(report_interval_s=settings.report_interval_s),
            on_register=lambda _device_id: poke(),
            on_status=lambda _status: poke(),
        )
        await fleet_servicer.start()
        self._stack.push_async_callback(fleet_servicer.stop)
        keys, audit = self._keys, AuditLog(store)
        if keys is not None:
            await keys.start(store, audit, self._stack, self.broker_host, self.broker_port)
        fleet_server = grpc.aio.server(
            options=fleet.SERVER_OPTIONS, interceptors=[keys.guard] if keys is not None else []
        )
        fleet.add_fleet_service(fleet_server, fleet_servicer)
        if keys is not None:
            keys.add_renewal(fleet_server)
        self.fleet_port = await self._serve(
            fleet_server,
            "fleet",
            settings.fleet_port,
            service_name(fleet_service_pb2),
            ports,
            keys.fleet_credentials() if keys is not None else None,
        )
        control_servicer = control.ControlServicer(
            store,
            settings=settings.policy,
            info=self._info,
            read_blob=Registry(settings.registry).get,
            poke=poke,
            enrols=keys is not None,
            logs=self._logs,
            plane=holder_name(settings.state_dir.resolve()),
        )
        guard = OperatorGuard(audit, keys.tokens(store) if keys is not None else None)
        control_server = grpc.aio.server(options=control.SERVER_OPTIONS, interceptors=[guard])
        control.add_control_service(control_server, control_servicer)
        server_credentials = keys.server_credentials() if keys is not None else None
        self.control_port = await self._serve(
            control_server,
            "control",
            settings.control_port,
            service_name(control_service_pb2),
            ports,
            server_credentials,
        )
        if keys is not None:
            self.enrol_port = await self._serve(
                await keys.enrol_server(store, self._directions, self._stack),
                "enrol",
                settings.enrol_port,
                "",
                ports,
                server_credentials,
            )
        return fleet_servicer

    def _directions(self) -> Directions:
        assert self._director is not None
        settings = self.settings
        fleet_host, fleet_port = settings.advertised("advertise_fleet") or ("", self.fleet_port)
        broker_host, broker_port = settings.advertised("advertise_broker") or (
            "" if is_loopback(self.broker_host) else self.broker_host,
            self.broker_port,
        )
        return Directions(
            fleet_host=fleet_host,
            fleet_port=fleet_port,
            broker_host=broker_host,
            broker_port=broker_port,
            director_public_key=self._director.current().public_bytes,
            tuf_root=TufFiles(settings.director).root_bytes(),
        )

    async def _serve(
        self,
        server: grpc.aio.Server,
        name: str,
        port: int,
        service: str,
        ports: RememberedPorts,
        credentials: grpc.ServerCredentials | None,
    ) -> int:
        return await listen(
            server,
            name,
            host=self.settings.host,
            ports=ports.to_try(name, port),
            service=service,
            credentials=credentials,
            stack=self._stack,
        )

    def _info(self) -> control_service_pb2.GetServerInfoResponse:
        assert self._store is not None
        assert self._director is not None
        return control_service_pb2.GetServerInfoResponse(
            version=__version__,
            broker_host=self.broker_host,
            broker_port=self.broker_port,
            broker_embedded=self.settings.broker is None,
            broker_connected=self._acting is not None and self._acting.connected,
            director_public_key=self._director.current().public_bytes,
            tuf_root=TufFiles(self.settings.director).root_bytes(),
            state_dir=str(self.settings.state_dir.resolve()),
            compute="" if self._acting is None else self._acting.describe_compute(),
            start_time=timestamp(self._start_time_s),
            controller_paused=self._store.get_meta(PAUSED_KEY) == "1",
        )

    def _secure_entries(self, host: str) -> dict[str, str]:
        if self._keys is None:
            return {}
        return {
            "enrol": spelled_address(host, self.enrol_port),
            "ca": str(self._keys.folder.control_ca.resolve()),
        }

    def _announce(self, state_dir: Path, director: DirectorKeys) -> None:
        path = state_dir / "server.json"
        host = reachable(self.settings.host)
        write_json(
            path,
            {
                "control": spelled_address(host, self.control_port),
                "fleet": spelled_address(host, self.fleet_port),
                **self._secure_entries(host),
                "broker": {"host": self.broker_host, "port": self.broker_port},
                "director_public_key": director.key.public_bytes.hex(),
                "tuf_root": str(TufFiles(self.settings.director).root_path()),
                "pid": os.getpid(),
            },
        )
        self._stack.callback(path.unlink, missing_ok=True)
        logger.info(
            "serving: agents %s, control %s, broker %s, state in %s",
            spelled_address(host, self.fleet_port),
            spelled_address(host, self.control_port),
            spelled_address(self.broker_host, self.broker_port),
            state_dir,
        )


async def serve(settings: ServeSettings) -> None:
    """Run a control plane until SIGTERM or SIGINT. Raises ``ConfigError`` when it cannot start."""
    logs = set_up_logging(settings)
    allow_many_sessions()
    if settings.tls_dir is None:  # else secure_parts asks for more, and reads it
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    plane = ControlPlane(settings, logs)
    try:
        starting = asyncio.ensure_future(plane.start())
        waiting = asyncio.ensure_future(ended.wait())
        await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await starting
            return
        starting.result()
        await waiting
        logger.info("stopping: the state stays in %s", settings.state_dir.resolve())
    finally:
        await plane.stop()


def set_up_logging(settings: ServeSettings) -> LogRing:
    """To standard error, to ``logs/serve.log`` in the state folder, and to what ``edgeloop logs`` reads.

    Raises ``ConfigError``.
    """
    folder = settings.state_dir / "logs"
    ring = LogRing()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        ring.keep_in(folder / "records.jsonl")
        to_file = logging.handlers.RotatingFileHandler(folder / "serve.log", maxBytes=10 << 20, backupCount=3)
    except OSError as error:
        raise ConfigError(
            f"state_dir is {settings.state_dir}: it cannot be written to ({error.strerror}): give another "
            "folder with --state-dir",
            code="state-dir",
        ) from None
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(threadName)s %(name)s: %(message)s")
    root = logging.getLogger()
    root.setLevel(settings.log_level)
    for handler in (logging.StreamHandler(sys.stderr), to_file):
        handler.setFormatter(formatter)
        root.addHandler(handler)
    root.addHandler(ring)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    return ring
