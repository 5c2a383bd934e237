"""``edgeloop doctor``: for whoever runs the control plane, on its machine and with its settings."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cloud.cli.describe import output_option
from cloud.cli.output import Output, show_values


def doctor(
    state_dir: Annotated[
        Path | None, typer.Option(help="the control plane's folder", show_default=".edgeloop")
    ] = None,
    database_url: Annotated[str | None, typer.Option(help="as 'edgeloop serve' has it")] = None,
    registry_url: Annotated[str | None, typer.Option(help="as 'edgeloop serve' has it")] = None,
    director_dir: Annotated[Path | None, typer.Option(help="as 'edgeloop serve' has it")] = None,
    broker: Annotated[str | None, typer.Option(help="as 'edgeloop serve' has it")] = None,
    compute: Annotated[str | None, typer.Option(help="as 'edgeloop serve' has it")] = None,
    ray_address: Annotated[str | None, typer.Option(help="as 'edgeloop serve' has it")] = None,
    tls_dir: Annotated[Path | None, typer.Option(help="as 'edgeloop serve' has it")] = None,
    control_index: Annotated[int | None, typer.Option(help="as 'edgeloop serve' has it")] = None,
    output: output_option = Output.TABLE,
) -> None:
    """Check disk, database, clock, registry, keys, broker and cluster, and say what to do.

    Exit code 1: one failed.
    """
    from cloud.doctor import Verdict, examine
    from cloud.settings import is_loopback, settings_from

    flags = {
        "state_dir": state_dir,
        "database_url": database_url,
        "registry_url": registry_url,
        "director_dir": director_dir,
        "broker": broker,
        "compute": compute,
        "ray_address": ray_address,
        "tls_dir": tls_dir,
        "control_index": control_index,
    }
    # Where it listens does not matter here.
    environ = {name: text for name, text in os.environ.items() if name != "EDGELOOP_HOST"}
    found = []
    server = os.environ.get("EDGELOOP_SERVER", "")
    if server and not is_loopback(server.rpartition(":")[0]):
        typer.echo(
            f"this looks at the machine that it runs on, not at {server}: run it there, in the compose file "
            "'docker-compose exec control edgeloop doctor'",
            err=True,
        )
    for finding in examine(settings_from(flags, environ)):
        found.append(finding)
        if output is Output.TABLE:
            typer.echo(f"{finding.verdict.value:<4}  {finding.what}: {finding.message}")
    if output is not Output.TABLE:
        show_values([{**asdict(finding), "verdict": finding.verdict.value} for finding in found], output)
    if any(finding.verdict is Verdict.FAIL for finding in found):
        raise typer.Exit(1)
