"""amqtt, with what it needs to carry an edgeloop fleet. Nothing else of the project imports it.

Two behaviours of amqtt 0.12 are changed, both on the path of retained messages:

* At every CONNECT it walks the subscriptions of *all* clients and sends their retained messages to the one
  that has just come. A client gets here only what it subscribed to itself. (The walk also fails when a
  subscription is made meanwhile, and then leaves the client connected but deaf; without anything to send
  it never yields, so that cannot happen.)
* It waits for the acknowledgement of every retained message before it reads the client's next packet. Here
  they are sent beside the client's loop, so that four block subscriptions go on at once.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from amqtt.broker import Broker
from amqtt.contexts import BrokerConfig, ListenerConfig, ListenerType
from amqtt.errors import BrokerError
from amqtt.session import Session

_CONFIGURED_PLUGINS = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}


class QuietBroker(Broker):  # type: ignore[misc] # amqtt publishes no types
    """A broker on one TCP listener, anonymous, without the $SYS topics and the packet log."""

    def __init__(self, host: str, port: int) -> None:
        listener = ListenerConfig(type=ListenerType.TCP, bind=f"{host}:{port}")
        super().__init__(BrokerConfig(listeners={"default": listener}, plugins=dict(_CONFIGURED_PLUGINS)))
        self._retained_tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Bind and serve. Raises ``OSError`` as the socket gave it."""
        amqtt_logger = logging.getLogger("amqtt.broker")
        level = amqtt_logger.level
        amqtt_logger.setLevel(
            logging.CRITICAL
        )  # it logs a bind failure with a traceback; the caller reports it
        try:
            await super().start()
        except BrokerError as error:
            if isinstance(error.__cause__, OSError):
                raise error.__cause__ from None
            raise
        finally:
            amqtt_logger.setLevel(level)

    @property
    def port(self) -> int:
        """The port that is bound."""
        server: Any = self._servers["default"].instance
        return int(server.sockets[0].getsockname()[1])

    async def _publish_retained_messages_for_subscription(
        self, subscription: tuple[str, int], session: Session
    ) -> None:
        subscribers = self._subscriptions.get(subscription[0], [])
        if all(subscriber.client_id != session.client_id for subscriber, _ in subscribers):
            return
        task = asyncio.create_task(self._send_retained(subscription, session))
        self._retained_tasks.add(task)
        task.add_done_callback(self._retained_tasks.discard)

    async def _send_retained(self, subscription: tuple[str, int], session: Session) -> None:
        await super()._publish_retained_messages_for_subscription(subscription, session)
