"""The tables of bridges and folders: what they mean, and what is refused before anything starts."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from edge_agent.config import AgentConfig, Endpoint, load_config
from edge_agent.source_settings import topic_matches
from edgeloop.errors import ConfigError

FLAGS = {
    "device_id": "gw-1",
    "state_dir": "/var/lib/agent",
    "server": "cloud:50061",
    "broker": "broker:1883",
    "director_key": ["ab" * 32],
}
BRIDGE = '[[bridge]]\ninput_topic = "in/#"\noutput_topic = "out/{topic}"\n'
FOLDER = '[[folder]]\npath = "in"\n'


def load(folder: Path, text: str, **environment: str) -> AgentConfig:
    file = folder / "agent.toml"
    file.write_text(text)
    return load_config(config_file=file, environment=environment, flags=FLAGS)


def test_a_bridge_needs_two_topics_and_the_rest_has_defaults(tmp_path: Path) -> None:
    (bridge,) = load(tmp_path, BRIDGE).bridges
    assert bridge.broker == Endpoint(host="127.0.0.1", port=1883)
    assert (bridge.name, bridge.format, bridge.qos, bridge.username) == ("bridge-1", "json", 1, None)
    assert bridge.answer_topic("in/a") == "out/in/a"
    assert bridge.errors_topic("in/a") == "out/in/a/errors"


def pem(folder: Path, name: str, *, passphrase: bytes | None = None) -> None:
    """``name.crt`` and ``name.key``."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(hours=1))
        .sign(key, hashes.SHA256())
    )
    guard = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    (folder / f"{name}.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / f"{name}.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, guard))


def test_a_bridge_speaks_tls_once_it_is_told_of_an_authority(tmp_path: Path) -> None:
    pem(tmp_path, "a")
    assert load(tmp_path, BRIDGE).bridges[0].tls is None
    files = 'ca_file = "a.crt"\ncertificate_file = "a.crt"\nkey_file = "a.key"\n'
    tls = load(tmp_path, BRIDGE + files).bridges[0].tls
    assert tls is not None
    assert (tls.ca_file, tls.key_file) == (tmp_path / "a.crt", tmp_path / "a.key")
    context = tls.context()
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
    system = load(tmp_path, BRIDGE + "tls = true\n").bridges[0].tls
    assert system is not None
    assert system.ca_file is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('ca_file = "none.crt"', ["bridge[1].ca_file", "exists"]),
        ('ca_file = "a.key"', ["bridge[1].ca_file", "PEM certificates"]),
        ('certificate_file = "a.key"', ["bridge[1].certificate_file", "PEM certificates"]),
        ('certificate_file = "a.crt"', ["bridge[1].certificate_file", "private key", "key_file beside it"]),
        ('key_file = "a.key"', ["bridge[1].key_file", "certificate_file beside it"]),
        (
            'certificate_file = "a.crt"\nkey_file = "b.key"',
            ["bridge[1].key_file", "the private key of certificate_file"],
        ),
        ('certificate_file = "b.crt"\nkey_file = "b.key"', ["bridge[1].key_file", "without a passphrase"]),
        ('tls = false\nca_file = "a.crt"', ["bridge[1].ca_file", "tls = false"]),
        ('tls = "yes"', ["bridge[1].tls", "true or false"]),
    ],
)
def test_a_file_of_tls_that_cannot_be_used_is_refused_by_the_name_of_its_key(
    tmp_path: Path, text: str, said: list[str]
) -> None:
    pem(tmp_path, "a")
    pem(tmp_path, "b", passphrase=b"sesame")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, BRIDGE + text + "\n")
    for words in said:
        assert words in str(caught.value)


def test_a_folder_needs_a_path_and_its_pattern_follows_the_format(tmp_path: Path) -> None:
    (first, second) = load(
        tmp_path, FOLDER + '[[folder]]\npath = "b"\nformat = "npy"\noutput = "o"\n'
    ).folders
    assert (first.path, first.output, first.pattern) == (tmp_path / "in", tmp_path / "in" / "out", "*.json")
    assert (second.output, second.pattern, second.name) == (tmp_path / "o", "*.npy", "folder-2")
    assert first.done == tmp_path / "in" / "done"


def test_a_password_comes_from_its_file_and_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("open sesame\n")
    config = load(tmp_path, BRIDGE + 'username = "gw"\npassword_file = "secret"\n')
    assert config.bridges[0].password == "open sesame"
    assert "sesame" not in repr(config)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[[bridge]]\ninput_topic = "in"\n', ["bridge[1].output_topic", "must be set"]),
        (BRIDGE + "topic = 1\n", ["bridge[1].topic", "input_topic"]),
        (BRIDGE + BRIDGE + 'format = "npy"\n', ["bridge[2].format", "json, raw"]),
        (BRIDGE + "qos = 2\n", ["bridge[1].qos", "from 0 to 1"]),
        (BRIDGE + 'broker = "localhost"\n', ["bridge[1].broker", "host:port"]),
        (BRIDGE + 'password_file = "none"\n', ["bridge[1].password_file", "exists"]),
        (BRIDGE.replace("in/#", "in/#/x"), ["bridge[1].input_topic", "filter"]),
        (BRIDGE.replace("out/{topic}", "out/+"), ["bridge[1].output_topic", "wildcards"]),
        (BRIDGE.replace("out/{topic}", "out/{device}"), ["bridge[1].output_topic", "{topic}"]),
        # Each of these would feed the model with its own answers.
        (BRIDGE.replace("out/{topic}", "{topic}/out"), ["bridge[1].output_topic", "next input"]),
        (BRIDGE.replace("out/{topic}", "in/answers"), ["bridge[1].output_topic", "next input"]),
        (BRIDGE + 'error_topic = "in/errors"\n', ["bridge[1].error_topic", "next input"]),
        (BRIDGE.replace("in/#", "#"), ["bridge[1].output_topic", "next input"]),
        (BRIDGE + 'name = "a"\n' + BRIDGE + 'name = "a"\n', ["'a'", "own"]),
        (BRIDGE + 'name = "a"\n' + FOLDER + 'name = "a"\n', ["'a'", "own"]),
        ("bridge = 1\n", ["bridge is 1", "[[bridge]]"]),
        ("[bridge]\n", ["bridge", "[[bridge]]"]),
        (BRIDGE * 33, ["at most 32"]),
        ("[[folder]]\n", ["folder[1].path", "must be set"]),
        (FOLDER + FOLDER, ["folder[2].path", "folder-1"]),
        (FOLDER + 'output = "in"\n', ["folder[1].output"]),
        (FOLDER + 'output = "in/done"\n', ["folder[1].output"]),
        (FOLDER + 'pattern = "../*"\n', ["folder[1].pattern"]),
        (FOLDER + "settle_s = -1\n", ["folder[1].settle_s", "from 0"]),
    ],
)
def test_what_cannot_work_is_refused_with_its_key(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_tables_cannot_be_said_in_a_variable(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="EDGELOOP_AGENT_BRIDGE"):
        load(tmp_path, "", EDGELOOP_AGENT_BRIDGE="in:out")


@pytest.mark.parametrize(
    ("pattern", "topic", "matches"),
    [
        ("a/b", "a/b", True),
        ("a/+", "a/b", True),
        ("a/+", "a/b/c", False),
        ("a/+", "a", False),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("#", "$SYS/load", False),
        ("+/b", "a/b", True),
        ("+", "", True),
    ],
)
def test_filters_match_as_the_standard_says(pattern: str, topic: str, matches: bool) -> None:
    assert topic_matches(pattern, topic) is matches
