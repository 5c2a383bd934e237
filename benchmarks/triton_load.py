"""tritonclient asks one gRPC address until a file appears.

    python -m benchmarks.triton_load ADDRESS MODEL SIZE STOP

A program of its own, because its protobuf modules and the agent's register the same names. It prints
JSON: the monotonic time at which each request began and how long it took, in seconds, and what failed.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
from tritonclient import grpc as triton


def main() -> None:
    address, model, size, stop = sys.argv[1:]
    client = triton.InferenceServerClient(address)
    given = triton.InferInput("x", [1, 1, int(size), int(size)], "FP32")
    given.set_data_from_numpy(np.zeros((1, 1, int(size), int(size)), np.float32))
    waits: list[tuple[float, float]] = []
    failures: list[str] = []
    while not Path(stop).exists():
        start_s = time.monotonic()
        try:
            client.infer(model, [given])
        except triton.InferenceServerException as error:
            failures.append(str(error))
        waits.append((start_s, time.monotonic() - start_s))
    print(json.dumps({"waits": waits, "failures": failures}))


if __name__ == "__main__":
    main()
