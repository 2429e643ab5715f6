"""How well confidences say how often an answer is right (voting.md section 18).

One confidence p in [0, 1] and one credit y in [0, 1] per problem; answers that are tied share the credit. Whoever has
no confidence is left out by the caller and counted there.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

Floats = npt.NDArray[np.float64]
BINS = 10
CLIP = 1e-6
BINNINGS = ("width", "mass", "published")


class Bin(NamedTuple):
    """Problems of similar confidence."""

    problems: int
    confidence: float  # mean
    accuracy: float  # mean credit


def reliability(p: npt.ArrayLike, y: npt.ArrayLike, bins: int = BINS, binning: str = "width") -> list[Bin]:
    """The bins that are not empty, by confidence.

    binning: 'width', bins (lo, hi] of equal width, 0 in the first; 'published' leaves 0 out, as the evaluator of RPC
    does; 'mass', bins of about equally many problems, those with equal confidences always together.
    """
    confidences, credits = _pair(p, y)
    if binning == "mass":
        places = ((rankdata(confidences, "min") - 1) * bins // max(1, len(confidences))).astype(int)
    else:
        places = np.searchsorted(np.arange(bins + 1) / bins, confidences) - 1
        if binning == "width":
            places = np.maximum(places, 0)
    inside = places >= 0
    ones = np.ones(len(places))
    sizes, sums, rights = (np.bincount(places[inside], of[inside], bins) for of in (ones, confidences, credits))
    return [Bin(int(sizes[i]), float(sums[i] / sizes[i]), float(rights[i] / sizes[i])) for i in np.flatnonzero(sizes)]


def ece(p: npt.ArrayLike, y: npt.ArrayLike, bins: int = BINS, binning: str = "width") -> float:
    """Expected calibration error: the mean over problems of |accuracy - confidence| of their bin. NaN without any."""
    total = len(np.asarray(p))
    gaps = [one.problems * abs(one.accuracy - one.confidence) for one in reliability(p, y, bins, binning)]
    return sum(gaps) / total if total else float("nan")


def brier(p: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """Mean squared difference."""
    confidences, credits = _pair(p, y)
    return _mean((credits - confidences) ** 2)


def nll(p: npt.ArrayLike, y: npt.ArrayLike, *, clip_credit: bool = False) -> float:
    """Mean cross entropy in nats, of confidences clipped to [1e-6, 1 - 1e-6].

    clip_credit: clip y, too, as the evaluator of RPC does.
    """
    confidences, credits = _pair(p, y)
    confidences = confidences.clip(CLIP, 1 - CLIP)
    if clip_credit:
        credits = credits.clip(CLIP, 1 - CLIP)
    return _mean(-credits * np.log(confidences) - (1 - credits) * np.log1p(-confidences))


def auroc(p: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """The chance that a right answer is more confident than a wrong one, half of it where they are equal. A shared
    credit is partly right and partly wrong. NaN if all are right, or all wrong."""
    confidences, credits = _pair(p, y)
    right, wrong = credits.sum(), (1 - credits).sum()
    if not right > 0 or not wrong > 0:
        return float("nan")
    levels, place = np.unique(confidences, return_inverse=True)
    wrongs = np.bincount(place, 1 - credits, len(levels))
    below = wrongs.cumsum() - wrongs / 2
    return float((credits * below[place]).sum() / (right * wrong))


def aurc(p: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """Area under the risk-coverage curve: the mean over m = 1..N of the error among the m most confident. Of equal
    confidences each is as likely to come first, so the errors are averaged."""
    confidences, credits = _pair(p, y)
    levels, place, sizes = np.unique(-confidences, return_inverse=True, return_counts=True)
    errors = np.bincount(place, 1 - credits, len(levels)) / sizes
    cumulated = np.repeat(errors, sizes).cumsum()
    return _mean(cumulated / np.arange(1, len(cumulated) + 1))


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _pair(p: npt.ArrayLike, y: npt.ArrayLike) -> tuple[Floats, Floats]:
    confidences, credits = np.asarray(p, np.float64), np.asarray(y, np.float64)
    if confidences.shape != credits.shape or confidences.ndim != 1:
        raise ValueError(f"one credit per confidence is needed, got shapes {confidences.shape} and {credits.shape}")
    for name, values in (("confidence", confidences), ("credit", credits)):
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"every {name} must be in [0, 1]")
    return confidences, credits
