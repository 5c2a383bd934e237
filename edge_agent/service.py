"""The agent's own process: `python -m edge_agent.service`, which `edgeloop-agent run` turns into.

Rules:
- It imports no command-line library: those cost a gateway some 15 MB for as long as the agent runs.
- The settings come as one JSON argument, already checked once; they are read again here, so that this is
  all that is needed to start an agent from another program.
- It writes one line a record to stderr, and ends with the exit codes of the command line.
"""

import gc
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from edge_agent.journal import StateLock
from edge_agent.lost_enrolment import load_or_serve
from edge_agent.supervisor import Supervisor
from edgeloop.errors import ConfigError, EdgeloopError

EXIT_USAGE = 2
EXIT_STATE = 3
SWITCH_INTERVAL_S = 0.0005
_STATE_CODES = frozenset(
    {"state-dir", "state-locked", "state-version", "status-missing", "status-unreadable"}
)


def exit_code(error: EdgeloopError) -> int:
    """2 when a person must change what was said, 3 when it is about what is stored."""
    return EXIT_USAGE if isinstance(error, ConfigError) and error.code not in _STATE_CODES else EXIT_STATE


def setup_logging(level: str) -> None:
    """One line a record: time (UTC), level, logger, message."""
    formatter = logging.Formatter(
        "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s %(message)s", "%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def command(config_file: Path | None, flags: Mapping[str, object]) -> list[str]:
    """What to execute for an agent with these settings."""
    given = {name: value for name, value in flags.items() if value is not None}
    settings = json.dumps({"config_file": str(config_file) if config_file else None, "flags": given})
    # -P: no module is ever taken from the working directory.
    return [sys.executable, "-P", "-m", "edge_agent.service", settings]


def run(config_file: Path | None, flags: Mapping[str, object]) -> None:
    # Until the agent has started: what imports make is no garbage.
    gc.disable()
    config = load_or_serve(config_file, flags)
    setup_logging(config.log_level)
    with StateLock(config.state_dir):
        # Imported under the lock: the second agent on a folder is told so before it loads anything.
        from edge_agent.agent import Agent

        agent = Agent(
            config,
            supervisor=Supervisor(os.environ),
            reload=lambda: load_or_serve(config_file, flags),
        )

        def stop(number: int, frame: FrameType | None) -> None:
            agent.stop(signal.Signals(number).name)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        # A thread that computes in Python keeps the others waiting for so long, and a request goes through
        # three of them: the default of 5 ms would be many times what a model takes.
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        agent.run()


def main(arguments: Sequence[str]) -> int:
    settings = json.loads(arguments[0])
    config_file = settings["config_file"]
    try:
        run(Path(config_file) if config_file else None, settings["flags"])
    except EdgeloopError as error:
        print(f"edgeloop-agent: {error}", file=sys.stderr)
        return exit_code(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
