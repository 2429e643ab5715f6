"""Sizes and limits of one engine. Wrong values are startup errors that name the setting."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field


class SettingsError(ValueError):
    """A server setting is out of range or contradicts another."""


@dataclass(frozen=True)
class EngineSettings:
    """None means: chosen from the device, the model and the memory at start."""

    device: str | None = None  # 'cpu', 'cuda', 'cuda:1'; default cuda when present
    dtype: str | None = None  # 'float32', 'bfloat16', 'float16'
    page_size: int | None = None  # power of two; 64 on CPU, 256 on CUDA
    kv_bytes: int | None = None
    max_model_len: int | None = None
    max_seqs: int | None = None  # slots; 64 on CPU, 256 on CUDA
    max_batch_tokens: int | None = None  # rows of one step; 512 on CPU, 8192 on CUDA
    chunk_tokens: int | None = None  # rows one prompt may take of a step; default max_batch_tokens
    max_queued_requests: int = 256
    max_queued_tokens: int | None = None  # default 64 * max_batch_tokens
    threads: int | None = None  # CPU threads of the model; default torch's
    replay: bool = True  # replay a traced forward (CPU) or graphs of it (CUDA) where they give the eager logits
    attention: str = "auto"  # 'auto' or 'plain', the slow reference
    spec_max_len: int = 16  # deepest draft of any request; 0 switches speculation off
    spec_past_outputs_s: float = 86_400.0  # that outputs are remembered for drafts
    draft_vocab: Mapping[str, int] = field(default_factory=dict)  # name -> tokens of a part of the draft's vocabulary

    def check(self) -> None:
        """Raises SettingsError naming the first setting that cannot be right."""
        for name in ("kv_bytes", "max_model_len", "max_seqs", "max_batch_tokens", "chunk_tokens", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"{name} must be at least 1, got {value}")
        if self.page_size is not None and (self.page_size < 1 or self.page_size & (self.page_size - 1)):
            raise SettingsError(f"page_size must be a power of two, got {self.page_size}")
        for name in ("max_queued_requests", "max_queued_tokens"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise SettingsError(f"{name} must be at least 0, got {value}")
        if self.device is not None and not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise SettingsError(f"device must be cpu, cuda or cuda:N, got {self.device}")
        if self.dtype not in (None, "float32", "bfloat16", "float16"):
            raise SettingsError(f"dtype must be float32, bfloat16 or float16, got {self.dtype}")
        if self.attention not in ("auto", "plain"):
            raise SettingsError(f"attention must be auto or plain, got {self.attention}")
