"""What it costs to bring an artifact to a fleet, and what a kill costs one agent: goals beside peers.

    python -m benchmarks delivery        (``python -m benchmarks.delivery --json`` for programs)

- *fleet*: the product's publisher puts a 10 MB artifact and a signed deployment for each device on a fresh
  real Mosquitto (persistence off); subscribers fetch it with the agent's own code, several in a process. The
  time is from the moment at which the cloud desires it to the last block that the last subscriber verified.
- *peers*: one thread that pushes the same bytes to as many sockets with sendfile(2) and no protocol at all,
  to receivers in as many processes, once thrown away and once hashed as an agent must; mosquitto_sub for
  one receiver. All in the same run, in turns; figures are medians over the rounds.
- *agent*: real ``edgeloop-agent run`` processes that are killed with SIGKILL in the middle of a fetch, and
  started again, and updated while tritonclient asks. The bytes are counted on the wire.

Subscribers, broker and cloud share this machine's cores, which a fleet does not: with 200 subscribers most of
the time is theirs. CPU seconds of each side are printed so that this can be seen.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import delivery_agent as one
from benchmarks import delivery_fleet as fleet
from benchmarks.delivery_broker import HOST, running_broker
from benchmarks.networks import conv_graph
from cloud.registry import Registry
from edgeloop import artifact, topics, trust
from edgeloop.artifact import BLOCK_SIZE_BYTES
from edgeloop.mqtt import MqttSession
from edgeloop.v1 import deployment_pb2

WINDOW = 4


def measure_fleet(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    registry = Registry(str(folder / "registry"))
    manifest = fleet.make_artifact(registry, args.bytes)
    path = folder / "artifact"
    path.write_bytes(registry.get(manifest.digest))
    runs: list[dict[str, Any]] = []
    for _ in range(args.rounds):
        run: dict[str, Any] = {}
        for name, hashing in (("raw", False), ("raw_hashed", True)):
            run[name] = fleet.send_raw(
                path, num_subscribers=args.subscribers, processes=args.processes, hashing=hashing
            )
        run["fleet"] = asdict(
            fleet.deliver(
                folder, registry, manifest, num_subscribers=args.subscribers, processes=args.processes
            )
        )
        runs.append(run)
    sizes = {
        num: asdict(
            fleet.deliver(folder, registry, manifest, num_subscribers=num, processes=min(num, args.processes))
        )
        for num in sorted({1, args.subscribers // 4})
        if num
    }
    return {"runs": runs, "sizes": sizes, "artifact_bytes": args.bytes}


def measure_receiving(folder: Path, args: argparse.Namespace) -> dict[str, list[float]]:
    """One receiver, warm, in turns with the peer, from the same retained blocks."""
    registry = Registry(str(folder / "registry"))
    manifest = fleet.make_artifact(registry, args.bytes)
    raw, data = artifact.encode_manifest(manifest), registry.get(manifest.digest)
    key = trust.DirectorKey.generate()
    deployment = deployment_pb2.Deployment(
        device_id="gw-0",
        workload=fleet.WORKLOAD,
        profile=fleet.PROFILE,
        generation=1,
        digest=manifest.digest,
        manifest_digest=artifact.sha256_hex(raw),
    )
    messages = [(topics.block(manifest.digest, n), b) for n, b in enumerate(artifact.split_blocks(data))]
    messages.append((topics.manifest(deployment.manifest_digest), raw))
    messages.append((topics.deployment("gw-0"), trust.sign_deployment(key, deployment)))
    found: dict[str, list[float]] = {"fetch_s": [], "at_once_s": [], "mosquitto_sub_s": []}
    with running_broker(folder) as broker, MqttSession(HOST, broker.port, "cloud") as session:
        session.wait_connected(10)
        for topic, payload in messages:
            session.publish(topic, payload, retain=True).wait(10)
        for turn in range(-1, args.receives):
            fetch_s = one.receive_by_fetch(broker, "gw-0", key.public_bytes)
            at_once_s = one.receive_at_once(broker, manifest)
            sub_s = one.receive_by_mosquitto_sub(broker, manifest)
            if turn >= 0:  # the first warms up
                found["fetch_s"].append(fetch_s)
                found["at_once_s"].append(at_once_s)
                found["mosquitto_sub_s"].append(sub_s)
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("fleet", "receiving", "kill", "restart", "memory", "swaps"):
            (folder / part).mkdir()
        found["fleet"] = measure_fleet(folder / "fleet", args)
        found["receiving"] = measure_receiving(folder / "receiving", args)
        found["kill"] = one.bytes_after_a_kill(folder / "kill", args.bytes)
        found["restart"] = one.restarts_after_a_kill(folder / "restart", conv_graph(24, 2), args.starts)
        found["memory"] = asdict(one.memory_of_an_update(folder / "memory"))
        found["swaps"] = one.waits_in_swaps(folder / "swaps", args.swaps)
    return found


def rows(found: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """What, figure, goal, and whether it was met."""
    size_bytes = found["fleet"]["artifact_bytes"]
    runs = found["fleet"]["runs"]
    deliveries = [run["fleet"] for run in runs]
    num = deliveries[0]["num_subscribers"]
    over_bytes = max(run["peak_rss_bytes"] - run["retained_bytes"] for run in deliveries)
    ratios = {
        name: statistics.median(run["fleet"]["last_s"] / run[name][0] for run in runs)
        for name in ("raw", "raw_hashed")
    }
    published = {
        **{
            run["num_subscribers"]: run["artifact_bytes"] / size_bytes
            for run in found["fleet"]["sizes"].values()
        },
        num: max(run["artifact_bytes"] for run in deliveries) / size_bytes,
    }
    receiving = found["receiving"]
    fetch, at_once = (
        statistics.median(a / b for a, b in zip(receiving["mosquitto_sub_s"], receiving[name], strict=True))
        for name in ("fetch_s", "at_once_s")
    )
    came, sent = found["kill"]
    most = 1 + WINDOW * BLOCK_SIZE_BYTES / sent
    within_s, over_grpc_s = found["restart"]
    agent_bytes = found["memory"]["agent_bytes"]
    shown = ", ".join(f"{ratio:.4f} at {n}" for n, ratio in sorted(published.items()))
    swaps = found["swaps"]
    waits = (
        f"p99 {swaps['p99_ms']:.1f}, worst {swaps['worst_ms']:.1f}; "
        f"steady {swaps['steady_p99_ms']:.1f}, worst {swaps['steady_worst_ms']:.1f} ms"
    )
    return [
        (
            f"broker peak RSS over its retained set, {num} subscribers",
            f"{over_bytes / 1e6:.1f} MB",
            "<= 20 MB",
            over_bytes <= 20e6,
        ),
        (
            "time to the last of them, over a bare sendfile",
            f"{ratios['raw']:.2f}x",
            "<= 2.2x",
            ratios["raw"] <= 2.2,
        ),
        ("... whose receivers hash what comes", f"{ratios['raw_hashed']:.2f}x", "-", True),
        (
            "artifact bytes the cloud published, over its size",
            shown,
            "<= 1.02",
            max(published.values()) <= 1.02,
        ),
        (
            "one session taking all blocks, in speed over mosquitto_sub",
            f"{at_once:.2f}x",
            ">= 2x",
            at_once >= 2,
        ),
        ("... one fetch, four at a time and verified, over it", f"{fetch:.2f}x", "-", True),
        (
            "all bytes to an agent killed at half, over the size",
            f"{came / sent:.3f}",
            f"<= {most:.3f}",
            came / sent <= most,
        ),
        (
            "start after SIGKILL to the first answer, worst",
            f"{max(within_s):.2f} s",
            "<= 2 s",
            max(within_s) <= 2,
        ),
        ("... over gRPC, from outside", f"{max(over_grpc_s):.2f} s", "<= 2 s", max(over_grpc_s) <= 2),
        (
            "agent's peak RSS, serving one student and updating",
            f"{agent_bytes / 1e6:.1f} MB",
            "<= 120 MB",
            agent_bytes <= 120e6,
        ),
        (
            f"failures of tritonclient in {swaps['num_swaps']} swaps",
            str(swaps["num_failed"]),
            "0",
            swaps["num_failed"] == 0,
        ),
        (
            "its waits while swapping",
            waits,
            "<= 2x steady p99",
            swaps["worst_ms"] <= 2 * swaps["steady_p99_ms"],
        ),
    ]


def main() -> None:
    """Measures and prints; ``--json`` for programs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bytes", type=int, default=10_000_000, help="of the artifact")
    parser.add_argument("--subscribers", type=int, default=200)
    parser.add_argument("--processes", type=int, default=4, help="that share the subscribers")
    parser.add_argument("--rounds", type=int, default=3, help="of the whole fleet and its peers")
    parser.add_argument("--receives", type=int, default=9, help="rounds of one receiver")
    parser.add_argument("--swaps", type=int, default=20, help="of the model under load")
    # Three, since the agent holds a model back that did not live through more starts than that in a row.
    parser.add_argument("--starts", type=int, default=3, help="starts after a kill, at most 3")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = measure(args)
    if args.json:
        print(json.dumps(found, indent=1))
        return
    print(f"{'what':<60}{'figure':>48}   goal")
    for what, figure, goal, met in rows(found):
        print(f"{what:<60}{figure:>48}   {goal}{'' if met else '  MISSED'}")
    print()
    for run in found["fleet"]["runs"]:
        delivered = run["fleet"]
        print(
            f"fleet: {delivered['last_s']:.2f} s (CPU: broker {delivered['broker_cpu_s']:.2f} s, subscribers "
            f"{delivered['subscribers_cpu_s']:.2f} s); bare sendfile {run['raw'][0]:.2f} s (its CPU "
            f"{run['raw'][1]:.2f} s), hashed {run['raw_hashed'][0]:.2f} s; deployments and sentinel "
            f"{delivered['other_bytes']} bytes; broker idle {delivered['idle_rss_bytes'] / 1e6:.1f} MB, "
            f"peak {delivered['peak_rss_bytes'] / 1e6:.1f} MB"
        )
    for num, delivered in found["fleet"]["sizes"].items():
        print(f"fleet of {num}: {delivered['last_s']:.2f} s")
    receiving = found["receiving"]
    print(
        f"one receiver: fetch {statistics.median(receiving['fetch_s']):.3f} s, all at once "
        f"{statistics.median(receiving['at_once_s']):.3f} s, mosquitto_sub "
        f"{statistics.median(receiving['mosquitto_sub_s']):.3f} s"
    )
    print(f"the self-test's process beside it: {found['memory']['self_test_bytes'] / 1e6:.1f} MB at its peak")


if __name__ == "__main__":
    main()
