from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from machine import free_port, wait_until

from cloud.domain.candidates import Candidate, CandidateMetrics
from cloud.domain.profiles import Constraints, DeviceProfile, MatchRule
from cloud.domain.specs import CompressionSpec, Precision
from cloud.domain.tasks import StudentTask, TeacherResult, TeacherTask
from cloud.domain.workloads import SearchBudget, TrainingBudget, Workload
from cloud.jobs import progress
from cloud.jobs.cluster import Cluster
from cloud.jobs.node import has_node
from cloud.jobs.progress import FOLDER, MIN_INTERVAL_S, Heartbeat, Reporter, Words
from cloud.jobs.results import ResultShelf, discard_torn_run, run_key
from cloud.registry import Registry
from edgeloop.errors import ConfigError

WORKLOAD = Workload(name="digits", dataset="digits", dataset_options={"size": 16})


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(str(tmp_path / "registry"))


def teacher_result(registry: Registry) -> TeacherResult:
    return TeacherResult(
        workload="digits",
        teacher_key=WORKLOAD.teacher_key,
        checkpoint_digest=registry.put(b"checkpoint"),
        artifact_digest=registry.put(b"graph"),
        artifact_bytes=5,
        accuracy=0.99,
        test_accuracy=0.98,
        macs=1000,
        num_parameters=10,
        latency_p50_ms=0.2,
        reference_p50_ms=0.1,
        num_epochs=3,
        train_s=6.5,
    )


def candidate(registry: Registry) -> Candidate:
    return Candidate(
        digest=registry.put(b"student"),
        manifest_digest=registry.put(b"manifest"),
        workload="digits",
        profile="small",
        parent_digest="",
        spec=CompressionSpec(width_ratio=0.25),
        precision=Precision.INT8,
        metrics=CandidateMetrics(
            accuracy=0.97,
            test_accuracy=0.96,
            latency_p50_ms=0.05,
            latency_p95_ms=0.07,
            reference_p50_ms=0.1,
            artifact_bytes=7,
            peak_rss_bytes=1 << 26,
            macs=100,
            num_parameters=5,
        ),
        create_time_s=12.5,
    )


def student_task(registry: Registry, task_id: str = "job-1/0") -> StudentTask:
    profile = DeviceProfile(
        name="small",
        workload="digits",
        match=MatchRule(instruction_sets=frozenset({"avx2", "sse4_1", "fma"}), labels={"site": "a"}),
        constraints=Constraints(latency_p95_ms=1.0),
    )
    return StudentTask(
        task_id=task_id,
        workload=WORKLOAD,
        teacher=teacher_result(registry),
        profile=profile,
        spec=CompressionSpec(width_ratio=0.25),
    )


def test_a_kept_result_answers_the_same_task_after_a_restart(tmp_path: Path, registry: Registry) -> None:
    task, built = student_task(registry), candidate(registry)
    ResultShelf(tmp_path).put(task, built)
    assert ResultShelf(tmp_path).find(task, registry) == built
    teacher = TeacherTask(task_id="t", workload=WORKLOAD)
    ResultShelf(tmp_path).put(teacher, teacher_result(registry))
    assert ResultShelf(tmp_path).find(teacher, registry) == teacher_result(registry)


def test_a_result_never_answers_another_task(tmp_path: Path, registry: Registry) -> None:
    shelf, task = ResultShelf(tmp_path), student_task(registry)
    shelf.put(task, candidate(registry))
    others = [
        replace(task, task_id="job-1-0"),
        replace(task, spec=CompressionSpec(width_ratio=0.5)),
        replace(task, parent_digest="0" * 64),
        replace(task, teacher=replace(task.teacher, checkpoint_digest=registry.put(b"retrained"))),
    ]
    assert [shelf.find(other, registry) for other in others] == [None] * len(others)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"fingerprint": 1}'])
def test_a_torn_result_means_running_again(tmp_path: Path, registry: Registry, text: str) -> None:
    shelf, task = ResultShelf(tmp_path), student_task(registry)
    shelf.put(task, candidate(registry))
    (file,) = tmp_path.glob("*.json")
    file.write_text(text)
    assert shelf.find(task, registry) is None


def test_a_result_of_another_shape_means_running_again(tmp_path: Path, registry: Registry) -> None:
    shelf, task = ResultShelf(tmp_path), student_task(registry)
    shelf.put(task, candidate(registry))
    (file,) = tmp_path.glob("*.json")
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, "result": '{"digest": 3}'}))
    assert shelf.find(task, registry) is None


def test_a_result_whose_blob_is_gone_means_running_again(tmp_path: Path, registry: Registry) -> None:
    shelf, task, built = ResultShelf(tmp_path / "results"), student_task(registry), candidate(registry)
    shelf.put(task, built)
    Path(registry.url, "sha256", built.digest[:2], built.digest).unlink()
    assert shelf.find(task, registry) is None


def test_search_budgets_share_a_teacher_and_training_budgets_do_not() -> None:
    first = TeacherTask(task_id="a", workload=WORKLOAD)
    searched = TeacherTask(task_id="b", workload=replace(WORKLOAD, search=SearchBudget(max_trials=1)))
    longer = TeacherTask(task_id="c", workload=replace(WORKLOAD, training=TrainingBudget(num_epochs=99)))
    assert run_key(first) == run_key(searched)
    assert run_key(first) != run_key(longer)


def test_an_edit_of_the_workloads_code_makes_another_teacher(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def load(): ...\n")
    task = TeacherTask(
        task_id="a", workload=Workload(name="mine", dataset="mine:load", source_dir=str(tmp_path))
    )
    before = run_key(task)
    assert run_key(task) == before
    (tmp_path / "mine.py").write_text("def load(): return 1\n")
    assert run_key(task) != before


@pytest.mark.parametrize("name", ["../../x", "a/b", "", ".", "..", "x" * 300, "-rf", "naïve name"])
def test_no_task_id_leaves_its_folder_or_collides(tmp_path: Path, registry: Registry, name: str) -> None:
    task = student_task(registry, task_id=name)
    ResultShelf(tmp_path / "results").put(task, candidate(registry))
    assert [path.parent for path in tmp_path.rglob("*.json")] == [tmp_path / "results"]
    assert run_key(task) != run_key(student_task(registry, task_id=name.replace("/", "-") + "-"))


@pytest.mark.parametrize(("text", "stays"), [('{"x": []}', True), ('{"x": [', False), ("", False)])
def test_a_run_that_ray_train_cannot_open_any_more_starts_afresh(
    tmp_path: Path, text: str, stays: bool
) -> None:
    folder = tmp_path / "teacher"
    discard_torn_run(folder)
    folder.mkdir()
    (folder / "checkpoint_manager_snapshot.json").write_text(text)
    discard_torn_run(folder)
    assert folder.exists() == stays


@pytest.fixture
def words(tmp_path: Path) -> Words:
    words = Words(tmp_path)
    words.begin("a")
    return words


def test_only_the_newest_word_of_a_task_is_read_and_once(tmp_path: Path, words: Words) -> None:
    words.begin("b")
    assert words.newest("a") is None
    Reporter(tmp_path, "a")(0.25, "step 1")
    Reporter(tmp_path, "a")(0.5, "step 2")
    Reporter(tmp_path, "b")(0.75, "half")
    assert (words.newest("a"), words.newest("b")) == ((0.5, "step 2"), (0.75, "half"))
    assert (words.newest("a"), words.newest("b")) == (None, None)
    words.end("a")
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["b"]


def test_what_an_earlier_run_said_is_not_of_the_next(tmp_path: Path, words: Words) -> None:
    Reporter(tmp_path, "a")(1.0, "done")
    words.begin("a")
    assert words.newest("a") is None
    # The same word of another process is another word.
    Reporter(tmp_path, "a")(1.0, "done")
    assert words.newest("a") == (1.0, "done")


@pytest.mark.parametrize(
    "raw",
    [b"", b'{"number": 3, "fraction": 0.5, "mess', b"[]", b'{"fraction": "x", "message": ""}', b"\xff", b"{}",
     b'{"fraction": NaN, "message": "?"}', b"1" * 100_000],
)  # fmt: skip
def test_half_a_word_is_none_and_the_next_is_read(tmp_path: Path, words: Words, raw: bytes) -> None:
    (tmp_path / FOLDER / "a").write_bytes(raw)
    assert words.newest("a") is None
    Reporter(tmp_path, "a")(0.5, "half")
    assert words.newest("a") == (0.5, "half")


def test_a_chatty_task_writes_seldom_but_always_its_end(
    tmp_path: Path, words: Words, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now_s))
    report, heard = Reporter(tmp_path, "a"), []
    for step in range(1000):
        report(step / 1000, "step")
        now_s += 0.001
        heard.append(words.newest("a"))
    report(1.0, "done")
    assert 0 < len([word for word in heard if word]) <= 1.0 / MIN_INTERVAL_S + 1
    assert words.newest("a") == (1.0, "done")


def test_words_that_cannot_be_written_do_not_cost_the_work(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("in the way")
    words = Words(tmp_path)
    words.begin("a")
    Reporter(tmp_path, "a")(0.5, "half")
    assert words.newest("a") is None
    words.end("a")


def test_fractions_stay_between_0_and_1(tmp_path: Path, words: Words) -> None:
    Reporter(tmp_path, "a")(7.0, "over")
    assert words.newest("a") == (1.0, "over")
    Reporter(tmp_path, "a")(-1.0, "under")
    assert words.newest("a") == (0.0, "under")


def test_a_silent_epoch_is_heard_of_each_second(tmp_path: Path, words: Words) -> None:
    heard: list[tuple[float, str]] = []

    def heard_often() -> bool:
        word = words.newest("a")
        if word is not None:
            heard.append(word)
        return len(heard) >= 3

    with Heartbeat(Reporter(tmp_path, "a")) as report:
        report(0.25, "epoch 2 of 4")
        wait_until(heard_often, "two words that nobody said")
    assert {fraction for fraction, _ in heard} == {0.25}
    assert all(message.startswith("epoch 2 of 4") for _, message in heard)


@pytest.mark.parametrize(
    "address",
    ["head", "head:", "head:port", "head:70000", "ray://head:10001", "no-such-host.invalid:6379"],
)
def test_an_address_that_cannot_be_used_names_the_field(address: str) -> None:
    with pytest.raises(ConfigError, match=r"compute\.address") as caught:
        Cluster(address=address).start()
    assert caught.value.code == "ray-address"


def test_a_head_that_does_not_run_is_told_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would try for minutes."""
    monkeypatch.setattr(Cluster, "_live", lambda cluster: pytest.fail("Ray was asked"))
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(ConfigError, match="ray start --head"):
            Cluster(address=f"127.0.0.1:{nobody.getsockname()[1]}").start()


@pytest.mark.parametrize(("address", "num_cpus"), [("", 0), ("", -1), ("head:6379", 2)])
def test_cpus_must_make_sense(address: str, num_cpus: int) -> None:
    with pytest.raises(ConfigError, match="num_cpus"):
        Cluster(address=address, num_cpus=num_cpus)


def test_a_node_on_this_machine_is_found_by_each_of_its_addresses(tmp_path: Path) -> None:
    """``ray start --head`` never says loopback of itself, and people give just that to ``--ray-address``."""
    port = free_port()
    items = [item for found in psutil.net_if_addrs().values() for item in found]
    own = [item.address for item in items if item.family == socket.AF_INET and item.address != "127.0.0.1"]
    raylet = tmp_path / "raylet"
    raylet.symlink_to(sys.executable)
    wait = "import time; time.sleep(600)"
    address = f"{(own or ['127.0.0.1'])[0]}:{port}"
    process = subprocess.Popen([str(raylet), "-S", "-c", wait, f"--gcs-address={address}"])
    try:
        wait_until(lambda: has_node(address), "the process to be seen")
        assert has_node(f"127.0.0.1:{port}")
        assert has_node(f"localhost:{port}")
        assert not has_node(f"127.0.0.1:{port + 1}")
        assert not has_node(f"203.0.113.1:{port}")
    finally:
        process.kill()
        process.wait()
