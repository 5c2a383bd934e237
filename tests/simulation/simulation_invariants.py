"""What must never happen in a simulated fleet, whatever its network does."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from cloud.domain import codec
from cloud.domain.rollout import Rollout

if TYPE_CHECKING:
    from simulation_world import World

T = TypeVar("T")


@cache
def read(kind: type[T], text: str) -> T:
    """What is stored is text; what is read from it is frozen, so that reading it once is enough."""
    return codec.from_json(kind, text)


def check(world: World, before: dict[str, dict[str, Any]]) -> None:
    """After each event; ``before`` is what each agent kept before it."""
    for device_id, told in world.store["deployments"].items():
        history = world.issued.setdefault(device_id, [])
        if history and history[-1].generation == told.generation:
            assert (history[-1].digest, history[-1].rollout_id) == (told.digest, told.rollout_id)
            continue
        assert told.generation == len(history) + 1, "a generation was skipped or went down"
        asked = (told.decision_id, told.digest, told.profile)
        assert not told.decision_id or asked not in {(d.decision_id, d.digest, d.profile) for d in history}, (
            "a second generation for the same decision"
        )
        history.append(told)
    for name, agent in world.agents.items():
        kept, was = agent.kept, before.get(name, agent.kept)
        assert kept["generation"] >= was["generation"], "a generation went down"
        assert kept["serving"] or not was["serving"], "a device that had a model serves none"
        assert not kept["serving"] or kept["serving"] in {d.digest for d in world.issued[name]}
        assert kept["serving"] not in world.broken
    for rollout_id, text in world.store["rollouts"].items():
        if world.checked.get(rollout_id) == text:
            continue
        world.checked[rollout_id] = text
        rollout = read(Rollout, text)
        for group in rollout.groups:
            for record in group.devices:
                if record.state.is_terminal:
                    first = world.ended.setdefault((rollout.rollout_id, record.device_id), record.state)
                    assert first is record.state, "a device ended twice"
