"""``edgeloop keys``: certificate authorities and certificates of the servers, made without a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cloud.cli.output import stdout

app = typer.Typer(no_args_is_help=True, help="Make and renew the keys that a control plane serves with.")

folder_argument = Annotated[Path, typer.Argument(help="folder for everything; one subfolder for each holder")]
broker_names_option = Annotated[
    list[str] | None, typer.Option("--broker-name", help="of the broker; those of the server if left out")
]


@app.command()
def init(
    folder: folder_argument,
    server_names: Annotated[
        list[str],
        typer.Option("--server-name", help="host name or address that clients use; may be given again"),
    ],
    broker_names: broker_names_option = None,
    control_count: Annotated[int, typer.Option(help="control planes that share a broker")] = 1,
) -> None:
    """Make what is missing. A second run changes nothing."""
    from cloud.pki.key_folder import init_folder

    made = init_folder(folder, server_names, broker_names or (), num_controls=control_count)
    if not made:
        stdout.print(f"{folder} is complete: nothing was changed", soft_wrap=True)
        return
    stdout.print("\n".join(str(folder / name) for name in made), soft_wrap=True, markup=False)
    stdout.print(
        f"Keep {folder / 'ca' / 'ca.key'} apart: no running service needs it, and whoever has it can "
        f"pretend to be your server. The first operator's token is in {folder / 'operator' / 'admin.token'}.",
        soft_wrap=True,
        markup=False,
    )


@app.command()
def renew(
    folder: folder_argument,
    server_names: Annotated[
        list[str] | None, typer.Option("--server-name", help="instead of those that it has")
    ] = None,
    broker_names: broker_names_option = None,
) -> None:
    """New keys and certificates for servers and control planes; devices and operators notice nothing."""
    from cloud.pki.key_folder import renew_folder

    made = renew_folder(folder, server_names or (), broker_names or ())
    stdout.print("\n".join(str(folder / name) for name in made), soft_wrap=True, markup=False)
    stdout.print("restart the control planes and the broker: they read these at the start")
