"""Make the virtual environment that the Makefile uses, with torch's CPU build where there is no GPU.

The plain torch wheel for Linux brings several gigabytes of CUDA libraries. So pip is first asked, without
installing anything, what it would install; where that holds CUDA packages and the machine has no NVIDIA GPU,
torch is installed through uv, which knows PyTorch's CPU builds (``--torch-backend cpu``).
``EDGELOOP_TORCH=cuda`` or ``cpu`` overrides the choice.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TORCH = "torch>=2.13,<2.14"


def run(*command: str) -> None:
    print("+", " ".join(command), flush=True)
    subprocess.run(command, check=True)


def brings_cuda(report: object) -> bool:
    """Whether a pip installation report (``pip install --report``) holds a CUDA package."""
    assert isinstance(report, dict)
    names = [item["metadata"]["name"].lower() for item in report["install"]]
    return any(name.startswith(("nvidia-", "cuda-", "triton")) for name in names)


def wants_cpu_build(python: str) -> bool:
    choice = os.environ.get("EDGELOOP_TORCH", "")
    if choice in ("cpu", "cuda"):
        return choice == "cpu"
    if choice:
        raise SystemExit(f"EDGELOOP_TORCH is {choice!r}: set it to 'cpu' or 'cuda', or leave it unset")
    if sys.platform != "linux" or shutil.which("nvidia-smi"):
        return False
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        run(python, "-m", "pip", "install", "-q", "--dry-run", "--report", str(report), TORCH)
        return brings_cuda(json.loads(report.read_text()))


def main() -> int:
    if sys.version_info < (3, 11):  # noqa: UP036 - this runs on whatever python3 the machine has
        raise SystemExit(
            f"edgeloop needs Python 3.11 or newer, this is {sys.version.split()[0]}: make PYTHON=python3.11"
        )
    target = Path(sys.argv[1] if len(sys.argv) > 1 else ".venv").absolute()
    python = str(target / "bin" / "python")
    if not Path(python).exists():
        print(f"making {target}", flush=True)
        venv.create(target, with_pip=True)
    if wants_cpu_build(python):
        run(python, "-m", "pip", "install", "-q", "uv")
        run(python, "-m", "uv", "pip", "install", "--python", python, "--torch-backend", "cpu", TORCH)
    run(python, "-m", "pip", "install", "-q", TORCH)
    run(python, "-m", "pip", "install", "-q", "-e", f"{ROOT}[cloud,dev]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
