"""The command line as a person meets it, in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from test_agent_fetch import BLOCKS, RAW, SLOT

from edge_agent.blobs import BlobStore
from edge_agent.journal import Journal, StateLock
from edge_agent.status_file import AgentStatus, write_status
from edge_agent.update_state import State, UpdateState
from edgeloop import trust
from edgeloop.v1 import deployment_pb2

KEY = trust.DirectorKey.generate()
FORBIDDEN = ("torch", "ray", "cloud", "sqlalchemy", "pandas")


def call(*arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EDGELOOP")}
    done = subprocess.run(
        [sys.executable, "-m", "edge_agent.cli", *arguments],
        capture_output=True,
        text=True,
        env={**environment, "COLUMNS": "200"},
        timeout=120,
        check=False,
    )
    assert done.returncode == expect, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done


def run_flags(state_dir: Path) -> list[str]:
    return [
        *("--device-id", "gw-1", "--state-dir", str(state_dir), "--director-key", KEY.public_bytes.hex()),
        *("--server", "127.0.0.1:1", "--broker", "127.0.0.1:1"),
    ]


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A state folder in which everything is as it should be."""
    signed = trust.sign_deployment(
        KEY,
        deployment_pb2.Deployment(
            device_id="gw-1",
            workload="tiny",
            profile="small",
            generation=1,
            digest=SLOT.digest,
            manifest_digest=SLOT.manifest_digest,
            expire_time=trust.timestamp(1000),
        ),
    )
    slot = replace(SLOT, signed=signed)
    Journal(tmp_path).save(UpdateState(state=State.ACTIVE, target=slot, committed=slot))
    blobs = BlobStore(tmp_path / "blobs", reserve_bytes=0)
    blobs.keep_manifest(SLOT.manifest_digest, RAW)
    for n, block in enumerate(BLOCKS):
        blobs.keep_block(SLOT.digest, n, block)
    blobs.assemble(blobs.read_manifest(SLOT.manifest_digest))
    return tmp_path


def verify(folder: Path, *, expect: int, key: bytes = KEY.public_bytes) -> dict[str, bool]:
    done = call(
        "verify", "--state-dir", str(folder), "--director-key", key.hex(), "-o", "json", expect=expect
    )
    said = json.loads(done.stdout)
    assert said["good"] == (expect == 0)
    return {check["what"]: check["good"] for check in said["checks"]}


def test_help_lists_the_commands_and_the_exit_codes() -> None:
    text = call("--help").stdout
    for word in ("run", "status", "verify", "Exit codes", "2 wrong usage"):
        assert word in text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["run"], "not set: device_id"),
        (["run", "--config", "/nowhere.toml"], "cannot be read"),
        (["run", "--rate-hz", "fast", "--device-id", "a"], "not set"),
        (["status"], "state_dir"),
        (["verify", "--state-dir", "/nowhere", "--director-key", "zz"], "64 hex digits"),
    ],
)
def test_wrong_usage_says_what_to_change_and_exits_2(arguments: list[str], text: str) -> None:
    assert text in call(*arguments, expect=2).stderr


def test_a_wrong_value_names_its_flag(tmp_path: Path) -> None:
    done = call("run", *run_flags(tmp_path), "--rate-hz", "fast", expect=2)
    assert "--rate-hz is 'fast'" in done.stderr


def test_a_replay_file_that_is_none_stops_the_start_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"nothing")
    done = call("run", *run_flags(tmp_path), "--replay", str(tmp_path / "x.npz"), expect=2)
    assert "x.npz" in done.stderr


def test_a_second_agent_on_the_same_folder_exits_3_and_names_the_first(tmp_path: Path) -> None:
    with StateLock(tmp_path):
        done = call("run", *run_flags(tmp_path), expect=3)
    assert f"process {os.getpid()}" in done.stderr


def test_status_without_an_agent_says_how_to_get_one(tmp_path: Path) -> None:
    assert "edgeloop-agent run" in call("status", "--state-dir", str(tmp_path), expect=3).stderr


def test_status_prints_what_the_agent_wrote_and_whether_it_lives(tmp_path: Path) -> None:
    status = AgentStatus(
        pid=os.getpid(),
        running=True,
        device_id="gw-1",
        boot_id="b",
        agent_version="1",
        state="active",
        generation=7,
        start_time_s=time.time(),
        update_time_s=time.time(),
    )
    write_status(tmp_path, status)
    said = json.loads(call("status", "--state-dir", str(tmp_path), "-o", "json").stdout)
    assert (said["generation"], said["alive"]) == (7, True)
    write_status(tmp_path, replace(status, running=False))
    table = call("status", "--state-dir", str(tmp_path)).stdout
    assert ["alive", "False"] in [line.split() for line in table.splitlines()]
    (tmp_path / "status.json").write_text("{")
    assert "cannot be read" in call("status", "--state-dir", str(tmp_path), expect=3).stderr


def test_verify_passes_on_a_good_folder_even_when_the_deployment_has_expired_since(stored: Path) -> None:
    checks = verify(stored, expect=0)
    assert len(checks) == 4
    assert (
        "all 4 checks passed"
        in call("verify", "--state-dir", str(stored), "--director-key", KEY.public_bytes.hex()).stdout
    )


def test_verify_finds_each_damage_and_changes_nothing(stored: Path) -> None:
    artifact = stored / "blobs" / "artifacts" / SLOT.digest
    data = artifact.read_bytes()
    artifact.write_bytes(data[:-1])
    assert [what for what, good in verify(stored, expect=3).items() if not good] == [
        f"committed artifact {SLOT.digest[:12]}"
    ]
    assert artifact.exists()
    artifact.write_bytes(data)
    manifest = stored / "blobs" / "manifests" / SLOT.manifest_digest
    manifest.unlink()
    assert sum(not good for good in verify(stored, expect=3).values()) == 1
    manifest.write_bytes(RAW)
    (stored / "state.json").write_bytes(b"{}")
    assert verify(stored, expect=3)["state file"] is False
    assert (stored / "state.json").read_bytes() == b"{}"


def test_a_time_that_a_wrong_clock_left_is_shown_and_reset(tmp_path: Path) -> None:
    (tmp_path / "time-floor").write_text("3800000000.000\n")
    (tmp_path / "time-signed").write_text("1790000000.000\n")
    shown = call("clock", "show", "--state-dir", str(tmp_path)).stdout
    assert "floor       2090-06-01T11:33:20Z" in shown
    assert "signed      2026-09-21T14:13:20Z" in shown
    with StateLock(tmp_path):
        refused = call("clock", "reset", "--state-dir", str(tmp_path), expect=3)
    assert "in use by another agent" in refused.stderr
    assert (tmp_path / "time-floor").exists()
    assert "now:" in call("clock", "reset", "--state-dir", str(tmp_path)).stdout
    assert not [path.name for path in tmp_path.glob("time-*")]


def test_verify_does_not_trust_a_key_that_did_not_sign(stored: Path) -> None:
    checks = verify(stored, expect=3, key=trust.DirectorKey.generate().public_bytes)
    assert checks["committed deployment, generation 1"] is False


def test_verify_finds_a_journal_that_says_more_than_was_signed(stored: Path) -> None:
    state = Journal(stored).load()
    assert state.committed is not None
    forged = replace(state.committed, generation=2)
    Journal(stored).save(replace(state, target=forged, committed=forged))
    assert verify(stored, expect=3)["committed deployment, generation 2"] is False


def test_the_agent_needs_neither_torch_nor_ray_nor_the_cloud_package() -> None:
    """All of its modules import where these do not exist; the command line's help works there too."""
    code = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {FORBIDDEN!r}:
            raise ImportError(name + " is not installed here")
sys.meta_path.insert(0, Absent())
import importlib, pkgutil, edge_agent
for module in pkgutil.walk_packages(edge_agent.__path__, "edge_agent."):
    importlib.import_module(module.name)
bad = [name for name in sys.modules if name.split(".")[0] in {FORBIDDEN!r}]
assert not bad, bad
sys.argv = ["edgeloop-agent", "--help"]
from edge_agent.cli import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Exit codes" in done.stdout


def test_the_running_process_carries_no_command_line_library() -> None:
    """What `run` turns into imports neither typer nor pydantic: they would stay in a gateway's memory."""
    code = """
import sys
import edge_agent.service, edge_agent.agent, edge_agent.reporter, edge_agent.hardware, edgeloop.mqtt
heavy = {"typer", "rich", "click", "pydantic", "cryptography", "onnx", "multiprocessing"}
print(sorted(heavy & {name.split(".")[0] for name in sys.modules}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "[]"
