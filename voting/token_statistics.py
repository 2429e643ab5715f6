"""How sure a model was of each token, from the raw log-probabilities of its k most probable continuations."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import entr, softmax

Floats = npt.NDArray[np.float64]


def confidences(logprobs: npt.ArrayLike) -> Floats:
    """-mean of ln p: at least ln k, and that exactly where the k continuations are all there is and equally probable.

    logprobs [T, k], raw -> [T]. (DeepConf, arXiv 2508.15260)
    """
    mean: Floats = -np.asarray(logprobs, np.float64).mean(1)
    return mean


def entropies(logprobs: npt.ArrayLike) -> Floats:
    """Of the k probabilities scaled to sum 1, in nats: 0 to ln k. logprobs [T, k] -> [T]. (arXiv 2511.02309)"""
    entropy: Floats = entr(softmax(np.asarray(logprobs, np.float64), axis=1)).sum(1)
    return entropy
