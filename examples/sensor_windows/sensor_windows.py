"""Vibration of a rotating machine as a three-axis accelerometer would see it, and a 1-D network for it.

SYNTHETIC: nothing here was recorded. The signal is computed from textbook relations of a shaft, a fan and a
ball bearing, so that the example needs no download and anyone can vary it:

- unbalance: the mass that is off centre pulls outward once a turn, so radial acceleration grows with the
  square of the speed, a quarter turn apart on the two radial axes;
- misalignment: twice a turn, and mostly along the shaft;
- bearing: each ball that rolls over a pit in the outer ring knocks, ``balls / 2 * (1 - d / D)`` times
  a turn, give or take some slip; each rings the housing at its own frequency and dies away;
- healthy: the residual unbalance that every machine has.

Each window is one machine: speed, load, mounting angle and noise differ. Gravity is in it, and the sensor has
a range of +-4 g in 12 bits. Classes are balanced; the same seed gives the same windows.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

CLASSES = ("healthy", "unbalance", "misalignment", "bearing")
SAMPLE_RATE_HZ = 1000.0
WINDOW = 256
RANGE_G, BITS = 4.0, 12
#: Eight balls whose diameter is a quarter of the pitch circle's.
KNOCKS_A_TURN = 8 / 2 * (1 - 0.25)


def load(
    num_windows: int = 6000, seed: int = 0, target: str = "fault", spectrum: bool = False
) -> dict[str, NDArray[np.generic]]:
    """Windows ``[n, 3, 256]`` in units of the sensor's range; with ``spectrum`` their spectra.

    A spectrum is ``[n, 3, 128]``: logarithms of the magnitudes of each axis, without its mean.

    ``target`` is ``fault`` (one of four classes), ``alarm`` (whether there is any) or ``speed`` (turns a
    second, centred and scaled to a standard deviation of about one, for ``loss: regression``).
    """
    if target not in ("fault", "alarm", "speed"):
        raise ValueError(f"target is {target!r}: it must be fault, alarm or speed")
    rng = np.random.default_rng(seed)
    answer: dict[str, NDArray[np.generic]] = {}
    for split, share in (("train", 0.6), ("validation", 0.2), ("test", 0.2)):
        count = round(num_windows * share / len(CLASSES)) * len(CLASSES)
        faults = rng.permutation(np.arange(count) % len(CLASSES))
        speeds = rng.uniform(12.0, 35.0, size=count)
        windows = [simulate(CLASSES[fault], hz, rng) for fault, hz in zip(faults, speeds, strict=True)]
        stacked = np.stack(windows)
        answer[f"{split}_inputs"] = (_spectra(stacked) if spectrum else stacked).astype(np.float32)
        answer[f"{split}_labels"] = {
            "fault": faults,
            "alarm": (faults > 0).astype(np.int64),
            "speed": ((speeds - 23.5) / 6.6).astype(np.float32),
        }[target]
    return answer


def simulate(fault: str, turns_hz: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """One window of one machine, ``[3, 256]``: two radial axes and the one along the shaft."""
    time = np.arange(WINDOW) / SAMPLE_RATE_HZ
    angle = 2 * np.pi * turns_hz * time + rng.uniform(0, 2 * np.pi)
    pull = (turns_hz / 25.0) ** 2
    unbalance = pull * (rng.uniform(0.15, 0.6) if fault == "unbalance" else rng.uniform(0.03, 0.17))
    signal = np.stack([unbalance * np.cos(angle), unbalance * np.sin(angle), np.zeros(WINDOW)])
    if fault == "misalignment":
        twice = rng.uniform(0.04, 0.3) * np.cos(2 * angle + rng.uniform(0, 2 * np.pi))
        signal += np.array([[0.4], [0.3], [1.0]]) * twice
    if fault == "bearing":
        signal += np.array([[0.8], [0.6], [0.2]]) * _knocks(time, turns_hz, rng)
    blades = rng.uniform(0.01, 0.05) * np.cos(6 * angle)
    signal[2] += blades
    signal = _rotation(rng) @ signal + _rotation(rng) @ np.array([[0.0], [1.0], [0.0]])
    signal += rng.normal(0, rng.uniform(0.05, 0.2), size=signal.shape)
    step = RANGE_G / 2 ** (BITS - 1)
    return np.clip(np.round(signal / step) * step, -RANGE_G, RANGE_G) / RANGE_G


def _knocks(time: NDArray[np.float64], turns_hz: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Impacts at the outer ring's frequency, each a ringing that dies away."""
    period = 1.0 / (KNOCKS_A_TURN * turns_hz)
    starts = np.arange(-0.05, time[-1], period) + rng.uniform(0, period)
    starts = starts + rng.normal(0, 0.01 * period, size=len(starts))
    ring_hz, damping, strength = rng.uniform(280, 380), rng.uniform(60, 120), rng.uniform(0.08, 0.6)
    since = time - starts[:, None]
    ringing = np.exp(-damping * since.clip(0)) * np.sin(2 * np.pi * ring_hz * since)
    return strength * np.where(since >= 0, ringing, 0.0).sum(axis=0)


def _spectra(windows: NDArray[np.float64]) -> NDArray[np.float64]:
    """About -1 to 1; a Hann window keeps a strong line out of its neighbours."""
    centred = (windows - windows.mean(axis=-1, keepdims=True)) * np.hanning(WINDOW)
    magnitudes = np.abs(np.fft.rfft(centred, axis=-1))[..., 1:]
    spectra: NDArray[np.float64] = np.log10(magnitudes + 1e-3) / 3 + 0.3
    return spectra


def _rotation(rng: np.random.Generator) -> NDArray[np.float64]:
    """The sensor sits on the housing at an angle of up to some 15 degrees about the shaft."""
    angle = rng.uniform(-0.26, 0.26)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])


class SensorCnn(nn.Module):
    """Convolutions over time, each block half as long and wider, with depthwise ones in the middle."""

    def __init__(self, in_channels: int, num_outputs: int, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _conv(in_channels, width, 7, 2),
            _conv(width, width, 5, 1, groups=width),
            _conv(width, 2 * width, 1, 1),
            _conv(2 * width, 2 * width, 5, 2, groups=2 * width),
            _conv(2 * width, 4 * width, 1, 1),
            _conv(4 * width, 4 * width, 3, 2),
        )
        self.head = nn.Sequential(
            nn.Linear(4 * width, 2 * width), nn.ReLU(), nn.Linear(2 * width, num_outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.features(x).mean(dim=2))
        return output


def _conv(in_channels: int, channels: int, size: int, stride: int, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(in_channels, channels, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm1d(channels),
        nn.ReLU(),
    )


def build(input_shape: tuple[int, ...], num_outputs: int, width: int = 32) -> torch.nn.Module:
    """The teacher; students are cut from it."""
    return SensorCnn(input_shape[0], num_outputs, width)


class SensorMlp(nn.Module):
    """Fully connected layers, for spectra: in raw windows the same knock may lie anywhere."""

    def __init__(self, input_shape: tuple[int, ...], num_outputs: int, width: int) -> None:
        super().__init__()
        num_inputs = input_shape[0] * input_shape[1]
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(num_inputs, width, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Linear(width, width, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Linear(width, num_outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layers(x)
        return output


def build_mlp(input_shape: tuple[int, ...], num_outputs: int, width: int = 128) -> torch.nn.Module:
    """A teacher without convolutions, for ``load(..., spectrum=True)``."""
    return SensorMlp(input_shape, num_outputs, width)
