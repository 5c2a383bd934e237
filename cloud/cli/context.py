"""The flags that say which control plane is meant."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from cloud.cli.client import ControlClient, find_server
from cloud.cli.contexts import ContextFile, access

server_option = Annotated[
    str | None,
    typer.Option(
        "--server", envvar="EDGELOOP_SERVER", help="control plane, HOST:PORT", show_default="127.0.0.1:50062"
    ),
]
state_dir_option = Annotated[
    Path | None,
    typer.Option(
        "--state-dir", envvar="EDGELOOP_STATE_DIR", help="find the control plane that runs in this folder"
    ),
]


@dataclass(frozen=True, slots=True)
class Connection:
    server: str | None
    state_dir: Path | None


def connect(connection: Connection, *, timeout_s: float = 30.0) -> ControlClient:
    """Open a client to the control plane that the flags name, or else the current context.

    Raises ``ConfigError`` when none runs there.
    """
    current = None
    if connection.server is None and connection.state_dir is None:
        current = ContextFile.load().current_context()
    address = current.server if current is not None else find_server(connection.server, connection.state_dir)
    found = access(current, connection.state_dir if connection.server is None else None)
    return ControlClient(address, timeout_s=timeout_s, ca_pem=found.ca_pem, token=found.token)
