"""What the agent costs a gateway: memory, start, and the price of serving through it.

    python -m benchmarks.agent

- *overhead*: the agent's inference path (check the input, run, meter, make the result), as its inference
  thread executes it, against a bare ``session.run`` on the same graph with the same session settings; and,
  apart, what a caller on another thread waits for (``submit(...).result()``), which adds two thread switches.
  All are timed in one process, round by round in random order; the ratio is between medians, one for each of
  several repetitions, and the median of these with their range is printed.
- *process*: a real ``edgeloop-agent run``, installed once over a real broker and gRPC, then serving replayed
  samples; its memory, and the time from process start to the first answer over restarts, beside a process
  that imports the runtime and answers once with the same graph and does nothing else.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import onnx

from benchmarks.gateway import DEVICE_ID, WORKLOAD, Fleet, Gateway, publish
from benchmarks.networks import bare_session, conv_graph, medians_us, samples
from cloud.broker import EmbeddedBroker
from edge_agent.inference import InferenceEngine, ServedModel
from edge_agent.meter import LatencyMeter
from edge_agent.runtime import load_onnx
from edgeloop import trust
from edgeloop.mqtt import MqttSession
from edgeloop.v1 import fleet_service_pb2_grpc

# --- overhead ---------------------------------------------------------------------------------------


def measure_overhead(data: bytes, *, num_rounds: int, num_repeats: int) -> dict[str, dict[str, float]]:
    """Medians in microseconds, and their ratios to the bare run, for each repetition."""
    sample = samples(1)
    session = bare_session(data)
    model = ServedModel(runtime=load_onnx(data), digest="a" * 64, generation=1, workload=WORKLOAD)
    engine = InferenceEngine(meter=LatencyMeter(window_s=30))
    engine.swap(model)
    # A second engine for the other thread, so that no runtime is shared between two.
    threaded = InferenceEngine(meter=LatencyMeter(window_s=30))
    threaded.swap(ServedModel(runtime=load_onnx(data), digest="a" * 64, generation=1, workload=WORKLOAD))
    threaded.start()
    actions = {
        "bare session.run": lambda: session.run(None, {"x": sample}),
        "agent's inference path": lambda: engine.serve(model, sample),
        "submit from another thread": lambda: threaded.submit(sample).result(),
    }
    found: dict[str, list[float]] = {name: [] for name in actions}
    ratios: dict[str, list[float]] = {name: [] for name in actions}
    for repeat in range(num_repeats):
        medians = medians_us(list(actions.values()), num_rounds, repeat)
        for name, median in zip(actions, medians, strict=True):
            found[name].append(median)
            ratios[name].append(median / medians[0])
    threaded.close()
    return {
        name: {
            "p50_us": statistics.median(found[name]),
            "ratio": statistics.median(ratios[name]),
            "ratio_min": min(ratios[name]),
            "ratio_max": max(ratios[name]),
        }
        for name in actions
    }


# --- a real process -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessCost:
    """What one agent process took."""

    rss_bytes: int
    #: Of the process that fetched, verified and installed the model: what that took in code stays.
    installed_rss_bytes: int
    peak_rss_bytes: int
    first_inference_s: list[float]
    num_requests: int


def measure_process(data: bytes, *, serve_s: float, num_starts: int) -> ProcessCost:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "replay.npz", inputs=samples(64))
        broker = EmbeddedBroker(host="127.0.0.1", port=0, work_dir=folder / "broker")
        broker.start()
        server = grpc.server(futures.ThreadPoolExecutor(4))
        fleet_service_pb2_grpc.add_FleetServiceServicer_to_server(Fleet(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        session = MqttSession("127.0.0.1", broker.port, "bench-publisher").start()
        key = trust.DirectorKey.generate()
        settings = {
            "device-id": DEVICE_ID,
            "state-dir": str(folder / "state"),
            "server": f"127.0.0.1:{port}",
            "broker": f"127.0.0.1:{broker.port}",
            "director-key": key.public_bytes.hex(),
            "replay": str(folder / "replay.npz"),
            "rate-hz": "100",
            "report-interval-s": "1",
            "trial-requests": "20",
            "serve-grpc": "off",
            "serve-rest": "off",
        }
        gateway = Gateway(folder, [word for flag, value in settings.items() for word in (f"--{flag}", value)])
        try:
            session.wait_connected(10)
            digest = publish(session, key, data)
            gateway.start()
            gateway.wait(lambda status: status["committed_digest"] == digest)
            time.sleep(serve_s)
            installed_rss_bytes = gateway.memory("VmRSS")
            first_s = []
            for _ in range(num_starts):
                gateway.stop()
                gateway.start()
                first_s.append(
                    gateway.wait(lambda status: status["first_inference_s"] > 0)["first_inference_s"]
                )
            gateway.wait(lambda status: bool(status["server_connected"] and status["broker_connected"]))
            time.sleep(serve_s)
            status = gateway.wait(lambda status: status["num_requests"] > 0)
            return ProcessCost(
                rss_bytes=gateway.memory("VmRSS"),
                installed_rss_bytes=installed_rss_bytes,
                peak_rss_bytes=gateway.memory("VmHWM"),
                first_inference_s=first_s,
                num_requests=status["num_requests"],
            )
        finally:
            gateway.stop()
            session.close()
            server.stop(0).wait()
            broker.stop()


BARE = """
import sys, time
import numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
session.run(None, {"x": np.zeros((1, 1, 28, 28), np.float32)})
from pathlib import Path
ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
up_s = float(Path("/proc/uptime").read_text().split()[0])
import os
rss = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
print(up_s - ticks / os.sysconf("SC_CLK_TCK"), int(rss.split()[1]) * 1024)
"""


def measure_bare_process(data: bytes, num_starts: int) -> tuple[float, int]:
    """Median seconds to the first answer, and memory, of a process that only loads the runtime."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "model.onnx"
        path.write_bytes(data)
        onnx.checker.check_model(onnx.load_from_string(data))
        found = []
        for _ in range(num_starts):
            child = subprocess.run(
                [sys.executable, "-c", BARE, str(path)], capture_output=True, text=True, check=True
            )
            first_s, rss = child.stdout.split()
            found.append((float(first_s), int(rss)))
    return statistics.median(first for first, _ in found), int(statistics.median(rss for _, rss in found))


def main() -> None:
    """Measures and prints; ``--json`` for programs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=2000, help="runs of each path in a repetition")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--starts", type=int, default=7, help="process starts")
    parser.add_argument(
        "--serve-s", type=float, default=10.0, help="how long the agent serves before its memory is read"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    data = conv_graph(24, 2)
    overhead = measure_overhead(data, num_rounds=args.rounds, num_repeats=args.repeats)
    bare_first_s, bare_rss = measure_bare_process(data, args.starts)
    cost = measure_process(data, serve_s=args.serve_s, num_starts=args.starts)
    first_s = statistics.median(cost.first_inference_s)
    if args.json:
        print(
            json.dumps(
                {
                    "overhead": overhead,
                    "agent": {
                        "rss_bytes": cost.rss_bytes,
                        "installed_rss_bytes": cost.installed_rss_bytes,
                        "peak_rss_bytes": cost.peak_rss_bytes,
                        "first_inference_s": cost.first_inference_s,
                    },
                    "bare": {"rss_bytes": bare_rss, "first_inference_s": bare_first_s},
                },
                indent=1,
            )
        )
        return
    print(f"{'path':<28}{'p50 us':>10}{'ratio':>8}   range over {args.repeats} repetitions")
    for name, row in overhead.items():
        print(
            f"{name:<28}{row['p50_us']:>10.1f}{row['ratio']:>8.3f}   "
            f"{row['ratio_min']:.3f} to {row['ratio_max']:.3f}"
        )
    print()
    print(f"{'process':<28}{'agent':>10}{'bare':>10}{'ratio':>8}")
    print(
        f"{'RSS while serving, MB':<28}{cost.rss_bytes / 1e6:>10.1f}{bare_rss / 1e6:>10.1f}"
        f"{cost.rss_bytes / bare_rss:>8.2f}"
    )
    print(f"{'... after an installation, MB':<28}{cost.installed_rss_bytes / 1e6:>10.1f}")
    print(f"{'peak RSS, MB':<28}{cost.peak_rss_bytes / 1e6:>10.1f}")
    print(
        f"{'start to first answer, s':<28}{first_s:>10.2f}{bare_first_s:>10.2f}{first_s / bare_first_s:>8.2f}"
    )
    print(
        f"\n{len(cost.first_inference_s)} starts, {min(cost.first_inference_s):.2f} to "
        f"{max(cost.first_inference_s):.2f} s; {cost.num_requests} requests served"
    )


if __name__ == "__main__":
    main()
