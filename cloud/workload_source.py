"""What a workload's own code is, as far as it can be told: the Python files beside it.

Rule: after an edit, what the old code made is not taken for what the new one would make. Where the folder
cannot be read, as on a control plane whose workers are elsewhere, code counts as unchanged.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from cloud.domain.networks import find_network
from cloud.domain.workloads import Workload

_MAX_SOURCE_BYTES = 4 * 1024 * 1024


def source_digest(source_dir: str) -> str:
    """Of the Python files in the folder; empty where there are none."""
    if not source_dir:
        return ""
    total = hashlib.sha256()
    num_bytes = 0
    try:
        for path in sorted(Path(source_dir).glob("*.py")):
            num_bytes += path.stat().st_size
            if num_bytes > _MAX_SOURCE_BYTES:
                break
            total.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    except OSError:
        return ""  # the task itself will say what is wrong with the folder
    return total.hexdigest()[:8] if num_bytes else ""


def network_identity(workload: Workload, reference: str) -> str:
    """Of one of the workload's own networks: what is called, with which options, and the code of it.

    Raises ``ValueError`` when the workload does not have the network that a spec refers to.
    """
    network = find_network(workload.search.students, reference)
    code = source_digest(workload.source_dir) if ":" in network.network else ""
    return json.dumps({**network.identity, "code": code}, sort_keys=True, separators=(",", ":"))
