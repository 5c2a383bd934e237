"""A gateway installs the base distribution: torch and Ray must neither come with it nor be missed."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROBE = """
import sys
import edge_agent.agent, edge_agent.cli, edge_agent.selftest
from edge_agent.runtime import ReferenceKernel
assert ReferenceKernel().time_once() > 0
heavy = {"torch", "ray", "cloud", "sqlalchemy", "onnx"} & set(sys.modules)
assert not heavy, heavy
"""


# Over 60 s only where packages come slowly: it installs the agent's dependencies into an empty environment.
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_agent_installs_and_runs_without_torch_and_ray(tmp_path: Path) -> None:
    target = tmp_path / "venv"
    venv.create(target, with_pip=True)
    python = str(target / "bin" / "python")
    wheel = tmp_path / "wheel"
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(wheel), str(ROOT)]
    subprocess.run(build, check=True)
    (built,) = wheel.glob("edgeloop-*.whl")
    subprocess.run([python, "-m", "pip", "install", "-q", str(built)], check=True)
    installed = subprocess.run(
        [python, "-m", "pip", "list"], check=True, capture_output=True, text=True
    ).stdout
    names = {line.split()[0].lower() for line in installed.splitlines()[2:]}
    assert not names & {"torch", "ray", "onnx", "sqlalchemy", "scikit-learn"}, names
    subprocess.run([python, "-c", PROBE], check=True, cwd=tmp_path)
    agent = str(target / "bin" / "edgeloop-agent")
    help_text = subprocess.run(
        [agent, "--help"], check=True, capture_output=True, text=True, cwd=tmp_path
    ).stdout
    assert "run" in help_text
    verify = [agent, "verify", "--state-dir", str(tmp_path / "empty")]
    assert subprocess.run(verify, capture_output=True, cwd=tmp_path, check=False).returncode in (0, 3)
