"""What one decoder layer asks of attention, as read from its own calls at load time."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LayerSpec:
    """Constants of one layer's attention."""

    query_heads: int
    kv_heads: int
    key_size: int  # D of queries and keys
    value_size: int  # D of values; zero-padded to key_size in the pool when smaller
    scale: float
    window: int | None = None  # keys a row sees, itself included
    chunk: int | None = None  # attention_chunk_size: a row sees its own chunk only
    softcap: float | None = None
    sinks: Tensor | None = None  # [query_heads] logits of the sink

    @property
    def group_size(self) -> int:
        """Query heads per KV head."""
        return self.query_heads // self.kv_heads

    def first_visible(self, position: int) -> int:
        """The first position a row at `position` sees."""
        if self.window is not None:
            return max(0, position - self.window + 1)
        if self.chunk is not None:
            return position // self.chunk * self.chunk
        return 0

    @property
    def is_full(self) -> bool:
        return self.window is None and self.chunk is None


def kind_of(spec: LayerSpec) -> tuple[int | None, int | None, int]:
    """Layers of one kind share the plan of a step."""
    return (spec.window, spec.chunk, spec.group_size)
