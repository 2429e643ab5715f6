"""Our chains behind the first generation of vLLM's logits processors: rows of a dense batch that move.

Live on the CPU, and for what the second generation lacks. vLLM imports this module by name, in its processes too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from engine.runners.vllm.chain_core import connected
from engine.runners.vllm.choice import Choice
from engine.runners.vllm.extras import setup_of

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig


class V1Adapter(LogitsProcessor):
    """Rows of chains; all others are left alone."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        setup = setup_of(vllm_config)
        self._vocab = setup.vocab_size
        self._core = connected(vllm_config, device)
        # row -> (slot, output tokens); vLLM appends to the list, so it is always the latest
        self._seated: dict[int, tuple[int, list[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        """False: called before everything else, for greedy rows as well."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self._seated, batch_update, self._seat)

    def apply(self, logits: Tensor) -> Tensor:
        """logits: [rows of the batch, W] fp32; returned after writing to it."""
        if self._seated:
            self._core.draw(logits, self._seated)
        return logits

    def _seat(
        self, params: SamplingParams, prompt_ids: list[int] | None, output_ids: list[int]
    ) -> tuple[int, list[int]] | None:
        choice = Choice.unpack(params.extra_args, self._vocab)
        if choice is None:
            return None
        assert prompt_ids is not None, "prompts are token ids"
        held = {slot for slot, _ in self._seated.values()}
        return self._core.seat(choice, prompt_ids, output_ids, held), output_ids
