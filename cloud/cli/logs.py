"""``edgeloop logs``: what the control plane logged and what devices told, from wherever you are."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

import typer

from cloud.cli import completion
from cloud.cli.context import Connection, connect, server_option, state_dir_option
from cloud.cli.output import Output, show_line, stderr
from cloud.cli.plain import clock_text, plain
from edgeloop.errors import ConfigError, TransientError
from edgeloop.v1 import control_service_pb2 as pb

_AGO = re.compile(r"([0-9]{1,6})([smhd])")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
#: How long a control plane may be away, as while it restarts.
_PATIENCE_S = 60.0
_RETRY_S = 2.0


class Level(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def parse_since(text: str, now_s: float) -> float:
    """Seconds since the epoch of ``10m`` (ago) or ``2026-01-31T12:00`` (UTC). Raises ``ConfigError``."""
    if found := _AGO.fullmatch(text):
        return now_s - int(found[1]) * _UNIT_S[found[2]]
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"--since is {text!r}: give how long ago (90s, 10m, 2h, 7d) or a time in UTC (2026-01-31T12:00)",
            code="since",
        ) from None
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()


def logs(
    device: Annotated[
        str,
        typer.Option("--device", "-d", help="about this device", autocompletion=completion.device_names),
    ] = "",
    profile: Annotated[
        str,
        typer.Option(
            "--profile",
            "-p",
            help="about this profile, its devices, jobs and rollouts",
            autocompletion=completion.profile_names,
        ),
    ] = "",
    job: Annotated[
        str, typer.Option("--job", "-j", help="about this job", autocompletion=completion.job_ids)
    ] = "",
    since: Annotated[str, typer.Option(help="90s, 10m, 2h, 7d ago, or a time in UTC")] = "",
    level: Annotated[Level, typer.Option(help="this and worse")] = Level.INFO,
    limit: Annotated[int, typer.Option(min=1, max=5000, help="the newest of those that are there")] = 200,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on with what comes")] = False,
    output: Annotated[
        Output, typer.Option("--output", "-o", help="table, json or yaml: one record a line or document")
    ] = Output.TABLE,
    server: server_option = None,
    state_dir: state_dir_option = None,
) -> None:
    """Show what the control plane logged, and what devices told of their deployments. Oldest first.

    Of several control planes, the one that is asked shows its own records; the one that acts has the loop's.
    """
    request = pb.WatchLogsRequest(
        device_id=device, profile=profile, job_id=job, min_level=level.value, limit=limit, follow=follow
    )
    if since:
        _set_since(request, parse_since(since, time.time()))
    with connect(Connection(server, state_dir)) as client:
        said = ""
        for answer in _patiently(lambda: client.watch_logs(request), request):
            if answer.plane and (whose := _whose(answer)) != said:
                said = whose
                stderr.print(whose, soft_wrap=True, markup=False)
            for record in answer.records:
                if output is Output.TABLE:
                    print(line(record), flush=True)
                else:
                    show_line(plain(record), output)


def _patiently(
    begin: Callable[[], Iterator[pb.WatchLogsResponse]], request: pb.WatchLogsRequest
) -> Iterator[pb.WatchLogsResponse]:
    """A reader that follows goes on after the control plane was away for a while, where it was."""
    heard_s = time.monotonic()
    while True:
        try:
            for answer in begin():
                heard_s = time.monotonic()
                yield answer
                for record in answer.records:
                    # Just after the newest that was shown; a microsecond is what a record's time resolves.
                    _set_since(request, max(_since(request), record.event_time.ToNanoseconds() / 1e9 + 1e-6))
            return
        except TransientError as error:
            if not request.follow or time.monotonic() - heard_s > _PATIENCE_S:
                raise
            stderr.print(
                f"following goes on when the control plane answers: {error}", soft_wrap=True, markup=False
            )
            time.sleep(_RETRY_S)


def line(record: pb.LogRecord) -> str:
    """One record for people. What others wrote cannot steer the terminal."""
    text = "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in record.message)
    text = text.replace("\n", "\n    ")
    part = f"{record.logger}: " if record.logger else ""
    return f"{clock_text(record.event_time)} {record.level.upper():7} {record.source}  {part}{text}"


def _whose(answer: pb.WatchLogsResponse) -> str:
    if not answer.acting_plane:
        return f"records of control plane {answer.plane}; no control plane acts now"
    if answer.acting_plane == answer.plane:
        return f"records of control plane {answer.plane}, which acts"
    return (
        f"records of control plane {answer.plane}, which stands by; {answer.acting_plane} acts, and has the "
        "records of jobs, rollouts and publishing: ask it with --server"
    )


def _since(request: pb.WatchLogsRequest) -> float:
    return request.since_time.ToNanoseconds() / 1e9


def _set_since(request: pb.WatchLogsRequest, since_s: float) -> None:
    request.since_time.FromNanoseconds(max(0, int(since_s * 1e9)))
