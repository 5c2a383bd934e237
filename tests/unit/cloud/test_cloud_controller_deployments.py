"""What the controller tells devices: what their profile serves, signed once, a bounded number at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from control_plane_fakes import PROFILE, World, build, prepared
from controller_scene import DEVICES, live, serve_width

from cloud import controller as controller_module
from cloud.deployer import DEFAULT_LIFETIME_S
from cloud.store import Store
from edgeloop.trust import DirectorKey, timestamp_s


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    prepared(world)
    for device_id in DEVICES:
        world.register(device_id)
    return world


def test_every_generation_that_a_device_hears_of_is_higher_than_the_last(world: World) -> None:
    serve_width(world, 1.0)
    live(world, 60)
    for heard in world.generations.values():
        assert heard == sorted(set(heard))


def test_a_device_that_joins_late_gets_what_its_profile_serves(world: World) -> None:
    digest = serve_width(world, 0.55)
    world.register("gw-3")
    world.step()
    assert world.opened(world.shipped["gw-3"].payload, "gw-3").digest == digest
    assert world.store.rollouts() == []


def test_a_device_of_no_profile_is_told_nothing(world: World) -> None:
    serve_width(world, 0.55)
    world.register("stranger", profile=None)
    world.step()
    assert "stranger" not in world.shipped


def test_a_device_that_accepted_a_higher_generation_than_was_issued_is_told_again_above_it(
    world: World,
) -> None:
    digest = serve_width(world, 0.55)
    device = world.store.device("gw-1")
    assert device is not None
    world.store.register_device(replace(device, generation=41), PROFILE.name, "", world.now_s)
    world.step()
    deployment = world.opened(world.shipped["gw-1"].payload, "gw-1")
    assert (deployment.generation, deployment.digest) == (42, digest)
    world.step()
    assert world.opened(world.shipped["gw-1"].payload, "gw-1").generation == 42


def test_a_new_director_key_signs_everything_again_without_a_new_generation(world: World) -> None:
    serve_width(world, 0.55)
    world.director = DirectorKey.generate()
    world.restart()
    world.step()
    assert world.opened(world.shipped["gw-1"].payload, "gw-1").generation == 1


def test_what_was_signed_is_published_byte_for_byte_after_a_restart(world: World) -> None:
    serve_width(world, 0.55)
    before = dict(world.shipped)
    world.restart()
    world.step()
    assert world.shipped == before


def test_what_is_still_wanted_is_signed_again_long_before_it_expires(world: World) -> None:
    serve_width(world, 0.55)
    before = world.shipped["gw-1"].payload
    world.now_s += DEFAULT_LIFETIME_S / 2 + 60
    world.step()
    after = world.shipped["gw-1"].payload
    assert after != before
    old, new = world.opened(before, "gw-1"), world.opened(after, "gw-1")
    assert (new.generation, new.digest) == (old.generation, old.digest)
    assert timestamp_s(new.expire_time) == pytest.approx(world.now_s + DEFAULT_LIFETIME_S, abs=60)
    world.now_s += 3600
    world.step()
    assert world.shipped["gw-1"].payload == after


def test_a_fleet_is_told_a_bounded_number_of_devices_at_a_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller_module, "MAX_ISSUED_A_TURN", 2)
    (candidate,) = build(world.store, PROFILE, 0.55)
    world.store.set_current(
        PROFILE.name, candidate.digest, manifest_digest=candidate.manifest_digest, rollout_id="", now_s=1.0
    )
    for number in range(3, 6):
        world.register(f"gw-{number}")
    has_more, num_told = [], []
    for _ in range(4):
        world.now_s += 1.0
        has_more.append(world.controller.step(world.now_s))
        num_told.append(len(world.shipped))
    assert has_more == [True, True, False, False]
    assert num_told == [2, 4, 5, 5]
    assert set(map(tuple, world.generations.values())) == {(1,)}


def test_nobody_waits_while_it_looks_over_a_fleet_that_needs_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading all devices, and all that they measured, takes long in a large fleet."""
    serve_width(world, 0.55)
    live(world, 5)
    in_transaction: list[str] = []

    def watched(name: str) -> Callable[..., Any]:
        plain = getattr(Store, name)

        def read(store: Store, **kwargs: Any) -> Any:
            if getattr(store._local, "connection", None) is not None:
                in_transaction.append(name)
            return plain(store, **kwargs)

        return read

    for name in ("devices", "deployments", "windows"):
        monkeypatch.setattr(Store, name, watched(name))
    live(world, 3)
    assert in_transaction == []
