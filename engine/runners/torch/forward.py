"""From a `Step` to logits: calls the model with our attention backend as the `step` keyword."""

from __future__ import annotations

from torch import Tensor, nn

from engine.runners.torch.attention import Backend
from engine.runners.torch.step import Step


class Forward:
    """Eager execution of the Hugging Face model."""

    def __init__(self, model: nn.Module, backend: Backend) -> None:
        self._model = model
        self._backend = backend

    def __call__(self, step: Step) -> Tensor:
        """logits [R, V] of the step's `logit_rows`; stores the KV of all rows."""
        self._backend.prepare(step)
        inputs = {"input_ids": step.input_ids[None]} if step.input_embeds is None else {"inputs_embeds": step.input_embeds[None]}
        output = self._model(
            **inputs,
            position_ids=step.positions[None],
            use_cache=False,
            logits_to_keep=step.logit_rows,
            step=self._backend,
        )
        return output.logits[0]
