"""The first load of a new model, in a child process that may die of it.

Rules:
- The child hashes what it read before it loads it, and has limits on address space, processor time, core
  files and written bytes. It writes nothing but one line of JSON.
- Four ways to fail, each with its code: "self-test-crash" (the child died: killed, out of memory),
  "self-test-timeout", "self-test-load" (the runtime refuses the model), "self-test-output" (the golden
  inputs do not give the golden outputs, or give numbers that are none). Bytes that are missing or altered
  keep the blob store's codes: they are this disk's fault.
- Outputs are compared in the runtime that will serve, on the processor that will serve.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

logger = logging.getLogger(__name__)

# ONNX Runtime reserves address space for arenas and threads well beyond what it touches.
BASE_ADDRESS_SPACE_BYTES = 2 * 1024**3
ADDRESS_SPACE_PER_ARTIFACT_BYTE = 12
MAX_OUTPUT_BYTES = 64 * 1024
_NUM_LATENCY_RUNS = 20
# Beside the agent, which serves meanwhile.
_NICE = 5
# By the kernel's measure.
_MOST_DISPENSABLE = "1000"
# Codes by which the child says that the stored bytes are not what they should be.
_STORAGE_CODES = frozenset({"artifact-missing", "artifact-altered", "manifest-missing", "manifest-altered"})


@dataclass(frozen=True, kw_only=True, slots=True)
class SelfTestJob:
    artifact_path: Path
    manifest_path: Path
    manifest_digest: str
    num_threads: int = 1
    timeout_s: float = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SelfTestResult:
    """`code` is empty when the model passed."""

    code: str = ""
    message: str = ""
    p50_ms: float = 0.0
    max_error: float = 0.0

    @property
    def passed(self) -> bool:
        return not self.code

    @property
    def storage_failed(self) -> bool:
        return self.code in _STORAGE_CODES


# --- parent -----------------------------------------------------------------------------------------


class SelfTestProcess:
    """Runs one job and calls back once, from a thread of its own, unless it was stopped."""

    def __init__(self, job: SelfTestJob, on_result: Callable[[SelfTestResult], None]) -> None:
        self._job = job
        self._on_result = on_result
        self._stopped = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="self-test", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Kills the child; no result is delivered after this."""
        with self._lock:
            self._stopped.set()
            if self._process is not None:
                self._process.kill()

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called: no result comes."""
        return self._stopped.is_set()

    def _run(self) -> None:
        try:
            result = self._wait()
        except Exception as error:
            # Whoever waits for the result would wait for ever.
            logger.exception("a self-test failed in an unforeseen way")
            result = SelfTestResult(
                code="self-test-crash", message=f"the self-test could not be followed ({error!r})"[:500]
            )
        with self._lock:
            if self._stopped.is_set():
                return
        self._on_result(result)

    def _wait(self) -> SelfTestResult:
        with self._lock:
            if self._stopped.is_set():
                return SelfTestResult(code="self-test-crash", message="stopped")
            try:
                # -P: no module is ever taken from the working directory.
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "edge_agent.selftest"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    close_fds=True,
                )
            except OSError as error:
                return SelfTestResult(
                    code="self-test-crash", message=f"the self-test could not be started: {error.strerror}"
                )
            # The device's own work comes first: from here, since the child only gets to it once Python runs.
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, process.pid, _NICE + os.getpriority(os.PRIO_PROCESS, 0))
            # And whatever the model asks for, it is this process that the kernel ends for want of memory.
            with contextlib.suppress(OSError):
                Path(f"/proc/{process.pid}/oom_score_adj").write_text(_MOST_DISPENSABLE)
            self._process = process
        try:
            output, errors = process.communicate(_encode_job(self._job), timeout=self._job.timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return SelfTestResult(
                code="self-test-timeout",
                message=f"the model did not load and run in {self._job.timeout_s:g} s on this device",
            )
        return read_result(process.returncode, output, errors)


def run_self_test(job: SelfTestJob) -> SelfTestResult:
    """The same, waiting."""
    return SelfTestProcess(job, lambda result: None)._wait()


def _encode_job(job: SelfTestJob) -> bytes:
    return json.dumps(
        {
            "artifact": str(job.artifact_path),
            "manifest": str(job.manifest_path),
            "manifest_digest": job.manifest_digest,
            "num_threads": job.num_threads,
            "timeout_s": job.timeout_s,
        }
    ).encode()


def read_result(exit_code: int, output: bytes, errors: bytes) -> SelfTestResult:
    """What the child's end means. The child ran hostile input, so that its words are checked too."""
    if exit_code != 0:
        how = f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
        last = errors.decode("utf-8", "replace").strip().splitlines()[-1:] or [""]
        return SelfTestResult(
            code="self-test-crash",
            message=f"the process that tried the model died ({how}) {last[0][:300]}".strip(),
        )
    try:
        said = json.loads(output[:MAX_OUTPUT_BYTES])
        code, message = str(said["code"]), str(said["message"])
        p50_ms, max_error = float(said["p50_ms"]), float(said["max_error"])
    except (ValueError, KeyError, TypeError):
        return SelfTestResult(code="self-test-crash", message="the self-test gave no result")
    known = {"", "self-test-load", "self-test-output", "self-test-crash"} | _STORAGE_CODES
    if code not in known or not math.isfinite(p50_ms) or not math.isfinite(max_error):
        return SelfTestResult(code="self-test-crash", message="the self-test gave no sensible result")
    return SelfTestResult(code=code, message=message[:500], p50_ms=p50_ms, max_error=max_error)


# --- child ------------------------------------------------------------------------------------------


def _limit(kind: int, value: int) -> None:
    """Lowers a limit; one that is lower already stays."""
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, value))


def _limit_process(timeout_s: float, artifact_bytes: int) -> None:
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_CPU, max(1, math.ceil(timeout_s)))
    _limit(resource.RLIMIT_AS, BASE_ADDRESS_SPACE_BYTES + ADDRESS_SPACE_PER_ARTIFACT_BYTE * artifact_bytes)
    # Should the agent die first, this one does not linger.
    signal.alarm(math.ceil(timeout_s) + 1)


def _test(job: SelfTestJob) -> SelfTestResult:
    from edgeloop import artifact
    from edgeloop.errors import RejectedError

    try:
        manifest = artifact.parse_manifest(
            job.manifest_path.read_bytes(), expected_digest=job.manifest_digest
        )
    except OSError as error:
        return SelfTestResult(code="manifest-missing", message=str(error))
    except RejectedError as error:
        return SelfTestResult(code="manifest-altered", message=error.message)
    try:
        data = job.artifact_path.read_bytes()
        artifact.check_artifact(manifest, data)
    except OSError as error:
        return SelfTestResult(code="artifact-missing", message=str(error))
    except RejectedError as error:
        return SelfTestResult(code="artifact-altered", message=error.message)
    _limit_process(job.timeout_s, len(data) + manifest.executable_size_bytes)

    # Imported under the limits, as it is part of what the model makes happen here.
    import numpy as np

    from edge_agent.runtime import load_artifact, measure_latency

    inputs, wanted = artifact.golden_arrays(manifest)
    try:
        runtime = load_artifact(data, manifest, num_threads=job.num_threads)
    except RejectedError as error:
        return SelfTestResult(code="self-test-load", message=f"{error.code}: {error.message}")
    if runtime.sample_shape != inputs.shape[1:]:
        return SelfTestResult(
            code="self-test-load",
            message=f"the model takes {list(runtime.sample_shape)}, "
            f"its manifest says {list(inputs.shape[1:])}",
        )
    try:
        found = runtime.run(inputs)
        p50_ms = measure_latency(runtime, inputs[:1], num_warmup=2, num_runs=_NUM_LATENCY_RUNS).p50_ms
    except RejectedError as error:
        return SelfTestResult(code="self-test-output", message=error.message)
    if found.shape != wanted.shape:
        return SelfTestResult(
            code="self-test-output",
            message=f"the model gives {list(found.shape)}, its manifest says {list(wanted.shape)}",
        )
    if not np.isfinite(found).all():
        return SelfTestResult(
            code="self-test-output",
            message="the model gives values that are no numbers for its golden inputs",
        )
    max_error = float(np.abs(found - wanted).max())
    tolerance = manifest.golden.absolute_tolerance
    if not max_error <= tolerance:
        return SelfTestResult(
            code="self-test-output",
            message=f"golden outputs differ by {max_error:.3g} on this processor, {tolerance:.3g} is "
            "allowed; build the artifact for this device's instruction set",
            max_error=max_error if math.isfinite(max_error) else 0.0,
        )
    return SelfTestResult(p50_ms=p50_ms, max_error=max_error)


def child(stdin: IO[bytes], stdout: IO[bytes]) -> None:
    said = json.loads(stdin.read())
    job = SelfTestJob(
        artifact_path=Path(said["artifact"]),
        manifest_path=Path(said["manifest"]),
        manifest_digest=said["manifest_digest"],
        num_threads=int(said["num_threads"]),
        timeout_s=float(said["timeout_s"]),
    )
    try:
        result = _test(job)
    except MemoryError:
        result = SelfTestResult(
            code="self-test-crash", message="the model needs more memory than the self-test may use"
        )
    stdout.write(
        json.dumps(
            {
                "code": result.code,
                "message": result.message,
                "p50_ms": result.p50_ms,
                "max_error": result.max_error,
            }
        ).encode()
    )
    stdout.flush()


if __name__ == "__main__":
    child(sys.stdin.buffer, sys.stdout.buffer)
    # Skips tear-down of the runtime, which has nothing to save.
    os._exit(0)
