"""What the vectorised verifiers emit: its law over many requests, and what happens to bad rows and rounding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

import spec_decode.verify  # noqa: F401  registers the verifiers
from samplers.rng import Noise
from spec_decode.contract import VERIFIERS, DraftTree, Law, Verdict
from spec_decode.verify.batch import DraftBatch
from spec_decode.verify.reference import LOSSLESS
from tests.spec_decode.trees import drawn_tree, noise_of, plain_draws, simplex

VOCAB, COUNT = 3, 20_000
RARE = 1e-6  # how often a right law may fail its test
CHAIN, TREE = [-1, 0], [-1, -1, 0, 1]


class Crowd:
    """One step of many requests with the same two toy models, some of whose probabilities are 0."""

    def __init__(self, seed: int, parents: list[int], laws: list[str], count: int = COUNT) -> None:
        random = np.random.default_rng(seed)
        self.target, self.draft = (simplex(random, 1 + VOCAB + VOCAB**2, VOCAB, zeros=0.15) for _ in range(2))
        tokens = np.zeros((count, len(parents)), np.int64)
        rows = np.zeros((count, len(parents) + 1), np.int64)  # of the tables, by place + 1
        thinned = np.array([law == "swor" for law in laws])
        for node, parent in enumerate(parents):
            weights = self.draft.numpy()[rows[:, parent + 1]]
            if thinned[node]:
                weights = weights * (np.arange(VOCAB) != tokens[:, [node - 1]])
            exhausted = weights.sum(1) == 0  # nothing is left to draw: any node will do that is never accepted
            weights[exhausted] = self.draft.numpy()[rows[exhausted, parent + 1]]
            edges = weights.cumsum(1) / weights.sum(1, keepdims=True)
            tokens[:, node] = (edges > random.random((count, 1))).argmax(1)
            rows[:, node + 1] = VOCAB * rows[:, parent + 1] + tokens[:, node] + 1
        shape = tokens.shape
        q_rows = np.stack([rows[:, parent + 1] for parent in parents], 1)
        batch = DraftBatch(
            tokens,
            np.broadcast_to(parents, shape),
            np.full(shape, Law.DENSE, np.uint8),
            q_rows,
            np.broadcast_to(thinned, shape) & (tokens != np.roll(tokens, 1, 1)),
            self.target[torch.from_numpy(rows.ravel())],
            np.arange(count) * rows.shape[1],
            self.draft,
        )
        self.noise = noise_of(np.arange(count) + seed * count, np.arange(count) % 7)
        self.batch = replace(batch, drawn=plain_draws(batch, self.noise))
        self._random = random

    def emitted(self, verdict: Verdict) -> np.ndarray:
        """[requests] the first two tokens as one number, the second drawn from the target where it is missing."""
        count = len(self.batch)
        every = np.arange(count)
        nodes = np.concatenate([self.batch.tokens, verdict.next_token[:, None]], 1)
        path = np.where(verdict.path[:, :2] >= 0, verdict.path[:, :2], nodes.shape[1] - 1)
        first = nodes[every, path[:, 0]]
        edges = self.target.numpy()[1 + first].cumsum(1)
        drawn = (edges > self._random.random((count, 1)) * edges[:, -1:]).argmax(1)
        second = np.where(verdict.n_acc > 0, nodes[every, path[:, 1]], drawn)
        return VOCAB * first + second

    def expected(self) -> np.ndarray:
        """[V^2]"""
        p = self.target.numpy()
        return (p[0][:, None] * p[1 : 1 + VOCAB]).ravel()


CROWDS = [
    *(("chain", CHAIN, ["iid", "iid"], rule) for rule in ("match", "token", "block", "rrs", "hu", "traversal")),
    *(("iid", TREE, ["iid"] * 4, rule) for rule in ("match", "kseq", "rrs", "hu", "traversal")),
    *(("swor", TREE, ["iid", "swor", "iid", "iid"], rule) for rule in ("match", "rrs", "hu", "traversal")),
]


def verify(name: str, batch: DraftBatch, noise: Noise) -> Verdict:
    return VERIFIERS.get(name).verify(batch, noise, {})


@pytest.mark.parametrize(("parents", "laws", "rule"), [case[1:] for case in CROWDS], ids=lambda case: str(case))
def test_many_requests_have_the_target_s_law(parents: list[int], laws: list[str], rule: str) -> None:
    crowd = Crowd(11, parents, laws)
    found = verify(rule, crowd.batch, crowd.noise)
    counts = np.bincount(crowd.emitted(found), minlength=VOCAB**2)
    expected = crowd.expected()
    possible = expected > 0
    assert 0 < possible.sum() < VOCAB**2
    assert (counts[~possible] == 0).all()
    assert stats.chisquare(counts[possible], COUNT * expected[possible] / expected.sum()).pvalue > RARE
    assert found.repaired.sum() == 0


@pytest.mark.parametrize("rule", LOSSLESS)
def test_single_precision_decides_alike(rule: str) -> None:
    crowd = Crowd(12, CHAIN, ["iid", "iid"], count=5_000)
    exact = verify(rule, crowd.batch, crowd.noise)
    single = verify(rule, replace(crowd.batch, p=crowd.batch.p.float(), q=crowd.batch.q.float()), crowd.noise)
    same = (exact.path == single.path).all(1) & (exact.next_token == single.next_token)
    assert (~same).sum() <= 1  # those whose number lies within rounding of a threshold


@pytest.mark.parametrize("rule", [*LOSSLESS, "typical_acceptance"])
def test_inputs_are_left_alone_and_asking_again_gives_the_same(rule: str) -> None:
    crowd = Crowd(13, CHAIN, ["iid", "iid"], count=500)
    p, q = crowd.batch.p.clone(), crowd.batch.q.clone()
    values = {"epsilon": np.full(500, 0.1), "alpha": np.full(500, 0.3)}
    one, other = (VERIFIERS.get(rule).verify(crowd.batch, crowd.noise, values) for _ in range(2))
    assert (one.path == other.path).all() and (one.next_token == other.next_token).all()
    assert torch.equal(crowd.batch.p, p) and torch.equal(crowd.batch.q, q)


def test_a_peaked_row_is_drawn_from_without_replacement() -> None:
    """What is left of it is far below the precision of one minus what was taken."""
    q = torch.tensor([[1.0, 3e-20, 1e-20, 0.0]])
    p = torch.tensor([[0.0, 0.75, 0.25, 0.0]])
    tree = DraftTree(
        np.array([0, 1]), np.array([-1, -1], np.int32), np.full(2, Law.DENSE, np.uint8), np.zeros(2, np.int32),
        np.array([0.0, 1.0], np.float32), q,
    )  # fmt: skip
    batch = DraftBatch.of([tree], p.expand(3, 4), [0])
    requests, nodes = np.array([0]), np.array([1])
    assert batch.draft_at(requests, nodes) == pytest.approx([0.75])
    assert batch.law(requests, nodes).tolist() == [pytest.approx([0.0, 0.75, 0.25, 0.0])]
    for rule in ("rrs", "traversal", "hu"):
        found = [verify(rule, batch, noise_of([seed], [0])) for seed in range(20)]
        assert all(verdict.path[0, 0] == 1 for verdict in found)  # accepted with probability 1


def test_only_siblings_of_the_same_row_are_left_out_of_it() -> None:
    q = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]], dtype=torch.float64)
    tree = DraftTree(
        np.array([0, 1, 2, 3]), np.full(4, -1, np.int32), np.array([0, 1, 1, 1], np.uint8),
        np.array([-1, 1, 0, 1], np.int32), np.array([0, 0, 0, 0.3], np.float32), q,
    )  # fmt: skip
    batch = DraftBatch.of([tree], q[:1].expand(5, 4), [0])
    requests, nodes = np.zeros(4, np.int64), np.arange(4)
    laws = [[1, 0, 0, 0], [0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4], [4 / 7, 0, 2 / 7, 1 / 7]]
    assert batch.law(requests, nodes).tolist() == [pytest.approx(law) for law in laws]
    assert batch.draft_at(requests, nodes) == pytest.approx([1, 0.3, 0.3, 1 / 7])


def test_the_order_of_a_depth_first_walk() -> None:
    #         root
    #     0         1
    #   2   4       3
    #   6           5
    tree = DraftTree.one_hot([0] * 7, [-1, -1, 0, 1, 0, 3, 2])
    batch = DraftBatch.of([tree], torch.zeros(8, 1), [0])
    assert (batch.preorder[0].argsort() - 1).tolist() == [-1, 0, 2, 6, 4, 1, 3, 5]


@pytest.mark.parametrize("rule", LOSSLESS)
@pytest.mark.parametrize("bad", [0.0, torch.nan])
def test_a_failed_row_hurts_only_whoever_reaches_it(rule: str, bad: float) -> None:
    """Its children are not accepted, and its request is told which row the token should have come from."""
    random = np.random.default_rng(0)
    p, q = simplex(random, 3, 5), simplex(random, 3, 5)
    trees = [drawn_tree(random, CHAIN, ["iid", "iid"], q) for _ in range(40)]
    rows = p.repeat(40, 1)
    noise = noise_of(np.arange(40), np.zeros(40))
    roots = np.arange(40) * 3
    drawn = plain_draws(DraftBatch.of(trees, rows, roots), noise)
    broken = rows.clone()
    broken[1::6] = bad  # the row behind the first draft of every other request
    whole = verify(rule, DraftBatch.of(trees, rows, roots, drawn), noise)
    found = verify(rule, DraftBatch.of(trees, broken, roots, drawn), noise)
    assert (found.path[1::2] == whole.path[1::2]).all() and (found.next_token[1::2] == whole.next_token[1::2]).all()
    assert ((found.next_token >= 0) & (found.next_token < 5)).all()
    assert (found.next_row[::2] == 1).any()
    if rule != "match":  # which compares tokens, and of failed rows those mean nothing
        assert (found.n_acc[::2] <= 1).all()


def single(p: list[float], q: list[float]) -> DraftBatch:
    """Twenty requests with token 0 drafted from this row."""
    rows = torch.tensor([p, p], dtype=torch.float64).repeat(20, 1)
    tree = DraftTree(
        np.zeros(1, np.int64), np.full(1, -1, np.int32), np.full(1, Law.DENSE, np.uint8), np.zeros(1, np.int32),
        np.zeros(1, np.float32), torch.tensor([q], dtype=torch.float64),
    )  # fmt: skip
    return DraftBatch.of([tree] * 20, rows, np.arange(20) * 2)


TESTING = [rule for rule in LOSSLESS if rule != "match"]


@pytest.mark.parametrize("rule", TESTING)
def test_a_token_that_could_not_have_been_drawn_is_rejected(rule: str) -> None:
    found = verify(rule, single([0.9, 0.1], [0.0, 1.0]), noise_of(np.arange(20), np.zeros(20)))
    assert (found.n_acc == 0).all()


@pytest.mark.parametrize("rule", TESTING)
def test_a_residual_without_mass_is_replaced_and_counted(rule: str) -> None:
    """As rounding may leave it: a row that does not sum to one."""
    found = verify(rule, single([0.5, 0.0], [1.0, 0.0]), noise_of(np.arange(20), np.zeros(20)))
    assert 0 < (found.n_acc == 0).sum() < 20
    assert (found.repaired == (found.n_acc == 0)).all()
    assert (found.next_token == 0).all()


# --- typical acceptance


def typical(batch: DraftBatch, epsilon: float, alpha: float) -> Verdict:
    values = {"epsilon": np.full(len(batch), epsilon), "alpha": np.full(len(batch), alpha)}
    return VERIFIERS.get("typical_acceptance").verify(batch, noise_of(np.arange(len(batch)), [0] * len(batch)), values)


@pytest.mark.parametrize(("epsilon", "alpha"), [(1e-12, 1.0), (0.5, 1e-12)])
def test_low_thresholds_accept_everything_possible(epsilon: float, alpha: float) -> None:
    batch = Crowd(14, CHAIN, ["iid", "iid"], count=1_000).batch
    found = typical(batch, epsilon, alpha)
    assert (found.n_acc == (batch.target_at > 0).cumprod(1).sum(1)).all()


def test_certain_rows_accept_their_token_only() -> None:
    crowd = Crowd(15, CHAIN, ["iid", "iid"], count=1_000)
    sure = torch.nn.functional.one_hot(crowd.batch.p.argmax(1), VOCAB).double()
    found = typical(replace(crowd.batch, p=sure), 0.09, 0.3)
    matched = verify("match", replace(crowd.batch, drawn=sure.argmax(1)), crowd.noise)
    assert (found.path == matched.path).all() and (found.next_token == matched.next_token).all()


def test_what_is_more_probable_than_epsilon_is_accepted() -> None:
    batch = Crowd(16, [-1], ["iid"], count=1_000).batch
    assert (typical(batch, 0.2, 1.0).n_acc >= (batch.target_at[:, 0] > 0.2)).all()


def test_only_typical_acceptance_is_lossy_and_has_parameters() -> None:
    assert {verifier.name for verifier in VERIFIERS} == {*LOSSLESS, "typical_acceptance"}
    for verifier in VERIFIERS:
        assert verifier.lossless == (verifier.name in LOSSLESS) == (not verifier.params)


def test_a_token_exactly_at_the_threshold_is_not_accepted() -> None:
    batch = single([0.25, 0.75], [1.0, 0.0])
    assert (typical(batch, 0.25, 1.0).n_acc == 0).all()
    assert (typical(batch, 0.2499, 1.0).n_acc == 1).all()
