from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum


class Change(StrEnum):
    CREATED = "created"
    UPDATED = "updated"
    UNCHANGED = "unchanged"
    DELETED = "deleted"


class Database:
    def __init__(self, url: str) -> None:
        raise NotImplementedError

    def migrate(self) -> None:
        """Create or upgrade the schema. Raises ConfigError "store-newer" when a newer edgeloop wrote it."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Join every store call that this thread makes inside into one transaction; nests."""
        raise NotImplementedError
        yield

    def get_meta(self, key: str, default: str = "") -> str:
        raise NotImplementedError

    def set_meta(self, key: str, value: str) -> None:
        raise NotImplementedError
