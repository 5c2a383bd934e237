"""``edgeloop keys``: the director's keys, changed on the machine that holds them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from cloud.cli.output import stdout
from cloud.director_keys import KeyChange, retire, rotate

app = typer.Typer(
    no_args_is_help=True,
    help="Change the key that deployments are signed with. Run these where the state folder is; a control "
    "plane that runs there takes the change up by itself.",
)

StateDirOption = Annotated[
    Path | None,
    typer.Option(help="the control plane's state folder", show_default=".edgeloop"),
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
    stdout.print("configure new devices with this key; those that run already have followed, or will")


def _change(command: Callable[..., KeyChange], state_dir: Path | None) -> None:
    folder = state_dir or Path(os.environ.get("EDGELOOP_STATE_DIR") or ".edgeloop")
    done = command(folder, now_s=time.time())
    stdout.print(f"signing key   {done.signing_key}", soft_wrap=True)
    for key in done.trusted_keys:
        stdout.print(f"devices obey  {key}", soft_wrap=True)
