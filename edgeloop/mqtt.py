"""One connection to a broker that comes back by itself.

Rules kept here:

- One named thread does all reading, writing and waiting. It reconnects with full jitter, because paho's own
  loop has none and a fleet would come back at one moment. Each connection is a new paho client, so that
  nothing of a broken one lives on.
- Handlers and state callbacks run on that thread: they post to an inbox and return. One that raises is logged
  and costs nothing else.
- ``publish`` never queues across connections. Not connected, or the connection lost before the broker
  acknowledged: the caller gets a ``TransientError``, and what must arrive is kept in the caller's own outbox.
- Subscriptions are remembered and made again after every reconnect, before the state callback hears of it.
  What changes between two turns of the thread goes out together.
- A dead connection is noticed within about twice the keepalive, also when the other side just went silent.
- "Cannot reach the broker" is said once at WARNING and repeated at DEBUG. A refusal that only a person can
  lift (password, client id, certificate) is retried at the slowest pace.
- ``close`` interrupts any wait at once, and sends the will itself, since a broker drops it on a clean end.
"""

from __future__ import annotations

import contextlib
import logging
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self, cast

from paho.mqtt import client as paho
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.reasoncodes import ReasonCode

from edgeloop.backoff import Backoff
from edgeloop.errors import TransientError
from edgeloop.network_loop import CONNECT_TIMEOUT_S, BoundedClient, Wakeup, serve
from edgeloop.publication import Acknowledgements, Publication
from edgeloop.subscriptions import Handler, Subscriptions

logger = logging.getLogger(__name__)

KEEPALIVE_S: Final = 20
_STABLE_S: Final = 5.0  # a connection that lasted this long ends a row of failures
#: Unsupported protocol, client id, user or password, not authorized, banned, bad authentication method.
_REFUSALS: Final = frozenset({132, 133, 134, 135, 138, 140})

#: Called with True for each connection that is ready, and with False when it is lost or closed.
StateCallback = Callable[[bool], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Will:
    """What the broker says for us when we are gone."""

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = True


class MqttSession:
    """A session with a broker. ``start`` it once handlers are set, ``close`` it once."""

    def __init__(
        self,
        host: str,
        port: int,
        client_id: str,
        *,
        will: Will | None = None,
        clean: bool = True,
        backoff: Backoff | None = None,
        tls: ssl.SSLContext | Callable[[], ssl.SSLContext] | None = None,
        username: str | None = None,
        password: str | None = None,
        keepalive_s: int = KEEPALIVE_S,
        max_inflight: int = 20,
        max_queued: int = 200,
    ) -> None:
        self.host = host
        self.port = port
        self.client_id = client_id
        self._will = will
        self._clean = clean
        self._backoff = backoff or Backoff(0.5, 60.0)
        self._tls = tls
        self._username = username
        self._password = password
        self._keepalive_s = keepalive_s
        self._max_inflight = max_inflight
        self._max_queued = max_queued

        self._lock = threading.Lock()  # guards the four below; never held while a callback runs
        self._client: BoundedClient | None = None  # only while connected
        self._acknowledgements = Acknowledgements()
        self._subscriptions = Subscriptions()
        self._state_callbacks: list[StateCallback] = []
        # Held while subscriptions are handed to paho, so that they stay in order.
        self._telling = threading.Lock()

        self._closed = threading.Event()
        self._retry = threading.Event()  # cuts the pause before the next connection short
        self._connected = threading.Event()
        self._wakeup = Wakeup()
        self._warned = False
        self._refused = False
        self._was_connected = False
        self._last_error = ""
        self._thread = threading.Thread(target=self._run, name=f"mqtt-{client_id}", daemon=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> Self:
        """Begin to connect. Returns at once, whether or not the broker is there."""
        self._thread.start()
        return self

    @property
    def connected(self) -> bool:
        return self._connected.is_set()

    @property
    def fed_at_s(self) -> float | None:
        """When bytes of a packet that is not whole yet came last, by the monotonic clock; else None."""
        with self._lock:
            client = self._client
        return client.fed_at_s if client is not None else None

    @property
    def last_error(self) -> str:
        """Why it is not connected, for people; empty while it is."""
        return self._last_error

    def wait_connected(self, timeout_s: float) -> bool:
        """Whether it is connected, after at most so long."""
        return self._connected.wait(timeout_s)

    def set_tls(self, tls: ssl.SSLContext) -> None:
        """What the next connection uses: there is a new certificate. The present one stays. Any thread.

        Where there is none, it is tried at once.
        """
        self._tls = tls
        self._retry.set()

    def on_state(self, callback: StateCallback) -> None:
        """Have the callback hear of every connection from now on. Set it before ``start``."""
        with self._lock:
            self._state_callbacks.append(callback)

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> Publication:
        """Hand a message to the connection.

        Nothing is kept for later: raises ``TransientError`` when there is no connection
        ("mqtt-not-connected") or too much is on its way already ("mqtt-queue-full").
        """
        with self._lock:
            client, acknowledgements = self._client, self._acknowledgements
        if client is None:
            raise TransientError(
                f"not connected to the broker at {self.host}:{self.port}: keep the message and publish it "
                "once connected",
                code="mqtt-not-connected",
            )
        if len(acknowledgements) >= self._max_queued:
            raise _queue_full(topic)
        publication = Publication(topic, self._thread)
        self._tell_changes()  # before it, as they were made
        info = client.publish(topic, payload, qos=qos, retain=retain)
        if info.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
            raise _queue_full(topic)
        acknowledgements.expect(info.mid, publication)
        self._wake()
        return publication

    def subscribe(self, topic: str, handler: Handler, *, qos: int = 1) -> None:
        """Have messages of a topic or filter handed to ``handler``, now and after every reconnect.

        Subscribing again replaces the handler and makes the broker send what it retains once more.
        Raises ``ValueError`` for a filter that MQTT does not allow.
        """
        with self._lock:
            self._subscriptions.add(topic, handler, qos)
        self._wake()

    def unsubscribe(self, topic: str) -> None:
        """Hear no more of a topic. What was on its way is dropped."""
        with self._lock:
            known = self._subscriptions.remove(topic)
        if known:
            self._wake()

    def close(self, timeout_s: float = 5.0) -> None:
        """End the session: send the will, disconnect, stop the thread. Safe to call twice."""
        if self._closed.is_set():
            return
        on_own_thread = threading.current_thread() is self._thread
        if self._will is not None and not on_own_thread:
            with contextlib.suppress(TransientError):
                will = self._will
                self.publish(will.topic, will.payload, qos=will.qos, retain=will.retain).wait(timeout_s / 2)
        self._closed.set()
        self._retry.set()
        self._wakeup.set()
        if self._thread.ident is None:  # never started
            self._wakeup.close()
        elif not on_own_thread:
            self._thread.join(timeout_s)

    def _wake(self) -> None:
        """Have the session's thread look for what to do; it does so by itself after each callback."""
        if threading.get_ident() != self._thread.ident:
            self._wakeup.set()

    def _tell_changes(self) -> None:
        """Say all that changed since the last time with one packet of each kind. Any thread."""
        with self._telling:
            with self._lock:
                client = self._client
                changes = self._subscriptions.take_changes() if client is not None else None
            if client is not None and changes is not None:
                for gone in changes.gone:
                    client.unsubscribe(gone)
                for wanted in changes.wanted:
                    client.subscribe(wanted)

    # Below here everything runs on the session's own thread.

    def _run(self) -> None:
        while not self._closed.is_set():
            self._refused = False
            began_s = time.monotonic()
            try:
                reason = self._connect_and_serve()
            except (OSError, ValueError) as error:  # ValueError: a host name that cannot be encoded, for one
                if isinstance(error, ssl.SSLCertVerificationError):
                    self._refused = True
                reason = str(error) or type(error).__name__
            except Exception as error:  # what a broken broker makes paho raise must not end the thread
                logger.exception("the MQTT session of %s failed", self.client_id)
                reason = repr(error)
            if self._closed.is_set():
                break
            if self._lasted(began_s):
                self._backoff.reset()
                self._warned = False
            if self._refused:
                self._backoff.to_max()
            self._last_error = reason
            delay_s = self._backoff.next()
            level = logging.DEBUG if self._warned else logging.WARNING
            self._warned = True
            logger.log(
                level,
                "cannot reach the broker at %s:%d as %s: %s; trying again, next in %.1f s",
                self.host,
                self.port,
                self.client_id,
                reason,
                delay_s,
            )
            if self._was_connected:  # whatever was set while it stood has no haste
                self._retry.clear()
            if not self._closed.is_set():
                self._retry.wait(delay_s)
            self._retry.clear()
        self._wakeup.close()

    def _lasted(self, began_s: float) -> bool:
        return self._was_connected and time.monotonic() - began_s >= _STABLE_S

    def _connect_and_serve(self) -> str:
        """One connection, from first to last. Returns why it ended."""
        self._was_connected = False
        reasons: list[str] = []
        acknowledgements = Acknowledgements()
        client = self._new_client(reasons, acknowledgements)
        try:
            client.connect(self.host, self.port, self._keepalive_s)
            serve(
                client,
                self._wakeup,
                before_writing=self._tell_changes,
                answered=lambda: self._was_connected,
                closed=self._closed.is_set,
            )
        finally:
            lost = TransientError(
                "the connection to the broker was lost before it acknowledged: publish again",
                code="mqtt-lost",
            )
            with self._lock:
                self._client = None
            self._connected.clear()
            sock = client.socket()
            if sock is not None:  # paho closes it only once it is garbage
                sock.close()
            acknowledgements.end(lost)
            if self._was_connected:
                self._tell(False)
        return reasons[0] if reasons else "the connection was lost"

    def _new_client(self, reasons: list[str], acknowledgements: Acknowledgements) -> BoundedClient:
        client = BoundedClient(
            client_id=self.client_id, clean_session=self._clean, reconnect_on_failure=False
        )
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.max_inflight_messages_set(self._max_inflight)
        client.max_queued_messages_set(self._max_queued)
        if self._username is not None:
            client.username_pw_set(self._username, self._password)
        if self._tls is not None:
            # One that is called gives what is on the disk now; what it raises is why there is no connection.
            client.tls_set_context(self._tls() if callable(self._tls) else self._tls)
        if self._will is not None:
            client.will_set(self._will.topic, self._will.payload, self._will.qos, self._will.retain)

        def on_connect(
            client: paho.Client, userdata: Any, flags: paho.ConnectFlags, code: ReasonCode, properties: Any
        ) -> None:
            if code.is_failure:
                self._refused = code.value in _REFUSALS
                reasons.append(f"the broker refuses this client: {code}")
                return
            self._connected_now(cast(BoundedClient, client), acknowledgements)

        def on_disconnect(
            client: paho.Client, userdata: Any, flags: paho.DisconnectFlags, code: ReasonCode, properties: Any
        ) -> None:
            reasons.append(str(code))

        def on_publish(
            client: paho.Client, userdata: Any, mid: int, code: ReasonCode, properties: Any
        ) -> None:
            acknowledgements.acknowledged(mid)

        def on_refused() -> None:
            logger.warning("the broker refuses a subscription of %s: check its access list", self.client_id)

        def on_message(client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
            with contextlib.suppress(UnicodeDecodeError):
                self._dispatch(message.topic, bytes(message.payload))

        def on_want_write(client: paho.Client, userdata: Any, sock: Any) -> None:
            self._wake()  # its presence also keeps paho from writing on the publishing thread

        client.on_connect = on_connect
        client.on_disconnect = on_disconnect
        client.on_publish = on_publish
        client.on_refused = on_refused
        client.on_message = on_message
        client.on_published = self._dispatch
        client.on_socket_register_write = on_want_write
        return client

    def _connected_now(self, client: BoundedClient, acknowledgements: Acknowledgements) -> None:
        with self._lock:
            self._client = client
            self._acknowledgements = acknowledgements
            self._subscriptions.begin_again()
        self._tell_changes()
        logger.log(
            logging.INFO if self._warned else logging.DEBUG,
            "connected to the broker at %s:%d as %s",
            self.host,
            self.port,
            self.client_id,
        )
        self._last_error = ""
        self._was_connected = True
        self._connected.set()
        self._tell(True)

    def _dispatch(self, topic: str, payload: bytes) -> None:
        with self._lock:
            handlers = self._subscriptions.handlers_of(topic)
        for handler in handlers:
            try:
                handler(topic, payload)
            except Exception:  # one bad handler must not cost the connection
                logger.exception("a handler failed on %s", topic)

    def _tell(self, connected: bool) -> None:
        with self._lock:
            callbacks = list(self._state_callbacks)
        for callback in callbacks:
            try:
                callback(connected)
            except Exception:  # one bad callback must not cost the connection
                logger.exception("a state callback failed")


def _queue_full(topic: str) -> TransientError:
    return TransientError(
        f"too many messages wait for the broker: publish {topic} once some are acknowledged",
        code="mqtt-queue-full",
    )
