"""What this device is, as far as it changes which models fit it."""

from __future__ import annotations

import os
import platform
import re
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
_MAX_TEXT: Final = 120
_ZONE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+/-]{0,63}", re.ASCII)


def probe(
    *,
    cpuinfo: Path = Path("/proc/cpuinfo"),
    memory_limit: Path = Path("/sys/fs/cgroup/memory.max"),
) -> device_pb2.Hardware:
    """Looks once; what a process may use counts, not what the board has."""
    fields = _cpuinfo_fields(cpuinfo)
    features = f"{fields.get('flags', '')} {fields.get('features', '')}".lower().split()
    name = fields.get("model name") or fields.get("hardware") or platform.processor()
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


def _cpuinfo_fields(path: Path) -> dict[str, str]:
    """The first value of each field; empty where there is no such file."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return {}
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip().lower(), value.strip())
    return fields


def _limit_bytes(path: Path) -> int:
    """The container's memory limit; huge where there is none."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # "max" is no number
        return 1 << 62
