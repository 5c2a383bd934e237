"""The folder of keys, the bounded log, the limiter, the reasons of handshakes, and contexts."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from cloud.audit import REFUSALS_A_MINUTE, REFUSALS_A_MINUTE_OF_ONE, AuditLog
from cloud.cli import app as cli
from cloud.cli.contexts import ContextFile
from cloud.domain.identities import AuditEntry
from cloud.handshake_log import reason_of
from cloud.pki.key_folder import MAX_CONTROLS, KeyFolder, control_name, init_folder, renew_folder
from cloud.services.peers import FailureLimiter, peer_host
from edgeloop.errors import ConfigError, TransientError
from edgeloop.trust import DirectorKey


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_second_init_changes_nothing_and_completes_what_is_missing(tmp_path: Path) -> None:
    assert init_folder(tmp_path, ["gw.example.org", "10.0.0.1"])
    before = contents(tmp_path)
    assert init_folder(tmp_path, ["gw.example.org"]) == []
    assert contents(tmp_path) == before
    (tmp_path / "broker" / "server.crt").unlink()
    assert init_folder(tmp_path, ["10.0.0.1"]) == ["broker/server.key", "broker/server.crt"]


def test_private_keys_and_tokens_are_for_their_owner_alone(tmp_path: Path) -> None:
    init_folder(tmp_path, ["localhost"], num_controls=2)
    private = [path for path in tmp_path.rglob("*") if path.suffix in (".key", ".token")]
    private += [tmp_path / "control" / "mqtt.pem", tmp_path / "control" / "mqtt-2.pem"]
    assert len(private) == 7
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}
    token = (tmp_path / "operator" / "admin.token").read_bytes().strip()
    assert all(
        token not in data for name, data in contents(tmp_path).items() if name != "operator/admin.token"
    )


def test_what_root_writes_into_a_services_folder_is_the_services(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An administrator's container renews certificates and TUF keys that another user's container reads."""
    given: set[tuple[int, int]] = set()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "fchown", lambda _descriptor, uid, gid: given.add((uid, gid)))
    monkeypatch.setattr(Path, "stat", _owned_by(10001, Path.stat))
    init_folder(tmp_path, ["localhost"])
    assert given == {(10001, 10001)}
    given.clear()
    DirectorKey.generate().save(tmp_path / "targets.pem")
    assert given == {(10001, 10001)}
    given.clear()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    init_folder(tmp_path / "mine", ["localhost"])
    assert given == set()


def _owned_by(uid: int, stat_of: Callable[..., os.stat_result]) -> Callable[..., os.stat_result]:
    def stat_as(path: Path, **flags: bool) -> os.stat_result:
        values = list(stat_of(path, **flags))
        values[stat.ST_UID] = values[stat.ST_GID] = uid
        return os.stat_result(values)

    return stat_as


def test_renewal_keeps_authorities_and_changes_names(tmp_path: Path) -> None:
    init_folder(tmp_path, ["old.example.org"])
    folder = KeyFolder(tmp_path)
    authority, key = folder.server_ca.read_bytes(), (folder.control / "server.key").read_bytes()
    with pytest.raises(ConfigError, match="keys renew"):
        init_folder(tmp_path, ["new.example.org"])
    renew_folder(tmp_path, ["new.example.org"])
    assert folder.server_ca.read_bytes() == authority
    assert (folder.control / "server.key").read_bytes() != key
    assert init_folder(tmp_path, ["new.example.org"], ["old.example.org"]) == []


@pytest.mark.parametrize("name", ["", "a b", "host:50061", "-x", "x" * 300])
def test_names_that_no_client_can_use_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--server-name"):
        init_folder(tmp_path, [name])


def test_two_sets_of_keys_in_one_folder_are_found(tmp_path: Path) -> None:
    init_folder(tmp_path / "a", ["localhost"])
    init_folder(tmp_path / "b", ["localhost"])
    (tmp_path / "a" / "control" / "ca.crt").write_bytes((tmp_path / "b" / "ca" / "ca.crt").read_bytes())
    with pytest.raises(ConfigError, match="two sets"):
        init_folder(tmp_path / "a", ["localhost"])


class Written:
    def __init__(self) -> None:
        self.entries: list[AuditEntry] = []

    def add_audit(self, *entries: AuditEntry) -> None:
        self.entries.extend(entries)


def test_a_flood_of_refusals_fills_no_disk_and_hides_nobody_else() -> None:
    written = Written()
    clock = [0.0]
    audit = AuditLog(written, lambda: clock[0])
    for _ in range(1000):
        audit.refused("unknown", "Enrol", message="bad", peer="192.0.2.1")
    assert len(written.entries) == REFUSALS_A_MINUTE_OF_ONE
    audit.refused("unknown", "Enrol", message="bad", peer="192.0.2.2")
    assert written.entries[-1].peer == "192.0.2.2"
    for n in range(2000):
        audit.refused("unknown", "Enrol", message="bad", peer=f"p{n}")
    assert len(written.entries) == REFUSALS_A_MINUTE
    audit.done("operator:ann", "RevokeDevice", "gw-1")
    assert written.entries[-1].actor == "operator:ann"
    clock[0] = 61.0
    audit.refused("unknown", "Enrol", message="bad", peer="192.0.2.3")
    left_out = written.entries[-2]
    assert left_out.message == f"{3001 - REFUSALS_A_MINUTE} more were not written down"


def test_a_peer_that_fails_often_waits_while_others_go_on() -> None:
    clock = [0.0]
    limiter = FailureLimiter(limit=3, window_s=60, clock_s=lambda: clock[0])
    for _ in range(3):
        limiter.check("a")
        limiter.failed("a")
    with pytest.raises(TransientError, match="60 s"):
        limiter.check("a")
    limiter.check("b")
    clock[0] = 60.0
    limiter.check("a")
    limiter.failed("a")
    limiter.check("a")


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:192.0.2.1:5000", "192.0.2.1"),
        ("ipv6:%5B2001:db8::1%5D:5000", "2001:db8::1"),
        ("unix:/x", "unix:/x"),
    ],
)
def test_peers_are_addresses_without_ports(peer: str, host: str) -> None:
    assert peer_host(peer) == host


def test_lines_of_failed_handshakes_become_reasons_and_no_others_do() -> None:
    begin = b"I1127 02:18:01.574247   32240 ssl_transport_security.cc:2563] Handshake failed with error "
    expired = (
        begin + b"SSL_ERROR_SSL: error:1000007d:SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED: "
        b"certificate has expired\n"
    )
    none = (
        begin
        + b"SSL_ERROR_SSL: error:100000c0:SSL routines:OPENSSL_internal:PEER_DID_NOT_RETURN_A_CERTIFICATE: "
        b"Invalid certificate verification context\n"
    )
    assert reason_of(expired) == "the certificate is not accepted: certificate has expired"
    assert reason_of(none) == "no certificate was shown"
    assert reason_of(b"2026-11-27 INFO somebody says Handshake failed with error\n") is None


def run_cli(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["edgeloop", *words])
    try:
        cli.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_contexts_are_set_used_listed_and_kept_from_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config" / "contexts.yaml"
    monkeypatch.setenv("EDGELOOP_CONTEXTS", str(path))
    ca, token = tmp_path / "ca.crt", tmp_path / "token"
    token.write_text("elo_secret\n")
    ca.write_text("x")
    assert run_cli(monkeypatch, "context", "set", "lab", "--server", "lab:50062", "--ca", str(ca)) == 2
    assert "holds no certificate" in capsys.readouterr().err
    ca.write_text("-----BEGIN CERTIFICATE-----\n")
    words = ("context", "set", "lab", "--server", "lab:50062", "--ca", str(ca), "--token-file", str(token))
    assert run_cli(monkeypatch, *words) == 0
    assert run_cli(monkeypatch, "context", "set", "home", "--server", "home:50062") == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert ContextFile.load().current == "lab"
    assert run_cli(monkeypatch, "context", "use", "home") == 0
    assert yaml.safe_load(path.read_text())["current"] == "home"
    capsys.readouterr()
    assert run_cli(monkeypatch, "context", "list") == 0
    shown = capsys.readouterr().out
    assert "lab:50062" in shown
    assert "elo_secret" not in shown
    assert run_cli(monkeypatch, "context", "list", "-o", "yaml") == 0
    listed = capsys.readouterr().out
    assert [(item["name"], item["current"]) for item in yaml.safe_load(listed)] == [
        ("home", True),
        ("lab", False),
    ]
    assert "elo_secret" not in listed
    assert run_cli(monkeypatch, "context", "set", "home", "--server", "home") == 2
    assert "give HOST:PORT" in capsys.readouterr().err
    assert ContextFile.load().contexts["home"].server == "home:50062"
    assert run_cli(monkeypatch, "context", "use", "nowhere") == 2
    path.chmod(0o644)
    assert run_cli(monkeypatch, "context", "list") == 2
    assert "chmod 600" in capsys.readouterr().err


def test_a_token_is_not_kept_for_a_connection_that_anybody_could_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGELOOP_CONTEXTS", str(tmp_path / "contexts.yaml"))
    assert run_cli(monkeypatch, "context", "set", "x", "--server", "x:1", "--token", "t") == 2
    assert "--ca" in capsys.readouterr().err


def test_the_broker_lets_in_every_control_plane_that_can_have_a_certificate() -> None:
    acl = (Path(__file__).parents[3] / "deploy" / "mosquitto" / "acl").read_text()
    admitted = [line.removeprefix("user ") for line in acl.splitlines() if line.startswith("user ")]
    assert admitted == [control_name(index) for index in range(1, MAX_CONTROLS + 1)]
