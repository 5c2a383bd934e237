"""The controller, killed anywhere: it goes on where it was, and says nothing twice."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from control_plane_fakes import World, prepared
from controller_scene import DEVICES, current_ms, live, measure, serve_width

from cloud import deployer as deployer_module
from cloud.controller import Controller
from cloud.deployer import Deployer
from cloud.domain.jobs import JobKind
from cloud.store import Store


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    prepared(world)
    for device_id in DEVICES:
        world.register(device_id)
    return world


class KilledError(BaseException):
    """kill -9: nothing catches it, and nothing is cleaned up after it."""


CUTS: list[tuple[type, str, bool]] = [
    (Store, "commit_decision", False),
    (Store, "commit_decision", True),
    (Store, "save_rollout", False),
    (Store, "save_rollout", True),
    (Store, "set_current", True),
    (Store, "issue_deployments", False),
    (Store, "issue_deployments", True),
    (Store, "set_signed", False),
    (Store, "set_signed", True),
    (Deployer, "ship", False),
    (Controller, "_reconcile", False),
]


@pytest.mark.parametrize(
    ("owner", "method", "after"), CUTS, ids=[f"{m}-{'after' if a else 'before'}" for _, m, a in CUTS]
)
def test_killed_anywhere_it_goes_on_without_a_second_generation_for_a_decision(
    world: World, monkeypatch: pytest.MonkeyPatch, owner: type, method: str, after: bool
) -> None:
    serve_width(world, 1.0)
    plain = getattr(owner, method)
    calls = 0

    def fragile(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls % 3 == 1:
            if after:
                plain(*args, **kwargs)
            raise KilledError
        return plain(*args, **kwargs)

    monkeypatch.setattr(owner, method, fragile)
    num_kills = 0
    for _ in range(60):
        try:
            world.step()
        except KilledError:
            num_kills += 1
            world.restart()
        world.compute.finish()
        world.obey(DEVICES)
        measure(world)
    monkeypatch.undo()
    live(world, 10)
    assert num_kills
    assert current_ms(world) <= 10.0
    for device_id, heard in world.generations.items():
        assert heard == sorted(set(heard)), device_id
    told = [(d.device_id, d.decision_id, d.digest) for d in deployments_ever(world)]
    assert len(told) == len(set(told))
    built = [task_id for task_id in world.compute.ran if task_id.startswith("student-")]
    assert len(built) == len(set(built))
    jobs = [job for job in world.store.jobs() if job.kind is JobKind.COMPRESS]
    assert len({job.decision_id for job in jobs}) == len(jobs)


def test_killed_while_signatures_are_stored_it_has_told_nobody_and_signs_the_rest(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployer_module, "MAX_STORED_AT_ONCE", 2)
    for number in range(3, 6):
        world.register(f"gw-{number}")
    plain = Store.set_signed
    batches: list[int] = []

    def fragile(store: Store, payloads: Mapping[tuple[str, int], bytes]) -> None:
        batches.append(len(payloads))
        if len(batches) == 2:
            raise KilledError
        plain(store, payloads)

    monkeypatch.setattr(Store, "set_signed", fragile)
    with pytest.raises(KilledError):
        serve_width(world, 0.55)
    assert world.shipped == {}
    first = {deployment.device_id: deployment.signed for deployment in world.store.deployments()}
    assert sum(map(bool, first.values())) == 2
    world.restart()
    world.step()
    assert batches == [2, 2, 2, 1]
    assert {name: shipment.payload for name, shipment in world.shipped.items()} == {
        deployment.device_id: deployment.signed for deployment in world.store.deployments()
    }
    assert all(world.shipped[name].payload == signed for name, signed in first.items() if signed)
    assert set(map(tuple, world.generations.values())) == {(1,)}


def deployments_ever(world: World) -> list[Any]:
    """Every generation that was ever issued, not the newest alone."""
    import sqlalchemy as sa

    from cloud.store import schema

    with world.store._engine.connect() as connection:
        return list(connection.execute(sa.select(schema.deployments)))
