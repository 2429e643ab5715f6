"""EAGER: when it forks, what it forks into, and that weighted means over its sequences are what they should be."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from samplers.contract import SamplerError
from samplers.programs import eager as module
from samplers.programs.contract import Setting
from samplers.programs.eager import Eager, entropies
from samplers.quantise import BITS, pick, quantise
from samplers.rng import Noise, Purpose, Stream, child
from samplers.testing import program_world
from samplers.testing.program_world import Choice, Outcome, decode, with_defaults

PROGRAM = Eager()
VOCABULARY, END = 3, 0
ALWAYS, NEVER = -1.0, 1e300
MODES = ["top2", "split"]


def law(output: tuple[Any, ...]) -> list[float]:
    """Logits of a toy model whose every prefix has a row of its own."""
    seed = 1 + sum((token + 1) * 5**i for i, token in enumerate(output))
    return (1.5 * np.random.default_rng(seed).standard_normal(VOCABULARY)).astype(np.float32).tolist()


def run(
    *, n: int = 4, max_tokens: int = 4, seed: int = 0, ending_ids: Sequence[int] = (END,), **values: Any
) -> Outcome:
    given = {key: values.pop(key) for key in ("law", "stages") if key in values}
    source = given.pop("law", law)
    return decode(PROGRAM, source, n=n, max_tokens=max_tokens, seed=seed, ending_ids=ending_ids, values=values, **given)


def plain(stream: Stream, output: tuple[int, ...] = (), max_tokens: int = 4) -> tuple[int, ...]:
    """An ordinary sample of this stream, `output` given."""
    while len(output) < max_tokens and END not in output:
        noise = Noise(np.array([stream.key]), np.array([stream.choice]), np.array([len(output)]))
        output += (int(pick(quantise(np.array([law(output)])), noise.bits(Purpose.DRAW))[0]),)
    return output


def probability(output: tuple[int, ...]) -> float:
    rows = [np.array(law(output[:at])) for at in range(len(output))]
    return math.prod(float(np.exp(row - np.logaddexp.reduce(row))[t]) for row, t in zip(rows, output, strict=True))


def texts(max_tokens: int) -> list[tuple[int, ...]]:
    """All texts the toy model can end up with."""
    whole = product(range(VOCABULARY), repeat=max_tokens)
    return sorted({output[: output.index(END) + 1] if END in output else output for output in whole})


def prefixes(outputs: Sequence[tuple[int, ...]]) -> set[tuple[int, ...]]:
    return {output[:length] for output in outputs for length in range(1, len(output) + 1)}


# when


def test_entropy_is_that_of_the_k_best_in_nats() -> None:
    row = np.log([0.5, 0.25, 0.125, 0.125])
    kept = np.array([0.5, 0.25, 0.125]) / 0.875
    rows = torch.tensor(np.array([row, np.zeros(4), [0.0, -np.inf, -np.inf, -np.inf]]), dtype=torch.float32)
    assert entropies(rows, 20).tolist() == pytest.approx([1.75 * math.log(2), math.log(4), 0.0], abs=1e-6)
    assert entropies(rows, 3).tolist() == pytest.approx([-(kept * np.log(kept)).sum(), math.log(3), 0.0], abs=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_without_forks_it_is_one_plain_sample(mode: str) -> None:
    for seed in range(20):
        outcome = run(theta=NEVER, fork_mode=mode, seed=seed)
        assert outcome.texts == [plain(Stream(seed, 0))]
        assert outcome.report == {
            "sequences": 1,
            "budget": 4,
            "unused_budget": 3,
            "edges": len(outcome.texts[0]),
        }


@pytest.mark.parametrize("mode", MODES)
def test_with_a_negative_threshold_sequences_double_until_the_budget(mode: str) -> None:
    outcome = run(theta=ALWAYS, fork_mode=mode, n=11, max_tokens=6, ending_ids=())
    assert outcome.live == [1, 2, 4, 8, 11, 11]
    depths = [outcome.choices[i].details["branch_depth"] for i in range(11)]
    parents = [outcome.choices[i].details["parent"] for i in range(11)]
    assert depths == [0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 3]
    assert parents == [None, 0, 0, 1, 0, 1, 2, 3, 0, 1, 2]  # in order of creation
    assert outcome.report["unused_budget"] == 0


def test_a_sequence_forks_exactly_where_the_raw_row_is_uncertain() -> None:
    theta = 0.8
    outcome = run(theta=theta, n=100, seed=3)
    forked = {(i.ids[: i.details["branch_depth"]]) for i in outcome.choices.values() if i.details["parent"] is not None}
    inner = {prefix[:-1] for prefix in prefixes(outcome.texts)}
    rows = {prefix: entropies(torch.tensor([law(prefix)]), 20).item() for prefix in inner}
    assert forked == {prefix for prefix, entropy in rows.items() if entropy > theta}
    assert 0 < len(forked) < len(inner)


def test_stages_do_not_decide_where_but_what() -> None:
    def sharpened(output: tuple[int, ...], row: list[float]) -> list[float]:
        return [100 * value for value in reversed(row)]

    outcome = run(theta=0.8, n=2, seed=3, stages=sharpened)
    fork = outcome.choices[1].details["branch_depth"]
    prefix = outcome.texts[0][:fork]
    assert entropies(torch.tensor([law(prefix)]), 20).item() > 0.8
    best = np.argsort(law(prefix)[::-1])[::-1]
    assert [text[fork] for text in outcome.texts] == best[:2].tolist()


@pytest.mark.parametrize("mode", MODES)
def test_a_row_of_one_token_never_forks(mode: str) -> None:
    def masked(output: tuple[int, ...], row: list[float]) -> list[float]:
        return row if len(output) == 2 else [-math.inf, row[1], -math.inf]

    outcome = run(theta=ALWAYS, fork_mode=mode, stages=masked)
    assert [choice.details["branch_depth"] for choice in outcome.choices.values()] == [0, 2]


def test_a_row_without_tokens_ends_its_sequence_only() -> None:
    def masked(output: tuple[int, ...], row: list[float]) -> list[float]:
        return [-math.inf] * 3 if output[:1] == (1,) else [-math.inf, *row[1:]]

    outcome = run(theta=ALWAYS, n=2, stages=masked)
    ends = {choice.ids: choice.end.reason for choice in outcome.choices.values() if choice.end}
    assert ends.pop((1,)) == "error"
    assert list(ends.values()) == ["length"]


# what


@pytest.mark.parametrize("mode", MODES)
def test_siblings_differ_first_at_the_fork(mode: str) -> None:
    for seed in range(20):
        outcome = run(theta=0.6, fork_mode=mode, n=8, seed=seed)
        assert len(set(outcome.texts)) == len(outcome.texts) <= 8
        for choice in outcome.choices.values():
            if choice.details["parent"] is not None:
                depth, parent = choice.details["branch_depth"], outcome.choices[choice.details["parent"]]
                assert choice.ids[:depth] == parent.ids[:depth]
                assert choice.ids[depth] != parent.ids[depth]


@pytest.mark.parametrize("mode", MODES)
def test_nothing_shared_is_computed_twice(mode: str) -> None:
    for seed in range(20):
        outcome = run(theta=0.6, fork_mode=mode, n=8, seed=seed)
        edges = prefixes(outcome.texts)
        assert outcome.report["edges"] == len(edges)
        assert outcome.computed == len(edges - set(outcome.texts))  # the last token of a text is never computed


def test_a_fork_goes_on_with_a_stream_of_its_own() -> None:
    for seed in range(20):
        outcome = run(theta=ALWAYS, n=2, seed=seed)
        best = np.argsort(law(()))[::-1].tolist()
        streams = Stream(seed, 0), child(Stream(seed, 0), 0, 1)
        assert outcome.texts == [plain(stream, (best[i],)) for i, stream in enumerate(streams)]


def test_a_split_draws_by_the_stream_of_the_fork() -> None:
    for seed in range(20):
        outcome = run(theta=ALWAYS, n=2, seed=seed, fork_mode="split")
        row = np.array([law(())])
        row[0, row.argmax()] = -np.inf
        stream = child(Stream(seed, 0), 0, 1)
        noise = Noise(np.array([stream.key]), np.array([0]), np.array([0]))
        drawn = int(pick(quantise(row), noise.bits(Purpose.DRAW))[0])
        assert outcome.texts[1] == plain(stream, (drawn,))


def test_choices_do_not_depend_on_the_budget_before_it_is_reached() -> None:
    wide = run(theta=0.9, n=64, seed=5)
    assert 1 < len(wide.texts) < 64
    assert run(theta=0.9, n=len(wide.texts), seed=5).choices == wide.choices


def test_the_same_seed_gives_the_same_tree() -> None:
    trees = [run(theta=0.6, n=8, seed=seed, fork_mode="split").choices for seed in (1, 1, 2)]
    assert trees[0] == trees[1] != trees[2]


# weights


def test_weights_of_the_two_best_are_their_shares() -> None:
    outcome = run(theta=ALWAYS, n=2)
    first, second = np.sort(np.exp(law(())))[::-1][:2]
    weights = [choice.details["tree_weight"] for choice in outcome.choices.values()]
    assert weights == pytest.approx([first / (first + second), second / (first + second)], rel=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_weights_of_a_tree_sum_to_one(mode: str) -> None:
    for seed in range(20):
        outcome = run(theta=0.6, fork_mode=mode, n=8, seed=seed)
        weights = [choice.details["tree_weight"] for choice in outcome.choices.values()]
        assert sum(weights) == pytest.approx(1, abs=1e-12)
        for choice in outcome.choices.values():
            assert choice.details["logprob"] == pytest.approx(math.log(probability(choice.ids)), abs=1e-5)


class Script:
    """Goes through all random decisions of a program, one run each."""

    def __init__(self) -> None:
        self._path: list[int] = []
        self._widths: list[int] = []
        self._at = 0
        self.probability = 1.0

    def start(self) -> bool:
        """Turn to the next path; False when there is none."""
        if self._widths:
            while self._path and self._path[-1] + 1 == self._widths[len(self._path) - 1]:
                self._path.pop()
            if not self._path:
                return False
            self._path[-1] += 1
        self._widths, self._at, self.probability = self._widths[: len(self._path)], 0, 1.0
        return True

    def choose(self, weights: np.ndarray) -> int:
        """One of the tokens with a weight. weights: [V], summing to 1."""
        tokens = np.flatnonzero(weights)
        if self._at == len(self._path):
            self._path.append(0)
            self._widths.append(len(tokens))
        token = int(tokens[self._path[self._at]])
        self._at += 1
        self.probability *= float(weights[token])
        return token


def weighted(choices: Sequence[Choice]) -> Counter[tuple[int, ...]]:
    counts: Counter[tuple[int, ...]] = Counter()
    for choice in choices:
        counts[choice.ids] += choice.details["tree_weight"]
    return counts


def expected(monkeypatch: pytest.MonkeyPatch, **values: Any) -> dict[tuple[int, ...], float]:
    """E of the tree weight of every text, over all random decisions."""
    script = Script()
    chosen = lambda weights, bits: np.array([script.choose(weights[0] / 2**BITS)])  # noqa: E731
    monkeypatch.setattr(program_world, "pick", chosen)

    def draw(logits: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
        return torch.tensor([script.choose(row.softmax(0).numpy()) for row in logits.double()], dtype=torch.int64)

    monkeypatch.setattr(module, "draw", draw)
    sums: Counter[tuple[int, ...]] = Counter()
    total = 0.0
    while script.start():
        counts = weighted(list(run(max_tokens=3, **values).choices.values()))
        total += script.probability
        for text, weight in counts.items():
            sums[text] += script.probability * weight
    assert total == pytest.approx(1, abs=1e-9)
    return dict(sums)


@pytest.mark.parametrize(("theta", "n"), [(ALWAYS, 2), (ALWAYS, 3), (0.7, 3), (0.9, 2)])
def test_split_is_unbiased_by_enumeration(monkeypatch: pytest.MonkeyPatch, theta: float, n: int) -> None:
    sums = expected(monkeypatch, theta=theta, n=n, fork_mode="split")
    assert sums == pytest.approx({text: probability(text) for text in texts(3)}, abs=2e-6)


def test_the_two_best_are_biased(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the enumeration can see: two tokens stand for three here."""
    sums = expected(monkeypatch, theta=ALWAYS, n=2, fork_mode="top2")
    assert max(abs(sums.get(text, 0.0) - probability(text)) for text in texts(3)) > 0.01


def test_split_is_unbiased_over_seeds() -> None:
    counts = [
        weighted(list(run(theta=0.7, n=3, max_tokens=2, seed=seed, fork_mode="split").choices.values()))
        for seed in range(600)
    ]
    for text in filter(lambda text: probability(text) > 0.01, texts(2)):  # rarer ones hardly occur
        weights = np.array([count[text] for count in counts])
        assert stats.ttest_1samp(weights, probability(text)).pvalue > 1e-6


# requests


def test_parameters() -> None:
    defaults = with_defaults(PROGRAM, {})
    assert defaults == {"theta": 2.0, "entropy_top_k": 20, "fork_mode": "top2"}
    assert (PROGRAM.default_n, PROGRAM.default_temperature) == (32, 0.6)
    PROGRAM.check(defaults, Setting(4, 16, temperature=0.0, draw="gumbel"))
    with pytest.raises(SamplerError, match="split"):
        PROGRAM.check({**defaults, "fork_mode": "split"}, Setting(4, 16, temperature=0.0))
    with pytest.raises(SamplerError, match="arithmetic"):
        PROGRAM.check(defaults, Setting(4, 16, draw="arithmetic"))
    with pytest.raises(SamplerError, match="entropy_top_k"):
        next(param for param in PROGRAM.params if param.name == "entropy_top_k").check(1, "sampler.entropy_top_k")


def test_sequences_stream_and_a_fork_begins_with_what_it_shares() -> None:
    """Deltas of every pass, put together, are the choices; each pass says what it has made final."""
    shown: list[list[tuple[int, int]]] = []
    taken = program_world._take

    def spy(task: Any, outcome: Outcome) -> None:
        shown.append([(one.choice, len(one.tokens)) for one in task._shown.values()])
        taken(task, outcome)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program_world, "_take", spy)
        run(theta=ALWAYS, n=3, max_tokens=3, ending_ids=())
    assert shown == [[], [(0, 1), (1, 1)], [(0, 1), (1, 1), (2, 2)], [(0, 1), (1, 1), (2, 1)]]
