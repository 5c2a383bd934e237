"""``edgeloop device``: list, show, enrol, revoke, label, delete."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from cloud.cli import completion, describe, get
from cloud.cli.context import Connection, connect, server_option, state_dir_option
from cloud.cli.output import Output, show_values, stderr, stdout
from cloud.cli.plain import clock_text, plain
from edgeloop.errors import ConfigError
from edgeloop.v1 import control_service_pb2 as pb

app = typer.Typer(no_args_is_help=True, help="Let devices in, keep them out, say what they are.")

_TTL = re.compile(r"([0-9]{1,9})([smhd]?)")
_UNIT_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}

name_argument = Annotated[str, typer.Argument(help="of the device", autocompletion=completion.device_names)]
output_option = Annotated[Output, typer.Option("--output", "-o")]


def parse_ttl(text: str) -> int:
    """Seconds in ``90s``, ``10m``, ``1h``, ``7d``. Raises ``ConfigError``."""
    found = _TTL.fullmatch(text)
    seconds = int(found[1]) * _UNIT_S[found[2]] if found else 0
    if not 1 <= seconds < 2**32:
        raise ConfigError(f"--ttl is {text!r}: give a time such as 90s, 10m, 1h or 7d", code="ttl")
    return seconds


def _labels(texts: list[str]) -> dict[str, str]:
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise ConfigError(f"--label is {text!r}: give key=value", code="labels")
        found[key] = value
    return found


app.command("list")(get.devices)
app.command("show")(describe.device)


@app.command()
def enroll(
    name: name_argument,
    profile: Annotated[
        str,
        typer.Option(
            "--profile",
            "-p",
            help="bind the labels that this profile matches on",
            autocompletion=completion.profile_names,
        ),
    ] = "",
    label: Annotated[list[str] | None, typer.Option(help="key=value to bind; may be given again")] = None,
    ttl: Annotated[str, typer.Option(help="how long the token counts: 90s, 10m, 1h, 7d")] = "1h",
    output: output_option = Output.TABLE,
    server: server_option = None,
    state_dir: state_dir_option = None,
) -> None:
    """Print a one-time token for 'edgeloop-agent enroll'. It is not shown again.

    A device that has a certificate already keeps it until the token is used; one that was revoked may come
    back.
    """
    request = pb.EnrolDeviceRequest(
        device_id=name, labels=_labels(label or []), profile=profile, ttl_s=parse_ttl(ttl)
    )
    with connect(Connection(server, state_dir)) as client:
        answer = client.call("EnrolDevice", request, pb.EnrolDeviceResponse)
    if output is not Output.TABLE:
        show_values(plain(answer), output)
        return
    until = clock_text(answer.identity.token_expire_time)
    stderr.print(
        f"on {name}, until {until} UTC: edgeloop-agent enroll --server HOST:50063 --ca ca.crt "
        "--state-dir DIR --token-file FILE, with this token:",
        soft_wrap=True,
    )
    stdout.print(answer.token, soft_wrap=True, markup=False, highlight=False)


@app.command()
def revoke(
    name: name_argument,
    output: output_option = Output.TABLE,
    server: server_option = None,
    state_dir: state_dir_option = None,
) -> None:
    """End a device's certificates and tokens; what it has open is cut within seconds."""
    with connect(Connection(server, state_dir)) as client:
        answer = client.call("RevokeDevice", pb.RevokeDeviceRequest(device_id=name), pb.RevokeDeviceResponse)
    if output is not Output.TABLE:
        show_values(plain(answer), output)
        return
    stdout.print(f"device {name} is revoked: 'edgeloop device enroll {name}' lets it in again")


@app.command()
def label(
    name: name_argument,
    changes: Annotated[list[str], typer.Argument(help="key=value to bind, key- to take away")],
    output: output_option = Output.TABLE,
    server: server_option = None,
    state_dir: state_dir_option = None,
) -> None:
    """Change the labels that are bound to a device, and so maybe its profile."""
    remove = [text[:-1] for text in changes if text.endswith("-") and "=" not in text]
    chosen = _labels([text for text in changes if not (text.endswith("-") and "=" not in text)])
    request = pb.LabelDeviceRequest(device_id=name, set=chosen, remove=remove)
    with connect(Connection(server, state_dir)) as client:
        answer = client.call("LabelDevice", request, pb.LabelDeviceResponse)
    if output is not Output.TABLE:
        show_values(plain(answer), output)
        return
    bound = ", ".join(f"{key}={answer.identity.labels[key]}" for key in sorted(answer.identity.labels))
    belongs = f"profile {answer.profile}" if answer.profile else f"no profile ({answer.message})"
    stdout.print(f"device {name}: {bound or 'no label'}; {belongs}", soft_wrap=True, markup=False)


@app.command()
def delete(
    name: name_argument,
    server: server_option = None,
    state_dir: state_dir_option = None,
) -> None:
    """Revoke a device and forget it; what it measured stays."""
    with connect(Connection(server, state_dir)) as client:
        client.call("DeleteDevice", pb.DeleteDeviceRequest(device_id=name), pb.DeleteDeviceResponse)
    stdout.print(f"device {name} is deleted")
