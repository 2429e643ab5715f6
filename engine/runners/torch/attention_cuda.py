"""Paged attention on CUDA: torch's variable-length flash attention over a block table.

Steps without trees go through one kernel call per layer; trees, and layers with chunks, soft caps or head sizes the
kernel does not have, through `GatherAttention`. Sinks are applied afterwards, from the kernel's log-sum-exp.
Whether it is used at all is decided in `attention_choice`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import varlen

from engine.runners.torch.attention_gather import GatherAttention
from engine.runners.torch.block_table import block_table
from engine.runners.torch.kernels import apply_sinks
from engine.runners.torch.layers import LayerSpec
from engine.runners.torch.pool import KvPool
from engine.runners.torch.step import Step

PAGE_MULTIPLE = 256  # the kernel loads keys in blocks of up to 256, each from one page
_LARGEST_HEAD = 256
_DTYPES = (torch.float16, torch.bfloat16)
Kernel = Callable[..., tuple[Tensor, Tensor]]  # the signature of varlen_attn with the log-sum-exp asked for


class KernelError(Exception):
    """The kernel is not what this file was written against."""


@dataclass(frozen=True)
class Plan:
    """Where the spans of a step find their keys.

    A captured graph keeps the tensors of its plan: replays read whatever they hold by then.
    """

    slots: Tensor  # [T] int64, where the rows' K/V are written
    starts: Tensor  # [B + 1] int32, the first row of each span
    used: Tensor  # [B] int32, tokens each span sees, its own rows included
    ends: Tensor  # [B + 1] int32, cumulated `used`
    pages: Tensor  # [B, P] int32
    most_rows: int  # of one span
    most_keys: int  # at least the largest of `used`


def kernel_takes(spec: LayerSpec) -> bool:
    """The kernel can compute this layer."""
    return spec.softcap is None and spec.chunk is None and spec.key_size % 8 == 0 and spec.key_size <= _LARGEST_HEAD


def refusal(pool: KvPool, capability: tuple[int, int]) -> str | None:
    """Why the kernel cannot serve this pool on a device of that compute capability; None: it can."""
    dtype = pool.keys[0].dtype
    if capability < (8, 0):
        return f"it needs compute capability 8.0, the device has {capability[0]}.{capability[1]}"
    if dtype not in _DTYPES:
        return f"it takes float16 and bfloat16, not {str(dtype).removeprefix('torch.')}"
    if pool.page_size % PAGE_MULTIPLE:
        return f"it takes pages of a multiple of {PAGE_MULTIPLE} tokens, page_size is {pool.page_size}"
    if not any(map(kernel_takes, pool.layers)):
        return f"it has no soft caps, no chunks and head sizes up to {_LARGEST_HEAD} in steps of 8 only"
    return None


class CudaAttention:
    """`Backend` over a page-major pool."""

    def __init__(self, pool: KvPool, kernel: Kernel | None = None) -> None:
        """Raises KernelError. `kernel` is replaced in tests on machines without a GPU."""
        logging.getLogger(varlen.__name__).setLevel(logging.WARNING)  # it reports its choice of kernel at every call
        self.pool = pool
        self._kernel = kernel or varlen.varlen_attn
        self._gather = GatherAttention(pool)
        self._fits = [kernel_takes(spec) for spec in pool.layers]
        self._slots: Tensor | None = None  # [T] int64 of the step being executed
        self._plan: Plan | None = None  # None: this step gathers
        self._wants_ends = self._probe()

    @property
    def is_fused(self) -> bool:
        """Every layer of a step without trees is one kernel call."""
        return all(self._fits)

    def prepare(self, step: Step) -> None:
        self._slots, self._plan = step.slots, None
        fused = all(span.tree is None for span in step.spans)
        if not fused or not self.is_fused:
            self._gather.prepare(step)
        if fused:
            table, device = block_table(step.spans, self.pool.page_size), step.slots.device
            starts = torch.tensor([0, *(span.stop for span in step.spans)], dtype=torch.int32)
            self._plan = Plan(
                slots=step.slots,
                starts=starts.to(device, non_blocking=True),
                used=torch.from_numpy(table.used).to(device, non_blocking=True),
                ends=torch.from_numpy(table.ends).to(device, non_blocking=True),
                pages=torch.from_numpy(table.pages).to(device, non_blocking=True),
                most_rows=max(span.count for span in step.spans),
                most_keys=int(table.used.max()),
            )

    def follow(self, plan: Plan) -> None:
        """In place of `prepare`: the following calls read this plan's tensors."""
        assert self.is_fused
        self._slots, self._plan = plan.slots, plan

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        assert self._slots is not None
        spec = self.pool.layers[layer]
        self.pool.write(layer, self._slots, key, value)
        if self._plan is None or not self._fits[layer]:
            return self._gather.read(layer, spec, query)
        out, lse = self._call(layer, query[0].transpose(0, 1).contiguous(), self._plan, self._wants_ends)
        if spec.sinks is not None:
            out = apply_sinks(out, lse.transpose(0, 1), spec.sinks)
        return out[None, ..., : spec.value_size]

    def _call(self, layer: int, query: Tensor, plan: Plan, with_ends: bool) -> tuple[Tensor, Tensor]:
        """query: [T, Hq, D] -> (out [T, Hq, D], log-sum-exp [Hq, T] fp32)."""
        spec = self.pool.layers[layer]
        shape = (-1, self.pool.page_size, spec.kv_heads, spec.key_size)
        return self._kernel(
            query,
            self.pool.keys[layer].view(shape),
            self.pool.values[layer].view(shape),
            plan.starts,
            plan.ends if with_ends else None,
            plan.most_rows,
            plan.most_keys,
            return_aux=varlen.AuxRequest(lse=True),
            scale=spec.scale,
            # The kernel counts keys before the row. (-1, -1) would do for single rows, but then it regroups the
            # query heads of one KV head and returns their log-sum-exp in another order.
            window_size=(-1 if spec.window is None else spec.window - 1, 0),
            enable_gqa=spec.group_size > 1,
            seqused_k=plan.used,
            block_table=plan.pages,
            num_splits=1,  # results do not depend on batch mates; and splits of paged keys are wrong in torch 2.13
        )

    def _probe(self) -> bool:
        """Call the kernel once, on one token of the dummy page per row; returns whether it wants `ends`.

        The built-in kernel insists on cumulated key counts although it reads `used` instead; kernels that can be
        activated in its place refuse them beside a block table. The log-sum-exp is [Hq, T], as the op's fake says
        and unlike the documentation of varlen_attn: with T = Hq + 1 rows the two cannot be confused.
        """
        layer = self._fits.index(True)
        heads, size = self.pool.layers[layer].query_heads, self.pool.layers[layer].key_size
        rows, store = heads + 1, self.pool.keys[layer]
        counts = torch.arange(rows + 1, dtype=torch.int32, device=store.device)
        single = torch.ones(rows, dtype=torch.int32, device=store.device)
        pages = torch.zeros(rows, 1, dtype=torch.int32, device=store.device)
        plan = Plan(counts[:-1].long(), counts, single, counts, pages, 1, 1)
        query = torch.ones(rows, heads, size, dtype=store.dtype, device=store.device)
        refusals = []
        for with_ends in (True, False):
            try:
                out, lse = self._call(layer, query, plan, with_ends)
            except (RuntimeError, TypeError, ValueError) as error:
                refusals.append(str(error).strip().splitlines()[0])
                continue
            if out.shape != query.shape or lse.shape != (heads, rows):
                found = f"{list(out.shape)} and {list(lse.shape)}"
                raise KernelError(f"for {rows} rows of {heads} heads it returns {found}, not [T, H, D] and [H, T]")
            return with_ends
        raise KernelError("; ".join(refusals))
