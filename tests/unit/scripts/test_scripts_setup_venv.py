"""Set-up must not drag CUDA onto a machine without a GPU."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "setup_venv.py"


@pytest.fixture
def setup_venv() -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup_venv", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def report(*names: str) -> dict[str, object]:
    return {"install": [{"metadata": {"name": name}} for name in names]}


def test_cuda_packages_are_seen_in_what_pip_would_install(setup_venv: ModuleType) -> None:
    assert setup_venv.brings_cuda(report("torch", "nvidia-cublas-cu13", "triton"))
    assert setup_venv.brings_cuda(report("torch", "cuda-bindings"))
    assert not setup_venv.brings_cuda(report("torch", "sympy", "numpy"))
    assert not setup_venv.brings_cuda(report())


def test_a_person_overrides_the_choice_and_a_typing_mistake_is_told(
    setup_venv: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGELOOP_TORCH", "cpu")
    assert setup_venv.wants_cpu_build("python")
    monkeypatch.setenv("EDGELOOP_TORCH", "cuda")
    assert not setup_venv.wants_cpu_build("python")
    monkeypatch.setenv("EDGELOOP_TORCH", "gpu")
    with pytest.raises(SystemExit, match="set it to 'cpu' or 'cuda'"):
        setup_venv.wants_cpu_build("python")


def test_a_machine_with_a_gpu_is_left_to_pip(setup_venv: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGELOOP_TORCH", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(setup_venv.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert not setup_venv.wants_cpu_build("python")
