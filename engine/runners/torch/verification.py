"""Compares an attention backend with the reference, on its own pool and device, before anything is cached.

First attention alone, on made-up keys: values at page borders, and who sees whom at the borders of windows and chunks,
which short prompts never reach. Then the whole model on a few small steps. Overwrites pages and clears them again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from engine.runners.torch.attention import Backend
from engine.runners.torch.attention_plain import PlainAttention
from engine.runners.torch.forward import Forward
from engine.runners.torch.layers import LayerSpec
from engine.runners.torch.pool import KvPool
from engine.runners.torch.step import Span, Step

_LONGEST = 8192  # keys of one checked row; borders of larger windows are not looked at
_VALUES = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 3e-2}  # relative to the largest output
_LOGITS = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 5e-2}  # relative to the largest logit
_PROMPTS = (17, 11, 9)  # tokens


@dataclass(frozen=True)
class Line:
    """An imagined sequence over some pages in an order of their own."""

    pages: list[int]
    page_size: int

    @property
    def room(self) -> int:
        return len(self.pages) * self.page_size

    def slots(self, start: int, count: int) -> np.ndarray:
        """[count] int64."""
        positions = np.arange(start, start + count)
        return np.array(self.pages, np.int64)[positions // self.page_size] * self.page_size + positions % self.page_size

    def span(self, first: int, context: int, count: int) -> Span:
        """Rows first .. first + count - 1 of a step: the tokens after the first `context`."""
        runs, stop, size = [], context + count, self.page_size
        for i, page in enumerate(self.pages[: -(-stop // size)]):
            runs.append((page * size, page * size + min(size, stop - i * size)))
        return Span(first, count, context, tuple(runs))


def step_of(shares: list[tuple[Line, int, int]], vocabulary: int, device: torch.device, seed: int) -> Step:
    """The step that computes (line, context, count) for each share, of made-up tokens; every row has logits."""
    counts = [count for _, _, count in shares]
    firsts = np.cumsum([0, *counts])
    total = int(firsts[-1])
    ids = (torch.arange(total) * 7919 + 104729 * seed + 11) % vocabulary
    positions = torch.cat([torch.arange(context, context + count) for _, context, count in shares])
    slots = torch.from_numpy(np.concatenate([line.slots(context, count) for line, context, count in shares]))
    spans = [line.span(int(firsts[i]), context, count) for i, (line, context, count) in enumerate(shares)]
    return Step(ids.to(device), positions.to(device), slots.to(device), torch.arange(total, device=device), spans)


@torch.inference_mode()
def difference(model: nn.Module, backend: Backend, pool: KvPool) -> str | None:
    """What distinguishes the backend from the reference; None: nothing. An operation that fails is a difference."""
    try:
        return _attention(backend, pool) or _model(model, backend, pool)
    except (RuntimeError, TypeError, ValueError) as error:  # whatever operations refuse
        return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
    finally:
        used = torch.arange(pool.page_size, min(pool.num_slots, pool.page_size + _LONGEST), device=pool.keys[0].device)
        for store in (*pool.keys, *pool.values):
            store.index_fill_(1 if pool.head_major else 0, used, 0)


def _attention(backend: Backend, pool: KvPool) -> str | None:
    pages = min(pool.num_slots, _LONGEST) // pool.page_size
    line = Line(list(range(max(1, pages - 1), 0, -1)), pool.page_size)  # backwards, so that the order matters
    reference = PlainAttention(pool)
    seen = set()
    for layer, spec in enumerate(pool.layers):
        kind = (spec.query_heads, spec.kv_heads, spec.key_size, spec.value_size, spec.scale)
        kind = (*kind, spec.window, spec.chunk, spec.softcap, spec.sinks is None)
        if kind in seen:
            continue
        seen.add(kind)
        for check in (_values, _borders):
            problem = check(layer, spec, line, backend, reference, pool)
            if problem is not None:
                return f"layer {layer}: {problem}"
    return None


def _values(layer: int, spec: LayerSpec, line: Line, backend: Backend, reference: Backend, pool: KvPool) -> str | None:
    """Prompt chunks and single rows over random keys."""
    size = line.page_size
    top = min(line.room, 2 * size + 70, _LONGEST)
    shares = [(line, 0, min(7, top))]
    shares += [(line, context, 5) for context in (11, size + 30) if context + 5 <= top]
    shares += [(line, context, 1) for context in (size - 1, size, size + 1, 2 * size + 40) if 16 <= context < top]
    step = step_of(shares, 1, pool.keys[0].device, 0)
    _fill(pool, layer, line.slots(0, top), *_random(spec, top, pool, 0)[1:])
    given, expected = _both(layer, step, _random(spec, step.rows, pool, 1), backend, reference)
    worst = (given - expected).abs().max().item() / max(1e-6, expected.abs().max().item())
    if not worst <= _VALUES[pool.keys[0].dtype]:
        return f"its attention differs from the reference by {worst:.2g} of the largest output"
    return None


def _borders(layer: int, spec: LayerSpec, line: Line, backend: Backend, reference: Backend, pool: KvPool) -> str | None:
    """Which keys a row sees. All scores are equal, and only values at borders are not zero: each shows in a column."""
    edges = [line.page_size, *(edge for edge in (spec.window, spec.chunk) if edge is not None)]
    contexts = sorted({edge + by for edge in edges for by in (-2, -1, 0, 1)} | {2 * edges[-1] + 3, 0})
    contexts = [context for context in contexts if 0 <= context < min(line.room, _LONGEST)]
    top = min(line.room, contexts[-1] + 2)
    step = step_of([(line, context, 1) for context in contexts], 1, pool.keys[0].device, 0)
    lows = [spec.first_visible(context) for context in contexts]
    marked = sorted({at + by for at in (*lows, *contexts) for by in (-1, 0, 1)} & set(range(top)))
    _, keys, values = _random(spec, top, pool, 2)
    keys.zero_()
    values.zero_()
    for i, position in enumerate(marked):
        values[:, :, position, i % spec.value_size] = 1
    _fill(pool, layer, line.slots(0, top), keys, values)
    own = torch.tensor(contexts, device=keys.device)
    queries = _random(spec, step.rows, pool, 3)[0]
    inputs = queries, keys.index_select(2, own), values.index_select(2, own)
    given, expected = _both(layer, step, inputs, backend, reference)
    counts = own - torch.tensor(lows, device=own.device) + 1  # keys each row sees: what one of them adds is 1 / counts
    wrong = ((given - expected).abs().flatten(1).amax(1) * counts > 0.3) | ~given.flatten(1).isfinite().all(1)
    if wrong.any():
        return f"a row at position {contexts[int(wrong.nonzero()[0])]} does not see the keys it should"
    return None


def _random(spec: LayerSpec, rows: int, pool: KvPool, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [1, heads, rows, D], the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    heads = (spec.query_heads, spec.key_size), (spec.kv_heads, spec.key_size), (spec.kv_heads, spec.value_size)
    query, key, value = (torch.randn(1, count, rows, size, generator=generator) for count, size in heads)
    store = pool.keys[0]
    return query.to(store), key.to(store), value.to(store)


def _fill(pool: KvPool, layer: int, slots: np.ndarray, keys: Tensor, values: Tensor) -> None:
    pool.write(layer, torch.from_numpy(slots).to(keys.device), keys, values)


def _both(
    layer: int, step: Step, inputs: tuple[Tensor, Tensor, Tensor], backend: Backend, reference: Backend
) -> tuple[Tensor, Tensor]:
    """[T, Hq, Dv] fp32 of the backend and of the reference."""
    outputs = []
    for one in (backend, reference):
        one.prepare(step)
        outputs.append(one.attend(layer, *inputs)[0].float())
    return outputs[0], outputs[1]


def _model(model: nn.Module, backend: Backend, pool: KvPool) -> str | None:
    """Two prompts; a row of each; a row beside chunks of the second and of a third prompt."""
    device = pool.keys[0].device
    vocabulary = model.get_input_embeddings().weight.shape[0]
    pages = list(range(1, pool.num_slots // pool.page_size))
    lines = []
    for tokens in _PROMPTS:
        needed = -(-(tokens + 8) // pool.page_size)
        if needed <= len(pages):
            lines.append(Line(pages[:needed][::-1], pool.page_size))
            pages = pages[needed:]
    if not lines:
        return None  # a pool of a few tokens
    steps = [
        [(line, 0, tokens) for line, tokens in zip(lines[:2], _PROMPTS, strict=False)],
        [(line, tokens, 1) for line, tokens in zip(lines[:2], _PROMPTS, strict=False)],
        [(lines[0], _PROMPTS[0] + 1, 1)]
        + [(line, _PROMPTS[1] + 1, 4) for line in lines[1:2]]
        + [(line, 0, _PROMPTS[2]) for line in lines[2:3]],
    ]
    plain, tested = Forward(model, PlainAttention(pool)), Forward(model, backend)
    for seed, shares in enumerate(steps):
        step = step_of(shares, vocabulary, device, seed)
        expected = plain(step)
        problem = logits_differ(tested(step), expected)
        if problem is not None:
            return problem
    return None


def logits_differ(given: Tensor, expected: Tensor) -> str | None:
    """given, expected: [R, V] of two ways to compute a step; None: they agree as far as the dtype allows.

    In half precision a row may differ by another choice of experts: then the median row counts.
    """
    rows = (given.float() - expected.float()).abs().amax(1) / max(1e-6, expected.float().abs().max().item())
    worst = (rows.max() if expected.dtype == torch.float32 else rows.median()).item()
    if not worst <= _LOGITS[expected.dtype]:
        return f"its logits differ by {worst:.2g} of the largest"
    return None
