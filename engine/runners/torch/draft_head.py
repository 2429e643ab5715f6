"""From a draft model's forward pass to rows over the target's vocabulary, whichever tokens its head knows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.runners.torch.forward import Forward
from engine.runners.torch.paged_model import PagedModel
from engine.runners.torch.step import Step
from spec_decode.draft_vocabulary import DraftVocabulary


@dataclass(frozen=True)
class DraftHead:
    """The whole head, or some of its rows; what it lacks of V tokens is impossible."""

    forward: Forward
    vocabulary: DraftVocabulary

    @classmethod
    def whole(cls, model: PagedModel, vocabulary: int) -> DraftHead:
        """vocabulary: V. Tokens that only the draft model has are never drafted."""
        known = torch.arange(min(vocabulary, model.loaded.vocab_size))
        return cls(model.forward, DraftVocabulary(known.numpy(), vocabulary))

    @classmethod
    def part(cls, model: PagedModel, part: DraftVocabulary) -> DraftHead:
        """Raises ValueError as `PagedModel.with_head` does."""
        ids = part.ids[part.ids < min(part.vocabulary, model.loaded.vocab_size)]
        return cls(model.with_head(torch.from_numpy(ids)), DraftVocabulary(ids, part.vocabulary))

    def __call__(self, step: Step) -> Tensor:
        """[R, V] fp32 logits of the step's `logit_rows`."""
        logits = self.forward(step)[:, : len(self.vocabulary)].float()
        if len(self.vocabulary) == self.vocabulary.vocabulary:
            return logits
        return self.vocabulary.spread(logits, -torch.inf)
