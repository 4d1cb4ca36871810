"""How rotary frequencies are scaled for contexts longer than those of pre-training: linear, Llama 3.1's way, YaRN.

Axes: half the pairs of channels. `scale` turns the frequencies (radians per position) that follow from the base into
those that are used; cosines and sines are then multiplied by `magnitude`.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float


class RotaryScaling(ABC):
    """One way to scale."""

    @property
    def magnitude(self) -> float:
        """The factor of cosines and sines."""
        return 1.0

    @abstractmethod
    def scale(self, freq: Float[Array, " half"], theta: float) -> Float[Array, " half"]:
        """The frequencies that are used; `freq` are those of the base `theta`."""


@dataclass(frozen=True)
class LinearScaling(RotaryScaling):
    """All positions are divided by one factor (position interpolation, arXiv 2306.15595)."""

    factor: float

    def scale(self, freq: Float[Array, " half"], theta: float) -> Float[Array, " half"]:
        """Every frequency, divided."""
        return freq / self.factor


@dataclass(frozen=True)
class Llama3Scaling(RotaryScaling):
    """Llama 3.1's: pairs of few turns within the original length are slowed down, those of many are kept."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_length: int

    def scale(self, freq: Float[Array, " half"], theta: float) -> Float[Array, " half"]:
        """Blended in between, linearly in the number of turns."""
        turns = self.original_length * freq / (2 * math.pi)
        blend = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        blend = jnp.clip(blend, 0.0, 1.0)
        return blend * freq + (1 - blend) * freq / self.factor


@dataclass(frozen=True)
class YarnScaling(RotaryScaling):
    """YaRN (arXiv 2309.00071): as Llama 3.1's, but blended linearly in the pair's number, and with a magnitude.

    Args:
        factor: by which low frequencies are divided.
        original_length: of the contexts of pre-training.
        beta_fast, beta_slow: turns within the original length from which on a pair is kept, and below which it is
            slowed down wholly.
        truncate: round the pairs' numbers that follow outwards to whole ones.
        attention_factor: the magnitude.
    """

    factor: float
    original_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0

    @property
    def magnitude(self) -> float:
        """The factor of cosines and sines."""
        return self.attention_factor

    def scale(self, freq: Float[Array, " half"], theta: float) -> Float[Array, " half"]:
        """Blended between the pairs that make `beta_fast` and `beta_slow` turns."""
        half = len(freq)
        low, high = (
            half * math.log(self.original_length / (turns * 2 * math.pi)) / math.log(theta)
            for turns in (self.beta_fast, self.beta_slow)
        )
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * half - 1)
        if low == high:
            high += 0.001
        slowed = jnp.clip((jnp.arange(half, dtype=jnp.float32) - low) / (high - low), 0.0, 1.0)
        return slowed * freq / self.factor + (1 - slowed) * freq
