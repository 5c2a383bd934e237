"""The Open Inference Protocol over HTTP, and the agent's figures for Prometheus at ``/metrics``.

Rules that this module keeps:

- A body is bounded by what the largest batch of the serving model can take, however generous the setting: a
  small model on a small gateway does not read megabytes to refuse them.
- Large JSON is parsed one request at a time. The interpreter would not do it faster side by side, but would
  hold the lists of all of them, each many times the size of its text.
"""

from __future__ import annotations

import re
import stat
import threading
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from edge_agent.config import Endpoint
from edge_agent.serving import addresses, rest_messages
from edge_agent.serving.http_server import HttpServer, Request, Response, json_response
from edge_agent.serving.metrics import CONTENT_TYPE, ServingMetrics, exposition
from edge_agent.serving.model_service import EXTENSIONS, PLATFORM, SERVER_NAME, ModelService
from edgeloop.errors import EdgeloopError, RejectedError

#: Digits, sign, point, exponent, separators: what a float32 takes at most in JSON, indented a little.
_JSON_BYTES_PER_ELEMENT: Final = 40
_LARGE_JSON_BYTES: Final = 64 << 10
_TRANSPORT: Final = "rest"

_MODEL_PATH: Final = re.compile(
    r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?(?P<rest>/ready|/infer)?/?"
)


class RestApi:
    """`start` binds and serves; `stop` lets requests under way end."""

    def __init__(
        self,
        service: ModelService,
        address: addresses.Address,
        *,
        metrics: ServingMetrics,
        render_metrics: Callable[[], list[str]],
        max_request_bytes: int,
    ) -> None:
        self._service = service
        self._address = address
        self._metrics = metrics
        self._render_metrics = render_metrics
        self._max_request_bytes = max_request_bytes
        self._large_json = threading.Lock()
        self._server: HttpServer | None = None

    def start(self) -> addresses.Address:
        """Serves, and returns the address with its actual port. Raises ``OSError``."""
        address = addresses.claim(self._address)
        self._server = server = HttpServer(address, self.answer)
        if isinstance(address, Path):
            address.chmod(stat.S_IRUSR | stat.S_IWUSR | stat.S_IRGRP | stat.S_IWGRP)
        server.start()
        return address if isinstance(address, Path) else Endpoint(host=address.host, port=server.port)

    def stop(self, grace_s: float) -> None:
        if self._server is not None:
            self._server.stop(grace_s)
            if isinstance(self._address, Path):
                self._address.unlink(missing_ok=True)

    def answer(self, request: Request) -> Response:
        """Raises ``EdgeloopError``, which the server says as JSON."""
        match = _MODEL_PATH.fullmatch(request.path)
        if match is not None:
            name = unquote(match["name"])
            version = unquote(match["version"] or "")
            if match["rest"] == "/infer":
                _check_method(request, "POST")
                return self._infer(request, name, version)
            _check_method(request, "GET")
            return self._model_ready(name, version) if match["rest"] else self._model_metadata(name, version)
        match request.path.rstrip("/"):
            case "/v2/health/live":
                said: dict[str, object] = {"live": True}
            case "/v2/health/ready":
                _check_method(request, "GET")
                ready = self._service.ready
                return json_response({"ready": ready}, 200 if ready else 503)
            case "/v2":
                version = metadata.version("edgeloop")
                said = {"name": SERVER_NAME, "version": version, "extensions": EXTENSIONS}
            case "/metrics":
                _check_method(request, "GET")
                lines = [*self._render_metrics(), *self._metrics.render()]
                return Response(body=exposition(lines), content_type=CONTENT_TYPE)
            case _:
                raise RejectedError(f"nothing is at {request.path[:200]!r}", code="path-unknown")
        _check_method(request, "GET")
        return json_response(said)

    def _model_ready(self, name: str, version: str) -> Response:
        if self._service.ready:
            self._service.metadata(name, version)  # says what is wrong with the name or the version
        ready = self._service.is_ready(name, version)
        return json_response({"name": name, "ready": ready}, 200 if ready else 503)

    def _model_metadata(self, name: str, version: str) -> Response:
        found = self._service.metadata(name, version)
        said: dict[str, object] = {"name": found.name, "versions": [found.version], "platform": PLATFORM}
        for key, tensors in (("inputs", found.inputs), ("outputs", found.outputs)):
            said[key] = [
                {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
                for tensor in tensors
            ]
        return json_response(said)

    def _infer(self, request: Request, name: str, version: str) -> Response:
        begin_s = time.perf_counter()
        try:
            self._service.metadata(name, version)  # before a body is read for a model that is not there
            body, header_length = self._body(request)
            begin_s = time.perf_counter()
            said = self._parse(body, header_length)
            answer = self._service.infer(
                name,
                version,
                inputs=said.inputs,
                output_names=[output.name for output in said.outputs],
                timeout_s=said.timeout_s,
            )
            text, json_length = rest_messages.build_response(
                model_name=name,
                model_version=answer.version,
                request=said,
                outputs={answer.output_name: answer.outputs},
            )
        except EdgeloopError as error:
            self._metrics.record(_TRANSPORT, error.code, time.perf_counter() - begin_s)
            raise
        self._metrics.record(_TRANSPORT, "ok", time.perf_counter() - begin_s)
        if json_length is None:
            return Response(body=text)
        return Response(
            body=text,
            content_type="application/octet-stream",
            headers=((rest_messages.HEADER_LENGTH, str(json_length)),),
        )

    def _body(self, request: Request) -> tuple[bytes, int | None]:
        max_bytes = min(self._max_request_bytes, self._service.max_request_bytes(_JSON_BYTES_PER_ELEMENT))
        said = request.headers.get(rest_messages.HEADER_LENGTH)
        if said is not None and not re.fullmatch(r"[0-9]{1,12}", said):
            raise RejectedError(
                f"{rest_messages.HEADER_LENGTH} is not a number of bytes", code="request-field"
            )
        encoding = (request.headers.get("Content-Encoding") or "").strip().lower()
        body = rest_messages.decompress(request.read_body(max_bytes), encoding, max_bytes)
        return body, None if said is None else int(said)

    def _parse(self, body: bytes, header_length: int | None) -> rest_messages.InferRequest:
        if (len(body) if header_length is None else header_length) < _LARGE_JSON_BYTES:
            return rest_messages.parse_infer(body, header_length)
        with self._large_json:
            return rest_messages.parse_infer(body, header_length)


def _check_method(request: Request, method: str) -> None:
    if request.method != method and not (method == "GET" and request.method == "HEAD"):
        raise RejectedError(f"{request.path[:200]!r} is asked with {method}", code="method-wrong")
