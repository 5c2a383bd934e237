"""What tests ask of the agent through tritonclient, each function called in a process of its own.

tritonclient registers its own messages of the protocol, and one process holds only one registration: so it is
never imported beside the agent's modules, and what comes back are plain values.
"""

from __future__ import annotations

import time
from pathlib import Path
from types import ModuleType
from typing import Any

Plain = dict[str, Any]


def _library(transport: str) -> ModuleType:
    if transport == "grpc":
        import tritonclient.grpc as library
    else:
        import tritonclient.http as library
    return library


def describe(transport: str, address: str, model: str) -> Plain:
    """What the server says of itself and of a model."""
    library = _library(transport)
    as_json = {"as_json": True} if transport == "grpc" else {}
    with library.InferenceServerClient(address) as client:
        return {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "model_ready": client.is_model_ready(model),
            "other_ready": client.is_model_ready("other"),
            "server": client.get_server_metadata(**as_json),
            "model": client.get_model_metadata(model, **as_json),
        }


def infer(
    transport: str,
    address: str,
    model: str,
    array: Any,
    *,
    name: str = "x",
    datatype: str = "FP32",
    shape: list[int] | None = None,
    version: str = "",
    output: str | None = None,
    binary: bool = True,
    **options: Any,
) -> Plain:
    """One request; the answer, or the error that the client raised."""
    import numpy as np
    from tritonclient.utils import InferenceServerException

    library = _library(transport)
    plain = {} if transport == "grpc" else {"binary_data": binary}
    tensor = library.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(np.asarray(array), **plain)
    if shape is not None:
        tensor.set_shape(shape)
    outputs = [library.InferRequestedOutput(output, **plain)] if output else None
    with library.InferenceServerClient(address) as client:
        try:
            result = client.infer(
                model, [tensor], model_version=version, outputs=outputs, request_id="r7", **options
            )
        except InferenceServerException as error:
            return {"status": error.status(), "message": error.message()}
    said = result.get_response(as_json=True) if transport == "grpc" else result.get_response()
    return {
        "outputs": result.as_numpy("y"),
        "model_name": said["model_name"],
        "model_version": said["model_version"],
        "id": said["id"],
    }


def load(transport: str, address: str, model: str, array: Any, wanted: Plain, stop: str) -> Plain:
    """Calls, at most some 500 times a second, until `stop` exists: which versions answered, what went wrong.

    `wanted` holds the outputs of each version: an answer must be that of the version that it names. For the
    first of each version there is a file beside `stop`.
    """
    import numpy as np

    library = _library(transport)
    tensor = library.InferInput("x", list(array.shape), "FP32")
    tensor.set_data_from_numpy(array)
    versions: dict[str, int] = {}
    errors: list[str] = []
    longest_s = 0.0
    with library.InferenceServerClient(address) as client:
        while not Path(stop).exists():
            begin_s = time.perf_counter()
            try:
                result = client.infer(model, [tensor])
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the failure looked for
                errors.append(repr(error) + str(error))
                time.sleep(0.01)
                continue
            longest_s = max(longest_s, time.perf_counter() - begin_s)
            said = result.get_response(as_json=True) if transport == "grpc" else result.get_response()
            version = said["model_version"]
            if version not in versions:
                Path(f"{stop}-{transport}-{version}").touch()
            versions[version] = versions.get(version, 0) + 1
            if not np.allclose(result.as_numpy("y"), wanted[version], atol=1e-4):
                errors.append(f"{version} answered as another")
            # Without it, asking and serving would take the processors from the updates under test.
            time.sleep(0.002)
    return {"versions": versions, "errors": errors, "longest_s": longest_s}
