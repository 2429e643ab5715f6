"""Chains drafted in one call are those drafted pass by pass, whatever is drafted beside them."""

from __future__ import annotations

import copy
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from engine.runners.torch.draft_model import DraftModel
from engine.runners.torch.loader import Sizes, check
from engine.settings import EngineSettings
from samplers.chain import resolve
from samplers.rng import Noise, Stream
from spec_decode.contract import DraftAdmission, DraftPlan
from spec_decode.token_ranking import TokenRanking
from spec_decode.tree_forms import chain, static
from tests.engine.tiny_models import VOCABULARY, tiny_model

SLOTS = 5
CHAINS = [
    None,
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 2.0, "top_p": 0.9},  # not for the script
    {"temperature": 1.0, "dynatemp_range": 0.5},  # likewise
]


def drafter(scripted: bool) -> DraftModel:
    model = tiny_model("llama", seed=4, num_hidden_layers=2)
    target = check(copy.deepcopy(tiny_model("llama")), EngineSettings())
    settings = EngineSettings(draft_vocab={"half": VOCABULARY // 2})
    ranking = TokenRanking.of(np.random.default_rng(1).integers(0, 1000, VOCABULARY), [0, 5], "")
    made = DraftModel(check(model, EngineSettings()), settings, target, Sizes(8, 150, SLOTS, 64, 1000), ranking)
    assert made._scripted.keys() == {"full", "half"}
    if not scripted:
        made._scripted = {}
    return made


@pytest.mark.parametrize("seed", range(6))
def test_as_pass_by_pass(seed: int) -> None:
    chance = random.Random(seed)
    pair = drafter(True), drafter(False)
    calls = Counter[str]()
    for part, chains in pair[0]._scripted.items():

        def counted(*given: object, part: str = part, run: Any = chains.grow) -> None:
            calls[part] += 1
            run(*given)

        chains.grow = counted  # type: ignore[method-assign]
    positions = [0] * SLOTS
    for slot in range(SLOTS):
        fields = chance.choice(CHAINS)
        admission = DraftAdmission(
            tokens=[chance.randrange(VOCABULARY) for _ in range(chance.randint(1, 30))],
            ending_ids=frozenset(chance.sample(range(VOCABULARY), 4)),
            chain=None if fields is None else resolve(fields, VOCABULARY),
            stream=Stream(chance.randrange(10**6), slot),
            vocabulary="half" if slot % 2 else "full",
        )
        for one in pair:
            one.admit(slot, admission)
    for _ in range(12):
        slots = chance.sample(range(SLOTS), chance.randint(1, SLOTS))
        plans = []
        for _ in slots:
            depth = chance.randint(1, 7)
            gains = None if chance.random() < 0.5 else tuple(0.9**level for level in range(1, depth + 1))
            plan = DraftPlan(depth, depth, chain(depth), gains=gains)
            plans.append(plan if chance.random() < 0.8 else DraftPlan(5, 3, static((2, 1, 1), 5)))
        keys = np.array([slot + 7 for slot in slots])
        noise = Noise(keys, np.zeros(len(slots), np.int64), np.array([positions[slot] for slot in slots]))
        given, expected = (one.propose(slots, plans, noise) for one in pair)
        for slot, tree, other in zip(slots, given, expected, strict=True):
            assert tree.tokens.tolist() == other.tokens.tolist() and tree.parents.tolist() == other.parents.tolist()
            assert tree.laws.tolist() == other.laws.tolist()
            if tree.q is not None:
                drawn = tree.q_rows >= 0
                assert torch.allclose(tree.q[tree.q_rows[drawn]], other.q[other.q_rows[drawn]], atol=1e-5)
            accepted = tree.tokens[: chance.randint(0, len(tree.tokens))].tolist() if (tree.parents < 1).all() else []
            accepted = accepted if (tree.parents[: len(accepted)] == np.arange(-1, len(accepted) - 1)).all() else []
            tokens = [*accepted, chance.randrange(VOCABULARY)]
            positions[slot] += len(tokens)
            for one in pair:
                one.commit(slot, tokens)
        for one in pair:
            one.check_integrity()
    assert all(calls[part] for part in ("full", "half"))
