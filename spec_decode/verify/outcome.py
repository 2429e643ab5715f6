"""From where a rule has stopped to its verdict."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from spec_decode.contract import Verdict
from spec_decode.verify.batch import ROOT, DraftBatch, Ids


def verdict(batch: DraftBatch, places: Ids, tokens: Ids, repaired: npt.NDArray[np.int64] | None = None) -> Verdict:
    """places: [B] deepest accepted nodes, -1 for the root; tokens: [B] those that follow; repaired: [B]."""
    every = np.arange(len(batch))
    path = np.full((len(batch), batch.depth + 1), -1, np.int32)
    accepted = batch.depths[every, places + 1]
    at = places
    if batch.are_chains:
        nodes = np.arange(batch.depth + 1)
        path, at = np.where(nodes <= places[:, None], nodes, -1).astype(np.int32), np.full_like(places, ROOT)
    while (at != ROOT).any():
        inside = (at != ROOT).nonzero()[0]
        path[inside, batch.depths[inside, at[inside] + 1] - 1] = at[inside]
        at = np.where(at == ROOT, ROOT, batch.parents[every, at])
    return Verdict(
        path,
        accepted.astype(np.int32),
        tokens.astype(np.int64),
        (places + 1).astype(np.int32),
        (np.zeros(len(batch)) if repaired is None else repaired).astype(np.int32),
    )
