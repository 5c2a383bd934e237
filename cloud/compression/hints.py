"""Feature hints: a student's inner layer learns to tell what the teacher's same layer tells.

After FitNets (Romero et al., 2015): a linear map, learnt along with the student and thrown away afterwards,
takes the student's channels of a layer in the middle to the teacher's; the cost is their mean squared
difference, in units of the features' variance.

Rules: the layer has the same name in both and, but for its channels, gives the same shape; where there is
none, that is said. Neither network is changed, and nothing stays attached to them after ``close``. The
teacher's features are too large to keep, so with hints it runs for each batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cloud.compression.channel_rules import Convolution
from edgeloop.errors import ConfigError


class Hints:
    """``cost`` after the student saw a batch; ``parameters`` are those of the linear map."""

    def __init__(
        self, student: nn.Module, teacher: nn.Module, sample: Tensor, *, seed: int, device: torch.device
    ) -> None:
        self._teacher = teacher
        self._seen: dict[str, Tensor] = {}
        self.layer = hint_layer(student, teacher, sample)
        self._is_last_axis = isinstance(teacher.get_submodule(self.layer), nn.Linear)
        hooks = [
            network.get_submodule(self.layer).register_forward_hook(self._keep(who))
            for who, network in (("student", student), ("teacher", teacher))
        ]
        self._hooks = hooks
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            width, wanted = (_channels(network.get_submodule(self.layer)) for network in (student, teacher))
            self._map = nn.Linear(width, wanted).to(device)

    def parameters(self) -> Iterator[nn.Parameter]:
        return self._map.parameters()

    def cost(self, inputs: Tensor) -> Tensor:
        """How far the student's features of the batch that it saw last are from the teacher's."""
        found = self._channels_last(self._seen["student"])
        with torch.no_grad():
            self._teacher(inputs)
        wanted = self._channels_last(self._seen["teacher"])
        return functional.mse_loss(self._map(found), wanted) / wanted.var().clamp_min(1e-6)

    def close(self) -> None:
        """Leave both networks as they were."""
        for hook in self._hooks:
            hook.remove()
        self._seen.clear()

    def _channels_last(self, features: Tensor) -> Tensor:
        return features if self._is_last_axis else features.movedim(1, -1)

    def _keep(self, who: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self._seen[who] = output

        return hook


def hint_layer(student: nn.Module, teacher: nn.Module, sample: Tensor) -> str:
    """The layer that hints come from. Raises ``ConfigError`` where the two networks share none."""
    return _middle(_features(student, sample), _features(teacher, sample))


def _channels(module: nn.Module) -> int:
    # torch types what a module holds as Tensor | Module
    return int(module.out_features if isinstance(module, nn.Linear) else module.out_channels)  # type: ignore[arg-type]


@torch.no_grad()
def _features(network: nn.Module, sample: Tensor) -> dict[str, tuple[int, ...]]:
    """Shape of what each layer gives, in the order of their calls; channels count as 0."""
    shapes: dict[str, tuple[int, ...]] = {}
    hooks = []

    def note(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            shape = list(output.shape)
            shape[-1 if isinstance(module, nn.Linear) else 1] = 0
            shapes[name] = tuple(shape)

        return hook

    for name, module in network.named_modules():
        if isinstance(module, Convolution | nn.Linear):
            hooks.append(module.register_forward_hook(note(name)))
    was_training = network.training
    try:
        network.eval()(sample)
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    return shapes


def _middle(student: dict[str, tuple[int, ...]], teacher: dict[str, tuple[int, ...]]) -> str:
    """The layer in the middle of those that both have; the last one gives the outputs, and is none."""
    shared = [name for name, shape in list(student.items())[:-1] if teacher.get(name) == shape]
    if not shared:
        raise ConfigError(
            "hint_weight: no inner layer of the student gives features of the same shape as the teacher's "
            "layer of that name; leave hint_weight out",
            code="hint-layer",
        )
    return shared[len(shared) // 2]
