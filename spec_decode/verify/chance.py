"""The random numbers of one verification, under the keys of the specification.

Whether drafts are accepted is keyed by the output position at which the step begins and by the node: rules that look
at later drafts before they cut would otherwise meet, in the next step, numbers that this one's outcome depends on.
Tokens that are emitted are keyed by their own position.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from samplers.quantise import draw_by_mass
from samplers.rng import Noise, Purpose, k52, philox, uniform
from spec_decode.verify.batch import Ids, Mask, Scores


class Chance:
    """noise: [B], positions being those at which the requests' steps begin."""

    def __init__(self, noise: Noise) -> None:
        self._noise = noise

    def accept(self, nodes: int) -> Scores:
        """[B, N] uniforms."""
        noise = self._noise
        words = philox(
            noise.keys[:, None], noise.choices[:, None], noise.positions[:, None], np.arange(nodes), Purpose.ACCEPT
        )
        return uniform(k52(words[0], words[1]))

    def draw(self, rows: Tensor, requests: Ids, offsets: Ids, corrections: Mask) -> Ids:
        """[k] a token of each row [k, V] of weights, for the position `offsets` after the step's beginning.

        corrections: [k] whether a draft was rejected there. A row without mass gives a token that means nothing.
        """
        noise = self._noise[requests]
        purposes = np.where(corrections, int(Purpose.RESIDUAL), int(Purpose.DRAW))
        words = philox(noise.keys, noise.choices, noise.positions + offsets, 0, purposes)
        bits = torch.from_numpy(k52(words[0], words[1])).to(rows.device)
        tokens = draw_by_mass(rows, bits).clamp_(0, rows.shape[1] - 1)
        found: Ids = tokens.cpu().numpy()
        return found
