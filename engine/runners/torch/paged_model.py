"""A model with its own paged KV memory: chunks of tokens in, logits out.

Knows nothing about requests or sampling. Runs in the engine thread, in inference mode.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from engine.pages import Branch, Pages
from engine.runners.torch.attention import Backend
from engine.runners.torch.attention_cpu import CpuAttention
from engine.runners.torch.attention_plain import PlainAttention
from engine.runners.torch.forward import Forward
from engine.runners.torch.loader import LoadedModel, Sizes
from engine.runners.torch.packing import Chunk, pack
from engine.runners.torch.pool import KvPool
from engine.runners.torch.step import Step
from engine.runners.torch.verification import Line, step_of

log = logging.getLogger(__name__)
_COMPARED = 5  # tokens for which a smaller head is compared with the whole one
_DIFFERENCE = 1e-2  # of the largest logit


class PagedModel:
    """A loaded model, the page tables of its branches, the pool they point into, and the forward pass over both."""

    def __init__(self, loaded: LoadedModel, sizes: Sizes, attention: str = "auto", replay: bool = True) -> None:
        """attention and replay as in `EngineSettings`. Raises UnsupportedModelError when no attention is right."""
        self.loaded = loaded
        self.pages = Pages(sizes.num_pages, sizes.page_size, contiguous=loaded.device.type == "cpu")
        self.pool = KvPool(loaded.layers, sizes.num_pages, sizes.page_size, loaded.dtype, loaded.device)
        self.backend = make_backend(self.pool, loaded, attention)
        self._replayed = replay and attention == "auto"
        self._rows = sizes.max_seqs
        self.forward = self._forward(loaded.model)
        # calls of the CPU backend read slots of other sequences, and masks hide no NaN
        reads_others = isinstance(self.backend, CpuAttention)
        self.strict = Forward(loaded.model, PlainAttention(self.pool)) if reads_others else None

    def pack(self, chunks: list[Chunk], rows: list[int]) -> Step:
        """The step of these chunks, whose slots are reserved; pending page copies are executed. `rows` of the packed
        row get logits."""
        copies = self.pages.drain_copies()
        if copies:
            self.pool.copy_pages(copies)
        return pack(self.pages, chunks, rows, self.loaded.device)

    def logits(self, step: Step) -> Tensor:
        """[R, vocab_size] of the step's `logit_rows`, in the model's dtype; stores the KV of all rows.

        A row without numbers is one of a token, or behind a token, that the model has none for; others' are as ever.
        """
        logits = self.forward(step)
        if self.strict is not None and bool(lost_rows(logits).any()):
            log.warning("a step of %d rows gave logits that are no numbers: each row is computed by itself", step.rows)
            logits = self.strict(step)
        return logits[:, : self.loaded.vocab_size]  # a head may have more rows than there are tokens

    def compact(self, branch: Branch, context: int, accepted: Sequence[int]) -> None:
        """Keep the accepted ones of the scratch rows behind `context` tokens, which ascend, and drop all others."""
        source, target = self.pages.compact_slots(branch, context, accepted)
        if len(source):
            device = self.loaded.device
            self.pool.move(torch.from_numpy(source).to(device), torch.from_numpy(target).to(device))
        self.pages.truncate(branch, context + len(accepted))

    def with_head(self, ids: Tensor) -> Forward:
        """A forward pass over the same layers and pool whose logits are those of these tokens only: [R, S].

        ids: [S] int64. Overwrites KV slots, so it has to run before anything is cached. Raises ValueError for a
        model whose head is not a matrix of one row per token at its top.
        """
        model = self.loaded.model
        head = model.get_output_embeddings()
        names = [name for name, module in model.named_children() if module is head]
        if len(names) != 1 or not isinstance(head, nn.Linear):
            raise ValueError("its head is not a single matrix at the top of the model")
        rows = ids.to(head.weight.device)
        smaller = nn.Linear(head.in_features, len(rows), bias=head.bias is not None, device="meta")
        smaller.weight = nn.Parameter(head.weight[rows], requires_grad=False)
        if head.bias is not None:
            smaller.bias = nn.Parameter(head.bias[rows], requires_grad=False)
        twin = copy.copy(model)
        twin._modules = {**model._modules, names[0]: smaller}
        forward = self._forward(twin)
        page = Line([1], self.pages.page_size)
        step = step_of([(page, 0, min(_COMPARED, page.room))], self.loaded.vocab_size, self.loaded.device, 0)
        whole = self.forward(step)[:, rows].float()
        if not (forward(step).float() - whole).abs().max() <= _DIFFERENCE * whole.abs().max():
            raise ValueError("its logits do not follow from single rows of its head")
        return forward

    def _forward(self, model: nn.Module) -> Forward:
        forward = Forward(model, self.backend)
        if self._replayed:
            if self.loaded.device.type == "cpu":
                forward.use_replay(self.loaded.layers)
            else:
                forward.use_graphs(self._rows, self.loaded.max_model_len)
        return forward


def lost_rows(logits: Tensor) -> Tensor:
    """[R] bool: rows with NaN or infinities somewhere in their keys, values or hidden states, which leave no number
    among the logits. logits: [R, V]."""
    return ~(logits[:, 0] < torch.inf)


def make_backend(pool: KvPool, loaded: LoadedModel, attention: str) -> Backend:
    """The attention backend for the device; 'plain' is the slow reference."""
    if attention == "plain":
        return PlainAttention(pool)
    if loaded.device.type == "cpu":
        return CpuAttention(pool)
    from engine.runners.torch.attention_choice import choose  # its imports take a second that the CPU need not wait

    return choose(loaded.model, pool)
