"""The largest entry of each row, the lowest id among equals: something library argmaxes do not promise on a GPU."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Peaks(NamedTuple):
    """Where each row is largest, and how large."""

    ids: Tensor  # [R] int64; the lowest of equals
    values: Tensor  # [R]; NaN for a row that holds one, whose id then means nothing


def peaks(rows: Tensor) -> Peaks:
    """The peaks of rows [R, V]."""
    if rows.device.type != "cpu":
        return compared_peaks(rows)
    ids = lowest_argmax(rows)
    return Peaks(ids, rows.gather(1, ids.unsqueeze(1)).squeeze(1))


def compared_peaks(rows: Tensor) -> Peaks:
    """`peaks` by a maximum and comparisons with it, on any device."""
    values = rows.amax(1)
    count = rows.shape[1]
    ids = torch.arange(count, dtype=torch.int32, device=rows.device)
    lowest = torch.where(rows == values.unsqueeze(1), ids, count).amin(1)
    return Peaks(lowest.clamp(max=count - 1).long(), values)  # NaN equals nothing


def lowest_argmax(rows: Tensor) -> Tensor:
    """[R, V] -> [R] int64. A row that holds NaN yields the id of a NaN on CPU, and nothing of meaning elsewhere."""
    if rows.device.type == "cpu":
        return torch.from_numpy(rows.numpy().argmax(1))  # the first of equals, and many times faster than torch's
    return compared_peaks(rows).ids
