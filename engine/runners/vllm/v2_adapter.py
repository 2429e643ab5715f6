"""Our chains behind the second generation of vLLM's logits processors: stable request slots, history on the device.

Live on GPUs. vLLM imports this module by name, in its processes too. A request has one row, and another one behind each
of its drafts; a step may come in several calls, each with some of the requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcessor, LogitsProcRequestState

from engine.runners.vllm.chain_core import connected
from engine.runners.vllm.choice import Choice
from engine.runners.vllm.extras import setup_of

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig


class V2Adapter(LogitsProcessor):
    """Rows of chains; all others are left alone."""

    def __init__(self, vllm_config: VllmConfig, req_states: LogitsProcRequestState) -> None:
        setup = setup_of(vllm_config)
        self._vocab = setup.vocab_size
        self._core = connected(vllm_config, req_states.device)
        self._states = req_states
        self._entering: dict[int, Choice] = {}  # by vLLM's slot: their tokens are not on the device yet
        self._seated: dict[int, tuple[int, list[int]]] = {}  # vLLM's slot -> (ours, output tokens as far as read)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        self._seated.pop(req_idx, None)  # slots are recycled without a word
        self._entering.pop(req_idx, None)
        choice = Choice.unpack(sampling_params.extra_args, self._vocab)
        if choice is not None:
            self._entering[req_idx] = choice
        return choice is not None

    def apply_staged_writes(self) -> None:
        self._core.begin_step()
        for req_idx, choice in self._entering.items():
            prompt = int(self._states.prompt_len.np[req_idx])
            known = self._states.all_token_ids.gpu[req_idx, : int(self._states.total_len.gpu[req_idx])].tolist()
            output = known[prompt:]
            held = {slot for slot, _ in self._seated.values()}
            self._seated[req_idx] = self._core.seat(choice, known[:prompt], output, held), output
        self._entering.clear()

    def apply(self, logits: Tensor, ctx: LogitsContext) -> Tensor:
        """logits: [rows, W] fp32; returned after writing to it. Rows inside a prompt draw nothing."""
        if not self._seated:
            return logits
        told = (ctx.expanded_idx_mapping, ctx.expanded_local_pos, ctx.pos, ctx.input_ids)
        of_row, depths, last, ids = torch.stack([one.long() for one in told]).tolist()  # in one copy
        first: dict[int, int] = {}  # row of the next token -> vLLM's slot
        drafts: dict[int, list[int]] = {}
        counts: dict[int, int] = {}  # by vLLM's slot: output tokens before it
        for row, (req_idx, depth) in enumerate(zip(of_row, depths, strict=True)):
            if req_idx not in self._seated:
                continue
            if depth:
                drafts.setdefault(row - depth, []).append(ids[row])
            elif (count := last[row] + 1 - int(self._states.prompt_len.np[req_idx])) >= 0:
                first[row], counts[req_idx] = req_idx, count
        if first:
            self._read(counts)
            self._core.draw(logits, {row: self._seated[req_idx] for row, req_idx in first.items()}, drafts)
        return logits

    def _read(self, counts: Mapping[int, int]) -> None:
        """Bring the output tokens of these slots up to so many; usually one is missing, and all come in one copy."""
        outputs = {req_idx: self._seated[req_idx][1] for req_idx in counts}
        while behind := [req_idx for req_idx, count in counts.items() if len(outputs[req_idx]) < count]:
            at = [int(self._states.prompt_len.np[req_idx]) + len(outputs[req_idx]) for req_idx in behind]
            for req_idx, token in zip(behind, self._states.all_token_ids.gpu[behind, at].tolist(), strict=True):
                outputs[req_idx].append(token)
