"""The schema from nothing, from an old file, from a newer one, and from no database at all."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from cloud_store_values import (
    CANDIDATE,
    D1,
    DECISION,
    DEVICE,
    INTENT,
    JOB,
    M1,
    PROFILE,
    QUIET,
    REFERENCE,
    ROLLOUT,
    SKETCH,
    SPEC,
    STATE,
    STATUS,
    TEACHER,
    WORKLOAD,
    fill,
)

from cloud.domain.devices import DeploymentState
from cloud.store import Store, schema
from cloud.store.migrate import script_directory
from edgeloop.errors import ConfigError

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "edgeloop.db"


def open_store(path: Path) -> Store:
    return Store(f"sqlite:///{path}")


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    store = open_store(path)
    store.migrate()
    yield store
    store.close()


def check_filled(store: Store) -> None:
    """What ``fill`` wrote is what is read."""
    assert store.get_meta("controller_paused") == "yes"
    assert store.workloads() == [WORKLOAD]
    assert store.profiles() == [PROFILE]
    assert store.teacher(TEACHER.teacher_key) == TEACHER
    assert store.candidates() == [CANDIDATE]
    assert store.failed_specs(PROFILE.name) == [SPEC]
    assert store.jobs() == [JOB]
    assert store.rollouts() == [ROLLOUT]
    assert store.policy_state(PROFILE.name) == STATE
    assert [
        (entry.decision_id, entry.decision, entry.decide_time_s, entry.last_time_s, entry.num_repeats)
        for entry in store.decisions()
    ] == [("decision-2", QUIET, 112.0, 113.0, 1), ("decision-1", DECISION, 110.0, 110.0, 0)]
    assert store.current_digests() == {PROFILE.name: D1}
    assert store.devices() == [
        replace(
            DEVICE,
            generation=1,
            serving_digest=D1,
            serving_generation=1,
            profile=PROFILE.name,
            connected=True,
            register_time_s=103.0,
            last_seen_s=140.0,
        )
    ]
    (deployment,) = store.deployments()
    assert (deployment.generation, deployment.digest, deployment.manifest_digest) == (1, D1, M1)
    assert (deployment.rollout_id, deployment.decision_id) == (INTENT.rollout_id, INTENT.decision_id)
    assert (deployment.state, deployment.signed) == (DeploymentState.ACTIVE, b"signed bytes")
    assert store.history("gw-1") == [STATUS]
    windows = store.windows(profile=PROFILE.name)
    assert [window.sequence for window in windows] == [0, 1]
    assert {(window.latency, window.reference) for window in windows} == {(SKETCH, REFERENCE)}
    assert (windows[0].num_errors, windows[0].rss_bytes, windows[0].emulated_slowdown) == (2, 80 << 20, 3)


def test_a_fresh_database_has_the_schema_that_the_code_declares(store: Store, path: Path) -> None:
    with sa.create_engine(f"sqlite:///{path}").connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []


def test_everything_written_survives_a_restart_and_a_second_migration(store: Store, path: Path) -> None:
    fill(store)
    store.close()
    again = open_store(path)
    again.migrate()
    check_filled(again)
    again.close()


def test_what_is_acknowledged_is_flushed(store: Store) -> None:
    with store._read() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


@pytest.mark.parametrize("golden", sorted(GOLDEN.glob("store_*.sql")), ids=lambda path: path.stem)
def test_a_database_of_each_earlier_version_stays_readable(golden: Path, path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.executescript(golden.read_text())
    connection.close()
    store = open_store(path)
    store.migrate()
    check_filled(store)
    store.close()


def test_each_schema_version_has_a_golden_file() -> None:
    versions = {script.revision for script in script_directory().walk_revisions()}
    assert {golden.stem.removeprefix("store_") for golden in GOLDEN.glob("store_*.sql")} == versions


def test_a_newer_database_is_refused_and_left_alone(store: Store, path: Path) -> None:
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    before = path.read_bytes()
    newer = open_store(path)
    with pytest.raises(ConfigError, match="newer version") as caught:
        newer.migrate()
    newer.close()
    assert caught.value.code == "store-newer"
    assert path.read_bytes() == before


def test_a_migration_that_breaks_off_leaves_nothing(path: Path) -> None:
    store = open_store(path)

    def break_off() -> None:
        with store.transaction():
            store.migrate()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == []
    connection.close()
    store.migrate()
    fill(store)
    check_filled(store)
    store.close()


def test_a_file_that_is_no_database_is_a_config_error(path: Path) -> None:
    path.write_bytes(b"my notes, not a database" * 100)
    store = open_store(path)
    with pytest.raises(ConfigError) as caught:
        store.migrate()
    assert caught.value.code == "store-unusable"
    assert path.read_bytes().startswith(b"my notes")


@pytest.mark.parametrize("url", ["nonsense", "unknown://x", "sqlite:////no/such/folder/edgeloop.db"])
def test_a_useless_url_is_a_config_error(url: str) -> None:
    with pytest.raises(ConfigError):
        Store(url).migrate()
