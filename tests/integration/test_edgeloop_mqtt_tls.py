"""The MQTT session over mutual TLS against a real broker."""

from __future__ import annotations

import logging
import queue
import random
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from machine import wait_until
from tls_authority import Authority

from edgeloop.backoff import Backoff
from edgeloop.mqtt import MqttSession

if TYPE_CHECKING:
    from tests.conftest import Mosquitto

pytestmark = pytest.mark.mosquitto


@pytest.fixture
def authority(mosquitto: Mosquitto, tmp_path: Path) -> Authority:
    """The CA of the broker, which from here on speaks mutual TLS alone."""
    made = Authority(tmp_path, "broker-ca")
    certificate, key = made.issue("broker")
    mosquitto.stop()
    mosquitto.settings = (
        f"allow_anonymous true\ncafile {made.certificate}\ncertfile {certificate}\nkeyfile {key}\n"
        "require_certificate true\nuse_identity_as_username true\n"
    )
    mosquitto.start()
    return made


def context(trusted: Authority, pair: tuple[Path, Path] | None) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=str(trusted.certificate))
    if pair is not None:
        made.load_cert_chain(*pair)
    return made


def test_large_messages_pass_over_mutual_tls(mosquitto: Mosquitto, authority: Authority) -> None:
    inbox: queue.Queue[bytes] = queue.Queue()
    tls = context(authority, authority.issue("gateway-1"))
    blocks = [random.Random(n).randbytes(256 * 1024) for n in range(6)]
    with MqttSession(mosquitto.host, mosquitto.port, "gateway-1", tls=tls) as session:
        assert session.wait_connected(60), session.last_error
        session.subscribe("t/1", lambda topic, payload: inbox.put(payload))
        for publication in [session.publish("t/1", data) for data in blocks]:
            publication.wait(60)
        assert [inbox.get(timeout=60) for _ in blocks] == blocks


def test_broker_of_an_unknown_authority_is_refused_at_the_slowest_pace(
    mosquitto: Mosquitto, authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = Authority(tmp_path, "another-ca")
    backoff = Backoff(0.01, 30.0, random.Random(3))
    with (
        caplog.at_level(logging.DEBUG, "edgeloop.mqtt"),
        MqttSession(
            mosquitto.host,
            mosquitto.port,
            "gateway-1",
            tls=context(stranger, authority.issue("gateway-1")),
            backoff=backoff,
        ) as session,
    ):
        wait_until(lambda: session.last_error)
        assert "certificate verify failed" in session.last_error
        assert backoff._ceiling_s == 30.0
        assert not session.connected


def test_client_without_a_certificate_never_gets_in(mosquitto: Mosquitto, authority: Authority) -> None:
    backoff = Backoff(0.01, 0.05, random.Random(3))
    with MqttSession(
        mosquitto.host, mosquitto.port, "gateway-1", tls=context(authority, None), backoff=backoff
    ) as session:
        wait_until(lambda: session.last_error, what="the refusal")
        assert not session.wait_connected(0.5)
