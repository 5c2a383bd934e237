"""``edgeloop backup`` and ``edgeloop restore``: for whoever has the control plane's folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

state_dir_option = Annotated[
    Path | None, typer.Option(help="the control plane's folder", show_default=".edgeloop")
]


def backup(
    target: Annotated[Path, typer.Argument(help="archive to write")],
    state_dir: state_dir_option = None,
    database_url: Annotated[str | None, typer.Option(help="as 'edgeloop serve' has it")] = None,
    registry_url: Annotated[str | None, typer.Option(help="as 'edgeloop serve' has it")] = None,
    director_dir: Annotated[Path | None, typer.Option(help="as 'edgeloop serve' has it")] = None,
) -> None:
    """Copy database, artifacts and signing key into one archive, beside a control plane that works or not."""
    from cloud.backup import back_up
    from cloud.settings import settings_from

    flags = {
        "state_dir": state_dir,
        "database_url": database_url,
        "registry_url": registry_url,
        "director_dir": director_dir,
    }
    # Where it listens does not matter here.
    environ = {name: text for name, text in os.environ.items() if name != "EDGELOOP_HOST"}
    summary = back_up(settings_from(flags, environ), target)
    typer.echo(f"{target}: {summary.num_artifacts} artifacts, {summary.num_bytes / 1e6:.1f} MB")
    if not summary.has_database:
        typer.echo(
            "the database is not in it: copy it with pg_dump (docs/upgrade-backup.md says how), before this",
            err=True,
        )


def restore(
    source: Annotated[Path, typer.Argument(help="archive that 'edgeloop backup' wrote")],
    state_dir: Annotated[Path, typer.Option(help="folder to make; it may not hold a control plane yet")],
) -> None:
    """Make a control plane's folder from an archive. Each artifact is checked against its digest."""
    from cloud.backup import restore as restore_archive

    summary = restore_archive(source, state_dir)
    typer.echo(
        f"{state_dir}: {summary.num_artifacts} artifacts" + (", database" if summary.has_database else "")
    )
    typer.echo(f"start it with: edgeloop serve --state-dir {state_dir}")
