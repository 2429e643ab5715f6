"""What steps cost on this machine, measured once at start: what the draft-length controller begins with."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch

from engine.runners.torch.packing import Chunk
from engine.runners.torch.paged_model import PagedModel
from spec_decode.cost_model import Latency

CONTEXTS = (64, 512)  # tokens
ROUNDS = 3
SECONDS = 0.2  # that measuring a context may take; what is left out is extrapolated


def verify_costs(model: PagedModel, max_rows: int) -> dict[int, Latency]:
    """Seconds of steps by their rows, up to `max_rows`, for some lengths of context. Overwrites free slots."""
    room = (model.pages.num_pages - 1) * model.pages.page_size
    costs = {}
    for context in CONTEXTS:
        most = min(max_rows, room - context, model.loaded.max_model_len - context)
        if most > 1 or not costs:
            costs[context] = Latency(sweep(lambda rows, at=context: _step(model, at, rows), max(most, 2)))
    return costs


def plain_costs(model: PagedModel, max_seqs: int) -> Latency:
    """Seconds of steps without drafts, by their requests. Overwrites free slots."""
    room = (model.pages.num_pages - 1) // -(-(CONTEXTS[0] + 1) // model.pages.page_size)
    most = max(min(max_seqs, room), 1)
    context = min(CONTEXTS[0], model.loaded.max_model_len - 1)
    return Latency(sweep(lambda count: _step(model, context, 1, min(count, most)), max(most, 2)))


def sweep(run: Callable[[int], None], most: int) -> Mapping[int, float]:
    """rows -> seconds for 1, 2, 4, ... rows up to `most`, at least two of them; then as many as there is time for."""
    seconds: dict[int, float] = {}
    ends, rows = time.perf_counter() + SECONDS, 1
    while rows <= most and (len(seconds) < 2 or time.perf_counter() < ends):
        run(rows)
        rounds = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            run(rows)
            rounds.append(time.perf_counter() - began)
        seconds[rows] = median(rounds)
        rows *= 2
    return seconds


@torch.inference_mode()
def _step(model: PagedModel, context: int, rows: int, requests: int = 1) -> None:
    """`rows` rows behind `context` tokens, of each of so many requests."""
    branches = [model.pages.new_branch() for _ in range(requests)]
    try:
        for branch in branches:
            model.pages.append(branch, context + rows)
        ids = [token % model.loaded.vocab_size for token in range(rows)]
        chunks = [Chunk(branch, context, ids) for branch in branches]
        logits = model.logits(model.pack(chunks, list(range(rows * requests))))
        logits.argmax(1).tolist()  # waits for the device
    finally:
        for branch in branches:
            model.pages.release(branch)
