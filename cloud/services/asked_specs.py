"""What people ask for in a compression, from the JSON that came over the wire.

Rules: at most so many at once, none twice, none that names what does nothing on its road; a network of the
workload's own is referred to by what it is made of from here on, so that a later change of it changes no
student that was asked for before.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from cloud.domain.idle_fields import as_asked
from cloud.domain.networks import StudentNetwork, find_network
from cloud.domain.specs import CompressionSpec
from edgeloop.errors import ConfigError

MAX_SPECS = 1000


def asked_specs(texts: Sequence[str], networks: Sequence[StudentNetwork]) -> tuple[CompressionSpec, ...]:
    """Each once. Raises ``ConfigError`` that names the spec by its place, and the key."""
    if len(texts) > MAX_SPECS:
        raise ConfigError(f"{len(texts)} specs at once: give at most {MAX_SPECS}", code="spec-count")
    specs: dict[str, CompressionSpec] = {}
    for index, text in enumerate(texts):
        try:
            values = json.loads(text)
            if not isinstance(values, dict):
                raise ValueError("it must be a JSON object")
            spec = as_asked(CompressionSpec.from_mapping(values))
            if spec.network is not None:
                spec = replace(spec, network=find_network(networks, spec.network).reference)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"spec {index + 1}: {error}", code="spec-field") from None
        specs.setdefault(spec.digest, spec)
    return tuple(specs.values())
