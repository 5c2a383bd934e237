"""A fleet in virtual time that a controller looks after, and what its devices measure."""

from __future__ import annotations

from collections.abc import Callable

from control_plane_fakes import PROFILE, World, build

DEVICES = ("gw-1", "gw-2")
#: A device takes this many times as long as where students are built: width 1 measures 16 ms, half of it 8.
SLOWDOWN = 40


def measure(world: World) -> None:
    """Each device reports a window of what it serves itself."""
    for device in world.store.devices():
        candidate = world.store.candidate(device.serving_digest, PROFILE.name)
        if candidate is not None:
            world.measure([device.device_id], SLOWDOWN * candidate.metrics.latency_p50_ms)


def live(world: World, seconds: int, *, between: Callable[[], None] = lambda: None) -> None:
    """Devices obey and report, the cluster finishes, the controller steps, once a second."""
    for _ in range(seconds):
        world.step()
        between()
        world.compute.finish()
        world.obey(DEVICES)
        measure(world)


def serve_width(world: World, width: float) -> str:
    """Have the fleet serve a student of this width, as if an operator had started there."""
    (candidate,) = build(world.store, PROFILE, width)
    world.store.set_current(
        PROFILE.name, candidate.digest, manifest_digest=candidate.manifest_digest, rollout_id="", now_s=1.0
    )
    world.step()
    world.obey(DEVICES)
    return candidate.digest


def current_ms(world: World) -> float:
    candidate = world.store.candidate(world.store.current_digest(PROFILE.name), PROFILE.name)
    assert candidate is not None
    return SLOWDOWN * candidate.metrics.latency_p50_ms
