"""From an artifact's bytes to a runtime, by the format that its manifest names.

Rules: each format has one loader here, and all others are refused. A packed artifact is unpacked in memory,
to exactly the size that its manifest gives, and runs only if the result has the digest given there. Callers
have checked the artifact's own digest before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol

from edge_agent.runtime.onnx import Runtime, load_onnx
from edge_agent.runtime.rules import load_rules
from edgeloop.errors import RejectedError
from edgeloop.formats import ONNX_FORMAT, PACKED_FORMAT, RULES_FORMAT
from edgeloop.packed import unpack


class ArtifactForm(Protocol):
    """What must be known of an artifact to load it: a manifest is one."""

    @property
    def format(self) -> str: ...

    @property
    def executable_digest(self) -> str: ...

    @property
    def executable_size_bytes(self) -> int: ...


Loader = Callable[[bytes, ArtifactForm, int], Runtime]


def load_artifact(data: bytes, form: ArtifactForm, *, num_threads: int = 1) -> Runtime:
    """A runtime for ``data``.

    Raises ``RejectedError``: ``format-unknown``, ``packed-malformed``, ``packed-size``,
    ``executable-altered``, or what the format's own loader raises (``load_onnx``, ``load_rules``).
    """
    loader = _LOADERS.get(form.format)
    if loader is None:
        raise RejectedError(
            f"format {form.format[:40]!r} does not run here: this side loads {', '.join(sorted(_LOADERS))}; "
            "update it",
            code="format-unknown",
        )
    return loader(data, form, num_threads)


def _load_plain(data: bytes, form: ArtifactForm, num_threads: int) -> Runtime:
    return load_onnx(data, num_threads=num_threads)


def _load_packed(data: bytes, form: ArtifactForm, num_threads: int) -> Runtime:
    file = unpack(data, executable_bytes=form.executable_size_bytes)
    if hashlib.sha256(file).hexdigest() != form.executable_digest:
        raise RejectedError(
            f"the artifact does not unpack to {form.executable_digest[:12]}, which its manifest names: "
            "build it again",
            code="executable-altered",
        )
    return load_onnx(file, num_threads=num_threads)


def _load_rules(data: bytes, form: ArtifactForm, num_threads: int) -> Runtime:
    return load_rules(data)


_LOADERS: Mapping[str, Loader] = MappingProxyType(
    {ONNX_FORMAT: _load_plain, PACKED_FORMAT: _load_packed, RULES_FORMAT: _load_rules}
)
