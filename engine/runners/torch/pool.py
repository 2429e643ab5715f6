"""The tensors that hold cached keys and values of every layer, addressed by slot.

Knows nothing about pages' owners: `engine.pages` decides which slot belongs to whom. Runs in the engine thread.
CPU layout is head-major, so a run of slots is a view the kernel reads without a copy; on CUDA it is page-major.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.runners.torch.layers import LayerSpec


def bytes_per_token(layers: list[LayerSpec], dtype: torch.dtype) -> int:
    """KV bytes of one token over all layers."""
    return sum(2 * layer.kv_heads * layer.key_size for layer in layers) * dtype.itemsize


class KvPool:
    """K and V of `num_pages * page_size` slots per layer."""

    def __init__(
        self, layers: list[LayerSpec], num_pages: int, page_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.layers = layers
        self.page_size = page_size
        self.num_slots = num_pages * page_size
        self.head_major = device.type == "cpu"
        self.keys: list[Tensor] = []  # per layer: CPU [Hkv, slots, D]; CUDA [slots, Hkv, D]
        self.values: list[Tensor] = []
        for layer in layers:
            size = (layer.kv_heads, self.num_slots) if self.head_major else (self.num_slots, layer.kv_heads)
            # zeros, not empty: masked reads past a sequence's end must never meet a NaN
            self.keys.append(torch.zeros(*size, layer.key_size, dtype=dtype, device=device))
            self.values.append(torch.zeros(*size, layer.key_size, dtype=dtype, device=device))

    def write(self, layer: int, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """Store this step's K and V. key: [1, Hkv, T, D]; value: [1, Hkv, T, Dv]; slots: [T] int64."""
        spec = self.layers[layer]
        if spec.value_size != spec.key_size:
            value = torch.nn.functional.pad(value, (0, spec.key_size - spec.value_size))
        if self.head_major:
            self.keys[layer].index_copy_(1, slots, key[0])
            self.values[layer].index_copy_(1, slots, value[0])
        else:
            self.keys[layer].index_copy_(0, slots, key[0].transpose(0, 1))
            self.values[layer].index_copy_(0, slots, value[0].transpose(0, 1))

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copy slots to slots in every layer, all reads before any write. source, target: [N] int64."""
        axis = 1 if self.head_major else 0
        for store in (*self.keys, *self.values):
            store.index_copy_(axis, target, store.index_select(axis, source))

    def copy_pages(self, copies: list[tuple[int, int]]) -> None:
        """Copy whole pages (copy-on-write), all reads before any write."""
        device = self.keys[0].device
        offsets = torch.arange(self.page_size, device=device)
        pairs = torch.tensor(copies, device=device)
        source = (pairs[:, :1] * self.page_size + offsets).flatten()
        target = (pairs[:, 1:] * self.page_size + offsets).flatten()
        self.move(source, target)

    def mend(self, slots: Tensor) -> Tensor:
        """Replace NaN and infinities in these slots by zero, so that a masked read of them stays harmless.

        slots: [N] int64; returns [N] bool: the slots that held any.
        """
        axis = 1 if self.head_major else 0
        broken = torch.zeros(len(slots), dtype=torch.bool, device=slots.device)
        for store in (*self.keys, *self.values):
            held = store.index_select(axis, slots)
            broken |= ~held.isfinite().all(2).all(1 - axis)
            store.index_copy_(axis, slots, held.nan_to_num_(0.0, 0.0, 0.0))
        return broken
