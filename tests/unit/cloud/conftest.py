"""The store's tests run against each database that it promises to work on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fresh_database import fresh_store

from cloud.store import Store


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/edgeloop.db"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def store(store_url: str, tmp_path: Path) -> Iterator[Store]:
    """With the schema in it."""
    if store_url.startswith("sqlite:"):
        store = fresh_store(tmp_path / "edgeloop.db")
    else:
        store = Store(store_url)
        store.migrate()
    yield store
    store.close()
