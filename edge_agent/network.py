"""The device's two connections, broker and control plane, and the certificate that both use.

Rules:
- Nothing of it is imported before `connect`: the model serves already, and they cost a third of the start.
- A renewed certificate reaches both connections at their next beginning.
"""

import random
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import TYPE_CHECKING

from edge_agent.config import AgentConfig
from edge_agent.inbox import BrokerChanged, BrokerWire, Post, Registered
from edge_agent.spool import ReportSpool
from edgeloop import topics
from edgeloop.backoff import Backoff
from edgeloop.v1 import device_pb2

if TYPE_CHECKING:
    from edge_agent.identity import Identity
    from edge_agent.renewal import Renewer
    from edge_agent.reporter import FleetReporter
    from edgeloop.mqtt import MqttSession


class Network:
    """`connect` once, `close` once; what arrives is posted to the inbox."""

    def __init__(self, config: AgentConfig, inbox: "SimpleQueue[Post]", *, rng: random.Random) -> None:
        self._config = config
        self._inbox = inbox
        self._rng = rng
        self.wire = BrokerWire(config.device_id, inbox)
        self.hardware = device_pb2.Hardware()
        self._reporter: FleetReporter | None = None
        self._session: MqttSession | None = None
        self._renewer: Renewer | None = None

    @property
    def server_connected(self) -> bool:
        return self._reporter.connected if self._reporter else False

    def connect(
        self,
        spool: ReportSpool,
        registration: Callable[[], device_pb2.Registration],
        deployment_topics: Iterable[str],
    ) -> None:
        """Begins both; `registration` is called on the reporter's thread."""
        from edge_agent.hardware import probe
        from edge_agent.identity import load_identity
        from edge_agent.reporter import FleetReporter
        from edgeloop.mqtt import MqttSession, Will

        config = self._config
        self.hardware = probe()
        identity = load_identity(config.state_dir)
        session = MqttSession(
            config.broker.host,
            config.broker.port,
            config.device_id,
            will=Will(topic=topics.presence(config.device_id), payload=topics.OFFLINE),
            backoff=Backoff(0.5, 60.0, self._rng),
            tls=identity.broker_context() if identity is not None else None,
        )
        session.on_state(lambda connected: self._inbox.put(BrokerChanged(connected=connected)))
        self._session = session
        self.wire.attach(session)
        self.wire.subscribe(topics.DIRECTOR_KEYS)
        for topic in deployment_topics:
            self.wire.subscribe(topic)
        session.start()
        self._reporter = FleetReporter(
            server=str(config.server),
            spool=spool,
            registration=registration,
            on_registered=lambda response: self._inbox.put(Registered(response=response)),
            backoff=Backoff(0.5, 60.0, random.Random()),
            credentials=identity.fleet_credentials() if identity is not None else None,
        )
        self._reporter.start()
        if identity is not None:
            from edge_agent.renewal import Renewer

            self._renewer = Renewer(
                config.state_dir, identity, server=str(config.server), on_renewed=self._use_identity
            )
            self._renewer.start()

    def wake(self) -> None:
        """There is something in the spool."""
        if self._reporter is not None:
            self._reporter.wake()

    def register_again(self) -> None:
        if self._reporter is not None:
            self._reporter.register_again()

    def close(self) -> None:
        if self._renewer is not None:
            self._renewer.close()
        if self._reporter is not None:
            self._reporter.close(timeout_s=2.0)
        if self._session is not None:
            self._session.close(1.0)

    def _use_identity(self, identity: "Identity") -> None:
        """Called on the renewer's thread."""
        if self._session is not None:
            self._session.set_tls(identity.broker_context())
        if self._reporter is not None:
            self._reporter.set_credentials(identity.fleet_credentials())
