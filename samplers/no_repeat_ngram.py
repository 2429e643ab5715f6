"""No-repeat n-gram: a token that would complete an n-gram for the second time is masked (samplers.md 12.4)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from samplers.contract import Admission, Param, Rows, Shape, State
from samplers.histories import Repeats, host
from samplers.registry import STAGES
from samplers.stage import BaseStage

SCOPES = ("output", "all")


@STAGES.register
class NoRepeatNgram(BaseStage):
    """Masks v wherever (last N - 1 tokens, v) has occurred. N = 1 bans every token that has occurred."""

    name = "no_repeat_ngram"
    order = 2.15
    params = (
        Param("no_repeat_ngram_size", int, 0, low=0, high=1024, default=3),
        Param("ngram_scope", str, "output", choices=SCOPES),
    )
    in_greedy = True

    def is_neutral(self, values: Mapping[str, object]) -> bool:
        return values["no_repeat_ngram_size"] == 0

    def new_state(self, shape: Shape) -> State:
        return _Ngrams(shape)

    def shape(self, logits: Tensor, params: Mapping[str, Tensor], rows: Rows, state: State | None) -> Tensor:
        assert isinstance(state, _Ngrams)
        slots, size = host(rows.slots), host(params["no_repeat_ngram_size"])
        found, positions = state.occurrences(slots, np.where(size > 0, size - 1, np.iinfo(np.int32).max))
        if not len(found):
            return logits
        tokens = torch.from_numpy(state.ids[slots[found], positions].astype(np.int64)).to(logits.device)
        at = torch.from_numpy(found).to(logits.device)
        out = logits.clone()
        out[at, tokens] = logits[at, tokens] - torch.inf  # a NaN stays one
        return out


class _Ngrams(Repeats):
    def admit(self, slot: int, admission: Admission) -> None:
        prompt = admission.prompt_ids if admission.values["ngram_scope"] == "all" else ()
        self.write(slot, np.array([*prompt, *admission.output_ids], np.int64))

    def accept(self, slots: Tensor, tokens: Tensor) -> None:
        self.append(host(slots), host(tokens))
