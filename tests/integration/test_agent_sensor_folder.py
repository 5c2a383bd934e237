"""A folder of samples with a real model: each file answered once, whatever is killed between."""

from __future__ import annotations

import json
import logging
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sensor_harness
from agent_harness import golden_inputs, make_model
from machine import dying_with_us, wait_until
from sensor_harness import folder_settings, serve, started_engine

from edge_agent.inference import InferenceEngine
from edge_agent.runtime import load_onnx
from edge_agent.sensors.asker import Asker
from edge_agent.sensors.counts import ANSWERED, FAILED, SourceCounts
from edge_agent.sensors.folder import FolderSource
from edge_agent.source_settings import FolderSettings
from edge_agent.trial import TrialMeter

MODEL = make_model(1, num_hidden=32)
SAMPLES = golden_inputs(4)


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Bench:
    """An engine with a meter, and a folder source that a test scans by hand."""

    def __init__(self, folder: Path, model: bytes | None = MODEL) -> None:
        self.folder = folder
        self.meter = TrialMeter(window_s=3600)
        self.engine: InferenceEngine = started_engine(model, self.meter)
        self.clock = Clock()
        self.counts = SourceCounts(["folder-1"])

    def source(self, settings: FolderSettings | None = None) -> FolderSource:
        asker = Asker(self.engine, timeout_s=60, max_bytes=4096)
        return FolderSource(settings or folder_settings(self.folder), asker, self.counts, clock=self.clock)

    def names(self, of: str = "") -> list[str]:
        return sorted(path.name for path in (self.folder / of).iterdir() if path.is_file())

    def answer(self, name: str) -> dict[str, object]:
        said: dict[str, object] = json.loads((self.folder / "out" / name).read_bytes())
        return said


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    folder = tmp_path / "samples"
    folder.mkdir()
    bench = Bench(folder)
    yield bench
    bench.engine.close()


def put(folder: Path, name: str, index: int = 0) -> None:
    (folder / name).write_text(json.dumps({"inputs": SAMPLES[index].tolist(), "id": name}))


def test_a_file_is_answered_by_the_model_and_goes_to_done(bench: Bench) -> None:
    put(bench.folder, "a.json")
    (bench.folder / "notes.txt").write_text("not for the model")
    bench.source().scan()
    said = bench.answer("a.json.json")
    expected = load_onnx(MODEL).run(SAMPLES[:1])[0]
    np.testing.assert_allclose(said["outputs"], expected, rtol=1e-5)  # type: ignore[arg-type]
    assert (said["class"], said["id"], said["source"]) == (int(expected.argmax()), "a.json", "a.json")
    assert (said["model"], said["generation"]) == (serve(MODEL).digest, 1)
    assert bench.names("done") == ["a.json"]
    assert bench.names() == ["notes.txt"]
    # It counts in the latencies that the agent reports.
    assert bench.meter.num_served == 1
    assert bench.counts.get("folder-1", ANSWERED) == 1


def test_npy_and_raw_files(bench: Bench) -> None:
    np.save(bench.folder / "a.npy", SAMPLES)
    (bench.folder / "b.raw").write_bytes(SAMPLES[0].astype("<f4").tobytes())
    for sample_format in "npy", "raw":
        bench.source(folder_settings(bench.folder, sample_format=sample_format)).scan()
    batch = bench.answer("a.npy.json")
    np.testing.assert_allclose(batch["outputs"], load_onnx(MODEL).run(SAMPLES), rtol=1e-5)  # type: ignore[arg-type]
    assert batch["outputs"][0] == bench.answer("b.raw.json")["outputs"]  # type: ignore[index]


def test_unfinished_files_are_not_read(bench: Bench) -> None:
    source = bench.source(folder_settings(bench.folder, settle_s=2.0))
    for name in (".a.json", "b.json.tmp", "c.json.part"):
        put(bench.folder, name)
    outside = bench.folder.parent / "secret.json"
    put(bench.folder.parent, "secret.json")
    (bench.folder / "link.json").symlink_to(outside)
    os.mkfifo(bench.folder / "pipe.json")
    growing = bench.folder / "d.json"
    text = json.dumps(SAMPLES[0].tolist())
    growing.write_text(text[:20])
    for end in (40, 60, len(text)):  # each time before it stood still for long enough
        source.scan()
        bench.clock.now_s += 1.9
        source.scan()
        growing.write_text(text[:end])
    source.scan()
    assert bench.meter.num_served == 0
    bench.clock.now_s += 2.0
    source.scan()
    assert bench.names("out") == ["d.json.json"]
    assert bench.names("done") == ["d.json"]
    assert not (bench.folder / "failed").exists()


def test_what_can_never_be_answered_goes_to_failed_with_the_reason(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    (bench.folder / "a.json").write_text("[1, 2]")
    (bench.folder / "b.json").write_text("{not json")
    (bench.folder / "c.json").write_text(json.dumps([0.0] * 5000))
    put(bench.folder, "d.json")
    bench.source().scan()
    assert bench.names("failed") == [f"{name}.json{end}" for name in "abc" for end in ("", ".error")]
    reasons = {name: (bench.folder / "failed" / f"{name}.json.error").read_text() for name in "abc"}
    assert reasons["a"].startswith("input-size: ")
    assert "16" in reasons["a"]
    assert reasons["b"].startswith("input-json: ")
    assert reasons["c"].startswith("request-too-large: ")
    assert bench.names("done") == ["d.json"]  # a bad neighbour costs it nothing
    assert bench.counts.get("folder-1", FAILED) == 3
    assert len([record for record in caplog.records if record.name.startswith("edge_agent.sensors")]) == 1


def test_files_wait_for_a_model_and_that_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(tmp_path, model=None)
    put(tmp_path, "a.json")
    source = bench.source()
    for _ in range(3):
        source.scan()
    assert bench.names() == ["a.json"]
    assert [record.levelname for record in caplog.records if "no-model" in record.message] == ["WARNING"]
    bench.engine.swap(serve(MODEL, generation=4))
    source.scan()
    assert bench.answer("a.json.json")["generation"] == 4
    bench.engine.close()


def test_names_that_come_again_overwrite_nothing(bench: Bench) -> None:
    source = bench.source()
    for index in range(3):
        put(bench.folder, "latest.json", index)
        source.scan()
    assert len(bench.names("done")) == len(bench.names("out")) == 3
    answers = [bench.answer(name)["outputs"] for name in bench.names("out")]
    expected = load_onnx(MODEL).run(SAMPLES[:3]).tolist()
    np.testing.assert_allclose(sorted(answers), sorted(expected), rtol=1e-4)  # type: ignore[type-var]


def test_a_file_that_was_answered_before_the_end_is_only_moved(bench: Bench) -> None:
    put(bench.folder, "a.json")
    (bench.folder / "done").write_text("stands where the folder should")
    bench.source().scan()  # answers, and cannot move
    assert bench.names("out") == ["a.json.json"]
    assert bench.names() == ["a.json", "done"]
    before = (bench.folder / "out" / "a.json.json").stat()
    (bench.folder / "done").unlink()
    bench.source().scan()  # the next start
    assert bench.names("done") == ["a.json"]
    assert bench.names("out") == ["a.json.json"]
    after = (bench.folder / "out" / "a.json.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert bench.meter.num_served == 1


def test_killed_again_and_again_each_file_has_one_answer_that_never_changes(tmp_path: Path) -> None:
    model, folder = tmp_path / "model.onnx", tmp_path / "samples"
    model.write_bytes(MODEL)
    folder.mkdir()
    num_files, num_kills, rng = 0, 7, random.Random(7)
    seen: dict[str, bytes] = {}
    for kill in range(num_kills):
        for number in range(num_files, num_files + 45):
            put(folder, f"{number}.json", number % 4)
        num_files += 45
        # The last one may come to its end.
        target = len(seen) + rng.randint(20, 40) if kill < num_kills - 1 else num_files
        process = subprocess.Popen(
            dying_with_us([sys.executable, sensor_harness.__file__, str(model), str(folder)]),
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        with process.stdout:
            assert process.stdout.readline() == b"ready\n"
            wait_until(
                lambda target=target, is_last=kill == num_kills - 1: (
                    len(list((folder / "out").glob("*.json"))) >= target
                    and (not is_last or not list(folder.glob("*.json")))
                ),
                what="answers",
            )
            time.sleep(rng.random() * 0.005)
            process.kill()
            process.wait(60)
        now = {path.name: path.read_bytes() for path in (folder / "out").glob("*.json")}
        assert seen.items() <= now.items()  # none was answered again
        seen = now
    assert len(list((folder / "done").iterdir())) == num_files
    assert sorted(seen) == sorted(f"{number}.json.json" for number in range(num_files))
    assert all(json.loads(data)["id"] == name.removesuffix(".json") for name, data in seen.items())
