"""External data: no graph reads a file, however it asks for one."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from runtime_graphs import WEIGHT, code_of, dense

from edge_agent.runtime import (
    load_onnx,
)
from edge_agent.runtime.onnx import refuse_external_data


def external(tensor: TensorProto, location: str = "weights.bin", offset: int = 0) -> None:
    length = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


class TestExternalData:
    def test_a_model_that_onnx_itself_saved_with_external_data_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = dense()
        onnx.save_model(
            model,
            str(tmp_path / "m.onnx"),
            save_as_external_data=True,
            location="weights.bin",
            size_threshold=0,
        )
        monkeypatch.chdir(tmp_path)
        data = (tmp_path / "m.onnx").read_bytes()
        # The attack is real: from this directory the bare runtime does read the file that the model names.
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        bare = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        assert bare.run(None, {"x0": np.ones((1, 3), np.float32)})[0].tolist() == [[6.0, 9.0]]
        assert code_of(lambda: load_onnx(data)) == "external-data"

    def test_a_tensor_that_names_the_runtime_s_own_memory_is_refused(self) -> None:
        model = dense()
        external(model.graph.initializer[0], location="*/_ORT_MEM_ADDR_/*", offset=4096)
        assert code_of(lambda: load_onnx(model.SerializeToString())) == "external-data"

    def test_external_data_is_found_wherever_a_tensor_can_stand(self) -> None:
        def in_attribute(model: onnx.ModelProto) -> TensorProto:
            node = helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(WEIGHT, "k"))
            model.graph.node.insert(0, node)
            return model.graph.node[0].attribute[0].t

        def in_attribute_list(model: onnx.ModelProto) -> TensorProto:
            attribute = model.graph.node[0].attribute.add(name="list", type=onnx.AttributeProto.TENSORS)
            attribute.tensors.append(numpy_helper.from_array(WEIGHT, "k"))
            return attribute.tensors[0]

        def in_subgraph(model: onnx.ModelProto) -> TensorProto:
            attribute = model.graph.node[0].attribute.add(name="body", type=onnx.AttributeProto.GRAPH)
            attribute.g.initializer.append(numpy_helper.from_array(WEIGHT, "k"))
            return attribute.g.initializer[0]

        def in_subgraph_list(model: onnx.ModelProto) -> TensorProto:
            attribute = model.graph.node[0].attribute.add(name="bodies", type=onnx.AttributeProto.GRAPHS)
            attribute.graphs.add().initializer.append(numpy_helper.from_array(WEIGHT, "k"))
            return attribute.graphs[0].initializer[0]

        def in_sparse(model: onnx.ModelProto) -> TensorProto:
            sparse = model.graph.sparse_initializer.add()
            sparse.values.CopyFrom(numpy_helper.from_array(WEIGHT, "k"))
            return sparse.values

        def in_sparse_indices(model: onnx.ModelProto) -> TensorProto:
            sparse = model.graph.node[0].attribute.add(name="s", type=onnx.AttributeProto.SPARSE_TENSOR)
            sparse.sparse_tensor.indices.CopyFrom(numpy_helper.from_array(WEIGHT, "k"))
            return sparse.sparse_tensor.indices

        def in_function(model: onnx.ModelProto) -> TensorProto:
            node = model.functions.add(name="f").node.add(op_type="Constant")
            node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(
                numpy_helper.from_array(WEIGHT, "k")
            )
            return node.attribute[0].t

        def in_function_default(model: onnx.ModelProto) -> TensorProto:
            attribute = model.functions.add(name="f").attribute_proto.add(name="a")
            attribute.t.CopyFrom(numpy_helper.from_array(WEIGHT, "k"))
            return attribute.t

        def in_training(model: onnx.ModelProto) -> TensorProto:
            graph = model.training_info.add().algorithm
            graph.initializer.append(numpy_helper.from_array(WEIGHT, "k"))
            return graph.initializer[0]

        for place in (
            in_attribute,
            in_attribute_list,
            in_subgraph,
            in_subgraph_list,
            in_sparse,
            in_sparse_indices,
            in_function,
            in_function_default,
            in_training,
        ):
            model = dense()
            tensor = place(model)
            refuse_external_data(model.SerializeToString())  # as it was, it passes
            external(tensor)
            raw = model.SerializeToString()
            assert code_of(partial(refuse_external_data, raw)) == "external-data", place.__name__

    def test_a_second_graph_field_does_not_hide_it(self) -> None:
        # Protobuf merges repeated occurrences of a message field; so must the check.
        model = dense()
        hidden = onnx.ModelProto()
        hidden.graph.initializer.append(numpy_helper.from_array(WEIGHT, "k"))
        external(hidden.graph.initializer[0])
        for raw in (
            model.SerializeToString() + hidden.SerializeToString(),
            hidden.SerializeToString() + model.SerializeToString(),
        ):
            assert code_of(partial(refuse_external_data, raw)) == "external-data"

    def test_a_tag_written_with_more_bytes_than_it_needs_does_not_hide_it(self) -> None:
        def varint(value: int, length: int) -> bytes:
            return bytes((value >> 7 * n) & 0x7F | (0x80 if n < length - 1 else 0) for n in range(length))

        tensor = TensorProto()
        tensor.name = "w"
        raw_tensor = tensor.SerializeToString() + varint(14 << 3, 5) + varint(1, 10)
        raw_graph = varint(5 << 3 | 2, 4) + varint(len(raw_tensor), 5) + raw_tensor
        raw = varint(7 << 3 | 2, 3) + varint(len(raw_graph), 4) + raw_graph
        parsed = onnx.ModelProto.FromString(raw)
        assert parsed.graph.initializer[0].data_location == TensorProto.EXTERNAL
        assert code_of(lambda: refuse_external_data(raw)) == "external-data"

    def test_endless_nesting_is_refused(self) -> None:
        graph = b"\x12\x01g"
        for _ in range(60):
            attribute = b"\x32" + _length(graph) + graph
            node = b"\x2a" + _length(attribute) + attribute
            graph = b"\x0a" + _length(node) + node
        assert code_of(lambda: refuse_external_data(b"\x3a" + _length(graph) + graph)) == "model-load"


def _length(data: bytes) -> bytes:
    out, size = bytearray(), len(data)
    while size > 0x7F:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*out, size])
