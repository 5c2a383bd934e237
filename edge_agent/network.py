"""The device's two connections, broker and control plane, and the certificate that both use.

Rules:
- Nothing of it is imported before `connect`: the model serves already, and they cost a third of the start.
- Without a usable identity there is no connection, never one without it: that is said once, the model serves
  on, and the identity is read again, so that mending it needs no restart. The same where what enrolment told
  is lost; whoever owns the settings hears of it before anything is connected.
- A new certificate reaches both connections at their next beginning, at once where there is none.
"""

import logging
import random
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import TYPE_CHECKING

from edge_agent.config import AgentConfig
from edge_agent.inbox import BrokerChanged, BrokerWire, Post, Registered
from edge_agent.spool import ReportSpool
from edgeloop import topics
from edgeloop.backoff import Backoff
from edgeloop.errors import EdgeloopError
from edgeloop.v1 import device_pb2

if TYPE_CHECKING:
    from edge_agent.identity import Identity
    from edge_agent.renewal import Renewer
    from edge_agent.reporter import FleetReporter
    from edgeloop.mqtt import MqttSession


logger = logging.getLogger(__name__)

IDENTITY_RETRY_S = 30.0


class Network:
    """`connect`, again whenever it `is_due`; `close` once; what arrives is posted to the inbox."""

    def __init__(
        self,
        config: AgentConfig,
        inbox: "SimpleQueue[Post]",
        *,
        # The settings, read anew; asked only where those at hand lack what enrolment told.
        reload: Callable[[], AgentConfig],
        # What came of that.
        on_config: Callable[[AgentConfig], None],
        rng: random.Random,
    ) -> None:
        self._config = config
        self._reload = reload
        self._on_config = on_config
        self._inbox = inbox
        self._rng = rng
        self.wire = BrokerWire(config.device_id, inbox)
        self.hardware = device_pb2.Hardware()
        self.time_zone = ""
        self._reporter: FleetReporter | None = None
        self._session: MqttSession | None = None
        self._renewer: Renewer | None = None
        self._retry_at_s: float | None = None
        # Why there is no connection to anything: something that enrolment left does not read.
        self.identity_problem = ""

    @property
    def server_connected(self) -> bool:
        return self._reporter.connected if self._reporter else False

    def is_due(self, now_s: float) -> bool:
        """Whether an identity that did not read is to be tried again, by the monotonic clock."""
        return self._retry_at_s is not None and now_s >= self._retry_at_s

    def connect(
        self,
        spool: ReportSpool,
        registration: Callable[[], device_pb2.Registration],
        deployment_topics: Iterable[str],
        now_s: float,
    ) -> None:
        """Begins both; `registration` is called on the reporter's thread."""
        self._retry_at_s = None
        try:
            self._connect(spool, registration, deployment_topics)
        except EdgeloopError as error:
            if error.message != self.identity_problem:
                logger.error(
                    "no connection to broker and control plane: %s; what is committed serves on, and the "
                    "identity is read again every %g s",
                    error.message,
                    IDENTITY_RETRY_S,
                )
            self.identity_problem = error.message
            self._retry_at_s = now_s + IDENTITY_RETRY_S
        else:
            self.identity_problem = ""

    def _connect(
        self,
        spool: ReportSpool,
        registration: Callable[[], device_pb2.Registration],
        deployment_topics: Iterable[str],
    ) -> None:
        from edge_agent.hardware import probe, time_zone
        from edge_agent.identity import load_identity, mend_enrolment
        from edge_agent.reporter import FleetReporter
        from edgeloop.mqtt import MqttSession, Will

        self.hardware = probe()
        self.time_zone = time_zone()
        # All that may be damaged is read before anything is started.
        mend_enrolment(self._config.state_dir)
        config = self._complete()
        identity = load_identity(config.state_dir)
        tls = identity.broker_context() if identity is not None else None
        credentials = identity.fleet_credentials() if identity is not None else None
        if config is not self._config:
            self._config = config
            self._on_config(config)
        session = MqttSession(
            config.broker.host,
            config.broker.port,
            config.device_id,
            will=Will(topic=topics.presence(config.device_id), payload=topics.OFFLINE),
            backoff=Backoff(0.5, 60.0, self._rng),
            tls=tls,
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
            credentials=credentials,
        )
        self._reporter.start()
        if identity is not None:
            from edge_agent.renewal import Renewer

            self._renewer = Renewer(
                config.state_dir, identity, server=str(config.server), on_renewed=self._use_identity
            )
            self._renewer.start()

    def _complete(self) -> AgentConfig:
        """Raises ConfigError while what enrolment told does not read."""
        if not self._config.enrolment_problem:
            return self._config
        from edge_agent.lost_enrolment import read_again

        return read_again(self._config, self._reload)

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
