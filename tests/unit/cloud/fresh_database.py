"""A SQLite database with the schema in it: migrated once in each process of tests, and copied from then on.

Migrations have tests of their own; what others want is the end of them, and hundreds want it.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from cloud.store import Store


def fresh_store(path: Path) -> Store:
    """A store on a new file of this name, as ``migrate`` leaves it."""
    path.write_bytes(_migrated())
    return Store(f"sqlite:///{path}")


@cache
def _migrated() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "edgeloop.db")
        store = Store(f"sqlite:///{path}")
        store.migrate()
        store.close()
        left = [each.name for each in Path(folder).iterdir()]
        assert left == [path.name], f"part of it is still in {left}"
        return path.read_bytes()
