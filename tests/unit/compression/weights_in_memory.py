"""A shelf of trained weights that forgets them with the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Shelf:
    """Weights in a dictionary."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    def get(self, key: str) -> bytes | None:
        return self.kept.get(key)

    def put(self, key: str, data: bytes) -> None:
        self.kept[key] = data

    @contextmanager
    def lock(self, key: str, report: Callable[[float, str], None], what: str) -> Iterator[None]:
        yield
