"""What micro-batching brings and costs, by how many requests are under way at a time.

    python -m benchmarks.batching

A server process holds four engines behind the local gRPC API: two models, each without batching and with
batches of up to 16 that hold nobody back (``serve_max_batch_size = 16``). The *small* model is a
convolutional network of about 0.1 ms, whose costs grow with the samples; the *wide* one is two matrices, 16
MB of weights that each run reads once, however many samples it has. A client process keeps 1, 8 or 32
requests under way, for a stretch each, turn by turn in random order, so that what else the machine does
hits all alike. Printed are throughput, the p50 and p99 that a caller waits, and the ratios of on to off in
the same run. Answers of the batching engines are compared with those of single runs beforehand, and refused
calls are counted by their reason.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import grpc
import numpy as np

from benchmarks.delivery_agent import dense_graph
from benchmarks.networks import bare_session, conv_graph, samples
from benchmarks.serving import LOCAL, MAX_REQUEST_BYTES, WORKLOAD, grpc_request, infer_over
from edge_agent.batching import BatchSettings, prove_batches
from edge_agent.inference import InferenceEngine, ServedModel
from edge_agent.meter import LatencyMeter
from edge_agent.runtime import load_onnx
from edge_agent.serving.grpc_api import GrpcApi
from edge_agent.serving.inference import grpc_service_pb2 as pb
from edge_agent.serving.metrics import ServingMetrics
from edge_agent.serving.model_service import ModelService

MAX_BATCH_SIZE = 16
CONCURRENCY = (1, 8, 32)
WIDE_BYTES = 16_000_000
TOLERANCE = 1e-3


def serve(graphs: dict[str, bytes], pipe: Connection) -> None:
    """The server process. Says its addresses; answers each further word with the samples and runs so far."""
    engines: dict[tuple[str, bool], InferenceEngine] = {}
    apis, found = [], {}
    for name, data in graphs.items():
        for batched in (False, True):
            size = MAX_BATCH_SIZE if batched else 1
            engine = InferenceEngine(
                meter=LatencyMeter(window_s=30), batching=BatchSettings(max_batch_size=size)
            )
            runtime = load_onnx(data)
            prove_batches(runtime, samples(8), max_batch_size=MAX_BATCH_SIZE, absolute_tolerance=TOLERANCE)
            engine.swap(
                ServedModel(
                    runtime=runtime, digest="a" * 64, generation=1, workload=WORKLOAD, max_batch_size=size
                )
            )
            engine.start()
            api = GrpcApi(
                ModelService({WORKLOAD: engine}, timeout_s=30),
                LOCAL,
                metrics=ServingMetrics(),
                max_request_bytes=MAX_REQUEST_BYTES,
            )
            engines[name, batched], found[name, batched] = engine, str(api.start())
            apis.append(api)
    pipe.send(found)
    with contextlib.suppress(EOFError):
        while True:
            buckets, num_samples = engines[pipe.recv()].batch_counts.read()
            pipe.send((num_samples, sum(buckets)))
    for api in apis:
        api.stop(0)
    for engine in engines.values():
        engine.close()


@dataclass(slots=True)
class Load:
    """One kind of traffic, over all its stretches."""

    waits_ms: list[float] = field(default_factory=list)
    #: Of all stretches.
    asked_s: float = 0.0
    #: By the words of the refusal.
    refused: Counter[str] = field(default_factory=Counter)

    def figures(self) -> dict[str, float]:
        p50, p99 = np.percentile(self.waits_ms, (50, 99))
        return {
            "answers_per_s": len(self.waits_ms) / self.asked_s,
            "p50_ms": float(p50),
            "p99_ms": float(p99),
            "num_refused": self.refused.total(),
        }


def ask(infer: Any, request: bytes, concurrency: int, seconds: float, load: Load) -> None:
    """Keeps so many requests under way: each answer sends the next one."""
    lock, done = threading.Lock(), threading.Semaphore(0)
    waits_ms: list[float] = []
    until_s = time.monotonic() + seconds

    def send() -> None:
        begin_ns = time.perf_counter_ns()
        future = infer.future(request)
        future.add_done_callback(lambda ended: answered(ended, begin_ns))

    def answered(ended: Any, begin_ns: int) -> None:
        elapsed_ms = (time.perf_counter_ns() - begin_ns) / 1e6
        with lock:
            if ended.code() is grpc.StatusCode.OK:
                waits_ms.append(elapsed_ms)
            else:
                load.refused[f"{ended.code().name}: {ended.details()}"] += 1
        if time.monotonic() < until_s:
            send()
        else:
            done.release()

    start_s = time.monotonic()
    for _ in range(concurrency):
        send()
    for _ in range(concurrency):
        done.acquire()
    load.asked_s += time.monotonic() - start_s
    load.waits_ms += waits_ms


def measure(*, seconds: float, num_stretches: int) -> dict[str, Any]:
    graphs = {"small": conv_graph(24, 2), "wide": dense_graph(WIDE_BYTES)}
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(graphs, theirs), daemon=True)
    server.start()
    theirs.close()
    try:
        addresses = ours.recv()
        with contextlib.ExitStack() as stack:
            infers = {
                key: infer_over(stack.enter_context(grpc.insecure_channel(address)))
                for key, address in addresses.items()
            }
            worst = max(check(graphs[name], infers[name, True]) for name in graphs)
            turns = [(name, on, many) for name in graphs for on in (False, True) for many in CONCURRENCY]
            loads = {turn: Load() for turn in turns}
            sizes = {turn: [0, 0] for turn in turns}
            rng, request = np.random.default_rng(0), grpc_request(samples(1))
            for _ in range(num_stretches):
                for index in rng.permutation(len(turns)):
                    name, on, many = turn = turns[index]
                    before = counts(ours, name) if on else (0, 0)
                    ask(infers[name, on], request, many, seconds, loads[turn])
                    if on:
                        for n, (new, old) in enumerate(zip(counts(ours, name), before, strict=True)):
                            sizes[turn][n] += new - old
    finally:
        ours.close()
        server.join(10)
    rows = []
    for name in graphs:
        for many in CONCURRENCY:
            off, on_ = loads[name, False, many].figures(), loads[name, True, many].figures()
            num_samples, num_runs = sizes[name, True, many]
            rows.append(
                {
                    "model": name,
                    "concurrency": many,
                    "off": off,
                    "on": on_,
                    "mean_batch_size": num_samples / max(num_runs, 1),
                    "throughput_ratio": on_["answers_per_s"] / off["answers_per_s"],
                    "p50_ratio": on_["p50_ms"] / off["p50_ms"],
                    "p99_ratio": on_["p99_ms"] / off["p99_ms"],
                }
            )
    refused = sum((load.refused for load in loads.values()), Counter())
    return {"rows": rows, "largest_difference": worst, "refused": dict(refused)}


def counts(pipe: Connection, name: str) -> tuple[int, int]:
    """Samples and runs so far of the batching engine."""
    pipe.send((name, True))
    found: tuple[int, int] = pipe.recv()
    return found


def check(data: bytes, infer: Any) -> float:
    """The largest difference between what a batch answered and what a single run gives."""
    inputs, session = samples(64), bare_session(data)
    pending = []
    for half in (inputs[:32], inputs[32:]):
        futures = [infer.future(grpc_request(half[n : n + 1])) for n in range(len(half))]
        pending += [future.result(30) for future in futures]
    worst = 0.0
    for n, raw in enumerate(pending):
        answer = pb.ModelInferResponse.FromString(raw)
        found = np.frombuffer(answer.raw_output_contents[0], np.float32)
        wanted = session.run(None, {"x": inputs[n : n + 1]})[0].ravel()
        worst = max(worst, float(np.abs(found - wanted).max()))
    if worst > TOLERANCE:
        raise RuntimeError(f"answers of batches differ by {worst:g}")
    return worst


def main() -> None:
    """Measures and prints; ``--json`` for programs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a stretch")
    parser.add_argument("--stretches", type=int, default=5, help="of each kind of traffic")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = measure(seconds=args.seconds, num_stretches=args.stretches)
    if args.json:
        print(json.dumps(found, indent=1))
        return
    print(f"{'':<14}{'answers/s':>18}{'p50 ms':>16}{'p99 ms':>16}{'on over off':>24}{'size':>8}")
    for row in found["rows"]:
        off, on = row["off"], row["on"]
        print(
            f"{row['model']:<7}x{row['concurrency']:<6}"
            f"{off['answers_per_s']:>8.0f} ->{on['answers_per_s']:>7.0f}"
            f"{off['p50_ms']:>7.2f} ->{on['p50_ms']:>6.2f}{off['p99_ms']:>7.2f} ->{on['p99_ms']:>6.2f}"
            f"{row['throughput_ratio']:>9.2f}x{row['p50_ratio']:>6.2f}x{row['p99_ratio']:>6.2f}x"
            f"{row['mean_batch_size']:>8.1f}"
        )
    print(f"largest difference to single runs: {found['largest_difference']:.2g}")
    for words, many in found["refused"].items():
        print(f"refused {many} times: {words}")


if __name__ == "__main__":
    main()
