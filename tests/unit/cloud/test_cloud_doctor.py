"""What is wrong is named, with what to do; what cannot be looked at is a finding too."""

from __future__ import annotations

import contextlib
import json
import socket
import sqlite3
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
import typer
import yaml
from cloud_store_values import DEVICE, INTENT, PROFILE, ROLLOUT

from cloud import doctor as examination
from cloud.cli.doctor import doctor
from cloud.cli.output import Output
from cloud.doctor import Finding, Verdict, examine
from cloud.domain.rollout import RolloutState
from cloud.pki.key_folder import init_folder
from cloud.registry import Registry
from cloud.registry_check import Need, look_at
from cloud.settings import ServeSettings
from cloud.store import Store
from edgeloop.artifact import build_manifest, encode_manifest, golden_set
from edgeloop.trust import DirectorKey
from edgeloop.v1 import artifact_pb2


def put_artifact(registry: Registry, data: bytes) -> tuple[str, str]:
    """Digests of the artifact and of a manifest for it."""
    tensors = [artifact_pb2.TensorSpec(name="x", datatype="FP32", shape=[0, 2])]
    ones = np.ones((1, 2), np.float32)
    manifest = build_manifest(
        data,
        workload="digits",
        profile="p",
        precision=artifact_pb2.PRECISION_INT8,
        inputs=tensors,
        outputs=tensors,
        golden=golden_set(ones, ones, absolute_tolerance=0.1),
        accuracy=0.9,
    )
    return registry.put(data), registry.put(encode_manifest(manifest))


def found(settings: ServeSettings, *, now_s: float | None = None) -> dict[str, Finding]:
    clock = time.time if now_s is None else lambda: now_s
    return {finding.what: finding for finding in examine(settings, now_s=clock)}


@pytest.fixture
def settings(tmp_path: Path, store_url: str, monkeypatch: pytest.MonkeyPatch) -> ServeSettings:
    """Of a control plane that acts, on a disk with room."""
    monkeypatch.setattr("cloud.doctor.shutil.disk_usage", lambda folder: SimpleNamespace(free=1 << 40))
    settings = ServeSettings(state_dir=tmp_path / "state", database_url=store_url)
    settings.state_dir.mkdir()
    DirectorKey.generate().save(settings.director / "director.key")
    store = Store(store_url)
    store.migrate()
    store.claim_lease("controller", "plane-1", 3600.0)
    store.close()
    return settings


def test_all_is_well_with_a_control_plane_that_acts(settings: ServeSettings) -> None:
    findings = found(settings)
    assert {finding.verdict for finding in findings.values()} == {Verdict.OK}, findings
    assert "plane-1 acts" in findings["controller"].message
    assert "answered in" in findings["database"].message


def test_before_the_first_start_nothing_fails(tmp_path: Path) -> None:
    findings = found(ServeSettings(state_dir=tmp_path / "state"))
    assert Verdict.FAIL not in {finding.verdict for finding in findings.values()}
    assert findings["database"].verdict is Verdict.WARN


def test_a_database_that_is_away_fails_and_the_rest_is_still_looked_at(tmp_path: Path) -> None:
    findings = found(
        ServeSettings(
            state_dir=tmp_path,
            database_url=f"postgresql://edgeloop@/edgeloop?host={tmp_path}",
            broker="127.0.0.1:1",
        )
    )
    assert findings["database"].verdict is Verdict.FAIL
    assert findings["broker"].verdict is Verdict.FAIL
    assert "--broker" in findings["broker"].message
    assert findings["cluster"].verdict is Verdict.OK


def test_a_state_folder_that_cannot_be_written_to_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    finding = found(ServeSettings(state_dir=tmp_path / "file" / "state"))["disk"]
    assert finding.verdict is Verdict.FAIL
    assert "--state-dir" in finding.message


def test_a_clock_that_is_off_fails(tmp_path: Path, postgres_url: str) -> None:
    settings = ServeSettings(state_dir=tmp_path, database_url=postgres_url)
    assert found(settings, now_s=time.time() - 60)["clock"].verdict is Verdict.FAIL
    assert found(settings)["clock"].verdict is Verdict.OK


def test_a_key_that_others_can_read_fails(settings: ServeSettings) -> None:
    (settings.director / "director.key").chmod(0o644)
    finding = found(settings)["director key"]
    assert finding.verdict is Verdict.FAIL
    assert "chmod 600" in finding.message


def test_certificates_are_told_before_they_end_and_after(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    init_folder(keys, ["localhost"], ())
    settings = ServeSettings(state_dir=tmp_path, tls_dir=keys)
    assert found(settings)["certificates"].verdict is Verdict.OK
    day_s = 86_400.0
    assert found(settings, now_s=time.time() + 810 * day_s)["certificates"].verdict is Verdict.WARN
    ended = found(settings, now_s=time.time() + 830 * day_s)["certificates"]
    assert ended.verdict is Verdict.FAIL
    assert "edgeloop keys renew" in ended.message
    assert (
        found(ServeSettings(state_dir=tmp_path, tls_dir=tmp_path / "no"))["certificates"].verdict
        is Verdict.FAIL
    )


@pytest.mark.parametrize(
    ("server", "is_told"), [("control:50062", True), ("127.0.0.1:50062", False), ("", False)]
)
def test_asked_where_no_control_plane_runs_it_says_whose_machine_it_looks_at(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    server: str,
    is_told: bool,
) -> None:
    monkeypatch.setenv("EDGELOOP_SERVER", server)
    monkeypatch.delenv("EDGELOOP_TLS_DIR", raising=False)
    doctor(state_dir=tmp_path)
    said = capsys.readouterr()
    assert ("not at control:50062" in said.err) is is_told
    assert "disk:" in said.out


def test_the_registry_is_asked_for_what_devices_must_fetch(settings: ServeSettings) -> None:
    registry = Registry(settings.registry)
    digest, manifest_digest = put_artifact(registry, b"weights")
    store = Store(settings.database)
    store.register_device(DEVICE, PROFILE.name, "", 103.0)
    store.issue_deployment(replace(INTENT, digest=digest, manifest_digest=manifest_digest), 116.0)
    store.save_rollout(replace(ROLLOUT, state=RolloutState.SUCCEEDED), 117.0)
    store.close()
    well = found(settings)["registry"]
    assert well.verdict is Verdict.OK
    assert "1 artifacts are needed (1 hashed)" in well.message

    def spoil(of: str, data: bytes | None) -> Finding:
        path = Path(settings.registry, "sha256", of[:2], of)
        before = path.read_bytes()
        path.unlink() if data is None else path.write_bytes(data)
        finding = found(settings)["registry"]
        path.write_bytes(before)
        return finding

    for of, data, what in (
        (digest, None, "missing"),
        (digest, b"WEIGHTS", "damaged"),
        (digest, b"more weights", "damaged"),
        (manifest_digest, None, "missing"),
        (manifest_digest, b"?", "damaged"),
    ):
        finding = spoil(of, data)
        assert finding.verdict is Verdict.FAIL, (what, finding)
        assert f"{of} is {what} (1 devices of profile gateway-small" in finding.message
        assert "docs/upgrade-backup.md" in finding.message
        assert "edgeloop compress --profile" in finding.message
    assert found(settings)["registry"] == well


def test_an_artifact_that_only_serves_is_missed_but_nobody_waits_for_it(settings: ServeSettings) -> None:
    store = Store(settings.database)
    store.register_device(replace(DEVICE, serving_digest="5" * 64), "", "", 103.0)
    Registry(settings.registry)
    finding = found(settings)["registry"]
    assert finding.verdict is Verdict.WARN
    assert f"{'5' * 64} is missing" in finding.message
    store.save_rollout(ROLLOUT, 117.0)
    store.close()
    rolled_out = found(settings)["registry"]
    assert rolled_out.verdict is Verdict.FAIL
    assert f"of these, {ROLLOUT.manifest_digest} is missing" in rolled_out.message


def test_an_older_schema_is_not_asked_what_the_registry_needs(tmp_path: Path) -> None:
    settings = ServeSettings(state_dir=tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "edgeloop.db")):
        pass
    finding = found(settings)["registry"]
    assert finding.verdict is Verdict.WARN
    assert "the next start of 'edgeloop serve'" in finding.message


def test_an_object_store_is_asked_for_sizes_and_the_work_is_bounded(tmp_path: Path) -> None:
    registry = Registry(f"memory://{tmp_path.name}")
    needed = []
    for data in (b"one", b"two", b"three"):
        digest, manifest_digest = put_artifact(registry, data)
        needed.append(Need(digest=digest, manifest_digest=manifest_digest, profile="p"))
    seen = look_at(registry, needed, max_digests=2)
    assert (seen.num_needed, seen.num_hashed, seen.num_sized, seen.num_left) == (3, 0, 2, 1)
    fsspec.filesystem("memory").pipe_file(
        f"/{tmp_path.name}/sha256/{needed[0].digest[:2]}/{needed[0].digest}", b"longer"
    )
    spoilt = look_at(registry, needed)
    assert [(problem.digest, problem.what) for problem in spoilt.problems] == [(needed[0].digest, "damaged")]
    folder = Registry(str(tmp_path / "folder"))
    put_artifact(folder, b"one")
    put_artifact(folder, b"two")
    some = look_at(folder, needed[:2], max_read_bytes=3)
    assert (some.num_hashed, some.num_sized) == (1, 1)


def test_a_registry_that_cannot_be_used_is_named_and_none_is_made(
    settings: ServeSettings, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    finding = found(replace(settings, registry_url=str(tmp_path / "file")))["registry"]
    assert finding.verdict is Verdict.FAIL
    assert "--registry-url" in finding.message
    unknown = found(replace(settings, registry_url="gopher://x"))["registry"]
    assert unknown.verdict is Verdict.FAIL
    assert "registry_url is 'gopher://x'" in unknown.message
    assert found(settings)["registry"].verdict is Verdict.OK
    assert not Path(settings.registry).exists()


@contextlib.contextmanager
def tls_broker(folder: Path, *, clients_of: Path) -> Iterator[int]:
    """The port of a listener that shows the certificate of ``folder``, takes those of ``clients_of``, and is
    silent, as a broker is before CONNECT."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(folder / "broker" / "server.crt", folder / "broker" / "server.key")
    context.load_verify_locations(clients_of / "control" / "device-ca.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    plain, _ = listener.accept()
                except OSError:  # the test is over
                    return
                with contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True) as secured:
                    secured.recv(1)

        threading.Thread(target=serve, daemon=True).start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)


def test_a_broker_must_be_believed_and_believe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs):
        init_folder(folder, ["127.0.0.1"], ())

    def look(port: int) -> Finding:
        return found(ServeSettings(state_dir=tmp_path, tls_dir=ours, broker=f"127.0.0.1:{port}"))["broker"]

    with tls_broker(ours, clients_of=ours) as port:
        assert look(port).verdict is Verdict.OK
        assert "certificates are believed" in look(port).message
    # A refusal comes at once, unless the machine is busy.
    monkeypatch.setattr(examination, "_REFUSAL_WAIT_S", 30.0)
    with tls_broker(theirs, clients_of=ours) as port:
        stranger = look(port)
    assert stranger.verdict is Verdict.FAIL
    assert "certificate that is not believed" in stranger.message
    assert "edgeloop keys renew" in stranger.message
    with tls_broker(ours, clients_of=theirs) as port:
        refused = look(port)
    assert refused.verdict is Verdict.FAIL
    assert "takes no TLS with" in refused.message
    assert "mqtt.pem" in refused.message


@pytest.mark.parametrize("output", [Output.JSON, Output.YAML])
def test_findings_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str], output: Output) -> None:
    with pytest.raises(typer.Exit):
        doctor(state_dir=tmp_path, broker="127.0.0.1:1", output=output)
    text = capsys.readouterr().out
    values = json.loads(text) if output is Output.JSON else yaml.safe_load(text)
    assert {value["what"]: value["verdict"] for value in values}["broker"] == "fail"
    assert text.lstrip().startswith("[") is (output is Output.JSON)
