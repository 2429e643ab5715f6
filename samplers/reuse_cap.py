"""Reuse cap: a copied token may be at most gamma times as probable as it was in the text it is copied from.

The idea of DITTO's training loss (Xu et al., arXiv 2206.02369) applied while decoding: repetition that reinforces
itself fades geometrically instead (samplers.md 12.2; this form is ours).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samplers.contract import Admission, Param, Rows, Shape, State
from samplers.drawn import DrawnScores
from samplers.histories import Repeats, host, widened
from samplers.registry import STAGES
from samplers.stage import BaseStage


@STAGES.register
class ReuseCap(BaseStage):
    """Where the last `reuse_min_match` tokens have occurred before an output token v of recorded probability rho:
    p'(v) = min(p(v), gamma * rho), the others renormalised. The latest such place counts."""

    name = "reuse_cap"
    order = 8
    params = (
        Param("reuse_cap", float, 0.0, low=0.0, high=1.0, low_open=True, also=(0.0,), default=0.5),
        Param("reuse_min_match", int, 12, low=1, high=256),
    )
    in_greedy = True
    resumable = False  # it knows how probable each token was

    def is_neutral(self, values: Mapping[str, Any]) -> bool:
        return values["reuse_cap"] == 0

    def new_state(self, shape: Shape) -> State:
        return _Copies(shape)

    def shape(self, logits: Tensor, params: Mapping[str, Tensor], rows: Rows, state: State | None) -> Tensor:
        assert isinstance(state, _Copies)
        slots, cap = host(rows.slots), host(params["reuse_cap"]).astype(np.float64)
        never = np.iinfo(np.int32).max
        found, positions = state.occurrences(slots, np.where(cap > 0, host(params["reuse_min_match"]), never))
        recorded = np.isfinite(state.logprobs[slots[found], positions])
        found, positions = found[recorded], positions[recorded]
        latest = np.append(found[1:] != found[:-1], True)[: len(found)]
        found, positions = found[latest], positions[latest]
        out = logits.clone()  # what came in is kept, and what goes out belongs to others
        tokens = torch.from_numpy(state.ids[slots[found], positions].astype(np.int64)).to(logits.device)
        at = torch.from_numpy(found).to(logits.device)
        if len(found):
            highest = np.log(cap[found]) + state.logprobs[slots[found], positions]  # ln(gamma * rho)
            out[at, tokens] = _capped(logits[at], tokens, torch.from_numpy(highest).to(logits.device))
        changed = torch.full((len(slots),), -1, dtype=torch.int64, device=logits.device)  # [R] the capped token
        changed[at] = tokens
        values = out.gather(1, changed.clamp(min=0).unsqueeze(1)).squeeze(1)
        totals = out.logsumexp(1)

        def score(rows: Tensor, drawn: Tensor) -> Tensor:
            return torch.where(drawn == changed[rows], values[rows], logits[rows, drawn]) - totals[rows]

        state.drawn.note(slots, score)
        return out


def _capped(rows: Tensor, tokens: Tensor, highest: Tensor) -> Tensor:
    """[k] fp32: the logit of each row's token at which its probability is at most exp(highest).

    p(v) <= c means l_v <= ln(c / (1 - c)) + ln(sum of exp over the others). rows: [k, V]; tokens, highest: [k].
    """
    own = rows.gather(1, tokens.unsqueeze(1)).squeeze(1)
    others = rows.double().scatter(1, tokens.unsqueeze(1), -torch.inf).logsumexp(1)
    odds = highest - torch.log(-torch.expm1(highest))
    limit = torch.where(others > -torch.inf, others + odds, torch.inf)  # alone in its row it stays
    lowered = torch.minimum(own.double(), limit).float()
    return torch.where(own < torch.inf, lowered, own)  # what is no logit stays, to be seen


class _Copies(Repeats):
    """Histories of prompt and output with `logprobs` [slots, W] fp64: ln p of each output token as this stage left it,
    NaN for the prompt's and for tokens generated before the slot was taken, -inf for those it had masked."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.logprobs = np.empty((shape.slots, 0))
        self.drawn = DrawnScores(shape.slots)

    def admit(self, slot: int, admission: Admission) -> None:
        ids = np.array([*admission.prompt_ids, *admission.output_ids], np.int64)
        self.write(slot, ids)
        self.logprobs[slot, : len(ids)] = np.nan
        self.drawn.admit(slot)

    def accept(self, slots: Tensor, tokens: Tensor) -> None:
        mine = host(slots)
        scores = self.drawn.take(mine, tokens)
        at = self.length[mine]
        self.append(mine, host(tokens))
        self.logprobs[mine, at] = scores

    def reserve(self, width: int) -> None:
        super().reserve(width)
        self.logprobs = widened(self.logprobs, width)

    def snapshot(self, slot: int) -> Any:
        return super().snapshot(slot), self.drawn.snapshot(slot)

    def restore(self, slot: int, snapshot: Any) -> None:
        repeats, drawn = snapshot
        super().restore(slot, repeats)
        self.drawn.restore(slot, drawn)

    def fork(self, parent: int, child: int) -> None:
        super().fork(parent, child)
        self.logprobs[child] = self.logprobs[parent]
        self.drawn.fork(parent, child)

    def free(self, slot: int) -> None:
        self.drawn.free(slot)
