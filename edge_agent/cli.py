"""`edgeloop-agent`: parses, wires, prints. What it imports at the top is what every start pays for."""

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_agent import service
from edge_agent.config import load_values
from edge_agent.lost_enrolment import load_or_serve
from edgeloop.errors import ConfigError, EdgeloopError

if TYPE_CHECKING:
    from edge_agent.known_time import KnownTime

_EXIT_CODES = (
    "Exit codes: 0 all is well; 2 wrong usage or configuration; 3 something is wrong with the state folder "
    "(in use, unreadable, an artifact or a signature that does not verify)."
)


class OutputFormat(StrEnum):
    TABLE = "table"
    JSON = "json"


app = typer.Typer(
    name="edgeloop-agent",
    help="Runs the models of an edgeloop fleet on this device.",
    epilog=_EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Plain help needs no rich, whose import alone costs a tenth of the start.
    rich_markup_mode=None,
)


@contextmanager
def _errors_shown() -> Iterator[None]:
    try:
        yield
    except EdgeloopError as error:
        typer.echo(f"edgeloop-agent: {error}", err=True)
        raise typer.Exit(service.exit_code(error)) from error


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", envvar="EDGELOOP_AGENT_CONFIG", help="TOML file; variables and flags override it."
    ),
]
StateDirOption = Annotated[
    str | None, typer.Option("--state-dir", help="Folder for all that this agent keeps.")
]
KeyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--director-key", help="Director's public key: 64 hex digits or a file; may be given again."
    ),
]
OutputOption = Annotated[OutputFormat, typer.Option("-o", "--output", help="How to print.")]


@app.command(epilog=_EXIT_CODES)
def run(
    config: ConfigOption = None,
    device_id: Annotated[str | None, typer.Option(help="This device's name in the fleet.")] = None,
    state_dir: StateDirOption = None,
    server: Annotated[str | None, typer.Option(help="Control plane, host:port.")] = None,
    broker: Annotated[str | None, typer.Option(help="MQTT broker, host:port.")] = None,
    director_key: KeyOption = None,
    tuf_root: Annotated[
        str | None, typer.Option(help="File of TUF root metadata: only what was released is run.")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="key=value that profiles match on; repeatable.")
    ] = None,
    replay: Annotated[str | None, typer.Option(help="Recorded inputs (.npz) to feed to the model.")] = None,
    rate_hz: Annotated[str | None, typer.Option(help="How many recorded inputs a second.")] = None,
    emulate_slowdown: Annotated[
        str | None,
        typer.Option(help="Run the graph this often for each request, to stand for a slower device."),
    ] = None,
    report_interval_s: Annotated[
        str | None, typer.Option(help="Seconds between reports; overrides the server's word.")
    ] = None,
    num_threads: Annotated[str | None, typer.Option(help="Threads of the inference runtime.")] = None,
    trial_requests: Annotated[str | None, typer.Option(help="Good requests that end a trial.")] = None,
    trial_s: Annotated[str | None, typer.Option(help="Seconds without an error that end a trial.")] = None,
    block_timeout_s: Annotated[
        str | None, typer.Option(help="Seconds to wait for a block before asking for it.")
    ] = None,
    serve_grpc: Annotated[
        str | None, typer.Option(help="Local inference API, gRPC: host:port, unix:PATH or off.")
    ] = None,
    serve_rest: Annotated[
        str | None, typer.Option(help="Local inference API, HTTP: host:port, unix:PATH or off.")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
) -> None:
    """Fetch, verify, serve and measure until stopped (SIGTERM or Ctrl-C)."""
    flags = {
        "device_id": device_id,
        "state_dir": state_dir,
        "server": server,
        "broker": broker,
        "director_key": director_key,
        "tuf_root": tuf_root,
        "labels": label,
        "replay": replay,
        "rate_hz": rate_hz,
        "emulate_slowdown": emulate_slowdown,
        "report_interval_s": report_interval_s,
        "num_threads": num_threads,
        "trial_requests": trial_requests,
        "trial_s": trial_s,
        "block_timeout_s": block_timeout_s,
        "serve_grpc": serve_grpc,
        "serve_rest": serve_rest,
        "log_level": log_level,
    }
    with _errors_shown():
        load_or_serve(config, flags)
    command = service.command(config, flags)
    sys.stderr.flush()
    # The same process goes on without what only the command line needed.
    os.execv(command[0], command)  # noqa: S606  # a fixed program, and no shell


def _written(config: Path | None, state_dir: str | None, director_key: list[str] | None) -> dict[str, object]:
    return load_values(
        config_file=config,
        flags={"state_dir": state_dir, "director_key": director_key},
        required=("state_dir",),
    )


@app.command(epilog=_EXIT_CODES)
def enroll(
    server: Annotated[str, typer.Option(help="Enrolment port of the control plane, host:port.")],
    ca: Annotated[Path, typer.Option(help="Certificate authority of the servers (ca.crt).")],
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    token: Annotated[str | None, typer.Option(help="What 'edgeloop device enroll' printed.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="A file that holds it.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an identity that is still good.")] = False,
) -> None:
    """Get a certificate for a one-time token. The private key is made here and stays here."""
    # Else gRPC writes lines of its own beside the one that says what is wrong.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from edge_agent.config import parse_endpoint
    from edge_agent.enrol import enrol, read_token

    with _errors_shown():
        values = _written(config, state_dir, None)
        try:
            endpoint = parse_endpoint(server)
        except ValueError as error:
            raise ConfigError(f"--server is {server!r}; expected {error}", code="config-value") from None
        folder = Path(str(values["state_dir"]))
        identity, is_new = enrol(
            folder,
            server=endpoint,
            ca_file=ca,
            token=lambda: read_token(token, token_file),
            force=force,
        )
    until = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(identity.facts.not_after_s))
    typer.echo(
        f"enrolled as {identity.device_id}, certificate until {until} UTC: "
        f"'edgeloop-agent run --state-dir {folder}' starts it"
        if is_new
        else f"enrolled already as {identity.device_id}, certificate until {until} UTC: nothing was changed"
    )


@app.command(epilog=_EXIT_CODES)
def status(
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """What the agent of this state folder is doing, from what it last wrote down."""
    from edge_agent.status_file import is_alive, read_status

    with _errors_shown():
        values = _written(config, state_dir, None)
        found = read_status(Path(str(values["state_dir"])))
    said: dict[str, object] = {**asdict(found), "alive": is_alive(found)}
    if output is OutputFormat.JSON:
        typer.echo(json.dumps(said, indent=1))
        return
    said["age_s"] = round(time.time() - found.update_time_s, 1)
    for name in ("start_time_s", "update_time_s", "format_version", "workloads", "sources"):
        del said[name]
    for hosted in found.workloads:
        serves = hosted.serving_digest[:12] or "nothing"
        said[f"workload {hosted.workload}"] = (
            f"profile {hosted.profile or '-'}, "
            f"{hosted.state}, generation {hosted.generation}, serves {serves}, "
            f"{hosted.num_requests} requests, {hosted.num_errors} errors"
            + (f", {hosted.code}: {hosted.message}" if hosted.code else "")
            + (f", no profile: {hosted.profile_message}" if hosted.profile_message else "")
        )
    # One line a source, beside the others.
    for name, counts in found.sources.items():
        said[f"source {name}"] = ", ".join(f"{number} {outcome}" for outcome, number in counts.items())
    width = max(map(len, said))
    for name, value in said.items():
        typer.echo(f"{name.ljust(width)}  {value if value != '' else '-'}")


@app.command(epilog=_EXIT_CODES)
def verify(
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    director_key: KeyOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Check what is stored: the state files, the deployment's signature, every digest. Needs no network."""
    from edge_agent.verify import check_state

    with _errors_shown():
        values = _written(config, state_dir, director_key)
        keys = values.get("director_keys", ())
        assert isinstance(keys, tuple)
        checks = check_state(Path(str(values["state_dir"])), keys)
    failed = [check for check in checks if not check.good]
    if output is OutputFormat.JSON:
        typer.echo(json.dumps({"good": not failed, "checks": [asdict(check) for check in checks]}, indent=1))
    else:
        for check in checks:
            typer.echo(f"{'ok  ' if check.good else 'FAIL'}  {check.what}: {check.message}")
        typer.echo(
            f"{len(failed)} of {len(checks)} checks failed" if failed else f"all {len(checks)} checks passed"
        )
    if failed:
        raise typer.Exit(service.EXIT_STATE)


clock_app = typer.Typer(
    help="What this device takes the time to be.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(clock_app, name="clock")


@clock_app.command(epilog=_EXIT_CODES)
def show(config: ConfigOption = None, state_dir: StateDirOption = None) -> None:
    """The clock, and what deployments are judged by while it is behind that."""
    from edge_agent.known_time import KnownTime

    with _errors_shown():
        folder = Path(str(_written(config, state_dir, None)["state_dir"]))
        typer.echo(_said_of(KnownTime(folder)))


@clock_app.command(epilog=_EXIT_CODES)
def reset(config: ConfigOption = None, state_dir: StateDirOption = None) -> None:
    """Forget every time but the clock's, after one that was wrong. Stop the agent and set the clock first."""
    from edge_agent import known_time
    from edge_agent.journal import StateLock

    with _errors_shown():
        folder = Path(str(_written(config, state_dir, None)["state_dir"]))
        if not folder.is_dir():
            raise ConfigError(
                f"state_dir {folder} is not there: give the --state-dir of an agent", code="state-dir"
            )
        with StateLock(folder):
            before = _said_of(known_time.KnownTime(folder))
            try:
                known_time.reset(folder)
            except OSError as error:
                raise ConfigError(
                    f"state_dir {folder}: {error.strerror}; run it as root or as the agent's user",
                    code="state-dir",
                ) from None
            after = _said_of(known_time.KnownTime(folder))
    typer.echo(f"before:\n{before}\nnow:\n{after}")


def _said_of(known: "KnownTime") -> str:
    from edge_agent.known_time import utc

    return "\n".join(
        f"{name.ljust(12)}{utc(time_s) if time_s else '-'}"
        for name, time_s in (("clock", time.time()), ("floor", known.floor_s), ("signed", known.signed_s))
    )


def main(arguments: Sequence[str] | None = None) -> None:
    app(args=list(arguments) if arguments is not None else None)


if __name__ == "__main__":
    main()
