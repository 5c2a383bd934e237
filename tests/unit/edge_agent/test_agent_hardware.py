"""What a device says of its hardware."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import onnxruntime as ort
import pytest

from edge_agent.hardware import probe

X86 = """processor\t: 0
model name\t: AMD EPYC 7763
flags\t\t: fpu sse sse4_2 avx2 fma avx512_vnni spec_ctrl

processor\t: 1
model name\t: another name that must not win
flags\t\t: fpu
"""
ARM = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 asimdhp cpuid asimddp
CPU implementer\t: 0x41

Hardware\t: BCM2835
"""
# As a 64-bit kernel has it: no name, and cores of two kinds.
ARM64 = """processor\t: 0
BogoMIPS\t: 48.00
Features\t: fp asimd evtstrm aes crc32 atomics asimdhp cpuid asimdrdm asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: 0xd05

processor\t: 1
BogoMIPS\t: 48.00
Features\t: fp asimd evtstrm aes crc32 atomics asimdhp cpuid asimdrdm asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: 0xd0b
"""
UNKNOWN = "CPU implementer\t: 0x61\nCPU part\t: 0x022\n"


@pytest.mark.parametrize(
    ("text", "processor", "features"),
    [
        (X86, "AMD EPYC 7763", ["avx2", "avx512_vnni", "fma", "sse4_2"]),
        (ARM, "BCM2835", ["asimd", "asimddp", "asimdhp"]),
        (ARM64, "Cortex-A55, Cortex-A76", ["asimd", "asimddp", "asimdhp"]),
        (UNKNOWN, "0x61/0x022", []),
    ],
    ids=["x86", "arm", "arm64", "unknown"],
)
def test_features_that_change_kernels_are_named_and_no_others(
    tmp_path: Path, text: str, processor: str, features: list[str]
) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    hardware = probe(cpuinfo=path)
    assert hardware.processor == processor
    assert list(hardware.instruction_sets) == features


def test_the_memory_of_the_container_counts_not_of_the_machine(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text("268435456\n")
    assert probe(memory_limit=limit).memory_bytes == 256 << 20
    limit.write_text("max\n")
    assert probe(memory_limit=limit).memory_bytes > 256 << 20


def test_it_works_where_the_kernel_tells_nothing(tmp_path: Path) -> None:
    hardware = probe(cpuinfo=tmp_path / "none", memory_limit=tmp_path / "none")
    assert hardware.architecture
    assert hardware.num_cores >= 1
    assert (hardware.runtime, hardware.runtime_version) == ("onnxruntime", ort.__version__)
    assert list(hardware.instruction_sets) == []


def test_nothing_is_started_to_find_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What starts a process may wait for it for ever, and this is on the way to the first connection."""

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("a process was started")

    monkeypatch.setattr(platform, "_uname_cache", None, raising=False)  # what other tests asked for
    monkeypatch.setattr(subprocess, "Popen", refuse)
    (tmp_path / "cpuinfo").write_text(X86)
    assert probe(cpuinfo=tmp_path / "cpuinfo").processor == "AMD EPYC 7763"
    assert probe(cpuinfo=tmp_path / "none").processor == ""
