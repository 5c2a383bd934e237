"""A workload's own networks from its document to a built student: read, asked for, searched, shown."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from compute_here import Here
from control_plane_fakes import HARDWARE, PROFILE, SETTINGS, World, candidate_of

from cloud.cli.columns import spec_text
from cloud.cli.jobs import parse_spec
from cloud.documents import load_documents
from cloud.domain.devices import Deployment, Device
from cloud.domain.jobs import JobState
from cloud.domain.networks import StudentNetwork
from cloud.domain.profiles import Constraints
from cloud.domain.specs import CompressionSpec, Road
from cloud.domain.tasks import StudentTask
from cloud.domain.workloads import SearchBudget, TrainingBudget, Workload
from cloud.jobs.tasks import Context
from cloud.registry import Registry
from cloud.resources import WorkloadDocument
from cloud.services.asked_specs import asked_specs
from cloud.services.explain import Situation, explain
from cloud.services.operations import Operations
from cloud.services.queries import Queries
from cloud.services.trade_off import trade_off
from edgeloop.errors import ConfigError
from edgeloop.v1 import control_service_pb2 as pb

torch.set_num_threads(1)
SMALL = StudentNetwork(name="small", network="residual-cnn", options={"base_width": 8, "num_stages": 1})
DOCUMENT = """\
kind: Workload
name: digits
dataset: digits
search:
  students:
    small: {network: residual-cnn, options: {base_width: 8, num_stages: 1}}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "workload.yaml"
    path.write_text(text)
    return path


def test_a_document_names_networks_and_their_code_lies_beside_it(tmp_path: Path) -> None:
    (built_in,) = load_documents(write(tmp_path, DOCUMENT))
    assert isinstance(built_in, WorkloadDocument)
    assert built_in.to_domain().search.students == (SMALL,)
    assert built_in.source_dir == ""
    (coded,) = load_documents(
        write(tmp_path, DOCUMENT.replace("network: residual-cnn", "network: 'mine:net'"))
    )
    assert isinstance(coded, WorkloadDocument)
    assert coded.source_dir == str(tmp_path)
    plain = WorkloadDocument.model_validate({"kind": "Workload", "name": "digits", "dataset": "digits"})
    assert coded.to_domain().teacher_key == plain.to_domain().teacher_key, "its teacher is trained already"
    assert Workload.from_json(coded.to_domain().to_json()) == coded.to_domain()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("small: {", "Small Net: {"), ":6: search.students.Small Net: should be lower case letters"),
        (("small: {", "../../x: {"), ":6: search.students.../../x: should be lower case letters"),
        (("residual-cnn", "resnet"), ":6: search.students.small.network: 'resnet' is not built in: write"),
        (("network: residual-cnn, ", ""), ":6: search.students.small.network: is required"),
        (("residual-cnn", "'os.system(1)'"), ":6: search.students.small.network: should be a built-in name"),
        (("options:", "option:"), ":6: search.students.small.option: unknown key: did you mean 'options'?"),
        (("{network: residual-cnn, options: {base_width: 8, num_stages: 1}}", "mine:net"),
         ":6: search.students.small: should be a mapping of keys, not 'mine:net'"),
        (("base_width: 8", "base_width: .nan"), "search.students.small.options"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_it_is_named(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_documents(write(tmp_path, DOCUMENT.replace(*change)))
    assert said in str(caught.value)


def test_what_is_asked_for_by_name_is_kept_by_content() -> None:
    spec = parse_spec("network=small,width_ratio=0.5")
    assert (spec.road, spec.width_ratio, spec.network) == (Road.DISTILLED, 0.5, "small")
    (found,) = asked_specs([spec.to_json()], [SMALL])
    assert found == replace(spec, network=SMALL.reference)
    assert asked_specs([spec.to_json(), found.to_json()], [SMALL]) == (found,)
    for networks, said in (
        ([], "spec 1: network is 'small': the workload's search.students has none; add it there"),
        ([replace(SMALL, options={})], "network small is not what it was"),
    ):
        with pytest.raises(ConfigError, match=said):
            asked_specs([found.to_json()], networks)
    with pytest.raises(ConfigError, match="network is given, but road is pruned"):
        parse_spec("network=small,road=pruned")


def test_where_latency_binds_the_search_builds_it_and_everything_that_shows_it_tells_which(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    workload = Workload(
        name="digits",
        dataset="digits",
        dataset_options={"image_size": 8},
        teacher_options={"base_width": 16, "num_stages": 2},
        training=TrainingBudget(num_epochs=1, batch_size=64, learning_rate=5e-3),
        search=SearchBudget(max_trials=1, num_epochs=1, width_ratios=(0.5,), students=(SMALL,)),
    )
    profile = replace(PROFILE, constraints=Constraints(latency_p95_ms=1e-6))
    world.store.apply_workload(workload, 1.0)
    world.store.apply_profile(profile, 1.0)
    registry = Registry(str(tmp_path / "registry"))
    here = Here(Context(work_dir=str(tmp_path), registry_url=registry.url))
    world.runner.attach(here)
    queries = Queries(world.store, settings=SETTINGS, now_s=time.time)
    desk = Operations(world.store, queries, settings=SETTINGS, now_s=time.time, poke=lambda: None)
    wide = candidate_of(profile, CompressionSpec(width_ratio=0.5))
    world.store.save_candidate(wide, 1.0)

    job_id = desk.compress(pb.CompressStudentsRequest(profile=profile.name)).job.job_id
    for _ in range(8):
        world.runner.step()
    job = world.store.job(job_id)
    assert job is not None
    assert job.state is JobState.SUCCEEDED, job.message
    (built,) = (c for c in world.store.candidates(profile.name, "digits") if c.digest != wide.digest)
    assert built.spec.network == SMALL.reference
    (task,) = (task for task in here.ran if isinstance(task, StudentTask))
    assert built.metrics.num_parameters < 0.2 * task.teacher.num_parameters
    assert built.proposed_reason.startswith(f"latency binds: {wide.digest[:12]} takes ")
    assert "network small is a graph of its own" in built.proposed_reason
    point = next(
        point
        for point in trade_off(world.store, queries, SETTINGS, profile.name).points
        if point.digest == built.digest
    )
    assert spec_text(point.spec_json) == "distilled small x1"
    deployment = Deployment(
        device_id="d", workload="digits", profile=profile.name, generation=1, digest=built.digest,
        manifest_digest=built.manifest_digest,
    )  # fmt: skip
    said = explain(
        Situation(device=Device(device_id="d", hardware=HARDWARE), deployment=deployment, candidate=built)
    )
    assert any("distilled student of width 1 of network small" in sentence for sentence in said)

    # Asked for by hand it is the same student, and is not built a second time.
    asked = pb.CompressStudentsRequest(
        profile=profile.name, spec_json=[json.dumps({"network": "small", "num_epochs": 1})]
    )
    again = desk.compress(asked).job.job_id
    world.runner.step()
    world.runner.step()
    job = world.store.job(again)
    assert job is not None
    assert job.state is JobState.SUCCEEDED
    assert [trial.digest for trial in job.trials] == [built.digest]
    assert sum(isinstance(task, StudentTask) for task in here.ran) == 1
    with pytest.raises(ConfigError, match=r"search\.students has small"):
        desk.compress(pb.CompressStudentsRequest(profile=profile.name, spec_json=['{"network": "large"}']))
