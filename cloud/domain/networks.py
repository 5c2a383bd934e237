"""Networks that a workload names for its students, beside narrower ones of its teacher's kind.

Rules: a spec refers to a network by its name and by what it is made of (``tiny@1f0c9a2b``), so that one
which was changed under the same name is another student, and one which was not is found again. The name
alone stands for the network as the workload has it now.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_REFERENCE = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?(@[0-9a-f]{8})?")


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentNetwork:
    """``network`` is a built-in name or ``module:callable``, which is called with ``options``."""

    name: str
    network: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> dict[str, Any]:
        """What it is made of, whatever it is called."""
        return {"network": self.network, "options": dict(self.options)}

    @property
    def reference(self) -> str:
        """Name and content, as a spec has it."""
        text = json.dumps(self.identity, sort_keys=True, separators=(",", ":"))
        return f"{self.name}@{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def check_reference(value: object) -> None:
    """Raises ``ValueError`` when ``value`` cannot be what a spec's ``network`` is."""
    if not isinstance(value, str) or not _REFERENCE.fullmatch(value):
        raise ValueError(
            f"network is {value!r:.80}: it must be a name that the workload's search.students has, of lower "
            "case letters, digits, . _ -"
        )


def network_name(reference: str) -> str:
    """The name in a reference, for people."""
    return reference.partition("@")[0]


def find_network(networks: Sequence[StudentNetwork], reference: str) -> StudentNetwork:
    """The network that a spec refers to. Raises ``ValueError`` when the workload has it not, or not so."""
    name = network_name(reference)
    found = next((network for network in networks if network.name == name), None)
    if found is None:
        known = ", ".join(network.name for network in networks) or "none"
        raise ValueError(f"network is {name!r}: the workload's search.students has {known}; add it there")
    if reference not in (name, found.reference):
        raise ValueError(
            f"network {name} is not what it was when this student was asked for: search.students.{name} "
            "changed; compress again"
        )
    return found
