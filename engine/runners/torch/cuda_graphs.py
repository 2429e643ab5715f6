"""Decode steps as CUDA graphs: one launch instead of one per operation.

Graphs are recorded at start, largest first so that the smaller ones find its memory, each is compared with the
forward pass it was recorded from, and the first problem switches all of them off for good. Runs in the engine thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engine.runners.torch.attention_cuda import CudaAttention
from engine.runners.torch.decode_buffers import DecodeBuffers, size_for, sizes_up_to
from engine.runners.torch.step import Step
from engine.runners.torch.verification import Line, logits_differ, step_of

log = logging.getLogger(__name__)
_PROGRESS_SECONDS = 5.0
Model = Callable[[Tensor, Tensor, Tensor], Tensor]  # (input ids [T], positions [T], rows [R]) -> logits [R, V]


@dataclass(frozen=True)
class Recording:
    """A recorded call. The output is overwritten by the next replay of any recording."""

    replay: Callable[[], None]
    output: Tensor  # [size, V]


class Recorder(Protocol):
    """Records what a call does on the device; the call reads and writes the same tensors at every replay."""

    def __call__(self, call: Callable[[], Tensor]) -> Recording: ...


class CudaRecorder:
    """Captures CUDA graphs that share one memory pool: they never run at the same time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._memory = torch.cuda.graph_pool_handle()

    def __call__(self, call: Callable[[], Tensor]) -> Recording:
        with torch.cuda.device(self._device):
            before = torch.cuda.current_stream()
            self._stream.wait_stream(before)
            try:
                with torch.cuda.stream(self._stream):
                    for _ in range(2):  # workspaces and lazily loaded kernels must exist before
                        call()
                before.wait_stream(self._stream)
                graph = torch.cuda.CUDAGraph()
                # thread_local: other threads may load or serve another model meanwhile
                with torch.cuda.graph(graph, pool=self._memory, stream=self._stream, capture_error_mode="thread_local"):
                    output = call()
            finally:
                torch.cuda.set_stream(before)  # torch.cuda.graph does not, if the capture cannot be ended
        return Recording(graph.replay, output)


class DecodeGraphs:
    """Recordings of decode steps by size. `model` runs eagerly with whatever plan `backend` follows."""

    def __init__(self, model: Model, backend: CudaAttention, buffers: DecodeBuffers, recorder: Recorder) -> None:
        assert backend.is_fused
        self._model = model
        self._backend = backend
        self._buffers = buffers
        self._record = recorder
        self._recordings: dict[int, Recording] = {}

    @property
    def sizes(self) -> list[int]:
        """Rows of the steps there is a recording for."""
        return sorted(self._recordings)

    def __call__(self, step: Step) -> Tensor | None:
        """logits [R, V] of the step's `logit_rows`, of which the KV is stored; None: no recording fits the step."""
        size = size_for(len(step.spans), self._recordings) if self._buffers.take(step) else None
        if size is None:
            return None
        self._buffers.fill(step, size)
        recording = self._recordings[size]
        recording.replay()
        return recording.output.index_select(0, step.logit_rows)

    def record(self, vocabulary: int, positions: int, budget_s: float) -> bool:
        """Record and compare, for `budget_s` seconds; False (and the reason in the log): there are no recordings.

        vocabulary, positions: what token ids and positions have to stay below. Overwrites KV slots, so it has to run
        before anything is cached.
        """
        began = told = time.monotonic()
        sizes = sizes_up_to(self._buffers.rows)
        log.info("recording CUDA graphs of decode steps: %s rows", ", ".join(map(str, sizes)))
        for size in reversed(sizes):
            now = time.monotonic()
            if self._recordings and now - began > budget_s:
                log.warning("CUDA graphs: %.0f s are over, steps below %d rows have none", budget_s, self.sizes[0])
                break
            if now - told > _PROGRESS_SECONDS:
                log.info("CUDA graphs: %d of %d after %.0f s", len(self._recordings), len(sizes), now - began)
                told = now
            problem = self._add(size, vocabulary, positions)
            if problem is not None:
                self._recordings.clear()
                log.warning("decode steps do not run as CUDA graphs: of %d rows, %s", size, problem)
                self._eagerly(self._sample(1, vocabulary, positions, 0)).sum().item()  # raises if the device is lost
                return False
        log.info("%d CUDA graphs in %.1f s", len(self._recordings), time.monotonic() - began)
        return True

    def _add(self, size: int, vocabulary: int, positions: int) -> str | None:
        """Record steps of `size` rows; returns what is wrong with the recording."""

        def call() -> Tensor:
            self._backend.follow(self._buffers.plan(size))
            return self._model(*self._buffers.inputs(size))

        self._buffers.fill(self._sample(size, vocabulary, positions, 0), size)
        try:
            self._recordings[size] = self._record(call)
            # other tokens, positions and slots than those recorded; then one row less, so that there is padding
            for seed, rows in enumerate((size, max(1, size - 1)), 1):
                step = self._sample(rows, vocabulary, positions, seed)
                given = self(step)  # first, so that it finds no keys but those it writes
                assert given is not None
                problem = logits_differ(given, self._eagerly(step))
                if problem is not None:
                    return problem
        except Exception as error:  # recording runs arbitrary upstream code; not being recordable is no fault
            return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
        return None

    def _eagerly(self, step: Step) -> Tensor:
        self._backend.prepare(step)
        return self._model(step.input_ids, step.positions, step.logit_rows)

    def _sample(self, rows: int, vocabulary: int, positions: int, seed: int) -> Step:
        """Single rows at distinct places of a few sequences: each sees the keys that those before it write."""
        pool = self._backend.pool
        pages = range(pool.num_slots // pool.page_size - 1, 0, -1)
        width = min(len(pages), self._buffers.tokens // pool.page_size)
        lines = [Line(list(pages[i * width : (i + 1) * width]), pool.page_size) for i in range(len(pages) // width)]
        lines = lines[:rows]
        room = min(width * pool.page_size, positions)
        stride = max(1, min(7, room // (rows // len(lines) + 1 + seed)))
        shares = [(lines[i % len(lines)], (seed + i // len(lines) * stride) % room, 1) for i in range(rows)]
        return step_of(shares, vocabulary, pool.keys[0].device, seed)
