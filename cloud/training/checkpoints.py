"""Tensors to bytes and back, without ever unpickling code.

Rules: only tensors and plain values (numbers, texts, lists, mappings) are written; reading refuses anything
else (``weights_only``). Bytes that cannot be read are a ``RejectedError``, for no retry mends them.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from typing import Any

import torch

from edgeloop.errors import RejectedError


def to_bytes(state: Mapping[str, Any]) -> bytes:
    """Serialise a state of tensors and plain values."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getvalue()


def from_bytes(data: bytes) -> dict[str, Any]:
    """The inverse of ``to_bytes``, on the CPU."""
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, LookupError, pickle.UnpicklingError) as error:
        raise RejectedError(f"the checkpoint cannot be read: {error}", code="checkpoint-invalid") from error
    if not isinstance(state, dict):
        raise RejectedError("the checkpoint holds no mapping", code="checkpoint-invalid")
    return state
