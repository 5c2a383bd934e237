"""`edgeloop-agent enroll`: from a one-time token to a certificate.

Rules:
- The key is made here, and nothing but the request for a certificate leaves.
- An identity that is good is never replaced by accident: a second run changes nothing and uses no token.
- The server is believed because of the authority's certificate that the installer gave, and for nothing else.
"""

import time
from collections.abc import Callable
from pathlib import Path

import grpc

from edge_agent.config import Endpoint
from edge_agent.identity import Identity, load_identity, save_certificate, save_enrolment
from edgeloop.errors import ConfigError, RejectedError, TransientError, error_from_grpc
from edgeloop.identity import certificate_request, facts, new_private_key, read_certificate
from edgeloop.v1 import enrolment_service_pb2 as pb
from edgeloop.v1.enrolment_service_pb2_grpc import EnrolmentServiceStub

_TIMEOUT_S = 30.0
_MAX_TOKEN_CHARS = 256


def read_token(token: str | None, token_file: Path | None) -> str:
    """The token from a flag or a file. Raises ConfigError."""
    if (token is None) == (token_file is None):
        raise ConfigError("give either --token or --token-file", code="config-missing")
    if token_file is not None:
        try:
            token = token_file.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"--token-file {token_file} cannot be read ({error})", code="config-file"
            ) from None
    token = (token or "").strip()
    if not token or len(token) > _MAX_TOKEN_CHARS:
        raise ConfigError(
            "the token is empty or too long: give what 'edgeloop device enroll' printed", code="token"
        )
    return token


def enrol(
    state_dir: Path, *, server: Endpoint, ca_file: Path, token: Callable[[], str], force: bool = False
) -> tuple[Identity, bool]:
    """The identity, and whether it is new. Raises ConfigError, RejectedError or TransientError."""
    present = _present(state_dir, force=force)
    if present is not None:
        return present, False
    try:
        ca_pem = ca_file.read_bytes()
    except OSError as error:
        raise ConfigError(f"--ca {ca_file} cannot be read ({error.strerror})", code="config-file") from None
    if b"-----BEGIN CERTIFICATE-----" not in ca_pem:
        raise ConfigError(
            f"--ca {ca_file} holds no certificate (PEM): give the ca.crt of the control plane",
            code="config-file",
        )
    key_pem = new_private_key()
    request = pb.EnrolRequest(token=token(), certificate_request=certificate_request(key_pem, "new"))
    with grpc.secure_channel(str(server), grpc.ssl_channel_credentials(ca_pem)) as channel:
        try:
            answer: pb.EnrolResponse = EnrolmentServiceStub(channel).Enrol(request, timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            found = error_from_grpc(error)
            if isinstance(found, TransientError) and found.code == "grpc-unavailable":
                raise TransientError(
                    f"cannot enrol at {server} ({found.message[-300:]}): check the address, and that --ca is "
                    "the ca.crt of this control plane",
                    code="enrol-unreachable",
                ) from None
            raise found from None
    certificate = facts(read_certificate(answer.issued.certificate_pem))
    if certificate.name != answer.issued.device_id:
        raise RejectedError("the server's certificate and its word on it do not match", code="certificate")
    save_certificate(state_dir, key_pem, answer.issued.certificate_pem)
    save_enrolment(
        state_dir,
        ca_pem,
        {
            "device_id": certificate.name,
            "enrol_server": str(server),
            "server": str(Endpoint(host=answer.fleet_host or server.host, port=answer.fleet_port)),
            "broker": str(Endpoint(host=answer.broker_host or server.host, port=answer.broker_port)),
            "director_key": answer.director_public_key.hex(),
            **({"tuf_root": answer.tuf_root.decode("utf-8", "replace")} if answer.tuf_root else {}),
        },
    )
    identity = load_identity(state_dir)
    assert identity is not None
    return identity, True


def _present(state_dir: Path, *, force: bool) -> Identity | None:
    if force:
        return None
    try:
        identity = load_identity(state_dir)
    except ConfigError:
        return None  # damaged: a new one is the remedy
    if identity is None or identity.facts.not_after_s <= time.time():
        return None
    return identity
