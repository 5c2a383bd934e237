"""What this device is (signatures first; being filled in)."""

from __future__ import annotations

from edgeloop.v1 import device_pb2


def probe() -> device_pb2.Hardware:
    raise NotImplementedError
