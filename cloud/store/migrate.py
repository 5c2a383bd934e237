"""Brings a database to the schema of this code, or says why it cannot.

Rules kept here:

- Everything happens in the caller's transaction: a process killed midway leaves the schema as it was, and of
  two that start at once the second finds the work done.
- A schema from a newer edgeloop is never touched.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError

from edgeloop.errors import ConfigError

MIGRATIONS = Path(__file__).parent / "migrations"
_PG_LOCK = 0x6564_6765  # any number that nothing else in the database locks


def script_directory() -> ScriptDirectory:
    """The migrations that ship with this code."""
    return ScriptDirectory.from_config(alembic_config())


def alembic_config() -> Config:
    """Alembic's configuration, without a file."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def upgrade(connection: sa.Connection, target: str = "head") -> None:
    """Run the migrations up to ``target`` on a connection that has begun a write transaction."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _PG_LOCK})
    scripts = script_directory()
    current = MigrationContext.configure(connection).get_current_revision()
    if current is not None:
        try:
            scripts.get_revision(current)
        except CommandError as error:
            raise ConfigError(
                f"the database has schema {current}, which this edgeloop does not know: it was written by a "
                "newer version; start that version, or give another state directory",
                code="store-newer",
            ) from error
        if current == scripts.get_current_head():
            return
    config = alembic_config()
    config.attributes["connection"] = connection
    with EnvironmentContext(
        config,
        scripts,
        fn=lambda revision, context: scripts._upgrade_revs(target, revision),
        destination_rev=target,
    ):
        scripts.run_env()
