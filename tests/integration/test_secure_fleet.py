"""What the ports for agents, enrolment and operators let in, with real certificates."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from machine import wait_until
from secure_harness import Device, SecurePlane, device

from cloud.cli.client import ControlClient
from cloud.pki.authority import Authority
from edge_agent.reporter import FleetReporter
from edge_agent.spool import ReportSpool
from edgeloop.backoff import Backoff
from edgeloop.errors import CODE_METADATA_KEY, TransientError
from edgeloop.identity import certificate_request, facts, new_private_key, read_certificate
from edgeloop.v1 import control_service_pb2 as pb
from edgeloop.v1 import (
    deployment_pb2,
    device_pb2,
    enrolment_service_pb2,
    fleet_service_pb2,
    telemetry_pb2,
)
from edgeloop.v1.enrolment_service_pb2_grpc import EnrolmentServiceStub, RenewalServiceStub
from edgeloop.v1.fleet_service_pb2_grpc import FleetServiceStub

CALL_S = 60.0


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecurePlane]:
    plane = SecurePlane(tmp_path_factory.mktemp("secure") / "plane").start()
    yield plane
    plane.stop()


def new_token(plane: SecurePlane, name: str, **labels: str) -> str:
    with plane.control() as control:
        return str(control.EnrolDevice(pb.EnrolDeviceRequest(device_id=name, labels=labels)).token)


def enrol(plane: SecurePlane, token: str, request: bytes) -> enrolment_service_pb2.EnrolResponse:
    with grpc.secure_channel(plane.info["enrol"], grpc.ssl_channel_credentials(plane.ca_pem)) as channel:
        asked = enrolment_service_pb2.EnrolRequest(token=token, certificate_request=request)
        answer = EnrolmentServiceStub(channel).Enrol(asked, timeout=CALL_S)
        assert isinstance(answer, enrolment_service_pb2.EnrolResponse)
        return answer


def enrolled(plane: SecurePlane, name: str, **labels: str) -> Device:
    key_pem = new_private_key()
    answer = enrol(plane, new_token(plane, name, **labels), certificate_request(key_pem, name))
    return Device(name, key_pem, answer.issued.certificate_pem, Path())


def fleet(plane: SecurePlane, who: Device | None) -> grpc.Channel:
    credentials = who.credentials(plane) if who is not None else grpc.ssl_channel_credentials(plane.ca_pem)
    return grpc.secure_channel(
        plane.info["fleet"], credentials, options=[("grpc.use_local_subchannel_pool", 1)]
    )


def register(plane: SecurePlane, who: Device | None, name: str = "") -> fleet_service_pb2.RegisterResponse:
    registration = device_pb2.Registration(
        device_id=name or (who.name if who is not None else "gw-1"),
        hardware=device_pb2.Hardware(architecture="x86_64", num_cores=2, memory_bytes=1 << 32),
        labels={"class": "said-by-itself", "room": "7"},
        boot_id="b1",
        emulated_slowdown=1,
    )
    with fleet(plane, who) as channel:
        answer = FleetServiceStub(channel).Register(
            fleet_service_pb2.RegisterRequest(registration=registration), timeout=CALL_S
        )
    assert isinstance(answer, fleet_service_pb2.RegisterResponse)
    return answer


def refused(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    """Status and our own code of a call that must fail."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    metadata = dict(error.trailing_metadata() or ())
    return error.code(), str(metadata.get(CODE_METADATA_KEY, ""))


def audited(plane: SecurePlane, action: str, text: str) -> bool:
    with plane.control() as control:
        entries = control.ListAudit(pb.ListAuditRequest(limit=1000, refused_only=True)).entries
    return any(entry.action == action and text in entry.message for entry in entries)


def registered(plane: SecurePlane, name: str) -> pb.DeviceInfo:
    with plane.control() as control:
        (found,) = control.ListDevices(pb.ListDevicesRequest(device_id=name)).devices
    assert isinstance(found, pb.DeviceInfo)
    return found


def test_a_device_takes_part_with_the_labels_that_were_bound_to_it(plane: SecurePlane) -> None:
    register(plane, enrolled(plane, "labelled", **{"class": "gateway"}))
    found = registered(plane, "labelled")
    assert dict(found.registration.labels) == {"class": "gateway", "room": "7"}
    assert found.identity_state == "valid"


def test_a_device_cannot_register_or_report_as_another(plane: SecurePlane) -> None:
    mallory, _ = enrolled(plane, "mallory"), register(plane, enrolled(plane, "victim"))
    denied = (grpc.StatusCode.PERMISSION_DENIED, "device-id-mismatch")
    assert refused(lambda: register(plane, mallory, "victim")) == denied
    register(plane, mallory)
    with fleet(plane, mallory) as channel:
        stub = FleetServiceStub(channel)
        status = deployment_pb2.DeploymentStatus(device_id="victim", generation=1, digest="0" * 64)
        asked = fleet_service_pb2.UpdateDeploymentStatusRequest(status=status)
        assert refused(lambda: stub.UpdateDeploymentStatus(asked, timeout=CALL_S)) == denied
        # One foreign report among good ones is enough.
        reports = [telemetry_pb2.LatencyReport(device_id=name) for name in ("mallory", "victim")]
        batch = fleet_service_pb2.StreamReportsRequest(batch_id=1, reports=reports)
        assert refused(lambda: list(stub.StreamReports(iter([batch]), timeout=CALL_S))) == denied
    for action in ("Register", "UpdateDeploymentStatus", "StreamReports"):
        wait_until(lambda action=action: audited(plane, action, "'victim'"), what=f"word of it: {action}")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("none", "no certificate was shown"),
        ("expired", "certificate has expired"),
        ("foreign", "unable to get local issuer certificate"),
        ("forged", "signed by another authority"),
    ],
)
def test_without_a_good_certificate_nobody_gets_in_and_the_log_says_why(
    plane: SecurePlane, tmp_path: Path, kind: str, reason: str
) -> None:
    ours = plane.keys.load_device_authority()
    who = {
        "none": lambda: None,
        "expired": lambda: device(ours, tmp_path, "gw-1", begin_s=-7200, life_s=3600),
        "foreign": lambda: device(Authority.create("other", time.time())[0], tmp_path, "gw-1"),
        "forged": lambda: device(Authority.create("edgeloop devices", time.time())[0], tmp_path, "gw-1"),
    }[kind]()
    assert refused(lambda: register(plane, who))[0] is grpc.StatusCode.UNAVAILABLE
    wait_until(lambda: audited(plane, "tls-handshake", reason), what=reason)


def test_a_server_certificate_opens_nothing(plane: SecurePlane) -> None:
    key, certificate = ((plane.keys.control / f"server.{end}").read_bytes() for end in ("key", "crt"))
    server = Device("localhost", key, certificate, Path())
    assert refused(lambda: register(plane, server))[0] is grpc.StatusCode.UNAVAILABLE


def test_old_versions_of_tls_are_refused(plane: SecurePlane, tmp_path: Path) -> None:
    who = enrolled(plane, "old-fashioned")
    path = tmp_path / "who.pem"
    path.write_bytes(who.key_pem + who.certificate_pem)
    context = ssl.create_default_context(cadata=plane.ca_pem.decode())
    context.load_cert_chain(path)
    context.set_alpn_protocols(["h2"])
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    host, port = plane.info["fleet"].rsplit(":", 1)
    # Settings, then the headers of a call, as small as HTTP/2 has them: POST, https, path, authority.
    path_field = b"/edgeloop.v1.FleetService/Register"
    headers = b"\x83\x87\x44" + bytes([len(path_field)]) + path_field + b"\x41\x01x"
    headers += b"\x40\x0ccontent-type\x10application/grpc\x40\x02te\x08trailers"
    frames = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
    frames += len(headers).to_bytes(3, "big") + b"\1\4" + (1).to_bytes(4, "big") + headers
    message = fleet_service_pb2.RegisterRequest(
        registration=device_pb2.Registration(device_id=who.name)
    ).SerializeToString()
    body = b"\0" + len(message).to_bytes(4, "big") + message
    frames += len(body).to_bytes(3, "big") + b"\0\1" + (1).to_bytes(4, "big") + body
    with (
        socket.create_connection((host, int(port)), timeout=CALL_S) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        assert secure.version() == "TLSv1.2"
        secure.sendall(frames)
        wait_until(lambda: audited(plane, "Register", "TLSv1.2"), what="a refusal in the log")
    with plane.control() as control:
        known = {item.registration.device_id for item in control.ListDevices(pb.ListDevicesRequest()).devices}
    assert who.name not in known


def test_revoking_cuts_a_live_stream_and_refuses_new_calls(plane: SecurePlane) -> None:
    who = enrolled(plane, "lost-gateway")
    register(plane, who)
    with fleet(plane, who) as channel:
        ended: list[tuple[grpc.StatusCode, str]] = []
        open_end: Iterator[fleet_service_pb2.StreamReportsRequest] = _open_end()
        answers = FleetServiceStub(channel).StreamReports(open_end, timeout=60)
        assert next(answers).batch_id == 7  # it stands
        with plane.control() as control:
            state = control.RevokeDevice(pb.RevokeDeviceRequest(device_id=who.name)).identity.state
        assert state == "revoked"
        ended.append(refused(lambda: next(answers)))
    denied = (grpc.StatusCode.PERMISSION_DENIED, "certificate-revoked")
    assert ended == [denied]
    assert refused(lambda: register(plane, who)) == denied
    for action in ("StreamReports", "Register"):
        wait_until(lambda action=action: audited(plane, action, "was revoked"), what=f"word of it: {action}")


def _open_end() -> Iterator[fleet_service_pb2.StreamReportsRequest]:
    yield fleet_service_pb2.StreamReportsRequest(batch_id=7)
    time.sleep(30)


def test_renewal_gives_a_certificate_of_the_same_name_for_a_new_key(plane: SecurePlane) -> None:
    who = enrolled(plane, "renewing")
    key_pem = new_private_key()
    request = certificate_request(key_pem, "somebody-else")
    with fleet(plane, who) as channel:
        renewal = RenewalServiceStub(channel)
        asked = enrolment_service_pb2.RenewRequest(certificate_request=request)
        answer = renewal.Renew(asked, timeout=CALL_S)
        code = refused(lambda: renewal.Renew(asked, timeout=CALL_S))[1]
    assert code == "csr-replayed"
    assert facts(read_certificate(answer.issued.certificate_pem)).name == "renewing"
    register(plane, Device("renewing", key_pem, answer.issued.certificate_pem, Path()))
    register(plane, who)  # the old one is good until it ends


def test_tokens_and_requests_that_were_used_are_refused_and_audited(plane: SecurePlane) -> None:
    token = new_token(plane, "once")
    request = certificate_request(new_private_key(), "once")
    enrol(plane, token, request)
    again = certificate_request(new_private_key(), "once")
    cases = {
        "token-used": (token, again),
        "token-unknown": ("ele_guess", again),
        "csr-replayed": (new_token(plane, "twice"), request),
        "csr": (new_token(plane, "thrice"), b"nonsense"),
    }
    for code, (given, asked) in cases.items():
        assert refused(lambda given=given, asked=asked: enrol(plane, given, asked))[1] == code  # type: ignore[misc]
        assert audited(plane, "Enrol", f"{code}: "), code
    assert token not in plane.log


def test_operators_have_tokens_and_roles(plane: SecurePlane) -> None:
    with plane.control() as control:
        viewer = control.CreateOperator(pb.CreateOperatorRequest(name="vera", role="viewer")).token
    listing, revoking = pb.ListDevicesRequest(), pb.RevokeDeviceRequest(device_id="renewing")
    with plane.control(viewer) as control:
        control.ListDevices(listing)
        denied = refused(lambda: control.RevokeDevice(revoking))
        assert denied == (grpc.StatusCode.PERMISSION_DENIED, "role")
    unknown = grpc.StatusCode.UNAUTHENTICATED
    for token, code in (("", "token-missing"), ("elo_guess", "token-unknown")):
        with plane.control(token) as control:
            assert refused(lambda control=control: control.ListDevices(listing)) == (unknown, code)  # type: ignore[misc]
    with plane.control() as control:
        control.RevokeOperator(pb.RevokeOperatorRequest(name="vera"))
    with plane.control(viewer) as control:
        assert refused(lambda: control.ListDevices(listing)) == (unknown, "token-revoked")
    with plane.control() as control:
        entries = control.ListAudit(pb.ListAuditRequest(limit=1000)).entries
    said = {(entry.actor, entry.action, entry.target, entry.outcome) for entry in entries}
    assert ("operator:admin", "CreateOperator", "vera", "done") in said
    assert ("operator:vera", "RevokeDevice", "renewing", "refused") in said
    assert ("unknown", "ListDevices", "", "refused") in said


def test_the_control_script_works_over_tls_and_says_what_it_lacks(plane: SecurePlane) -> None:
    assert plane.edgeloop("device", "enroll", "typed").startswith("ele_")
    assert "EDGELOOP_TOKEN" in plane.edgeloop("get", "devices", token="elo_wrong", status=2)
    with pytest.raises(TransientError, match="EDGELOOP_CA"), ControlClient(plane.info["control"]) as client:
        client.call("GetServerInfo", pb.GetServerInfoRequest(), pb.GetServerInfoResponse)


@pytest.mark.parametrize("kind", ["none", "forged"])
def test_an_agent_that_is_not_let_in_says_what_to_do(
    plane: SecurePlane, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    forged = device(Authority.create("edgeloop devices", time.time())[0], tmp_path, "gw-1")
    reporter = FleetReporter(
        server=plane.info["fleet"],
        spool=ReportSpool(tmp_path / "spool.db", boot_id="b1", max_bytes=1 << 20),
        registration=device_pb2.Registration,
        on_registered=lambda response: None,
        backoff=Backoff(0.1, 0.2),
        credentials=forged.credentials(plane) if kind == "forged" else None,
    )
    wanted = {"none": "'edgeloop-agent enroll' gets one", "forged": "its audit log says why"}[kind]
    with caplog.at_level("DEBUG", "edge_agent.reporter"):
        reporter.start()
        wait_until(lambda: wanted in caplog.text, what=wanted)
    reporter.close()


def test_bad_handshakes_and_oversized_messages_leave_the_service_answering(plane: SecurePlane) -> None:
    who = enrolled(plane, "patient")
    context = ssl.create_default_context(cadata=plane.ca_pem.decode())
    context.set_alpn_protocols(["h2"])
    for n in range(200):
        host, port = plane.info[("fleet", "enrol", "control")[n % 3]].rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=CALL_S) as plain:
            if n % 4 == 0:
                plain.sendall(b"GET / HTTP/1.1\r\n\r\n" * 20)
            elif n % 4 == 1:
                plain.sendall(b"\x16\x03\x01\x02\x00\x01" + bytes(500))  # begins a ClientHello, and no more
            elif n % 4 == 2:
                with context.wrap_socket(plain, server_hostname="localhost") as secure:
                    secure.sendall(bytes(1000))
    large = grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused(lambda: enrol(plane, "x" * 100_000, b"x"))[0] is large
    with fleet(plane, who) as channel:
        reports = [telemetry_pb2.LatencyReport(device_id=who.name, workload="x" * (5 << 20))]
        batch = fleet_service_pb2.StreamReportsRequest(batch_id=1, reports=reports)
        assert refused(lambda: list(FleetServiceStub(channel).StreamReports(iter([batch]))))[0] is large
    register(plane, who)
    enrolled(plane, "afterwards")
    with grpc.secure_channel(plane.info["enrol"], grpc.ssl_channel_credentials(plane.ca_pem)) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=CALL_S)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_who_guesses_tokens_must_wait(plane: SecurePlane) -> None:
    """The last of this module: from here on this address waits a minute at the enrolment port."""
    request = certificate_request(new_private_key(), "x")
    codes = {refused(lambda: enrol(plane, "ele_guess", request))[1] for _ in range(11)}
    assert codes == {"token-unknown", "too-many-failures"}
