"""Checks a state folder without changing it: what `edgeloop-agent verify` does.

Rules:
- Nothing is deleted, moved or fetched, so that it may run beside an agent and by anyone who may read.
- Every failed check says what to do.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edge_agent import fetch
from edge_agent.deployment_gate import load_keys
from edge_agent.journal import COPY_FILE, STATE_FILE, Journal
from edge_agent.update_state import Slot, State
from edge_agent.workload_set import FOLDER
from edgeloop import artifact, trust
from edgeloop.errors import ConfigError, RejectedError
from edgeloop.v1 import artifact_pb2, deployment_pb2


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    what: str
    good: bool
    message: str


def _check_signature(name: str, slot: Slot, keys: Mapping[str, bytes]) -> Check:
    what = f"{name} deployment, generation {slot.generation}"
    if not keys:
        return Check(
            what=what, good=False, message="signature not checked: give --director-key, or --config with one"
        )
    try:
        # Whose it is and when it was fresh was checked when it came; here the signature counts.
        inner = deployment_pb2.Deployment.FromString(
            deployment_pb2.SignedDeployment.FromString(slot.signed).deployment
        )
        found = trust.open_deployment(slot.signed, keys, device_id=inner.device_id, now_s=0.0)
    except (RejectedError, ValueError) as error:
        return Check(
            what=what,
            good=False,
            message=f"{error}; if the director's key was replaced, deploy again; if not, this folder was "
            "altered: stop the agent, delete the folder and let it fetch anew",
        )
    same = (found.generation, found.digest, found.manifest_digest, found.workload, found.profile) == (
        slot.generation,
        slot.digest,
        slot.manifest_digest,
        slot.workload,
        slot.profile,
    )
    if not same:
        return Check(
            what=what,
            good=False,
            message="the journal differs from what was signed: this folder was altered; stop the agent, "
            "delete the folder and let it fetch anew",
        )
    return Check(what=what, good=True, message=f"signed for device {inner.device_id}")


def _check_content(name: str, slot: Slot, blobs: Path) -> list[Check]:
    advice = "restart the agent: it fetches again what does not verify"
    what = f"{name} manifest {slot.manifest_digest[:12]}"
    try:
        manifest = fetch.check_manifest(slot, (blobs / "manifests" / slot.manifest_digest).read_bytes())
    except (OSError, RejectedError) as error:
        return [Check(what=what, good=False, message=f"{error}; {advice}")]
    checks = [Check(what=what, good=True, message=f"for {manifest.workload}, {manifest.profile}")]
    what = f"{name} artifact {slot.digest[:12]}"
    try:
        artifact.check_artifact(manifest, (blobs / "artifacts" / slot.digest).read_bytes())
    except (OSError, RejectedError) as error:
        return [*checks, Check(what=what, good=False, message=f"{error}; {advice}")]
    return [*checks, Check(what=what, good=True, message=_sizes(manifest))]


def _sizes(manifest: artifact_pb2.Manifest) -> str:
    text = f"{manifest.size_bytes} bytes"
    if manifest.executable_size_bytes:
        text += f", {manifest.executable_size_bytes} when unpacked"
    return text


def check_state(state_dir: Path, configured: tuple[bytes, ...]) -> list[Check]:
    """Raises ConfigError where there is no state folder, or one of a newer agent."""
    if not state_dir.is_dir():
        raise ConfigError(
            f"state_dir {state_dir} is not there: give the --state-dir of an agent", code="state-dir"
        )
    # What was accepted under a key that has been retired since stays good.
    keys = load_keys(state_dir, configured).past if configured else {}
    hosted = sorted(path for path in (state_dir / FOLDER).glob("*") if path.is_dir())
    has_root = not hosted or any((state_dir / name).exists() for name in (STATE_FILE, COPY_FILE))
    checks = _check_journal("", state_dir, state_dir / "blobs", keys) if has_root else []
    for folder in hosted:
        checks += _check_journal(f"{folder.name}: ", folder, state_dir / "blobs", keys)
    return checks


def _check_journal(prefix: str, folder: Path, blobs: Path, keys: Mapping[str, bytes]) -> list[Check]:
    """One workload's journal and all that it names."""
    journal = Journal(folder)
    problems = journal.problems()
    checks = [
        Check(what=f"{prefix}state file", good=False, message=f"{problem}; the other copy is used")
        for problem in problems
    ] or [Check(what=f"{prefix}state files", good=True, message="readable")]
    state = journal.load(move_aside=False)
    if state.target is None:
        return [*checks, Check(what=f"{prefix}deployment", good=True, message="none was accepted yet")]
    slots = {"committed": state.committed, "previous": state.previous}
    if state.target != state.committed:
        checks.append(_check_signature(f"{prefix}{state.state.value}", state.target, keys))
        if state.state in (State.TESTING, State.TRIAL):
            checks.extend(_check_content(f"{prefix}{state.state.value}", state.target, blobs))
    for name, slot in slots.items():
        if slot is not None:
            checks.append(_check_signature(f"{prefix}{name}", slot, keys))
            checks.extend(_check_content(f"{prefix}{name}", slot, blobs))
    return checks
