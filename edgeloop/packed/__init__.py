"""A file whose tensors are stored at the size of what they say, and its exact bytes again.

``pack`` runs in the cloud, ``unpack`` on the device; docs/artifacts.md has the layout. Standard library and
numpy alone: a gateway installs nothing for it.
"""

from edgeloop.packed.container import (
    MAGIC,
    Span,
    executable_bytes,
    is_packed,
    pack,
    unpack,
)

__all__ = ["MAGIC", "Span", "executable_bytes", "is_packed", "pack", "unpack"]
