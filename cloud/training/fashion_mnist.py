"""Fashion-MNIST from the four IDX files that Debian's ``dataset-fashion-mnist`` installs.

Rules: the last 10,000 of the training images are the validation split, the t10k images the test split;
values are scaled from 0..255 to -1..1. ``num_train``, ``num_validation`` and ``num_test`` take the first so
many of a split; 0 takes all. Files are found at ``path``, else at ``$EDGELOOP_DATA``, else where Debian
installs them. An IDX file is checked (magic, sizes) before its bytes become an array.
"""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloud.training.options import check_options, check_range
from edgeloop.errors import ConfigError

DEFAULTS: Mapping[str, Any] = {"path": None, "num_train": 0, "num_validation": 0, "num_test": 0}
DEBIAN_PATH = "/usr/share/datasets/fashion-mnist"
NUM_VALIDATION = 10_000
#: No file of the set is larger once unpacked; a longer one is not of this set.
MAX_UNPACKED_BYTES = 64 * 1024 * 1024


def load(options: Mapping[str, Any]) -> dict[str, Any]:
    """The six arrays; inputs are ``[n, 1, 28, 28]``."""
    values = check_options(options, DEFAULTS, field="dataset_options")
    folder = find_folder(values["path"])
    images, labels = read_idx(folder, "train-images-idx3-ubyte"), read_idx(folder, "train-labels-idx1-ubyte")
    split_at = len(images) - NUM_VALIDATION
    if split_at <= 0:
        raise ConfigError(
            f"{folder} holds {len(images)} training images: over {NUM_VALIDATION} are needed",
            code="dataset-invalid",
        )
    parts = {
        "train": (images[:split_at], labels[:split_at]),
        "validation": (images[split_at:], labels[split_at:]),
        "test": (read_idx(folder, "t10k-images-idx3-ubyte"), read_idx(folder, "t10k-labels-idx1-ubyte")),
    }
    answer: dict[str, Any] = {"num_classes": 10}
    for split, (split_images, split_labels) in parts.items():
        limit = check_range(values, f"num_{split}", 0, 60_000, field="dataset_options") or None
        answer[f"{split}_inputs"] = split_images[:limit, None].astype(np.float32) / 127.5 - 1.0
        answer[f"{split}_labels"] = split_labels[:limit].astype(np.int64)
    return answer


def find_folder(path: str | None) -> Path:
    """Where the files lie. Raises ``ConfigError`` that says how to get them."""
    folder = Path(path or os.environ.get("EDGELOOP_DATA") or DEBIAN_PATH)
    if os.environ.get("EDGELOOP_DATA") and not path and (folder / "fashion-mnist").is_dir():
        folder = folder / "fashion-mnist"
    if not (folder / "train-images-idx3-ubyte.gz").is_file():
        raise ConfigError(
            f"Fashion-MNIST is not in {folder}: run `apt install dataset-fashion-mnist`, or set "
            "EDGELOOP_DATA or dataset_options.path to the folder with its four IDX files",
            code="dataset-missing",
        )
    return folder


def read_idx(folder: Path, name: str) -> NDArray[np.uint8]:
    """One gzip-packed IDX file of unsigned bytes. Raises ``ConfigError`` naming the file."""
    file = folder / f"{name}.gz"
    try:
        with gzip.open(file, "rb") as stream:
            raw = stream.read(MAX_UNPACKED_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{file} cannot be read: {error}", code="dataset-invalid") from error
    num_axes = raw[3] if len(raw) > 3 else 0
    header = 4 + 4 * num_axes
    if raw[:3] != b"\x00\x00\x08" or not 1 <= num_axes <= 3 or len(raw) < header:
        raise ConfigError(
            f"{file} is not an IDX file of unsigned bytes: fetch it again", code="dataset-invalid"
        )
    shape = struct.unpack(f">{num_axes}I", raw[4:header])
    if len(raw) - header != int(np.prod(shape, dtype=object)):
        raise ConfigError(
            f"{file} does not hold the {shape} values that it announces: fetch it again",
            code="dataset-invalid",
        )
    return np.frombuffer(raw, dtype=np.uint8, offset=header).reshape(shape)
