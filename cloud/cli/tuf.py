"""``edgeloop keys tuf-...``: what TUF's root says, and changing it. On the machine that holds the files."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from cloud.cli.output import stdout
from edgeloop.errors import ConfigError
from edgeloop.released import ROLES

StateDirOption = Annotated[
    Path | None,
    typer.Option(help="the control plane's state folder, or its --director-dir", show_default=".edgeloop"),
]
RootKeyOption = Annotated[
    list[Path] | None, typer.Option("--root-key", help="file of a root key that signs; may be given again")
]
ROLE_NAMES = ("online", "root", *ROLES)


def add_to(app: typer.Typer) -> None:
    """Add the commands to ``edgeloop keys``."""
    for name, command in (
        ("tuf-init", tuf_init),
        ("tuf-status", tuf_status),
        ("tuf-root", tuf_root),
        ("rotate-tuf", rotate_tuf),
        ("sign-root", sign_root),
        ("apply-root", apply_root),
    ):
        app.command(name)(command)


def tuf_init(
    state_dir: StateDirOption = None,
    root_keys: Annotated[
        Path | None,
        typer.Option(help="folder for the root's keys", show_default="root-keys in the state folder"),
    ] = None,
    root_count: Annotated[int, typer.Option(help="how many root keys")] = 3,
    threshold: Annotated[int, typer.Option(help="how many of them must sign a root")] = 2,
) -> None:
    """Make TUF's keys and first root before the first start, with the root's keys where you want them."""
    from cloud.tuf_files import TufFiles
    from cloud.tuf_root import create

    files = TufFiles(_folder(state_dir))
    files.prepare()
    with files.locked():
        create(files, now_s=time.time(), root_keys=root_keys, num_keys=root_count, threshold=threshold)
    stdout.print(
        f"The root's keys are in {root_keys or files.root_keys}: {threshold} of {root_count} sign a root. "
        "Take them off this machine, each to another place; nothing that runs needs them. Devices get the "
        "root with their enrolment, or from 'edgeloop keys tuf-root'.",
        soft_wrap=True,
        markup=False,
    )


def tuf_status(state_dir: StateDirOption = None) -> None:
    """Show the roles, their keys, and how long what they signed holds."""
    from tuf.api.metadata import Targets, Timestamp

    from cloud.tuf_files import TufFiles

    files = TufFiles(_folder(state_dir))
    root = files.root().signed
    lines = [f"root       version {root.version}, holds until {root.expires:%Y-%m-%d}"]
    timestamp = files.read("timestamp.json", Timestamp)
    if timestamp is not None:
        lines.append(
            f"timestamp  version {timestamp.signed.version}, until {timestamp.signed.expires:%Y-%m-%d %H:%M}"
        )
        newest = max(files.metadata.glob("*.targets.json"), key=lambda path: int(path.name.split(".")[0]))
        targets = files.read(newest.name, Targets)
        assert targets is not None
        lines.append(f"released   {len(targets.signed.targets)} artifacts")
    for name, role in root.roles.items():
        for number, keyid in enumerate(role.keyids):
            what = f"{role.threshold} of {len(role.keyids)} sign" if not number else ""
            lines.append(f"key of {name:<10} {keyid[:16]}  {what}".rstrip())
    if any(files.root_keys.glob("*.pem")):
        lines.append(f"The root's keys lie in {files.root_keys}: take them off this machine.")
    stdout.print("\n".join(lines), soft_wrap=True, markup=False, highlight=False)


def tuf_root(state_dir: StateDirOption = None) -> None:
    """Print the current root, for a device's --tuf-root."""
    from cloud.tuf_files import TufFiles

    files = TufFiles(_folder(state_dir))
    files.root()  # says so when there is none, or it is damaged
    sys.stdout.buffer.write(files.root_bytes())


def rotate_tuf(
    role: Annotated[str, typer.Argument(help=", ".join(ROLE_NAMES))],
    state_dir: StateDirOption = None,
    root_key: RootKeyOption = None,
    retire: Annotated[
        list[str] | None, typer.Option(help="root only: id of a root key that no longer counts")
    ] = None,
    add: Annotated[
        list[Path] | None, typer.Option(help="root only: file of a root key to add; made if missing")
    ] = None,
    threshold: Annotated[int | None, typer.Option(help="root only: how many must sign from now on")] = None,
) -> None:
    """Give a role a new key: drafts the next root, signs it with the root keys given, takes it up if enough.

    After a theft from the control plane: ROLE online, which is all three.
    """
    from cloud import tuf_root as ceremony
    from cloud.tuf_files import TufFiles

    if role not in ROLE_NAMES or (role != "root" and (retire or add or threshold is not None)):
        raise ConfigError(
            f"{role} is no role for this: give {', '.join(ROLE_NAMES)}; --retire, --add and --threshold go "
            "with root alone",
            code="tuf-role",
        )
    files = TufFiles(_folder(state_dir))
    roles = ROLES if role == "online" else () if role == "root" else (role,)
    ceremony.propose(
        files, now_s=time.time(), roles=roles, retired=retire or (), added=add or (), threshold=threshold
    )
    ceremony.sign(files.draft, root_key or ())
    _take_up(files.base, None)


def sign_root(
    draft: Annotated[Path, typer.Argument(help="next.root.json, brought here")],
    root_key: RootKeyOption = None,
) -> None:
    """Sign a draft of the next root where a root key is: nothing else is needed there."""
    from cloud import tuf_root as ceremony

    if not root_key:
        raise ConfigError("--root-key is missing: give the file of a root key", code="tuf-key")
    ceremony.sign(draft, root_key)
    stdout.print(f"{draft} is signed: bring it back, and run 'edgeloop keys apply-root'", soft_wrap=True)


def apply_root(
    draft: Annotated[Path | None, typer.Argument(help="the signed draft, if it is elsewhere")] = None,
    state_dir: StateDirOption = None,
) -> None:
    """Take up a draft that enough root keys have signed."""
    _take_up(_folder(state_dir), draft)


def _take_up(folder: Path, path: Path | None) -> None:
    from cloud import tuf_root as ceremony
    from cloud.tuf_files import TufFiles

    files = TufFiles(folder)
    draft = ceremony.apply(files, path)
    if draft.complete:
        stdout.print(
            f"root version {draft.version} counts: a control plane that runs takes it up, and devices follow",
            soft_wrap=True,
        )
        return
    stdout.print(
        f"{path or files.draft} has {draft.num_old} of {draft.old_threshold} signatures by the old root and "
        f"{draft.num_new} of {draft.new_threshold} by the new: take it to more root keys ('edgeloop keys "
        "sign-root'), and run 'edgeloop keys apply-root'",
        soft_wrap=True,
        markup=False,
    )


def _folder(state_dir: Path | None) -> Path:
    return state_dir or Path(os.environ.get("EDGELOOP_STATE_DIR") or ".edgeloop")
