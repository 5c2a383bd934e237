"""What is wrong is named, with what to do; what cannot be looked at is a finding too."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from cloud.cli.doctor import doctor
from cloud.doctor import Finding, Verdict, examine
from cloud.pki.key_folder import init_folder
from cloud.settings import ServeSettings
from cloud.store import Store
from edgeloop.trust import DirectorKey


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
