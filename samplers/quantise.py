"""One portable rule from a row of logits to integer weights, and from 52 random bits to a token.

Integer sums are associative, so the cumulative weights are monotone and the same on every device.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from samplers.argmax import lowest_argmax

BITS = 52
_FARTHEST = 100.0  # below the peak: e^-100 is far less than 2^-52


def quantise(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """Weights [R, V] int64 summing to exactly 2^52 per row; 0 means never drawn.

    logits: [R, V] with at least one finite entry per row and no NaN or +inf. The rounding deficit goes to the
    most probable token, the lowest id among equals.
    """
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(1, keepdims=True)
    np.exp(shifted, out=shifted)
    shifted *= 2.0**BITS / shifted.sum(1, keepdims=True)
    weights = shifted.astype(np.int64)
    rows = np.arange(len(weights))
    weights[rows, shifted.argmax(1)] += 2**BITS - weights.sum(1)
    return weights


def pick(weights: npt.NDArray[np.int64], bits: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The smallest token whose cumulative weight exceeds the random bits. weights: [R, V]; bits: [R] -> [R]."""
    return (weights.cumsum(1) > bits[:, None]).argmax(1)


def weights_of(logits: Tensor) -> Tensor:
    """`quantise` on the tensor's device, several times faster. logits: [R, V] fp32 with a finite entry per row."""
    peak = lowest_argmax(logits).unsqueeze(1)
    below = logits.double().sub_(logits.gather(1, peak))
    # what is clamped has weight 0 either way, and torch's exp takes ten times as long for -inf
    return _shares(below.clamp_(min=-_FARTHEST).exp_(), peak)


def draw(logits: Tensor, bits: Tensor) -> Tensor:
    """`pick` of `weights_of`. logits: [R, V]; bits: [R] int64 in [0, 2^52) -> [R] int64."""
    return _picked(weights_of(logits), bits)


def draw_by_mass(mass: Tensor, bits: Tensor) -> Tensor:
    """`draw` from rows of probabilities up to a factor. mass: [R, V]; a row without any gives no token at all, but a
    number in [0, V]."""
    return _picked(_shares(mass.to(torch.float64, copy=True), lowest_argmax(mass).unsqueeze(1)), bits)


def _shares(mass: Tensor, peak: Tensor) -> Tensor:
    """Integer weights of mass [R, V] fp64, which is used up; peak: [R, 1] its largest entries."""
    mass.mul_(2.0**BITS / mass.sum(1, keepdim=True))
    weights = mass.long()
    return weights.scatter_add_(1, peak, 2**BITS - weights.sum(1, keepdim=True))


def _picked(weights: Tensor, bits: Tensor) -> Tensor:
    """weights: [R, V], used up."""
    return torch.searchsorted(weights.cumsum_(1), bits.unsqueeze(1), right=True).squeeze(1)
