"""Whole-row quantities that several stages need, and the fastest way to them on each device.

Exponentials are taken in fp32 of distances to the row's peak, and summed in fp64: as accurate as fp64 throughout for
what stages decide, at a fraction of its memory traffic.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# torch's exp takes up to two hundred times as long for -inf and for what becomes a denormal
_FARTHEST = -80.0


def descending(logits: Tensor) -> Tensor:
    """Each row's values, largest first. logits: [R, V] -> [R, V]."""
    if logits.device.type == "cpu":  # numpy's vectorised sort of values alone is some twenty times faster than torch's
        return torch.from_numpy(-np.sort(-logits.numpy(), axis=1))
    return logits.sort(1, descending=True).values


def ascending_order(values: Tensor) -> Tensor:
    """Ids [R, V] of each row's values, smallest first; linear in V where a row consists of a few rising or
    strictly falling runs. values: [R, V]."""
    if values.device.type == "cpu":
        return torch.from_numpy(values.numpy().argsort(axis=1, kind="stable"))  # numpy's stable sort merges runs
    return values.argsort(1)


def highest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(values [R, k], ids [R, k]) of the k largest entries of each row [R, V], descending, equals by ascending id."""
    found, ids = values.topk(min(k + 1, values.shape[1]), 1)
    # topk leaves the choice among entries tied with the last of them open: rows where it had a choice are mended
    had_choice = (found[:, k:] == found[:, k - 1 : k]).any(1)
    found, ids = found[:, :k], ids[:, :k]
    if bool(had_choice.any()):
        last = found[had_choice, -1:]
        ids[had_choice] = _lowest_of_tied(found[had_choice], ids[had_choice], values[had_choice] == last)
    ids, by_id = ids.sort(1)
    found, by_value = found.gather(1, by_id).sort(dim=1, descending=True, stable=True)
    return found, ids.gather(1, by_value)


def _lowest_of_tied(values: Tensor, ids: Tensor, tied: Tensor) -> Tensor:
    """ids [R, k] with those tied with the last value replaced by the lowest such ids. tied: [R, V] bool."""
    count = tied.shape[1]
    every = torch.where(tied, torch.arange(count, device=tied.device), count)
    lowest = every.topk(ids.shape[1], 1, largest=False, sorted=True).values
    last = values == values[:, -1:]
    place = (last.cumsum(1) - 1).clamp(min=0)  # values descend, so the tied ones are the last columns
    return torch.where(last, lowest.gather(1, place), ids)


def log_total_and_entropy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(ln sum exp, Shannon entropy in nats) of each row, in which a masked token counts e^-80 of the most probable one.
    logits: [R, V] -> two [R, 1] fp64."""
    peak = logits.amax(1, keepdim=True)
    below = (logits - peak).clamp_(min=_FARTHEST)
    weights = below.exp()
    total = weights.sum(1, keepdim=True, dtype=torch.float64)
    mean = below.mul_(weights).sum(1, keepdim=True, dtype=torch.float64) / total
    return peak + total.log(), total.log() - mean


def weights_below(peak: Tensor, logits: Tensor) -> Tensor:
    """exp(logits - peak), fp32. peak: [R, 1], the largest of each row [R, V]. What should be less than e^-80 is that,
    which no sum over a row in fp64 can tell from nothing."""
    return (logits - peak).clamp_(min=_FARTHEST).exp_()


def keep_from(logits: Tensor, threshold: Tensor) -> Tensor:
    """The logits with everything below the row's threshold masked. logits: [R, V]; threshold: [R, 1] of its type."""
    return logits.masked_fill(logits < threshold, -torch.inf)
