"""``edgeloop keys``: made and changed on the machine that holds them, without a server."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from cloud.cli import tuf
from cloud.cli.output import stdout
from cloud.director_keys import KeyChange, retire, rotate

app = typer.Typer(
    no_args_is_help=True, help="Make, renew and change the keys that a control plane serves and signs with."
)

tuf.add_to(app)

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


StateDirOption = Annotated[
    Path | None,
    typer.Option(help="the control plane's state folder, or its --director-dir", show_default=".edgeloop"),
]


@app.command("rotate-director")
def rotate_director(state_dir: StateDirOption = None) -> None:
    """Make a new director key and sign with it. Devices obey old and new until the old one is retired."""
    _change(rotate, state_dir)
    stdout.print("once every device has been online: 'edgeloop keys retire-director'")


@app.command("retire-director")
def retire_director(state_dir: StateDirOption = None) -> None:
    """End a rotation: devices obey the new key alone, and the old one is deleted here."""
    _change(retire, state_dir)
    stdout.print(
        "configure new devices with this key; those that run already have followed, or will", soft_wrap=True
    )


def _change(command: Callable[..., KeyChange], state_dir: Path | None) -> None:
    folder = state_dir or Path(os.environ.get("EDGELOOP_STATE_DIR") or ".edgeloop")
    done = command(folder, now_s=time.time())
    stdout.print(f"signing key   {done.signing_key}", soft_wrap=True)
    for key in done.trusted_keys:
        stdout.print(f"devices obey  {key}", soft_wrap=True)
