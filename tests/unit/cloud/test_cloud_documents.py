"""Bad YAML must name file, line, field and what was expected; good YAML must mean what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cloud.document_problems import parse_document
from cloud.documents import load_documents
from cloud.resources import (
    BUILT_IN_DATASETS,
    BUILT_IN_TEACHERS,
    KINDS,
    FleetDocument,
    WorkloadDocument,
)
from edgeloop.errors import ConfigError

WORKLOAD = """\
kind: Workload
name: digits
dataset: digits
training:
  num_epochs: 3
"""

FLEET = """\
kind: Fleet
workload: digits
profiles:
  - name: small
    match:
      labels: {class: small}
    constraints:
      latency_p95_ms: 5
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "file.yaml"
    path.write_text(text)
    return path


def problem(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_documents(write(tmp_path, text))
    return str(caught.value)


def test_a_file_may_hold_several_documents(tmp_path: Path) -> None:
    workload, fleet = load_documents(write(tmp_path, WORKLOAD + "---\n" + FLEET))
    assert isinstance(workload, WorkloadDocument)
    assert isinstance(fleet, FleetDocument)
    assert workload.to_domain().training.num_epochs == 3
    (profile,) = fleet.to_domain()
    assert profile.constraints.latency_p95_ms == 5
    assert profile.match.labels == {"class": "small"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(
            ("num_epochs: 3", "num_epoch: 3"),
            ":5: training.num_epoch: unknown key: did you mean 'num_epochs'?",
            id="misspelt",
        ),
        pytest.param(
            ("num_epochs: 3", "num_epochs: many"),
            ":5: training.num_epochs: input should be a valid integer, not 'many'",
            id="type",
        ),
        pytest.param(
            ("num_epochs: 3", "num_epochs: 0"),
            ":5: training.num_epochs: input should be greater than or equal to 1, not 0",
            id="range",
        ),
        pytest.param(("name: digits\n", ""), ":1: name: is required", id="missing"),
        pytest.param(
            ("kind: Workload", "kind: Workloads"),
            ":1: kind is 'Workloads': it must be one of Workload, Fleet",
            id="kind",
        ),
        pytest.param(("name: digits", "name: Digits!"), ":2: name: ", id="name"),
        pytest.param(
            ("dataset: digits", "dataset: digits\ndataset: other"),
            ":4: dataset: stands here twice",
            id="doubled",
        ),
        pytest.param(("dataset: digits", "dataset: [digits"), "file.yaml:", id="not-yaml"),
        pytest.param(
            ("dataset: digits", "dataset: digit"),
            ":3: dataset: 'digit' is not built in: write digits or fashion-mnist, or module:callable",
            id="unknown-dataset",
        ),
        pytest.param(
            ("dataset: digits", "dataset: digits\nteacher: resnet"),
            ":4: teacher: 'resnet' is not built in: write residual-cnn, or module:callable",
            id="unknown-teacher",
        ),
        pytest.param(
            ("dataset: digits", "dataset: digits\nstudent: my_students:make"),
            ":4: student: input should be 'teacher', not 'my_students:make'",
            id="unknown-student",
        ),
        pytest.param(
            ("name: digits", "name: My Digits"),
            ":2: name: should be lower case letters, digits, . _ -, not 'My Digits'",
            id="name-in-words",
        ),
        pytest.param(
            ("dataset: digits", "dataset: digits\ndataset_options:\n  scale: [1, .inf]"),
            ":4: dataset_options: inf is no number that can be passed on: write a finite one",
            id="infinite",
        ),
        pytest.param(
            ("dataset: digits", "dataset: digits\ndataset_options:\n  since: 2026-01-01"),
            ":5: only text, numbers, lists and mappings are read: put a date into quotes",
            id="date",
        ),
        pytest.param(
            ("dataset: digits", "dataset: digits\n? [a, b]\n: 1"),
            ":4: a key must be plain text, not a list or mapping",
            id="list-as-key",
        ),
        pytest.param(
            ("dataset: digits", "dataset: digits\ndataset_options: " + "[" * 4000 + "]" * 4000),
            ":4: nested more than 50 deep",
            id="deep",
        ),
        pytest.param(
            ("training:\n  num_epochs: 3", "training:"),
            ":4: training: should be a mapping of keys, not nothing",
            id="empty-section",
        ),
        pytest.param(
            ("dataset: digits", "dataset: !!python/object:os.system x"),
            "file.yaml:3: could not determine a constructor",
            id="tag",
        ),
    ],
)
def test_each_mistake_names_its_line_and_field(
    tmp_path: Path, change: tuple[str, str], expected: str
) -> None:
    text = problem(tmp_path, WORKLOAD.replace(*change))
    assert str(tmp_path / "file.yaml") in text
    assert expected in text


def test_all_mistakes_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    text = problem(
        tmp_path, FLEET.replace("latency_p95_ms: 5", "latency_p95_ms: -5").replace("match:", "matches:")
    )
    assert ":5: profiles[0].matches: unknown key: did you mean 'match'?" in text
    assert ":8: profiles[0].constraints.latency_p95_ms: input should be greater than 0, not -5" in text


def test_the_folder_belongs_to_a_workload_only_where_its_code_is_looked_for(tmp_path: Path) -> None:
    teachers = []
    for dataset in ("digits", "my_data:load"):
        for name in ("here", "there"):
            folder = tmp_path / name
            folder.mkdir(exist_ok=True)
            (document,) = load_documents(
                write(folder, WORKLOAD.replace("dataset: digits", f"dataset: {dataset}"))
            )
            assert isinstance(document, WorkloadDocument)
            assert document.source_dir == ("" if dataset == "digits" else str(folder))
            teachers.append(document.to_domain().teacher_key)
    built_in_here, built_in_there, own_here, own_there = teachers
    assert built_in_here == built_in_there
    assert own_here != own_there


def test_aliases_are_refused(tmp_path: Path) -> None:
    assert "aliases are not read" in problem(tmp_path, "a: &a [x, x]\nb: [*a, *a]\n")


def test_profiles_of_one_name_and_bounds_in_disorder_are_refused(tmp_path: Path) -> None:
    doubled = FLEET + FLEET.split("profiles:\n")[1]
    assert "profile 'small' stands here twice" in problem(tmp_path, doubled)
    bounds = FLEET.replace("labels: {class: small}", "min_cores: 4\n      max_cores: 2")
    assert "min_cores is 4, over max_cores 2" in problem(tmp_path, bounds)


def test_an_absent_file_and_an_empty_one_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_documents(tmp_path / "absent.yaml")
    assert "holds no document" in problem(tmp_path, "# nothing\n")


def test_the_server_reads_what_the_file_said(tmp_path: Path) -> None:
    (document,) = load_documents(write(tmp_path, WORKLOAD))
    assert parse_document("Workload", document.model_dump_json(), "wire") == document
    with pytest.raises(ConfigError, match=r"wire: training\.num_epochs"):
        parse_document(
            "Workload", json.dumps({**document.model_dump(), "training": {"num_epochs": "3"}}), "wire"
        )


def test_each_kind_has_a_json_schema_that_forbids_unknown_keys() -> None:
    for model in KINDS.values():
        schema = model.model_json_schema()
        assert schema["additionalProperties"] is False


def test_the_built_in_names_that_documents_may_hold_are_those_that_training_knows() -> None:
    from cloud.training import datasets, networks

    assert set(BUILT_IN_DATASETS) == set(datasets.BUILT_IN)
    assert set(BUILT_IN_TEACHERS) == set(networks.BUILT_IN)
