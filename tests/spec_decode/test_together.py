"""Sources, controller and `match` decode together what plain decoding decodes, in fewer steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from samplers.rng import Noise, Purpose
from spec_decode.acceptance import Verified
from spec_decode.contract import DRAFT_SOURCES, VERIFIERS, DraftAdmission, DraftTree
from spec_decode.controller import Candidate, Controller, Load
from spec_decode.cost_model import CostModel, Latency
from spec_decode.drafters import PromptLookup, Suffix
from spec_decode.facts import SpecFacts, SpecOffer
from spec_decode.read import read_spec
from spec_decode.request import SpecRequest, depth_limit
from spec_decode.tree_forms import depths
from spec_decode.verify.batch import DraftBatch

VOCAB, MAX_TOKENS, REQUESTS = 6, 80, 3
NO_NOISE = Noise(np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros(1, np.int64))


def draw(request: int, text: list[int], position: int) -> int:
    """The plain sampler: the model is mostly sure of what follows the last two tokens."""
    rng = np.random.default_rng([3, *text[-2:]])
    row = rng.dirichlet(np.full(VOCAB, 0.1))
    noise = Noise(np.array([request]), np.zeros(1, np.int64), np.array([position]))
    return int(np.searchsorted(row.cumsum(), noise.uniform(Purpose.DRAW)[0] * row.sum()))


def plain(request: int) -> list[int]:
    text = [request, 1]
    for position in range(MAX_TOKENS):
        text.append(draw(request, text, position))
    return text


def drawn_behind(request: int, text: list[int], tree: DraftTree) -> list[int]:
    """What the plain sampler draws from the row of the root and of every node."""
    paths: list[list[int]] = []
    for token, parent in zip(tree.tokens.tolist(), tree.parents.tolist(), strict=True):
        paths.append([*(paths[parent] if parent >= 0 else []), token])
    return [draw(request, [*text, *path], len(text) - 2 + len(path)) for path in ([], *paths)]


@pytest.mark.parametrize(
    "value",
    [
        {"draft": "prompt_lookup", "ngram": {"min": 1}},
        {"draft": "suffix"},
        {"draft": "suffix", "num_drafts": 3, "tree": {"max_nodes": 10}, "suffix": {"factor": 4, "min_prob": 0.05}},
        {"draft": "suffix", "tree": {"shape": "dynamic", "top_k": 2}, "num_tokens": 4, "suffix": {"offset": 4}},
    ],
)
def test_the_tokens_are_those_of_plain_decoding(value: dict[str, Any]) -> None:
    spec = read_spec(value, SpecFacts(SpecOffer((PromptLookup(), Suffix()))))
    assert isinstance(spec, SpecRequest)
    source = DRAFT_SOURCES.get(spec.draft)
    assert isinstance(source, (PromptLookup, Suffix))
    drafter, verifier = source.new_drafter(), VERIFIERS.get(spec.verifier)
    controller = Controller(CostModel({100: Latency({1: 1.02, 512: 1 + 0.02 * 512})}, {}))
    texts = {request: [request, 1] for request in range(REQUESTS)}
    for request, text in texts.items():
        drafter.admit(request, DraftAdmission(text.copy(), 2, spec.sources[0].options))
        controller.admit(request)
    steps = 0
    while going := [request for request, text in texts.items() if len(text) < MAX_TOKENS + 2]:
        steps += len(going)
        left = {request: MAX_TOKENS + 2 - len(texts[request]) for request in going}
        plans = [spec.plan(depth_limit(left[request], 1000, 16)) for request in going]
        trees = drafter.propose(going, plans, NO_NOISE)
        candidates = [
            Candidate(
                request,
                spec.draft,
                tuple(tree.parents.tolist()),
                tree.matched,
                spec.num_tokens is not None,
                position=len(texts[request]) - 2,
            )
            for request, tree in zip(going, trees, strict=True)
        ]
        chosen = controller.choose(candidates, Load(len(going), len(going), 100.0, 64)).nodes
        trees = [tree.part(nodes) for tree, nodes in zip(trees, chosen, strict=True)]
        rows = [drawn_behind(request, texts[request], tree) for request, tree in zip(going, trees, strict=True)]
        roots = np.cumsum([0, *map(len, rows[:-1])])
        drawn = torch.tensor([token for own in rows for token in own])
        verdict = verifier.verify(DraftBatch.of(trees, torch.zeros(len(drawn), VOCAB), roots, drawn), NO_NOISE, {})
        for at, (candidate, tree) in enumerate(zip(candidates, trees, strict=True)):
            tree.check()
            form = tuple(tree.parents.tolist())
            assert max(depths(form), default=0) < left[candidate.request]
            path = verdict.path[at, : verdict.n_acc[at]].tolist()
            tokens = [*tree.tokens[path].tolist(), int(verdict.next_token[at])]
            controller.observe(candidate, Verified(form, path))
            drafter.commit(candidate.request, tokens)
            texts[candidate.request] += tokens
    assert texts == {request: plain(request) for request in range(REQUESTS)}
    assert steps < 0.75 * REQUESTS * MAX_TOKENS
