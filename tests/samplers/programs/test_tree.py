"""Tree search: what it visits in which order, against plain references, and what it returns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest

from samplers.contract import SamplerError
from samplers.model_facts import NO_FACTS
from samplers.programs.branch import Token
from samplers.programs.contract import ProgramError, Setting, Task
from samplers.programs.tree import Tree
from samplers.programs.value import VALUE_FUNCTIONS, Confidence
from samplers.quantise import pick, quantise
from samplers.rng import Noise, Purpose, Stream, child
from samplers.testing.program_world import Outcome, decode, with_defaults

Text = tuple[int, ...]
PROGRAM = Tree()
VOCABULARY, LENGTH, END = 3, 4, 0


def law(output: tuple[Any, ...]) -> list[float]:
    """Logits of a toy model whose every prefix has a row of its own, seldom with the end as its best token."""
    seed = 1 + sum((token + 1) * 5**i for i, token in enumerate(output))
    row = np.random.default_rng(seed).standard_normal(VOCABULARY).astype(np.float32)
    row[END] -= 1
    return row.tolist()


def logprobs(output: Text) -> np.ndarray:
    row = np.array(law(output))
    return row - np.logaddexp.reduce(row)


def texts() -> set[Text]:
    """All texts the toy model can end up with."""
    whole = product(range(VOCABULARY), repeat=LENGTH)
    return {output[: output.index(END) + 1] if END in output else output for output in whole}


def over(output: Text) -> bool:
    return END in output or len(output) == LENGTH


def greedy(output: Text) -> Text:
    while not over(output):
        output += (int(logprobs(output).argmax()),)
    return output


def mean_logprob(output: Text) -> float:
    return sum(logprobs(output[:at])[token] for at, token in enumerate(output)) / len(output)


def ranked(output: Text, k: int) -> list[int]:
    return np.argsort(-logprobs(output), kind="stable")[:k].tolist()


def run(*, n: int = 1, seed: int = 0, stages: Any = None, **values: Any) -> Outcome:
    limits = {"max_tokens": LENGTH, "ending_ids": (END,)}
    return decode(PROGRAM, law, n=n, seed=seed, stages=stages, values=values, **limits)


def in_order(**values: Any) -> list[Text]:
    """The texts of all roll-outs, as they were made."""
    choices = run(n=values["budget"], **values).choices.values()
    return [choice.ids for choice in sorted(choices, key=lambda choice: choice.details["rollout"])]


def prefixes(outputs: Sequence[Text]) -> set[Text]:
    return {output[:length] for output in outputs for length in range(1, len(output) + 1)}


# references: no tree, everything found again from the list of texts


def untried(made: Sequence[Text], prefix: Text, k: int) -> list[int]:
    return [token for token in ranked(prefix, k) if (*prefix, token) not in prefixes(made)]


def inner(made: Sequence[Text]) -> list[Text]:
    """Prefixes that something follows, in order of creation."""
    return list(dict.fromkeys(text[:length] for text in made for length in range(len(text)))) or [()]


def backed_up(made: Sequence[Text], prefix: Text, backup: str) -> float:
    values = [mean_logprob(text) for text in made if text[: len(prefix)] == prefix]
    return max(values) if backup == "max" else sum(values) / len(values)


def by_confidence(budget: int, k: int, tau: float, backup: str, seed: int) -> Iterator[Text]:
    made: list[Text] = []
    for iteration in range(budget):
        nodes = [prefix for prefix in inner(made) if untried(made, prefix, k)]
        if not nodes:
            return
        values = np.array([backed_up(made, prefix, backup) if made else 0.0 for prefix in nodes])
        noise = Noise(np.array([seed]), np.array([0]), np.array([iteration]))
        at = values.argmax() if tau == 0 else pick(quantise(values[None] / tau), noise.bits(Purpose.TREE))[0]
        made.append(greedy((*nodes[at], untried(made, nodes[at], k)[0])))
        yield made[-1]


def by_puct(budget: int, k: int, c: float, backup: str) -> Iterator[Text]:
    made: list[Text] = []

    def score(prefix: Text, token: int) -> float:
        through = [text for text in made if text[: len(prefix) + 1] == (*prefix, token)]
        whole = [mean_logprob(text) for text in made]
        scaled = 0.0
        if through and max(whole) > min(whole):
            scaled = (backed_up(made, (*prefix, token), backup) - min(whole)) / (max(whole) - min(whole))
        parent = sum(text[: len(prefix)] == prefix for text in made)
        return scaled + c * math.exp(logprobs(prefix)[token]) * math.sqrt(parent) / (1 + len(through))

    def can_grow(prefix: Text) -> bool:
        return any(prefix == one[: len(prefix)] and untried(made, one, k) for one in inner(made))

    for _ in range(budget):
        if not can_grow(()):
            return
        prefix: Text = ()
        while True:
            new, nodes = untried(made, prefix, k)[:1], inner(made)
            tokens = [token for token in range(VOCABULARY) if (*prefix, token) in nodes and can_grow((*prefix, token))]
            token = max(sorted(tokens + new), key=lambda one: score(prefix, one))
            prefix = (*prefix, token)
            if token in new:
                break
        made.append(greedy(prefix))
        yield made[-1]


def by_priority(budget: int, k: int) -> Iterator[Text]:
    """Priority sampling with local keys."""
    heap = [(math.inf, ())]
    for _ in range(budget):
        if not heap:
            return
        _, text = heap.pop(heap.index(max(heap)))
        while not over(text):
            row = logprobs(text)
            first, *others = ranked(text, k)
            heap += [(float(row[token]), (*text, token)) for token in others]
            text += (first,)
        yield text


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("backup", ["max", "mean"])
@pytest.mark.parametrize("tau", [0.0, 0.05, 1.0])
def test_confidence_against_the_reference(tau: float, backup: str, k: int) -> None:
    for seed in range(3):
        expected = list(by_confidence(20, k, tau, backup, seed))
        assert in_order(budget=20, candidates=k, tau=tau, backup=backup, seed=seed) == expected


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("backup", ["max", "mean"])
@pytest.mark.parametrize("c", [0.0, 0.3, 1.0, 30.0])
def test_puct_against_the_reference(c: float, backup: str, k: int) -> None:
    expected = list(by_puct(24, k, c, backup))
    assert in_order(budget=24, candidates=k, select="puct", c_puct=c, backup=backup) == expected


@pytest.mark.parametrize("k", [2, 3])
def test_with_the_best_child_as_value_it_is_priority_sampling(k: int) -> None:
    expected = list(by_priority(40, k))
    assert in_order(budget=40, candidates=k, tau=0.0, value="best_child") == expected
    assert expected[0] == greedy(())


def test_at_tau_0_nothing_is_drawn() -> None:
    assert run(n=8, tau=0.0, seed=1).choices == run(n=8, tau=0.0, seed=2).choices
    assert run(n=8, seed=1).choices == run(n=8, seed=1).choices != run(n=8, seed=2).choices


# what comes out


@pytest.mark.parametrize("rollout", ["greedy", "sample"])
@pytest.mark.parametrize("select", ["confidence", "puct"])
@pytest.mark.parametrize("parallel", [1, 3])
def test_a_large_budget_finds_every_text(select: str, rollout: str, parallel: int) -> None:
    every = texts()
    values = {"select": select, "rollout": rollout, "parallel": parallel, "candidates": VOCABULARY}
    outcome = run(n=100, budget=100, **values)
    assert len(outcome.texts) == len(every) and set(outcome.texts) == every
    assert outcome.report == {
        "rollouts": len(every),
        "tokens": len(prefixes(list(every))),
        "leaves": len(every),
        "exhausted": True,
    }
    found = [choice.details["value"] for choice in outcome.choices.values()]
    assert found == sorted(found, reverse=True)
    assert not run(n=1, budget=len(every) - 1, **values).report["exhausted"]


@pytest.mark.parametrize("rollout", ["greedy", "sample"])
@pytest.mark.parametrize("select", ["confidence", "puct"])
@pytest.mark.parametrize("parallel", [1, 3])
def test_texts_are_distinct_and_nothing_shared_is_computed_twice(select: str, rollout: str, parallel: int) -> None:
    for seed in range(5):
        outcome = run(n=13, budget=13, select=select, rollout=rollout, parallel=parallel, seed=seed)
        edges = prefixes(outcome.texts)
        assert len(set(outcome.texts)) == 13
        assert outcome.report["tokens"] == len(edges)
        assert outcome.computed == len(edges - set(outcome.texts))  # the last token of a text is never computed
        details = [choice.details for choice in outcome.choices.values()]
        lengths = [len(text) for text in outcome.texts]
        assert sum(lengths) - sum(one["branch_depth"] for one in details) == len(edges)
        assert {one["visits"] for one in details if one["branch_depth"] == 0} == {13}  # of the root: the budget


def test_the_best_of_a_larger_budget_is_no_worse() -> None:
    for select in ("confidence", "puct"):
        best = [run(budget=budget, select=select, seed=4).choices[0].details["value"] for budget in range(1, 20)]
        assert best == sorted(best)
        assert best[0] < best[-1]
        all_of_them = in_order(budget=19, select=select, seed=4)
        assert best == pytest.approx([max(map(mean_logprob, all_of_them[:at])) for at in range(1, 20)], abs=1e-6)


def test_what_is_said_about_a_choice() -> None:
    outcome = run(n=3, budget=7)
    for choice in outcome.choices.values():
        assert choice.end is not None
        assert choice.end.reason == ("stop" if choice.ids[-1] == END else "length")
        assert choice.details["value"] == pytest.approx(mean_logprob(choice.ids), abs=1e-6)
        assert choice.details["logprob"] == pytest.approx(mean_logprob(choice.ids) * len(choice.ids), abs=1e-5)


def test_parallel_rollouts_take_fewer_passes_and_begin_in_the_same_place() -> None:
    alone, together = (run(n=12, budget=12, parallel=parallel, tau=0.0) for parallel in (1, 4))
    assert together.passes <= 1 + 3 * (LENGTH - 1) < alone.passes
    first = [greedy((token,)) for token in ranked((), 3)]
    assert in_order(budget=3, parallel=3, select="puct") == first


def test_no_rollout_begins_behind_the_budget_in_tokens() -> None:
    order = in_order(budget=16, seed=2)
    for limit in range(1, 30):
        outcome = run(n=1, budget=16, budget_tokens=limit, seed=2)
        made, tokens = outcome.report["rollouts"], outcome.report["tokens"]
        assert tokens == len(prefixes(order[:made]))
        assert made == 16 or len(prefixes(order[: made - 1])) < limit <= tokens


def test_branches_that_nothing_can_start_from_are_given_back() -> None:
    outcome = run(n=1, budget=100, candidates=1)
    assert (outcome.report["rollouts"], outcome.report["exhausted"]) == (1, True)
    assert outcome.live == [1] * outcome.passes  # the prompt until there is a roll-out, and that
    wide = run(n=1, budget=100, candidates=VOCABULARY)
    assert wide.live[-1] < max(wide.live) < len(texts())


# sampled roll-outs


def test_sampled_rollouts_go_on_with_streams_of_their_own() -> None:
    """Every fork takes the stream of its place among the roll-outs that left the tree there."""
    seed, limit = 9, 6
    outcome = run(n=limit, budget=limit, rollout="sample", seed=seed)
    choices = sorted(outcome.choices.values(), key=lambda choice: choice.details["rollout"])
    streams: dict[Text, Stream] = {}  # of whoever made a prefix first
    left: dict[Text, int] = {(): 0}
    for choice in choices:
        depth = choice.details["branch_depth"]
        start = choice.ids[:depth]
        stream = child(streams.get(start, Stream(seed, 0)), depth, left[start])
        left[start] += 1
        for at in range(depth + 1, len(choice.ids)):
            prefix = choice.ids[:at]
            streams[prefix], left[prefix] = stream, 1
            noise = Noise(np.array([stream.key]), np.array([stream.choice]), np.array([at]))
            assert choice.ids[at] == pick(quantise(np.array([law(prefix)])), noise.bits(Purpose.DRAW))[0]


def test_a_drawn_token_need_not_be_a_candidate() -> None:
    found = {text for seed in range(10) for text in run(n=4, budget=4, rollout="sample", candidates=1, seed=seed).texts}
    assert len(found) > 1
    every = run(n=60, budget=60, rollout="sample", candidates=1)
    assert every.report["exhausted"] and len(every.texts) < len(texts())


# masks


def masked(output: Text, row: list[float]) -> list[float]:
    """No text may begin with token 1 and go on."""
    return [-math.inf] * VOCABULARY if output[:1] == (1,) else row


def test_a_dead_end_takes_a_rollout_and_gives_no_text() -> None:
    for select in ("confidence", "puct"):
        outcome = run(n=100, budget=100, candidates=VOCABULARY, stages=masked, select=select)
        assert set(outcome.texts) == {text for text in texts() if text[0] != 1}
        assert outcome.report["rollouts"] == outcome.report["leaves"] + 1
        assert outcome.report["exhausted"]


def test_candidates_are_what_the_masks_leave() -> None:
    outcome = run(n=50, budget=50, stages=lambda output, row: [-math.inf, *row[1:]])
    assert set(outcome.texts) == set(product((1, 2), repeat=LENGTH))


@pytest.mark.parametrize("dead", [0, 1])
def test_without_any_text_the_request_fails(dead: int) -> None:
    def none(output: Text, row: list[float]) -> list[float]:
        return [-math.inf] * VOCABULARY if len(output) == dead else [-math.inf, *row[1:]]

    with pytest.raises(ProgramError, match="masks") as error:
        run(stages=none)
    assert error.value.code == "constraint_unsatisfiable"


# value functions


class Shortness(Confidence):
    name = "shortness"

    def of_text(self, task: Task, tokens: Sequence[Token]) -> float:
        return -float(len(tokens))


class Nonsense(Confidence):
    name = "nonsense"

    def of_text(self, task: Task, tokens: Sequence[Token]) -> float:
        return math.nan


def test_value_functions_can_be_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VALUE_FUNCTIONS, "_items", dict(VALUE_FUNCTIONS._items))
    VALUE_FUNCTIONS.register(Shortness)
    VALUE_FUNCTIONS.register(Nonsense)
    outcome = run(n=5, budget=60, candidates=VOCABULARY, value="shortness")
    assert [len(text) for text in outcome.texts] == [1, 2, 2, 3, 3]
    assert PROGRAM.parse("value", "shortness", "sampler.value", NO_FACTS) == "shortness"
    with pytest.raises(ValueError, match="nonsense"):
        run(value="nonsense")


# requests


def test_refusals() -> None:
    defaults = with_defaults(PROGRAM, {})
    assert (defaults["budget"], defaults["candidates"], defaults["tau"], defaults["value"]) == (
        16,
        4,
        1.0,
        "confidence",
    )
    PROGRAM.check(defaults, Setting(16, 8))
    PROGRAM.check({**defaults, "rollout": "sample"}, Setting(1, 8, temperature=0.5, draw="gumbel"))
    refused: list[tuple[dict[str, Any], Setting, str]] = [
        ({}, Setting(17, 8), "budget"),
        ({}, Setting(1, 8, temperature=0.5), "temperature 1"),
        ({}, Setting(1, 8, stages=frozenset({"temperature"})), "temperature 1"),
        ({}, Setting(1, 8, draw="gumbel"), "gumbel"),
        ({"rollout": "sample"}, Setting(1, 8, draw="arithmetic"), "arithmetic"),
        ({"value": "best_child", "select": "puct"}, Setting(1, 8), "best_child"),
    ]
    for values, setting, message in refused:
        with pytest.raises(SamplerError, match=message):
            PROGRAM.check({**defaults, **values}, setting)
    with pytest.raises(SamplerError, match="known: best_child, confidence"):
        PROGRAM.parse("value", "oracle", "sampler.value", NO_FACTS)
    with pytest.raises(SamplerError, match="name"):
        PROGRAM.parse("value", 3, "sampler.value", NO_FACTS)
