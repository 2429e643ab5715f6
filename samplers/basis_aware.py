"""Basis-aware truncation: improbable tokens are drawn only where the model's head proves that they may be meant.

Finlayson et al., Closing the curious case of neural text degeneration (arXiv 2310.01693), from the formulas.
Only tokens drawn below the threshold are put to the proof (`samplers.certificate`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samplers.argmax import lowest_argmax
from samplers.certificate import Head, prove
from samplers.contract import Admission, Param, Rows, SamplerError, Shape, State
from samplers.model_facts import ModelFacts
from samplers.registry import DRAWS, STAGES
from samplers.rng import Purpose
from samplers.stage import BaseDraw, FixedState

RULES = ("eta", "epsilon", "nucleus")


@DRAWS.register
class BasisAware(BaseDraw):
    """Tokens are visited without replacement in proportion to their probability; the first one that is above the
    threshold or proven is drawn. After `basis_tries` rejections it is the most probable one.

    Thresholds and proofs are about the model's own row; masks only skip tokens and temperature only reorders the
    visits. Nothing else may shape the row before.
    """

    name = "basis_aware"
    params = (
        Param("basis", str, "eta", choices=RULES),
        Param("basis_eta", float, 0.015, 0, 1, low_open=True, high_open=True),
        Param("basis_epsilon", float, 0.01, 0, 1, low_open=True, high_open=True),
        Param("basis_nucleus", float, 0.35, 0, 1, low_open=True, high_open=True),
        Param("basis_rank", int, 20, 0, 256),  # more than the head has columns: all of them
        Param("basis_tries", int, 10, 1, 100),
    )

    sees_raw = True

    @property
    def excludes(self) -> frozenset[str]:  # type: ignore[override]
        """Every stage but hard masks and plain temperature, those of third parties included."""
        allowed = {stage.name for stage in STAGES if 2 <= stage.order < 3} | {"temperature"}
        return frozenset({stage.name for stage in STAGES} - allowed | {"dynatemp_range"})

    def check(self, values: Mapping[str, Any], model: ModelFacts) -> None:
        if model.head is None:
            raise SamplerError("'basis_aware' needs a model whose logits are its head times a hidden state", "draw")

    def new_state(self, shape: Shape) -> State | None:
        return None if shape.model.head is None else _HeadState(shape.model.head, shape.slots)

    def pick(self, logits: Tensor, params: Mapping[str, Tensor], rows: Rows, state: State | None) -> Tensor:
        assert isinstance(state, _HeadState) and rows.raw is not None
        chances = rows.raw.double().softmax(1)
        delta = thresholds(chances, params)
        tries = params["basis_tries"].tolist()
        noise = -np.log(-np.log(rows.noise.per_token(Purpose.BASIS, logits.shape[1])))
        keys = logits.double() + torch.from_numpy(noise).to(logits.device)
        visits = keys.topk(min(max(tries), logits.shape[1]), 1).indices
        visits = torch.where(keys.gather(1, visits) > -torch.inf, visits, -1)  # -1: masked, and so is all that follows
        tokens = lowest_argmax(logits)
        drawn = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
        open_ = list(range(len(logits)))
        for turn in range(visits.shape[1]):
            seen = visits[:, turn].tolist()
            open_ = [row for row in open_ if turn < tries[row] and seen[row] >= 0]
            if not open_:
                break
            asked = torch.tensor(open_, device=logits.device)
            accepted = self._accepted(
                chances[asked], delta[asked], visits[asked, turn], params["basis_rank"][asked], state
            )
            tokens[asked[accepted]] = visits[asked[accepted], turn]
            drawn[asked[accepted]] = True
            open_ = asked[~accepted].tolist()
        np.add.at(state.fallbacks, rows.slots[~drawn].cpu().numpy(), 1)  # a slot may occur more than once
        return tokens

    @staticmethod
    def _accepted(chances: Tensor, delta: Tensor, tokens: Tensor, ranks: Tensor, state: _HeadState) -> Tensor:
        """[B] bool. chances [B, V] fp64, delta [B], tokens [B], ranks [B]."""
        accepted = chances.gather(1, tokens.unsqueeze(1)).squeeze(1) > delta
        for rank in set(ranks[~accepted].tolist()) - {0}:
            low = torch.nonzero(~accepted & (ranks == rank)).squeeze(1)
            proof = prove(state.head.reduced(rank), chances[low], delta[low], tokens[low])
            accepted[low] = proof.holds
        return accepted


class _HeadState(FixedState):
    """The reduced head of a stack, made when first needed; per slot how often nothing that was visited was accepted."""

    def __init__(self, weight: Tensor, slots: int) -> None:
        self.head = Head(weight)
        self.fallbacks = np.zeros(slots, np.int64)

    def admit(self, slot: int, admission: Admission) -> None:
        self.fallbacks[slot] = 0

    def snapshot(self, slot: int) -> int:
        return int(self.fallbacks[slot])

    def restore(self, slot: int, snapshot: int) -> None:
        self.fallbacks[slot] = snapshot

    def fork(self, parent: int, child: int) -> None:
        self.fallbacks[child] = self.fallbacks[parent]

    def tell(self, slot: int) -> dict[str, int]:
        return {"basis_fallback": int(self.fallbacks[slot])}


def thresholds(chances: Tensor, params: Mapping[str, Tensor]) -> Tensor:
    """[R] fp64: delta of each row. chances [R, V] fp64.

    nucleus: just below the probability of the token that completes the mass, so that it is kept, as top-p keeps it.
    """
    rule, eta = params["basis"], params["basis_eta"].double()
    delta = params["basis_epsilon"].double()
    entropy = -torch.xlogy(chances, chances).sum(1)
    delta = torch.where(rule == RULES.index("eta"), torch.minimum(eta, eta.sqrt() * (-entropy).exp()), delta)
    nucleus = rule == RULES.index("nucleus")
    if bool(nucleus.any()):
        ranked = chances[nucleus].sort(1, descending=True).values
        before = ranked.cumsum(1) - ranked
        last = (before < params["basis_nucleus"][nucleus].unsqueeze(1)).sum(1, keepdim=True) - 1
        edge = ranked.gather(1, last).squeeze(1)
        delta[nucleus] = edge.nextafter(torch.zeros_like(edge))
    return delta
