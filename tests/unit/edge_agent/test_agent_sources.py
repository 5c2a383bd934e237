"""The replay source: its file, its grid of ticks, its manners when behind."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from machine import wait_until
from numpy.typing import NDArray

from edge_agent.inference import InferenceResult
from edge_agent.sources import ReplaySource, Schedule, load_replay
from edgeloop.errors import ConfigError, RejectedError, TransientError

SAMPLES = np.arange(12, dtype=np.float32).reshape(4, 3)


def done(sample: NDArray[np.float32]) -> Future[InferenceResult]:
    future: Future[InferenceResult] = Future()
    future.set_result(InferenceResult(outputs=sample, digest="a" * 64, generation=1, service_ms=0.1))
    return future


class TestFile:
    def test_what_was_saved_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "replay.npz"
        np.savez_compressed(path, inputs=SAMPLES, labels=np.arange(4))
        np.testing.assert_array_equal(load_replay(path), SAMPLES)

    @pytest.mark.parametrize(
        ("arrays", "words"),
        [
            ({"x": SAMPLES}, "inputs"),
            ({"inputs": SAMPLES.astype(np.float64)}, "float64"),
            ({"inputs": SAMPLES[0]}, "shape"),
            ({"inputs": SAMPLES[:0]}, "shape"),
            ({"inputs": np.full((2, 2), np.nan, np.float32)}, "finite"),
            ({"inputs": np.array([{"a": 1}], dtype=object)}, "npz"),
        ],
        ids=["no-key", "float64", "no-batch", "empty", "nan", "pickled"],
    )
    def test_a_file_that_does_not_fit_is_refused_with_its_name(
        self, tmp_path: Path, arrays: dict[str, NDArray[np.float32]], words: str
    ) -> None:
        path = tmp_path / "replay.npz"
        np.savez(path, **arrays)
        with pytest.raises(ConfigError, match=words) as caught:
            load_replay(path)
        assert caught.value.code == "replay-file"
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04", pickle.dumps([1]), None])
    def test_no_npz_at_all(self, tmp_path: Path, content: bytes | None) -> None:
        path = tmp_path / "replay.npz"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ConfigError):
            load_replay(path)


class TestSchedule:
    def test_a_punctual_source_ticks_on_the_grid(self) -> None:
        schedule = Schedule(rate_hz=10, start_s=100)
        now_s, ticks = 100.0, []
        for _ in range(5):
            now_s += schedule.wait_s(now_s)
            ticks.append(now_s)
            assert schedule.take(now_s) == 0
            now_s += 0.03  # work that fits between two ticks does not shift the grid
        assert ticks == pytest.approx([100.0, 100.1, 100.2, 100.3, 100.4])

    def test_what_passed_is_skipped_not_made_up_for(self) -> None:
        schedule = Schedule(rate_hz=10, start_s=0)
        assert schedule.take(0.0) == 0
        assert schedule.take(0.75) == 6  # the ticks at 0.1 to 0.6
        assert schedule.wait_s(0.75) == pytest.approx(0.05)

    @given(st.floats(0.1, 1000), st.lists(st.floats(0, 3), max_size=40))
    def test_ticks_taken_and_skipped_are_those_that_time_brought(
        self, rate_hz: float, delays_s: list[float]
    ) -> None:
        schedule = Schedule(rate_hz=rate_hz, start_s=0)
        now_s, total = 0.0, 0
        for delay_s in delays_s:
            now_s += schedule.wait_s(now_s)
            total += schedule.take(now_s) + 1
            assert total == pytest.approx(now_s * rate_hz + 1, abs=1.01)
            assert schedule.wait_s(now_s) <= 1 / rate_hz + 1e-9
            now_s += delay_s

    @pytest.mark.parametrize("rate_hz", [0, -1, float("nan"), float("inf")])
    def test_a_rate_that_is_none_is_refused(self, rate_hz: float) -> None:
        with pytest.raises(ConfigError):
            Schedule(rate_hz=rate_hz, start_s=0)


class TestReplay:
    def test_samples_go_out_in_order_once(self) -> None:
        seen: list[NDArray[np.float32]] = []

        def submit(sample: NDArray[np.float32]) -> Future[InferenceResult]:
            seen.append(sample)
            return done(sample)

        source = ReplaySource(SAMPLES, rate_hz=500, submit=submit, loop=False)
        source.start()
        assert source.join(60)
        np.testing.assert_array_equal(np.concatenate(seen), SAMPLES)
        assert source.num_submitted == 4

    def test_it_loops(self) -> None:
        enough = threading.Event()
        source: ReplaySource

        def submit(sample: NDArray[np.float32]) -> Future[InferenceResult]:
            if source.num_submitted > 9:
                enough.set()
            return done(sample)

        source = ReplaySource(SAMPLES, rate_hz=1000, submit=submit)
        source.start()
        assert enough.wait(60)
        source.close()

    def test_an_engine_that_is_behind_gets_no_second_request(self) -> None:
        pending: Future[InferenceResult] = Future()
        source = ReplaySource(SAMPLES, rate_hz=1000, submit=lambda sample: pending)
        source.start()
        wait_until(lambda: source.num_skipped >= 5)
        source.close()
        assert source.num_submitted == 1
        assert source.num_skipped >= 5

    @pytest.mark.parametrize("kind", ["no-model", "failing"])
    def test_it_outlives_a_missing_and_a_failing_model(self, kind: str) -> None:
        num_asked = 0

        def submit(sample: NDArray[np.float32]) -> Future[InferenceResult]:
            nonlocal num_asked
            num_asked += 1
            if kind == "no-model":
                raise TransientError("not yet", code="no-model")
            future: Future[InferenceResult] = Future()
            future.set_exception(RejectedError("broken", code="model-run"))
            return future

        source = ReplaySource(SAMPLES, rate_hz=1000, submit=submit)
        source.start()
        wait_until(lambda: num_asked >= 6)
        source.close()
        # Ticks that a busy machine missed are skipped, too.
        assert source.num_failed == (num_asked if kind == "failing" else 0)
        assert source.num_skipped >= (0 if kind == "failing" else num_asked)

    def test_it_stops_promptly_between_far_ticks(self) -> None:
        source = ReplaySource(SAMPLES, rate_hz=0.001, submit=done)  # a tick is a quarter of an hour away
        source.start()
        source.close()
        assert source.join(0)
