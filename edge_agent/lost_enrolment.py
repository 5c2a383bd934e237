"""An agent whose enrolment does not read, and what it may do meanwhile: serve what its journal says.

Rules:
- Where `enrolment.json` and its copy are damaged, or the first is gone from a folder that holds an identity,
  the agent runs without what they told, if the journal names a model that may serve. Else it ends.
- It runs under the name to which that model was deployed, so that what it measures is reported under that.
- It connects to nobody, obeys nobody and lets nothing new run, until what enrolment told reads again. Then
  it takes up these values and no others: all other settings are those of its start.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from edge_agent.config import ENROLMENT_COPY, ENROLMENT_FILE, AgentConfig, Endpoint, load_config, load_values
from edge_agent.journal import Journal
from edge_agent.update_state import Slot
from edgeloop import topics
from edgeloop.errors import ConfigError, RejectedError

#: Where nobody is, by RFC 2606.
_NOWHERE = Endpoint(host="not-enrolled.invalid", port=1)
_IDENTITY_FOLDER = ENROLMENT_FILE.parent


def load_or_serve(config_file: Path | None, flags: Mapping[str, object]) -> AgentConfig:
    """The settings; with `enrolment_problem` where an agent can only serve. Raises ConfigError."""
    try:
        return load_config(config_file=config_file, flags=flags)
    except ConfigError as error:
        try:
            values = load_values(config_file=config_file, flags=flags)
        except ConfigError as written:
            raise (written if error.code == "identity-files" else error) from None
        state_dir = values.get("state_dir")
        if not isinstance(state_dir, Path) or not _is_lost(state_dir, error):
            raise
        slot = _serving(state_dir)
        if slot is None:
            raise
        if "device_id" not in values:
            values["device_id"] = _device_id(slot, error)
        values |= {"server": _NOWHERE, "broker": _NOWHERE, "director_keys": (), "tuf_root": None}
        problem = error.message
        if error.code != "identity-files":
            problem = f"{state_dir / ENROLMENT_FILE} is gone ({problem}): enrol again"
        return AgentConfig(**values, enrolment_problem=problem)  # type: ignore[arg-type]  # as load_config does


def read_again(config: AgentConfig, load: Callable[[], AgentConfig]) -> AgentConfig:
    """The settings with what enrolment tells now. Raises ConfigError as long as it does not read."""
    fresh = load()
    if fresh.enrolment_problem:
        raise ConfigError(fresh.enrolment_problem, code="identity-files")
    if fresh.device_id != config.device_id:
        raise ConfigError(
            f"{fresh.state_dir / _IDENTITY_FOLDER} is now of {fresh.device_id!r}, and this agent began as "
            f"{config.device_id!r}: restart it",
            code="identity-other-device",
        )
    return replace(
        config,
        server=fresh.server,
        broker=fresh.broker,
        director_keys=fresh.director_keys,
        tuf_root=fresh.tuf_root,
        enrolment_problem="",
    )


def _is_lost(state_dir: Path, error: ConfigError) -> bool:
    """Whether it is the enrolment that is wrong, and not what somebody wrote."""
    if error.code == "identity-files":
        return True
    left = (state_dir / ENROLMENT_COPY, state_dir / _IDENTITY_FOLDER / "identity.pem")
    return error.code == "config-missing" and any(path.is_file() for path in left)


def _serving(state_dir: Path) -> Slot | None:
    """What the journal of any workload says may serve."""
    folders = (state_dir, *sorted(state_dir.glob("workloads/*")))
    slots = (Journal(folder).load(move_aside=False).serving for folder in folders)
    return next((slot for slot in slots if slot is not None), None)


def _device_id(slot: Slot, error: ConfigError) -> str:
    """To whom it was deployed; its signature was checked when it was accepted."""
    # Here, since every start of an agent imports this module.
    from google.protobuf.message import DecodeError

    from edgeloop.v1 import deployment_pb2

    try:
        signed = deployment_pb2.SignedDeployment.FromString(slot.signed)
        return topics.check_device_id(deployment_pb2.Deployment.FromString(signed.deployment).device_id)
    except (DecodeError, RejectedError):
        raise error from None
