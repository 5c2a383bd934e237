"""``edgeloop rules``: from a stored candidate over the wire to lines that a person reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from cloud_store_values import CANDIDATE

from cloud.cli import app as cli
from cloud.cli.columns import spec_text
from cloud.cli.jobs import parse_spec
from cloud.domain.rules import RuleKind
from cloud.domain.specs import CompressionSpec, Road
from cloud.registry import Registry
from cloud.rules_text import describe_rules
from cloud.services.rules import describe_candidate
from cloud.store import Store
from edgeloop.errors import ConfigError, RejectedError, abort_args
from edgeloop.rules import RuleModel, RulesKind, encode
from edgeloop.v1 import control_service_pb2 as pb
from edgeloop.v1.control_service_pb2_grpc import ControlServiceServicer, add_ControlServiceServicer_to_server

MODEL = RuleModel(
    kind=RulesKind.RULE_LIST,
    input_shape=(4,),
    num_classes=2,
    base=np.zeros(2, np.float32),
    roots=np.array([0], np.int32),
    feature=np.array([3, 1, 2], np.int32),
    threshold=np.array([0.7, -0.1, 12.5], np.float32),
    left=np.array([1, 2, -2], np.int32),
    right=np.array([2, -1, -3], np.int32),
    leaves=np.log(np.array([[0.97, 0.03], [0.2, 0.8], [0.5, 0.5]], np.float32)),
)
LINES = [
    "if x[3] <= 0.7 and x[1] > -0.1 then class 0, 97 %",
    "else if x[2] <= 12.5 then class 1, 80 %",
    "else class 0, 50 %",
]


class Service(ControlServiceServicer):
    """The part of the control plane that this is about, over a database and a registry of its own."""

    def __init__(self, folder: Path) -> None:
        self.registry = Registry(str(folder / "registry"))
        self.store = Store(f"sqlite:///{folder / 'state.db'}")
        self.store.migrate()

    def save(self, data: bytes, spec: CompressionSpec) -> str:
        digest = self.registry.put(data)
        metrics = replace(CANDIDATE.metrics, accuracy=0.875, fidelity=0.9 if spec.rules else None)
        self.store.save_candidate(replace(CANDIDATE, digest=digest, spec=spec, metrics=metrics), 1.0)
        return digest

    def ExplainRules(self, request: Any, context: grpc.ServicerContext) -> pb.ExplainRulesResponse:
        try:
            return describe_candidate(self.store, request.digest, read_blob=self.registry.get)
        except RejectedError as error:
            code, message, metadata = abort_args(error)
            context.set_trailing_metadata(metadata)
            context.abort(code, message)
            raise


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Service]:
    server = grpc.server(ThreadPoolExecutor(2))
    servicer = Service(tmp_path)
    add_ControlServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv("EDGELOOP_SERVER", f"127.0.0.1:{port}")
    yield servicer
    server.stop(None).wait()
    servicer.store.close()


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["edgeloop", *arguments])
    monkeypatch.setenv("COLUMNS", "80")
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_rules_are_printed_a_line_each(
    service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = service.save(encode(MODEL), CompressionSpec(road=Road.RULES))
    assert run(monkeypatch, "rules", digest[:8]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == f"rule-list {digest[:12]}: accuracy 87.50 %, as the teacher says 90.00 %"
    assert lines == LINES
    assert run(monkeypatch, "rules", digest, "-o", "json") == 0
    assert json.loads(capsys.readouterr().out)["lines"] == LINES


def test_a_network_or_an_unknown_digest_is_told_with_what_there_is(
    service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network = service.save(b"a network", CompressionSpec())
    ruled = service.save(encode(MODEL), CompressionSpec(road=Road.RULES))
    assert run(monkeypatch, "rules", network[:12]) == cli.EXIT_FAILED
    told = capsys.readouterr().err
    assert "is a network" in told
    assert ruled[:12] in told
    assert run(monkeypatch, "rules", "f" * 64) == cli.EXIT_FAILED
    assert "no candidate" in capsys.readouterr().err
    assert run(monkeypatch, "rules", "abc") == cli.EXIT_FAILED
    assert "at least its first 6" in capsys.readouterr().err


def test_sums_are_told_as_they_are_added() -> None:
    parts = {field: getattr(MODEL, field) for field in RuleModel.__dataclass_fields__}
    tree = {
        "kind": RulesKind.TREE,
        "num_terms": np.array([2, 1, 3], np.int32),
        "feature": np.array([3, 1, 0, 2, 0, 1], np.int32),
        "weight": np.array([1, -0.62, 1, -1, 0.5, 1], np.float32),
        "right": np.array([-1, -1, -3], np.int32),
    }
    assert describe_rules(RuleModel(**{**parts, **tree})) == [
        "if x[3] - 0.62 x[1] <= 0.7 and x[0] <= -0.1 and -x[2] + 0.5 x[0] + x[1] <= 12.5 then class 1, 80 %",
        "if x[3] - 0.62 x[1] <= 0.7 and x[0] <= -0.1 and -x[2] + 0.5 x[0] + x[1] > 12.5 then class 0, 50 %",
        "if x[3] - 0.62 x[1] <= 0.7 and x[0] > -0.1 then class 0, 97 %",
        "if x[3] - 0.62 x[1] > 0.7 then class 0, 97 %",
    ]
    same = {"num_terms": np.array([2, 2, 2], np.int32), "feature": np.array([3, 1] * 3, np.int32)}
    weights = {"weight": np.array([1, -0.62] * 3, np.float32)}
    told = describe_rules(RuleModel(**{**parts, **tree, **same, **weights}))
    assert told[1] == "if x[3] - 0.62 x[1] <= -0.1 and x[3] - 0.62 x[1] > 12.5 then class 0, 50 %"


def test_nodes_that_are_no_list_are_not_told_as_one() -> None:
    parts = {field: getattr(MODEL, field) for field in RuleModel.__dataclass_fields__}
    skipping = RuleModel(**{**parts, "right": np.array([-3, -1, -3], np.int32)})
    with pytest.raises(RejectedError, match="no list of rules"):
        describe_rules(skipping)


def test_parts_of_rules_are_given_with_a_dot() -> None:
    found = parse_spec("road=rules,rules.kind=boosted,rules.max_depth=3")
    assert found.rules is not None
    assert (found.rules.kind, found.rules.max_depth) == (RuleKind.BOOSTED, 3)
    assert spec_text(found.to_json()) == "rules boosted 3"
    assert spec_text(parse_spec("road=rules,rules.num_terms=3").to_json()) == "rules tree 6 of 3 terms"
    with pytest.raises(ConfigError, match=r"rules.max_depth is 99"):
        parse_spec("road=rules,rules.max_depth=99")
    with pytest.raises(ConfigError, match="rules is given twice"):
        parse_spec("road=rules,rules=tree,rules.max_depth=3")
