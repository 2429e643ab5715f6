"""Segment kernels, merging and lanes against one softmax over everything."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.runners.torch.kernels import HIDDEN, apply_sinks, causal_cpu, merge, segment_cpu, segment_plain
from engine.runners.torch.lanes import Lane, regular_lanes

SCALE = 0.3


def tensors(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def whole(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, softcap: float | None = None) -> torch.Tensor:
    group = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(group, 1).transpose(-1, -2) * SCALE
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    return scores.softmax(-1) @ value.repeat_interleave(group, 1)


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(1, 39), min_size=0, max_size=5, unique=True), seed=st.integers(0, 1000))
def test_any_split_of_the_keys_merges_to_one_softmax(cuts: list[int], seed: int) -> None:
    query, key, value = (
        tensors(2, 4, 3, 8, seed=seed),
        tensors(2, 2, 40, 8, seed=seed + 1),
        tensors(2, 2, 40, 8, seed=seed + 2),
    )
    edges = [0, *sorted(cuts), 40]
    parts = [segment_cpu(query, key[:, :, a:b], value[:, :, a:b], SCALE, None) for a, b in itertools.pairwise(edges)]
    out, lse = parts[0]
    for part in parts[1:]:
        out, lse = merge(out, lse, *part)
    assert (out - whole(query, key, value)).abs().max() < 2e-6


def test_plain_and_fused_segments_agree_and_plain_caps_scores() -> None:
    query, key, value = tensors(1, 4, 5, 16, seed=1), tensors(1, 2, 9, 16, seed=2), tensors(1, 2, 9, 16, seed=3)
    fused, plain = segment_cpu(query, key, value, SCALE, None), segment_plain(query, key, value, SCALE, None)
    assert (fused[0] - plain[0]).abs().max() < 1e-6 and (fused[1] - plain[1]).abs().max() < 1e-5
    capped, _ = segment_plain(query, key, value, SCALE, None, softcap=1.5)
    assert (capped - whole(query, key, value, 1.5)).abs().max() < 1e-6


def test_a_fully_hidden_segment_has_no_weight() -> None:
    query, key, value = tensors(1, 2, 3, 8, seed=4), tensors(1, 2, 6, 8, seed=5), tensors(1, 2, 6, 8, seed=6)
    hidden = segment_cpu(query, key, value, SCALE, torch.full((1, 1, 3, 6), HIDDEN))
    seen = segment_cpu(query, key, value, SCALE, None)
    out, lse = merge(*hidden, *seen)
    assert torch.allclose(out, seen[0]) and torch.allclose(lse, seen[1])


def test_causal_block_and_sinks_by_the_formula() -> None:
    query, key, value = tensors(1, 2, 5, 8, seed=7), tensors(1, 2, 5, 8, seed=8), tensors(1, 2, 5, 8, seed=9)
    sinks = tensors(2, seed=10)
    out, lse = causal_cpu(query, key, value, SCALE)
    given_ = apply_sinks(out[0].transpose(0, 1), lse[0].transpose(0, 1), sinks)
    scores = (query @ key.transpose(-1, -2) * SCALE).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    with_sink = torch.cat([scores, sinks.view(1, 2, 1, 1).expand(1, 2, 5, 1)], -1).softmax(-1)[..., :-1]
    assert (given_ - (with_sink @ value)[0].transpose(0, 1)).abs().max() < 1e-6


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 300)), min_size=1, max_size=20))
def test_lanes_are_a_partition_into_regular_batches_inside_the_pool(raw: list[tuple[int, int]]) -> None:
    lanes = tuple(Lane(row, 16 * start, length) for row, (start, length) in enumerate(raw))
    slots = max(lane.start + lane.length for lane in lanes)
    batches = regular_lanes(lanes, slots)
    assert sorted(lane for batch in batches for lane in batch) == sorted(lanes)
    for batch in batches:
        distances = {b.start - a.start for a, b in itertools.pairwise(batch)}
        assert len(distances) <= 1 and all(d >= 0 for d in distances)
        assert batch[-1].start + max(lane.length for lane in batch) <= slots
        short = 127
        assert max(max(lane.length, short) for lane in batch) <= 2 * min(max(lane.length, short) for lane in batch) + 1


def test_evenly_spaced_sequences_are_one_batch() -> None:
    lanes = tuple(Lane(row, 640 * row, 100 + row) for row in range(16))
    assert [len(batch) for batch in regular_lanes(lanes, 64 * 640)] == [16]
