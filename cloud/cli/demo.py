"""``edgeloop demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cloud.cli.output import stdout


def demo(
    workload: Annotated[
        Path, typer.Option("--workload", help="example folder with workload.yaml, fleet.yaml and demo.yaml")
    ] = Path("examples/digits"),
    out: Annotated[
        Path | None, typer.Option("--out", help="folder for state and report", show_default="out/demo")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with what is in the folder")] = False,
) -> None:
    """Show the whole loop on this machine: train, compress, deploy, measure, re-compress.

    Exits with 0 only if the loop closed by measurement. Everything that it starts stops with it.
    """
    # Imported here: torch-free, but still slower than every other command needs.
    from cloud.demo.run import Demo

    folder = out or Path("out/demo")
    if not Demo(workload, folder, resume=resume, console=stdout).run():
        raise typer.Exit(1)
