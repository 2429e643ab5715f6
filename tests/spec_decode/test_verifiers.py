"""The vectorised verifiers against the plain ones, on ragged batches with the same random numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import spec_decode.verify  # noqa: F401  registers the verifiers
from samplers.rng import Noise
from spec_decode.contract import VERIFIERS, DraftTree, TreeError, Verdict
from spec_decode.verify import reference
from spec_decode.verify.batch import DraftBatch
from tests.spec_decode.trees import Given, drafts_of, drawn_tree, noise_of, plain_draws, simplex

Forms = list[tuple[list[int], list[str]]]  # per request: parents and laws
TYPICAL = {"epsilon": 0.2, "alpha": 0.6}


@st.composite
def chains(draw: st.DrawFn) -> tuple[list[int], list[str]]:
    length = draw(st.integers(0, 5))
    return list(range(-1, length - 1)), [draw(st.sampled_from(["iid", "certain"])) for _ in range(length)]


@st.composite
def trees(draw: st.DrawFn) -> tuple[list[int], list[str]]:
    count = draw(st.integers(0, 8))
    parents = [draw(st.integers(-1, node - 1)) for node in range(count)]
    return parents, [draw(st.sampled_from(["iid", "swor", "certain"])) for _ in range(count)]


@st.composite
def sequences(draw: st.DrawFn) -> tuple[list[int], list[str]]:
    """Chains below the root, level by level, some shorter than others."""
    lengths = draw(st.lists(st.integers(1, 3), max_size=4))
    parents, last = [], dict.fromkeys(range(len(lengths)), -1)
    for level in range(max(lengths, default=0)):
        for sequence, length in enumerate(lengths):
            if level < length:
                parents.append(last[sequence])
                last[sequence] = len(parents) - 1
    return parents, ["iid"] * len(parents)


FORMS: dict[str, Callable[[], st.SearchStrategy[tuple[list[int], list[str]]]]] = {
    "token": chains,
    "block": chains,
    "kseq": sequences,
}
RULES = {**reference.LOSSLESS, "typical_acceptance": reference.typical(**TYPICAL)}


class World:
    """A batch whose requests' rows lie somewhere among those of others."""

    def __init__(self, seed: int, forms: Forms, vocab: int) -> None:
        random = np.random.default_rng(seed)
        self.trees: list[DraftTree] = []
        self.rows: list[torch.Tensor] = []
        for parents, laws in forms:
            q = simplex(random, len(parents) + 1, vocab, zeros=0.2)
            tree = drawn_tree(random, parents, laws, q)
            p = simplex(random, len(parents) + 1, vocab, zeros=0.2)
            self.trees.append(tree)
            self.rows.append(p)
        blocks = [block for rows in self.rows for block in (simplex(random, 1, vocab), rows)]
        self.roots = np.cumsum([1, *(len(rows) + 1 for rows in self.rows)])[:-1]
        self.noise = noise_of(
            random.integers(0, 2**40, len(forms)).tolist(), random.integers(0, 9, len(forms)).tolist()
        )
        self.p = torch.cat(blocks) if blocks else torch.zeros(0, vocab)

    def batch(self) -> DraftBatch:
        batch = DraftBatch.of(self.trees, self.p, self.roots)
        return DraftBatch.of(self.trees, self.p, self.roots, plain_draws(batch, self.noise))


def verify(name: str, batch: DraftBatch, noise: Noise) -> Verdict:
    verifier = VERIFIERS.get(name)
    values = {param.name: np.full(len(batch), TYPICAL[param.name]) for param in verifier.params}
    return verifier.verify(batch, noise, values)


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32), vocab=st.sampled_from([2, 5, 12]))
def test_verdicts_are_those_of_the_reference(name: str, data: st.DataObject, seed: int, vocab: int) -> None:
    forms = data.draw(st.lists(FORMS.get(name, trees)(), max_size=5))
    world = World(seed, forms, vocab)
    found = verify(name, world.batch(), world.noise)
    found.check(world.batch())
    deepest = max((tree.depths.max(initial=0) for tree in world.trees), default=0)
    assert found.path.shape == (len(forms), deepest + 1)
    for b, (tree, rows) in enumerate(zip(world.trees, world.rows, strict=True)):
        drafts = drafts_of(tree, vocab)
        expected = RULES[name](drafts, rows.tolist(), Given(world.noise[np.array([b])]))
        path = [node for node in found.path[b].tolist() if node >= 0]
        assert reference.path(drafts, path[-1] if path else -1) == reference.path(drafts, expected.place)
        assert [drafts[node].parent for node in path] == [-1, *path[:-1]][: len(path)]
        assert found.n_acc[b] == len(path)
        assert (found.path[b, len(path) :] == -1).all()
        assert found.next_token[b] == expected.token
        assert found.next_row[b] == (path[-1] + 1 if path else 0)
        assert rows[found.next_row[b], found.next_token[b]] > 0


@pytest.mark.parametrize("name", RULES)
def test_batch_mates_and_their_order_change_nothing(name: str) -> None:
    strategy = [([-1, 0, 1], ["iid"] * 3), ([], []), ([-1], ["iid"]), ([-1, 0], ["certain"] * 2)]
    world = World(5, strategy, 12)
    whole = verify(name, world.batch(), world.noise)
    for order in ([2, 0, 3, 1], [0], [1], [3, 1]):
        some = np.array(order)
        drawn = world.batch().drawn
        part = DraftBatch.of([world.trees[b] for b in order], world.p, world.roots[some], drawn)
        found = verify(name, part, world.noise[some])
        width = found.path.shape[1]
        assert (found.path == whole.path[some, :width]).all()
        assert (found.next_token == whole.next_token[some]).all()


def test_rules_for_one_shape_refuse_others() -> None:
    q = torch.full((4, 3), 1 / 3)
    tree = drawn_tree(np.random.default_rng(0), [-1, -1], ["iid", "swor"], q)
    certain = DraftTree.one_hot([0, 1], [-1, -1])
    for name, wrong in (("token", tree), ("block", tree), ("kseq", tree), ("kseq", certain)):
        batch = DraftBatch.of([wrong], q, [0])
        with pytest.raises(TreeError, match=f"'{name}' verifies"):
            verify(name, batch, noise_of([0], [0]))
