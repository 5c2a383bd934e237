"""A fleet server in a process of its own, which can be told to die between commit and acknowledgement.

Arguments: database, file to write the port to, file whose existence means "die at the next commit".
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import grpc.aio

from cloud.services.fleet import SERVER_OPTIONS, FleetServicer, add_fleet_service
from cloud.store import ReportRow, Store


class FragileStore(Store):
    """Dies like a machine that loses power: after the commit, before anything else."""

    trigger: Path

    def insert_reports(self, rows: Sequence[ReportRow], now_s: float) -> tuple[int, int]:
        counts = super().insert_reports(rows, now_s)
        if self.trigger.exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return counts


async def main(database: str, port_file: Path, trigger: Path) -> None:
    store = FragileStore(f"sqlite:///{database}")
    store.trigger = trigger
    store.migrate()
    servicer = FleetServicer(store)
    await servicer.start()
    server = grpc.aio.server(options=SERVER_OPTIONS)
    add_fleet_service(server, servicer)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    port_file.with_suffix(".new").write_text(str(port))
    port_file.with_suffix(".new").replace(port_file)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))
