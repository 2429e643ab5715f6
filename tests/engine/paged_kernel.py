"""The paged kernel's contract in plain torch, and what is needed to run the CUDA backend on a machine without a GPU."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from engine.pages import Pages
from engine.runners.torch.attention_cuda import CudaAttention
from engine.runners.torch.cuda_graphs import Recording
from engine.runners.torch.forward import Forward
from engine.runners.torch.kernels import HIDDEN, segment_plain
from engine.runners.torch.loader import check
from engine.runners.torch.pool import KvPool
from engine.settings import EngineSettings
from tests.engine.driver import PAGE, Driver


def paged_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    return_aux: object,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
    seqused_k: Tensor,
    block_table: Tensor,
    num_splits: int,
) -> tuple[Tensor, Tensor]:
    """As torch's built-in kernel: the same refusals, rows aligned to the end of their keys, lse [Hq, T]."""
    if cu_seq_k is None:
        raise RuntimeError("cumulative_sequence_length_q and cumulative_sequence_length_k must be both set")
    batch, page = len(cu_seq_q) - 1, key.shape[1]
    for tensor, shape in (
        (cu_seq_k, (batch + 1,)),
        (seqused_k, (batch,)),
        (block_table, (batch, block_table.shape[1])),
    ):
        assert tensor.dtype == torch.int32 and tensor.shape == shape and tensor.stride(-1) == 1
    assert query.is_contiguous() and num_splits == 1 and window_size[1] == 0 and int(cu_seq_q[-1]) == len(query)
    assert enable_gqa == (query.shape[1] != key.shape[2])
    out, lse = torch.empty_like(query), torch.empty(query.shape[1], query.shape[0])
    for i in range(batch):
        first, stop, used = int(cu_seq_q[i]), int(cu_seq_q[i + 1]), int(seqused_k[i])
        assert 0 < stop - first <= max_q and stop - first <= used <= max_k
        pages = block_table[i, : -(-used // page)].long()
        k, v = (store[pages].flatten(0, 1)[:used].transpose(0, 1)[None] for store in (key, value))
        rows = torch.arange(used - (stop - first), used)[:, None]
        keys = torch.arange(used)
        seen = keys <= rows
        if window_size[0] >= 0:
            seen &= keys >= rows - window_size[0]
        mask = torch.zeros(seen.shape).masked_fill_(~seen, HIDDEN)
        part, part_lse = segment_plain(query[first:stop].transpose(0, 1)[None], k, v, scale, mask)
        out[first:stop], lse[:, first:stop] = part[0].transpose(0, 1), part_lse[0]
    return out, lse


def page_major(pool: KvPool) -> KvPool:
    """The pool as it is laid out on CUDA."""
    pool.head_major = False
    pool.keys = [store.transpose(0, 1).contiguous() for store in pool.keys]
    pool.values = [store.transpose(0, 1).contiguous() for store in pool.values]
    return pool


class PagedDriver(Driver):
    """A driver over the CUDA backend, its kernel emulated, and scattered pages."""

    def __init__(self, model: nn.Module, num_pages: int = 128, kernel: Callable[..., object] = paged_kernel) -> None:
        model = copy.deepcopy(model)
        self.reference = copy.deepcopy(model)
        self.reference.set_attn_implementation("eager")
        self.loaded = check(model, EngineSettings())
        self.pages = Pages(num_pages, PAGE, contiguous=False)
        self.pool = page_major(KvPool(self.loaded.layers, num_pages, PAGE, self.loaded.dtype, self.loaded.device))
        self.backend = CudaAttention(self.pool, kernel)
        self.forward = Forward(self.loaded.model, self.backend)
        self.lines = []


class Rerun:
    """In place of a CUDA graph: a replay calls the recorded function again, over whatever its tensors hold by then."""

    def __init__(self) -> None:
        self.replays = 0

    def __call__(self, call: Callable[[], Tensor]) -> Recording:
        output = call().clone()

        def replay() -> None:
            self.replays += 1
            output.copy_(call())

        return Recording(replay, output)
