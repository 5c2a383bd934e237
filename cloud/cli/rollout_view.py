"""A rollout as people follow it: the funnel of its groups, what it measured, what comes next."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cloud.cli.client import ControlClient
from cloud.cli.output import Output, milliseconds, short, show_line, stderr, stdout
from cloud.cli.plain import clock_text, enum_text, plain
from edgeloop.errors import TransientError
from edgeloop.v1 import control_service_pb2 as pb

#: The way of a device, then how it may end.
STAGES = (
    *("waiting", "pending", "fetching", "verifying", "testing", "trial", "active"),
    *("rejected", "rolled-back", "failed", "timed-out", "missed", "superseded", "removed"),
)
_BAD = frozenset({"rejected", "rolled-back", "failed", "timed-out", "missed"})
#: What a script can tell apart; 0 is success.
EXIT_CODES = {
    pb.ROLLOUT_STATE_SUCCEEDED: 0,
    pb.ROLLOUT_STATE_FAILED: 1,
    pb.ROLLOUT_STATE_ABORTED: 4,
    pb.ROLLOUT_STATE_SUPERSEDED: 5,
}
#: How long a control plane may be away, as while it restarts.
_PATIENCE_S = 60.0


def follow(client: ControlClient, rollout_id: str, output: Output) -> None:
    """Show the rollout until it ends. Raises ``typer.Exit`` with the code of ``EXIT_CODES``."""
    changes = patiently(lambda: client.watch_rollout(rollout_id))
    last = pb.RolloutInfo()
    if output is not Output.TABLE:
        for last in changes:
            show_line(plain(last), output)
    elif stdout.is_terminal:
        with Live(console=stdout, refresh_per_second=4, transient=False) as live:
            for last in changes:
                live.update(Screen(last))
    else:
        said = ""
        for last in changes:
            text = line(last)
            if text != said:
                print(f"{clock_text(last.update_time)}  {text}", flush=True)
                said = text
    raise typer.Exit(EXIT_CODES.get(last.state, 1))


def patiently(begin: Callable[[], Iterator[pb.RolloutInfo]]) -> Iterator[pb.RolloutInfo]:
    """Goes on after a control plane was away for a while. Raises ``TransientError`` when it stays away."""
    heard_s, ended = time.monotonic(), False
    while not ended:
        try:
            for info in begin():
                heard_s = time.monotonic()
                ended = info.state in EXIT_CODES
                yield info
        except TransientError as error:
            if time.monotonic() - heard_s > _PATIENCE_S:
                raise
            stderr.print(
                f"watching goes on when the control plane answers: {error}", soft_wrap=True, markup=False
            )
            time.sleep(2.0)


def stages(group: pb.RolloutGroupInfo) -> Iterable[tuple[str, int]]:
    """Where the group's devices are, in the order of the way."""
    extra = sorted(set(group.num_by_stage) - set(STAGES))
    return [(name, group.num_by_stage[name]) for name in (*STAGES, *extra) if group.num_by_stage.get(name)]


def measured(rollout: pb.RolloutInfo) -> str:
    """``p95 6.1 ms of 8 ms (1200 samples)``."""
    aim = f" of {milliseconds(rollout.objective_p95_ms)}" if rollout.objective_p95_ms else ", no objective"
    if not rollout.num_samples:
        return f"p95 not measured yet{aim}"
    return f"p95 {milliseconds(rollout.measured_p95_ms)}{aim} ({rollout.num_samples} samples)"


def waits(rollout: pb.RolloutInfo) -> list[str]:
    """Why devices wait, a line each."""
    return [f"{wait.num_devices} wait: {wait.reason}" for wait in rollout.waits]


def line(rollout: pb.RolloutInfo) -> str:
    """All of it in one line, for where there is no terminal."""
    groups = "; ".join(
        f"{group.name} {group.state}: " + " ".join(f"{name}={number}" for name, number in stages(group))
        for group in rollout.groups
    )
    parts = [enum_text(rollout, "state"), groups, measured(rollout), *waits(rollout)]
    parts.append(f"next: {rollout.next}" if rollout.next else rollout.message)
    return " | ".join(part for part in parts if part)


class Screen:
    """Drawn anew by rich: the clock runs on between two changes."""

    def __init__(self, rollout: pb.RolloutInfo) -> None:
        self._rollout = rollout

    def __rich_console__(self, console: Console, _options: object) -> Iterator[Group]:
        rollout = self._rollout
        ended = rollout.state in EXIT_CODES
        end_s = rollout.update_time.seconds if ended else time.time()
        lasted_s = max(0, int(end_s - rollout.create_time.seconds))
        head = Text.assemble(
            (rollout.rollout_id, "bold"),
            f"  {rollout.profile}  {short(rollout.previous_digest)} -> {short(rollout.digest)}  ",
            (enum_text(rollout, "state"), _style(rollout.state)),
            f"  {lasted_s // 3600}:{lasted_s // 60 % 60:02d}:{lasted_s % 60:02d}",
        )
        table = Table(box=None, pad_edge=False, header_style="bold")
        shown = [name for name in STAGES if any(group.num_by_stage.get(name) for group in rollout.groups)]
        for header in ("GROUP", "STATE", "DEVICES"):
            table.add_column(header)
        for name in shown:
            table.add_column(name.upper(), justify="right", style="red" if name in _BAD else "")
        for group in rollout.groups:
            counts = [str(group.num_by_stage.get(name, 0) or "-") for name in shown]
            table.add_row(group.name, group.state, str(group.num_devices), *counts)
        over = 0 < rollout.objective_p95_ms < rollout.measured_p95_ms
        below = [Text(measured(rollout), style="red" if over else "")]
        below += [Text(text) for text in waits(rollout)]
        below.append(Text(f"next: {rollout.next}" if rollout.next else rollout.message))
        yield Group(head, table, *below)


def _style(state: int) -> str:
    if state == pb.ROLLOUT_STATE_SUCCEEDED:
        return "green"
    return "yellow" if state not in EXIT_CODES else "red"
