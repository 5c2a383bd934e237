"""What this device is, as far as it changes which models fit it."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import onnxruntime as ort

from edgeloop.v1 import device_pb2

#: Features that change which kernels the runtime picks, by the names that the kernel gives them. Everything
#: else in /proc/cpuinfo is left out, so that two revisions of one processor register alike.
KNOWN_FEATURES: Final = frozenset(
    {
        *("sse4_1", "sse4_2", "avx", "f16c", "fma", "avx2", "avx512f", "avx512bw", "avx512vl"),
        *("avx512_vnni", "avx_vnni", "avx_vnni_int8", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_tile"),
        *("asimd", "neon", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "svei8mm"),
    }
)
#: What Arm calls its processors: the kernel of an arm64 device gives the number of the part alone. Those that
#: gateways and servers have; another one is named by its numbers.
_ARM: Final = "0x41"
_ARM_PARTS: Final = {
    "0xd03": "Cortex-A53",
    "0xd04": "Cortex-A35",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73",
    "0xd0a": "Cortex-A75",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd0d": "Cortex-A77",
    "0xd40": "Neoverse-V1",
    "0xd41": "Cortex-A78",
    "0xd42": "Cortex-A78AE",
    "0xd46": "Cortex-A510",
    "0xd47": "Cortex-A710",
    "0xd49": "Neoverse-N2",
    "0xd4b": "Cortex-A78C",
    "0xd4f": "Neoverse-V2",
}
_MAX_TEXT: Final = 120
_ZONE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+/-]{0,63}", re.ASCII)


def probe(
    *,
    cpuinfo: Path = Path("/proc/cpuinfo"),
    memory_limit: Path = Path("/sys/fs/cgroup/memory.max"),
) -> device_pb2.Hardware:
    """Looks once; what a process may use counts, not what the board has."""
    fields = _cpuinfo_fields(cpuinfo)
    features = " ".join((*fields.get("flags", ())[:1], *fields.get("features", ())[:1])).lower().split()
    named = (*fields.get("model name", ())[:1], *fields.get("hardware", ())[:1], _arm_name(fields))
    name = next(filter(None, named), "")  # platform.processor() would start a process to say less
    return device_pb2.Hardware(
        architecture=platform.machine(),
        processor=name[:_MAX_TEXT],
        num_cores=_num_cores(),
        memory_bytes=min(_memory_bytes(), _limit_bytes(memory_limit)),
        instruction_sets=sorted(KNOWN_FEATURES.intersection(features)),
        runtime="onnxruntime",
        runtime_version=ort.__version__,
        operating_system=f"{platform.system()} {platform.release()}"[:_MAX_TEXT],
        python_version=platform.python_version(),
    )


def time_zone(*, localtime: Path = Path("/etc/localtime"), timezone: Path = Path("/etc/timezone")) -> str:
    """The name of the device's zone in the tz database; empty when nothing says it."""
    named = os.environ.get("TZ", "").lstrip(":")
    try:
        linked = str(localtime.readlink()) if localtime.is_symlink() else ""
        found = named or linked.rpartition("/zoneinfo/")[2] or timezone.read_text(encoding="utf-8")
    except (OSError, ValueError):
        found = ""
    found = found.strip()
    return found if _ZONE.fullmatch(found) else ""


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_bytes() -> int:
    # Not through psutil: it would take a megabyte of the gateway for this one number.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _arm_name(fields: Mapping[str, Sequence[str]]) -> str:
    """Of all kinds of cores that there are ("Cortex-A53, Cortex-A73"); empty on other processors."""
    implementer = next(iter(fields.get("cpu implementer", ())), "")
    parts = [part.lower() for part in fields.get("cpu part", ())]
    named = [_ARM_PARTS.get(part) if implementer == _ARM else None for part in parts]
    return ", ".join(name or f"{implementer}/{part}" for name, part in zip(named, parts, strict=True))


def _cpuinfo_fields(path: Path) -> dict[str, list[str]]:
    """The different values of each field, in their order; empty where there is no such file."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return {}
    fields: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        values = fields.setdefault(name.strip().lower(), [])
        if colon and value.strip() not in values:
            values.append(value.strip())
    return fields


def _limit_bytes(path: Path) -> int:
    """The container's memory limit; huge where there is none."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # "max" is no number
        return 1 << 62
