"""Networks of a workload's own in specs and in the search: what names them, when they are tried, and why."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from domain_values import NOW_S, candidate, digest_of, fleet_windows, profile

from cloud.domain.candidates import Candidate
from cloud.domain.methods import shorter_students, size_levers
from cloud.domain.networks import StudentNetwork, find_network
from cloud.domain.own_networks import narrower, own_students
from cloud.domain.policy import Action, PolicySettings, decide, replay
from cloud.domain.profiles import Constraints
from cloud.domain.rungs import next_rung
from cloud.domain.search import Direction, first_rung, propose
from cloud.domain.specs import CompressionSpec, Road
from cloud.domain.state import PolicyState
from cloud.domain.workloads import SearchBudget, Workload

TINY = StudentNetwork(name="tiny", network="my_module:tiny_cnn", options={"width": 8})
MLP = StudentNetwork(name="mlp", network="my_module:mlp")
BUDGET = SearchBudget(max_trials=8, students=(TINY, MLP))
OWN = CompressionSpec(road=Road.DISTILLED, network=TINY.reference, width_ratio=1.0)


def student(spec: CompressionSpec, accuracy: float, p95_ms: float) -> Candidate:
    made = candidate(spec.width_ratio, accuracy=accuracy, latency_ms=p95_ms)
    metrics = replace(made.metrics, latency_p50_ms=p95_ms * 0.9, latency_p95_ms=p95_ms)
    return replace(made, metrics=metrics, spec=spec, digest=digest_of(f"{spec.to_json()} {p95_ms}"))


WIDE = student(CompressionSpec(width_ratio=0.75), 0.95, 8.0)
NARROW = student(CompressionSpec(width_ratio=0.25), 0.85, 5.0)
BINDS = Constraints(latency_p95_ms=4.0)


def asked(built: list[Candidate], **options: Any) -> list[CompressionSpec]:
    given = {"constraints": BINDS, "budget": BUDGET, **options}
    return [proposal.spec for proposal in own_students(built, **given)]


# -- what a spec says ------------------------------------------------------------------------------------


def test_a_network_is_part_of_an_identity_only_where_it_is_used() -> None:
    assert "network" not in CompressionSpec().to_json()
    plain = Workload(name="w", dataset="digits")
    assert "students" not in plain.to_json()
    mine = replace(plain, search=BUDGET)
    assert Workload.from_json(mine.to_json()) == mine
    assert mine.teacher_key == plain.teacher_key == replace(mine, source_dir="/somewhere").teacher_key
    own_teacher = replace(plain, teacher="my:net", source_dir="/a")
    assert own_teacher.teacher_key != replace(own_teacher, source_dir="/b").teacher_key


def test_a_network_that_changed_under_its_name_is_another_student() -> None:
    wider = replace(TINY, options={"width": 16})
    assert TINY.reference.startswith("tiny@")
    assert wider.reference != TINY.reference == replace(TINY).reference
    assert replace(OWN, network=wider.reference).digest != OWN.digest
    assert find_network([TINY, MLP], "mlp") == MLP
    assert find_network([TINY], TINY.reference) == TINY
    with pytest.raises(ValueError, match=r"network tiny is not what it was .* compress again"):
        find_network([wider], TINY.reference)
    with pytest.raises(ValueError, match=r"network is 'gone': the workload's search.students has tiny, mlp"):
        find_network([TINY, MLP], "gone")


def test_a_spec_with_a_network_alone_asks_for_all_of_it_taught_by_the_teacher() -> None:
    spec = CompressionSpec.from_mapping({"network": "tiny"})
    assert (spec.road, spec.width_ratio) == (Road.DISTILLED, 1.0)
    assert spec.label == "distilled tiny 1"
    assert CompressionSpec.from_mapping(json.loads(OWN.to_json())) == OWN
    assert CompressionSpec.from_mapping({"network": "tiny", "road": "scratch", "width_ratio": 0.5}).label == (
        "scratch tiny 0.5"
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"network": "tiny", "road": "pruned"}, "network is given, but road is pruned: .* or scratch"),
        ({"network": "tiny", "road": "elastic"}, "but road is elastic"),
        ({"network": "tiny", "road": "rules"}, "network is 'tiny', but road is rules"),
        ({"network": "tiny", "depth_ratio": 0.5}, "depth_ratio is given with network tiny: .* leave depth_"),
        ({"network": "tiny", "importance": "taylor"}, "importance is given with network tiny"),
        ({"network": "tiny", "pruning_steps": 2}, "pruning_steps is given"),
        ({"network": "../../etc/passwd"}, "must be a name that the workload's search.students has"),
        ({"network": "os:system"}, "must be a name"),
        ({"network": "tiny@zzzzzzzz"}, "must be a name"),
        ({"network": "a" * 5000}, "must be a name"),
        ({"network": 3}, "network is 3"),
        ({"network": ["tiny"]}, "must be a name"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_its_key(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        CompressionSpec.from_mapping(values)
    assert len(str(caught.value)) < 400


# -- when they are tried ---------------------------------------------------------------------------------


def test_the_first_rung_has_each_once_before_second_roads_where_the_budget_allows() -> None:
    labels = [spec.label for spec in first_rung(BUDGET, set(), limit=8)]
    assert labels == [
        "pruned 0.75", "pruned 0.5", "scratch 0.25", "distilled tiny 1", "distilled mlp 1",
        "distilled 0.25", "distilled 0.5", "distilled 0.75",
    ]  # fmt: skip
    assert [spec.label for spec in first_rung(BUDGET, set(), limit=3)] == labels[:3]
    last = first_rung(BUDGET, set(), limit=20)[-2:]
    assert [spec.label for spec in last] == ["scratch tiny 1", "scratch mlp 1"]
    assert all(spec.network is None for spec in first_rung(replace(BUDGET, num_epochs=0), set(), limit=20))
    assert first_rung(replace(BUDGET, students=()), set(), limit=20) == tuple(
        spec for spec in first_rung(BUDGET, set(), limit=20) if spec.network is None
    )


def test_with_a_family_they_challenge_the_cuts_on_the_second_rung() -> None:
    budget = replace(BUDGET, family_epochs=4, width_ratios=(0.5,))
    (cut,) = first_rung(budget, set(), limit=8)
    assert cut.road is Road.ELASTIC
    built = [student(cut, 0.9, 3.0)]
    more = next_rung([cut], built, constraints=Constraints(), budget=budget, max_trials=8)
    labels = [proposal.spec.label for proposal in more]
    assert labels[:3] == ["elastic 0.5", "distilled tiny 1", "distilled mlp 1"]
    assert more[1].reason == "network tiny of the workload challenges the cuts"
    binding = next_rung(
        [cut], built, constraints=Constraints(latency_p95_ms=1.0), budget=budget, max_trials=8
    )
    assert binding[0].reason.startswith(f"latency binds: {built[0].digest[:12]} takes 3 ms of at most 1 ")
    assert "network tiny is a graph of its own" in binding[0].reason
    assert len({proposal.spec.digest for proposal in binding}) == len(binding)


def test_latency_that_does_not_bind_asks_for_none() -> None:
    for constraints in (Constraints(), Constraints(latency_p95_ms=9.0)):
        assert asked([WIDE, NARROW], constraints=constraints) == []
    assert asked([WIDE], budget=replace(BUDGET, students=())) == []
    assert asked([WIDE], constraints=replace(BINDS, min_accuracy=0.99)) == []


def test_where_latency_binds_each_is_tried_whole_and_one_that_is_too_slow_narrower() -> None:
    assert [spec.network for spec in asked([WIDE])] == [TINY.reference, MLP.reference]
    slow = student(OWN, 0.9, 6.0)
    assert [spec.label for spec in asked([WIDE, slow])] == ["distilled mlp 1", "distilled tiny 0.625"]
    fast = student(OWN, 0.9, 3.0)
    assert [spec.label for spec in asked([fast, NARROW])] == [], "what fits is more accurate"
    changed = replace(BUDGET, students=(replace(TINY, options={}), MLP))
    labels = [spec.network for spec in asked([slow], budget=changed)]
    assert labels == [changed.students[0].reference, MLP.reference], "what it was before is not narrowed"


def test_a_network_becomes_narrower_until_a_sixteenth() -> None:
    spec: CompressionSpec | None = OWN
    widths = []
    while spec is not None:
        widths.append(spec.width_ratio)
        spec = narrower(spec, latency_ratio=0.5)
    assert widths == [1.0, 0.5, 0.25, 0.125, 0.0625]


def test_a_miss_on_the_fleet_is_answered_with_one_beside_narrower_students() -> None:
    def answer(current: Candidate, built: list[Candidate], **options: Any) -> tuple[CompressionSpec, ...]:
        given = {"budget": BUDGET, "direction": Direction.SMALLER, "target_latency_ms": 3.6, **options}
        return propose(profile(), built, current=current, num_branches=4, **given)

    specs = answer(WIDE, [WIDE, NARROW])
    assert specs[0].network is None
    assert [spec.network for spec in specs if spec.network] == [TINY.reference]
    assert [spec.depth_ratio for spec in specs if spec.depth_ratio] == [0.5], "and a shorter one"
    small = answer(WIDE, [WIDE, NARROW], budget=replace(BUDGET, max_trials=3))
    assert [bool(spec.network) for spec in small] == [False, True]

    own = student(OWN, 0.9, 6.0)
    without = replace(BUDGET, students=(TINY,))
    specs = answer(own, [WIDE, NARROW, own], budget=without)
    assert [spec.label for spec in specs if spec.network] == ["distilled tiny 0.625"]
    assert all(spec.depth_ratio is None for spec in specs), "its branches may not be left out"
    for gone in (replace(BUDGET, students=()), replace(BUDGET, num_epochs=0)):
        assert all(spec.network is None for spec in answer(WIDE, [WIDE, NARROW], budget=gone))


def test_its_width_says_nothing_about_the_teachers_students() -> None:
    for direction in (Direction.SMALLER, Direction.LARGER):
        found = [
            propose(profile(), built, target_latency_ms=3.0, direction=direction, budget=BUDGET)
            for built in ([WIDE, NARROW], [WIDE, NARROW, student(OWN, 0.9, 0.5)])
        ]
        assert found[0] == found[1]
    assert shorter_students(
        [student(OWN, 0.95, 8.0)], constraints=BINDS, methods=None, num_epochs=3, num_branches=4
    ) == ()  # fmt: skip


def test_where_bytes_bind_it_is_packed_as_any_other() -> None:
    large = student(OWN, 0.95, 8.0)
    metrics = replace(large.metrics, artifact_bytes=100_000, num_parameters=100_000)
    (lever,) = size_levers(
        [replace(large, metrics=metrics)], constraints=Constraints(artifact_bytes=60_000), methods=None,
        num_epochs=3,
    )  # fmt: skip
    assert lever.spec.network == TINY.reference
    assert lever.spec.quantisation is not None


def test_a_decision_names_the_network_and_is_replayed_with_it() -> None:
    decision, _ = decide(
        profile=profile(5.0), windows=fleet_windows(8.0, digest=WIDE.digest), candidates=[WIDE],
        current_digest=WIDE.digest, state=PolicyState(), busy="", now_s=NOW_S, settings=PolicySettings(),
        search=BUDGET, num_branches=4,
    )  # fmt: skip
    assert decision.action is Action.BUILD
    assert "distilled tiny 1" in decision.reason
    assert replay(decision.inputs) == decision
