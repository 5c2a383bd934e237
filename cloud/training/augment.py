"""Random shifts and flips of image batches.

Rules: a view keeps shape and type; what moves in at an edge repeats the edge, so that no value appears which
the data does not have. Chance is apart from work: ``draw`` decides, ``apply`` moves pixels, so that the same
view of a sample can be made again (and a teacher's answer to it kept).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from cloud.domain.workloads import TrainingBudget
from edgeloop.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmenter:
    """``pixels`` is the largest shift along each axis; ``flip`` mirrors left and right, half of the time."""

    pixels: int = 0
    flip: bool = False

    @classmethod
    def of(cls, training: TrainingBudget, input_shape: tuple[int, ...]) -> Augmenter:
        """What the training budget asks for. Raises ``ConfigError`` when the inputs are no images."""
        if (training.augment_pixels or training.augment_flip) and len(input_shape) != 3:
            raise ConfigError(
                "training.augment_pixels and training.augment_flip work on images [channels, height, width]; "
                f"the inputs have shape {input_shape}: set them to 0 and false",
                code="augment-input",
            )
        if training.augment_pixels and training.augment_pixels >= min(input_shape[1:]):
            raise ConfigError(
                f"training.augment_pixels is {training.augment_pixels}: it must be under the image's side",
                code="augment-input",
            )
        return cls(pixels=training.augment_pixels, flip=training.augment_flip)

    @property
    def num_views(self) -> int:
        """How many different views of a sample there are."""
        return (2 * self.pixels + 1) ** 2 * 2

    @property
    def num_distinct(self) -> int:
        """How many of those ``draw`` can give: without mirroring half of them."""
        return self.num_views if self.flip else self.num_views // 2

    def views(self, draws: Tensor) -> Tensor:
        """Which of them each row of ``draws`` is, from 0."""
        return (draws[:, 0] * (2 * self.pixels + 1) + draws[:, 1]) * 2 + draws[:, 2]

    def draws_of(self, view: int) -> Tensor:
        """The row ``[3]`` that gives this view."""
        side = 2 * self.pixels + 1
        return torch.tensor([view // (2 * side), view // 2 % side, view % 2])

    def draw(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """One row a sample: shift down, shift right, whether to mirror. On the CPU."""
        shifts = torch.randint(0, 2 * self.pixels + 1, (num_samples, 2), generator=generator)
        mirrored = torch.rand(num_samples, 1, generator=generator) < (0.5 if self.flip else 0.0)
        return torch.cat([shifts, mirrored.long()], dim=1)

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """The view of ``images`` ``[n, c, h, w]`` that ``draws`` ``[n, 3]`` decided."""
        if self.pixels:
            images = self._shift(images, draws)
        if self.flip:
            mirrored = draws[:, 2].bool().to(images.device)
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        return images

    def _shift(self, images: Tensor, draws: Tensor) -> Tensor:
        count, _, height, width = images.shape
        padded = functional.pad(images, (self.pixels,) * 4, mode="replicate")
        rows = (draws[:, 0, None] + torch.arange(height)).to(images.device)
        columns = (draws[:, 1, None] + torch.arange(width)).to(images.device)
        samples = torch.arange(count, device=images.device)[:, None, None]
        moved = padded.permute(0, 2, 3, 1)[samples, rows[:, :, None], columns[:, None, :]]
        return moved.permute(0, 3, 1, 2).contiguous()
