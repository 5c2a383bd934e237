"""The MQTT session over mutual TLS against a real broker."""

from __future__ import annotations

import datetime
import ipaddress
import logging
import queue
import random
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from edgeloop.backoff import Backoff
from edgeloop.mqtt import MqttSession

if TYPE_CHECKING:
    from tests.conftest import Mosquitto

pytestmark = pytest.mark.mosquitto


class Authority:
    """A private CA that lives as long as a test."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = directory / f"{name}.crt"
        self.certificate.write_bytes(
            self._certify(self._name, self._key, authority=True).public_bytes(Encoding.PEM)
        )

    def issue(self, name: str) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate, key_file = self._directory / f"{name}.crt", self._directory / f"{name}.key"
        certificate.write_bytes(self._certify(subject, key, authority=False).public_bytes(Encoding.PEM))
        key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return certificate, key_file

    def _certify(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, authority: bool
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )


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
        assert session.wait_connected(10), session.last_error
        session.subscribe("t/1", lambda topic, payload: inbox.put(payload))
        for publication in [session.publish("t/1", data) for data in blocks]:
            publication.wait(10)
        assert [inbox.get(timeout=5) for _ in blocks] == blocks


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
        until_s = time.monotonic() + 10
        while not session.last_error:
            assert time.monotonic() < until_s
            time.sleep(0.01)
        assert "certificate verify failed" in session.last_error
        assert backoff._ceiling_s == 30.0
        assert not session.connected


def test_client_without_a_certificate_never_gets_in(mosquitto: Mosquitto, authority: Authority) -> None:
    backoff = Backoff(0.01, 0.05, random.Random(3))
    with MqttSession(
        mosquitto.host, mosquitto.port, "gateway-1", tls=context(authority, None), backoff=backoff
    ) as session:
        assert not session.wait_connected(0.5)
        assert session.last_error
