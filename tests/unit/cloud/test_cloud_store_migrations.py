"""The schema from nothing, from an old file, from a newer one, and from no database at all."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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
from postgres_server import PostgresServer

from cloud.domain.devices import DeploymentState
from cloud.store import Store, schema
from cloud.store.migrate import script_directory
from edgeloop.errors import ConfigError, TransientError

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "edgeloop.db"


def open_store(path: Path) -> Store:
    return Store(f"sqlite:///{path}")


@pytest.fixture
def sqlite_store(path: Path) -> Iterator[Store]:
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


def test_a_fresh_database_has_the_schema_that_the_code_declares(store: Store, store_url: str) -> None:
    with sa.create_engine(store_url).connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []


def test_everything_written_survives_a_restart_and_a_second_migration(store: Store, store_url: str) -> None:
    fill(store)
    store.close()
    again = Store(store_url)
    again.migrate()
    check_filled(again)
    again.close()


def test_what_is_acknowledged_is_flushed(sqlite_store: Store) -> None:
    with sqlite_store._read() as connection:
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


def test_a_newer_database_is_refused_and_left_alone(sqlite_store: Store, path: Path) -> None:
    sqlite_store.close()
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


def test_control_planes_that_start_at_once_migrate_once(store_url: str) -> None:
    stores = [Store(store_url) for _ in range(4)]
    with ThreadPoolExecutor(len(stores)) as pool:
        list(pool.map(Store.migrate, stores))
    fill(stores[0])
    check_filled(stores[-1])
    for store in stores:
        store.close()


def test_a_new_file_that_another_control_plane_is_setting_up_is_waited_for(path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    store = open_store(path)
    with ThreadPoolExecutor(1) as pool:
        migrated = pool.submit(store.migrate)
        with pytest.raises(TimeoutError):
            migrated.result(0.3)
        other.execute("COMMIT")
        other.close()
        migrated.result(60)
    fill(store)
    check_filled(store)
    store.close()


def test_a_newer_database_of_postgresql_is_refused(postgres_url: str) -> None:
    store = Store(postgres_url)
    store.migrate()
    with store._write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(ConfigError) as caught:
        store.migrate()
    store.close()
    assert caught.value.code == "store-newer"


def test_a_database_that_is_not_there_is_told_from_a_server_that_is_away(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        Store(postgres_server.url("nonesuch")).migrate()
    assert caught.value.code == "store-unusable"
    with pytest.raises(TransientError) as away:
        Store(f"postgresql://edgeloop@/edgeloop?host={tmp_path}").migrate()
    assert away.value.code == "store-busy"


def test_a_server_that_restarted_is_found_again(postgres_server: PostgresServer) -> None:
    store = Store(postgres_server.new_database())
    store.migrate()
    store.set_meta("before", "1")
    postgres_server.stop()
    with pytest.raises(TransientError):
        store.get_meta("before")
    postgres_server.start()
    assert store.get_meta("before") == "1"
    store.close()


def test_a_file_that_is_no_database_is_a_config_error(path: Path) -> None:
    path.write_bytes(b"my notes, not a database" * 100)
    store = open_store(path)
    with pytest.raises(ConfigError) as caught:
        store.migrate()
    assert caught.value.code == "store-unusable"
    assert path.read_bytes().startswith(b"my notes")


@pytest.mark.parametrize(
    "url", ["nonsense", "unknown://x", "postgresql+nodriver://x/y", "sqlite:////no/such/folder/edgeloop.db"]
)
def test_a_useless_url_is_a_config_error(url: str) -> None:
    with pytest.raises(ConfigError):
        Store(url).migrate()
