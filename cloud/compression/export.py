"""From a torch network to one ONNX file.

Rules: BatchNorm is folded into the layer before it; the file is complete in itself, has one input named
``input`` and one output named ``logits``, and its batch dimension is free where the network allows, else 1 (a
free one costs no latency in ONNX Runtime, and lets evaluation and clients batch). Names of source files and
other traces of the building machine are taken out, so the same weights give the same bytes.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from torch import nn
from torch.fx.experimental.optimization import fuse

from edgeloop.errors import ConfigError

INPUT_NAME = "input"
OUTPUT_NAME = "logits"
#: What a network is allowed to be off by once it left torch, relative to its largest output.
EXPORT_TOLERANCE_RATIO = 1e-3


def export_onnx(model: nn.Module, input_shape: Sequence[int]) -> bytes:
    """The network as ONNX bytes. Raises ``ConfigError`` when it does not export. ``model`` is not changed."""
    folded = fold_batch_norm(model)
    try:
        proto = _export(folded, torch.zeros(2, *input_shape), ({0: torch.export.Dim("batch")},))
    except Exception:
        logging.getLogger(__name__).debug("no free batch dimension, exporting batch 1", exc_info=True)
        try:
            proto = _export(folded, torch.zeros(1, *input_shape), None)
        except Exception as error:
            where = _where(folded, input_shape, error)
            raise ConfigError(
                f"teacher: {type(model).__name__} does not export to ONNX{where}",
                code="teacher-export",
            ) from error
    if len(proto.graph.input) != 1 or len(proto.graph.output) != 1:
        raise ConfigError(
            f"teacher: {type(model).__name__} exports with {len(proto.graph.input)} inputs and "
            f"{len(proto.graph.output)} outputs: it must have one of each",
            code="teacher-export",
        )
    _strip(proto)
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose BatchNorms are part of the convolutions, where tracing allows it."""
    copied: nn.Module = fuse(model.cpu().eval())
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.add_(0.0)  # a negative factor makes -0.0 of a zero weight; this makes +0.0 of it again
    return copied.eval()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's remarks on missing optional packages and its own deprecations from users."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)


def _export(model: nn.Module, example: torch.Tensor, dynamic_shapes: Any) -> onnx.ModelProto:
    with quiet():
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            external_data=False,
            verbose=False,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            dynamic_shapes=dynamic_shapes,
        )
    assert program is not None
    return program.model_proto


def _where(model: nn.Module, input_shape: Sequence[int], error: BaseException) -> str:
    """Which operation of which layer ONNX does not know, else the first line of the exporter's complaint."""
    chain: BaseException | None = error
    text = ""
    while chain is not None:
        text, chain = f"{text}\n{chain}", chain.__cause__
    found = re.search(r"op='(?:\w+::|aten\.)?(\w+)'", text)
    first_line = (str(error) or type(error).__name__).strip().splitlines()[0]
    if found is None:
        return f": {first_line}"
    operation = found[1]
    try:
        with quiet():
            program = torch.export.export(model, (torch.zeros(1, *input_shape),))
    except Exception:  # noqa: BLE001 - whatever is wrong with it, the exporter said so already
        return f": it has no counterpart for {operation}"
    for node in program.graph.nodes:
        if f"{operation}." in f"{node.target}.":
            stack = list(node.meta.get("nn_module_stack", {}).values())
            layer = str(stack[-1][0]) if stack else ""
            return f"{f' in layer {layer}' if layer else ''}: it has no counterpart for {operation}"
    return f": it has no counterpart for {operation}"


def _strip(proto: onnx.ModelProto) -> None:
    graph = proto.graph
    carriers: list[Any] = [proto, graph, *graph.node, *graph.initializer, *graph.value_info]
    for carrier in (*carriers, *graph.input, *graph.output):
        del carrier.metadata_props[:]
        carrier.doc_string = ""
    graph.name = "student"
    for node in graph.node:
        node.name = ""
