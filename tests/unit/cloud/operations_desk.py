"""A desk at which people ask for things, and the documents that they bring."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from control_plane_fakes import SETTINGS, World

from cloud.services.operations import Operations
from cloud.services.queries import Queries
from edgeloop.v1 import control_service_pb2 as pb

Changes = pb.AppliedResource


class Desk:
    """Operations on a world, with how often the controller was poked."""

    def __init__(self, folder: Path) -> None:
        self.world = World(folder)
        self.num_pokes = 0
        self.queries = Queries(self.world.store, settings=SETTINGS, now_s=lambda: self.world.now_s)
        self.operations = Operations(
            self.world.store,
            self.queries,
            settings=SETTINGS,
            now_s=lambda: self.world.now_s,
            poke=self._poke,
        )

    def _poke(self) -> None:
        self.num_pokes += 1

    def apply(self, *documents: dict[str, Any], validate_only: bool = False) -> dict[str, Changes]:
        request = pb.ApplyRequest(
            documents=[
                pb.Document(kind=document["kind"], json=json.dumps(document), source=f"{n}.yaml")
                for n, document in enumerate(documents)
            ],
            validate_only=validate_only,
        )
        return {f"{r.kind}/{r.name}": r for r in self.operations.apply(request).resources}


def profile(name: str, **values: Any) -> dict[str, Any]:
    return {"name": name, "match": {"labels": {"class": name}}, **values}
