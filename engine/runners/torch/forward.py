"""From a `Step` to logits: the Hugging Face model with our attention backend as its `step` keyword.

On CPU the traced forward is replayed instead, on CUDA a graph of the step's size if there is one; both only after
they have given the eager logits on a few steps.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from engine.runners.torch import replay
from engine.runners.torch.attention import Backend
from engine.runners.torch.layers import LayerSpec
from engine.runners.torch.program import Program, ReplayError
from engine.runners.torch.step import Span, Step

if TYPE_CHECKING:
    from engine.runners.torch.cuda_graphs import Recorder

log = logging.getLogger(__name__)
_GRAPH_SECONDS = 60.0  # at start; steps of sizes that are missed then run eagerly
_CHECKED_ROWS = (1, 5, 12)  # sizes of the steps on which replay is compared with the model


class Forward:
    """Executes steps eagerly, or by replay once `use_replay` or `use_graphs` has succeeded."""

    def __init__(self, model: nn.Module, backend: Backend) -> None:
        self._model = model
        self._backend = backend
        self.program: Program | None = None  # None: eager
        self.graphs: Callable[[Step], Tensor | None] | None = None

    def __call__(self, step: Step) -> Tensor:
        """logits [R, V] of the step's `logit_rows`; stores the KV of all rows."""
        if self.graphs is not None and (logits := self._graph(step)) is not None:
            return logits
        self._backend.prepare(step)
        if self.program is not None:
            return self.program(step.input_ids, step.positions, step.logit_rows)[0]
        return self._eager(step)

    def _eager(self, step: Step) -> Tensor:
        output = self._model(
            input_ids=step.input_ids[None],
            position_ids=step.positions[None],
            use_cache=False,
            logits_to_keep=step.logit_rows,
            step=self._backend,
        )
        return output.logits[0]

    def _graph(self, step: Step) -> Tensor | None:
        assert self.graphs is not None
        try:
            return self.graphs(step)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            log.error("CUDA graphs are switched off: %s", error)
            self.graphs = None
            return None

    @torch.inference_mode()
    def use_graphs(self, rows: int, tokens: int, recorder: Recorder | None = None) -> bool:
        """Record decode steps of up to `rows` rows of sequences of up to `tokens` tokens; False (and the reason in
        the log) leaves the eager path. Overwrites KV slots, so it has to run before anything is cached."""
        from engine.runners.torch.attention_cuda import CudaAttention
        from engine.runners.torch.cuda_graphs import CudaRecorder, DecodeGraphs
        from engine.runners.torch.decode_buffers import DecodeBuffers

        backend = self._backend
        if not isinstance(backend, CudaAttention) or not backend.is_fused:
            log.info("decode steps do not run as CUDA graphs: some attention gathers keys, step by step")
            return False
        device, vocabulary = backend.pool.keys[0].device, self._model.get_input_embeddings().weight.shape[0]
        rows = min(rows, backend.pool.num_slots // backend.pool.page_size - 1)  # every row has a page of its own
        buffers = DecodeBuffers(rows, tokens, backend.pool.page_size, device)
        graphs = DecodeGraphs(self._logits, backend, buffers, recorder or CudaRecorder(device))
        if graphs.record(vocabulary, tokens, _GRAPH_SECONDS):
            self.graphs = graphs
        return self.graphs is not None

    def _logits(self, ids: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        return self._eager(Step(ids, positions, positions, rows, []))  # the backend knows slots and spans already

    @torch.inference_mode()
    def use_replay(self, layers: list[LayerSpec]) -> bool:
        """Trace and check; False (and the reason in the log) leaves the eager path. Overwrites the first KV slots,
        so it has to run before anything is cached."""
        try:
            program = replay.build(self._model, layers, self._backend)
        except ReplayError as error:
            log.info("the forward pass is not replayed: %s", error)
            return False
        for way in ("TorchScript", "Python"):
            if way == "Python":
                program.script = None
            elif program.script is None:
                continue
            problem = self._difference(program)
            if problem is None:
                self.program = program
                return True
            log.warning("the forward pass is not replayed in %s: %s", way, problem)
        return False

    def _difference(self, program: Program) -> str | None:
        """What distinguishes the program from the model on the checked steps; None: nothing."""
        vocabulary = self._model.get_input_embeddings().weight.shape[0]
        ways: list[Callable[..., Tensor]] = [program] if program.script is None else [program, program.piecewise]
        for step, way in itertools.product(_checked_steps(vocabulary), ways):
            self._backend.prepare(step)
            expected = self._eager(step)
            for _ in range(2):  # TorchScript compiles for good after it has seen a first call
                try:
                    given = way(step.input_ids, step.positions, step.logit_rows)[0]
                except RuntimeError as error:  # an operation that cannot run on other sizes than the traced ones
                    return str(error).strip().splitlines()[-1]
                difference = (given - expected).abs().max().item()
                if not difference <= _tolerance(expected.dtype) * max(1.0, expected.abs().max().item()):
                    return f"its logits differ by {difference:.2g}"
        return None


def _tolerance(dtype: torch.dtype) -> float:
    """How far replayed logits may be from the model's, relative to the largest: a few roundings of the dtype."""
    return max(1e-4, 4 * torch.finfo(dtype).eps)


def _checked_steps(vocabulary: int) -> list[Step]:
    """Prompt chunks of several sizes, then single rows over the slots these have filled."""

    def ids(count: int) -> Tensor:
        return (torch.arange(count) * 7919 + 11) % vocabulary

    steps = []
    for count in _CHECKED_ROWS:
        every = torch.arange(count)
        steps.append(Step(ids(count), every, every, every, [Span(0, count, 0, ((0, count),))]))
    for starts in ([0], [0, 4, 8], [0, 1, 4, 9]):  # one stretch; regular ones; irregular ones
        every = torch.arange(len(starts))
        spans = [Span(i, 1, 2, ((start, start + 3),)) for i, start in enumerate(starts)]
        steps.append(Step(ids(len(starts)), torch.full_like(every, 2), torch.tensor(starts) + 2, every, spans))
    return steps
