"""Superposed decoding against a beam written from the formulas, over laws that take mixtures of tokens."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from samplers.contract import SamplerError
from samplers.model_facts import NO_FACTS, ModelFacts
from samplers.programs.branch import Mixture, Token
from samplers.programs.contract import ProgramError, Setting
from samplers.programs.ngram_counter import NgramCounter
from samplers.programs.superposed import DEFAULT_ALPHA, DEFAULT_WEIGHTS, Draft, Superposed, extended
from samplers.testing.program_world import Entry, Outcome, decode, with_defaults

VOCABULARY = 6
PROMPT = (3, 1)
PROGRAM = Superposed()
Texts = list[list[int]]
Scored = tuple[tuple[int, ...], float]  # a draft's tokens and score


@dataclass
class MixedLaw:
    """Probabilities linear in the embedding of the last entry; earlier ones add to the logits."""

    seed: int
    history: float = 1.0  # how much earlier entries matter
    asked: list[tuple[Entry, ...]] = field(default_factory=list)  # every call

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self.first = rng.normal(0, 2, VOCABULARY)
        self.after = rng.dirichlet(np.full(VOCABULARY, 0.6), VOCABULARY)  # [token, next token]
        self.before = rng.normal(0, self.history, (VOCABULARY, VOCABULARY))

    def __call__(self, entries: tuple[Entry, ...]) -> list[float]:
        self.asked.append(entries)
        if not entries:
            return list(self.first)
        logits = np.log(self._mixed(self.after, entries[-1]))
        for age, entry in enumerate(reversed(entries[:-1])):
            logits = logits + 0.7**age * self._mixed(self.before, entry)
        return list(logits)

    def _mixed(self, table: np.ndarray, entry: Entry) -> np.ndarray:
        if isinstance(entry, int):
            return table[entry]
        return np.array(entry.weights) @ table[list(entry.ids)]


def texts_of(seed: int) -> Texts:
    rng = np.random.default_rng(seed)
    return [rng.choice(VOCABULARY, 60, p=rng.dirichlet(np.ones(VOCABULARY))).tolist() for _ in range(4)]


def facts_of(texts: Texts, highest: int = 6) -> ModelFacts:
    counter = NgramCounter(VOCABULARY, highest)
    for text in texts:
        counter.add(text)
        counter.end_text()
    return ModelFacts(ngrams=counter.tables(""))


def ngram_probability(texts: Texts, context: tuple[int, ...], token: int) -> float:
    total = 0.0
    for order, weight in enumerate(DEFAULT_WEIGHTS, 2):
        wanted = context[-(order - 1) :]
        followed = Counter(
            text[i + order - 1]
            for text in texts
            for i in range(len(text) - order + 1)
            if tuple(text[i : i + order - 1]) == wanted
        )
        if followed:
            total += weight * followed[token] / followed.total()
    return total


def softmax(values: Sequence[float]) -> list[float]:
    peak = max(values)
    weights = [math.exp(value - peak) for value in values]
    return [weight / sum(weights) for weight in weights]


def beam(
    law: MixedLaw,
    n: int,
    max_tokens: int,
    *,
    temperature: float = 0.06,
    alpha: float = 0.0,
    m: int | None = None,
    texts: Texts | None = None,
    ending: frozenset[int] = frozenset(),
    reset_every: int = 0,
) -> tuple[list[Scored], int]:
    """(drafts, forward passes), from the formulas: one candidate at a time."""
    live: list[Scored] = [((), 0.0)]
    finished: list[Scored] = []
    entries: list[Entry] = []
    for length in range(1, max_tokens + 1):
        if length > 1:
            if reset_every and (length - 1) % reset_every == 0:
                entries = list(live[0][0][:-1])
            entries.append(Mixture(tuple(ids[-1] for ids, _ in live), tuple(softmax([score for _, score in live]))))
        logits = [float(np.float32(value)) / temperature for value in law(tuple(entries))]
        kept = sorted(range(VOCABULARY), key=lambda token: (-logits[token], token))
        kept = kept[: m or 3 * n] if length > 1 else kept
        p = dict(zip(kept, softmax([logits[token] for token in kept]), strict=True))
        candidates = []
        for rank, (ids, score) in enumerate(live):
            for token in kept:
                gain = math.log(p[token])
                if length > 1 and alpha > 0:
                    p_ngram = ngram_probability(texts or [], PROMPT + ids, token)
                    gain = (1 - alpha) * gain + (alpha * math.log(p_ngram) if p_ngram > 0 else -200)
                candidates.append((-(score + gain), rank, token, ids))
        best = [((*ids, token), -cost) for cost, _, token, ids in sorted(candidates)[: 2 * n]]
        finished += [one for one in best[:n] if one[0][-1] in ending]
        finished = sorted(finished, key=lambda one: -one[1] / len(one[0]))[:n]
        live = [one for one in best if one[0][-1] not in ending][:n]
        if length < max_tokens and (len(finished) == n or not live):
            return finished, length
    return sorted([*finished, *live], key=lambda one: -one[1] / len(one[0]))[:n], max_tokens


def run(law: MixedLaw, n: int, max_tokens: int, texts: Texts | None = None, **more: Any) -> Outcome:
    facts = NO_FACTS if texts is None else facts_of(texts)
    return decode(PROGRAM, law, n=n, max_tokens=max_tokens, prompt=PROMPT, model=facts, **more)


def scores_of(outcome: Outcome) -> list[float]:
    return [outcome.choices[choice].details["score"] for choice in range(len(outcome.choices))]


CASES: list[dict[str, Any]] = [
    {"n": 1},
    {"n": 3, "temperature": 1.0},
    {"n": 3, "temperature": 0.3, "ending": frozenset({4})},
    {"n": 2, "temperature": 1.0, "ending": frozenset({0, 1}), "m": 4},
    {"n": 3, "temperature": 0.5, "alpha": 0.54},
    {"n": 4, "temperature": 1.0, "alpha": 0.3, "ending": frozenset({2}), "m": 6},
    {"n": 3, "temperature": 0.5, "reset_every": 2},
    {"n": 2, "temperature": 1.0, "alpha": 0.6, "reset_every": 3, "ending": frozenset({5})},
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_formulas_step_by_step(case: dict[str, Any], seed: int) -> None:
    texts, law = texts_of(seed), MixedLaw(seed)
    values = {
        "superposed_temperature": case.get("temperature", 0.06),
        "alpha": case.get("alpha", 0.0),
        "m": case.get("m"),
        "reset_every": case.get("reset_every", 0),
    }
    for max_tokens in range(1, 8):
        expected, passes = beam(law, max_tokens=max_tokens, texts=texts, **case)
        found = run(law, case["n"], max_tokens, texts, values=values, ending_ids=case.get("ending", ()))
        assert found.texts == [ids for ids, _ in expected]
        np.testing.assert_allclose(scores_of(found), [score for _, score in expected], rtol=1e-5, atol=1e-5)
        assert found.passes == found.report["forward_passes"] == passes


@pytest.mark.parametrize("seed", range(8))
def test_one_draft_is_greedy(seed: int) -> None:
    law = MixedLaw(seed)
    ids: tuple[int, ...] = ()
    while len(ids) < 10 and 2 not in ids:
        ids += (int(np.argmax(np.float32(law(ids)))),)
    found = run(law, 1, 10, ending_ids=[2], values={"superposed_temperature": 0.06 if seed % 2 else 2.0})
    assert found.texts == [ids]
    assert found.choices[0].end is not None and found.choices[0].end.reason == ("stop" if 2 in ids else "length")


def test_weights_are_the_softmax_of_the_scores() -> None:
    law = MixedLaw(5)
    run(law, 3, 6, values={"superposed_temperature": 1.0})
    mixtures = law.asked[-1]
    assert len(mixtures) == 5
    for entry in mixtures:
        assert isinstance(entry, Mixture)
        assert math.fsum(entry.weights) == pytest.approx(1, abs=1e-12)
        assert list(entry.weights) == sorted(entry.weights, reverse=True)
    first = np.exp(np.sort(law.first)[::-1][:3])
    assert mixtures[0].weights == pytest.approx(first / first.sum(), rel=1e-6)  # type: ignore[union-attr]


def test_a_linear_model_gives_the_exact_mixture() -> None:
    """Only the last token matters: after one token each, the shared row is sum of gamma_i p(. | draft i)."""
    law = MixedLaw(6, history=0.0)
    values = {"superposed_temperature": 1.0, "m": VOCABULARY}
    singles = run(law, 3, 1, values=values)
    gamma = softmax(scores_of(singles))
    exact = sum(weight * law.after[ids[0]] for weight, ids in zip(gamma, singles.texts, strict=True))
    pairs = run(law, 3, 2, values=values)
    for choice in pairs.choices.values():
        assert choice.tokens[1].logprob == pytest.approx(math.log(exact[choice.ids[1]]), rel=1e-5)
        assert choice.tokens[1].logq == pytest.approx(choice.tokens[1].logprob, rel=1e-5)


def test_tokens_of_one_embedding_give_one_row() -> None:
    law = MixedLaw(7, history=0.0)
    law.after[:] = law.after[0]
    found = run(law, 2, 5, values={"superposed_temperature": 1.0, "m": VOCABULARY})
    for choice in found.choices.values():
        expected = [math.log(law.after[0][token]) for token in choice.ids[1:]]
        np.testing.assert_allclose([token.logprob for token in choice.tokens[1:]], expected, rtol=1e-5)


def test_alpha_one_over_the_whole_vocabulary_follows_the_ngrams_alone() -> None:
    texts, values = texts_of(8), {"alpha": 1.0, "m": VOCABULARY}
    laws = [MixedLaw(8), MixedLaw(9)]
    laws[1].first = laws[0].first
    found = [run(law, 3, 6, texts, values=values) for law in laws]
    assert found[0].texts == found[1].texts
    assert found[0].texts == [ids for ids, _ in beam(laws[0], 3, 6, alpha=1.0, m=VOCABULARY, texts=texts)[0]]


@pytest.mark.parametrize("alpha", [0.0, 0.54])
def test_drafts_are_distinct_and_scores_never_rise(alpha: float) -> None:
    for seed in range(5):
        values = {"alpha": alpha, "superposed_temperature": 0.7}
        found = run(MixedLaw(seed), 5, 7, texts_of(seed), values=values, ending_ids=[1])
        assert len(set(found.texts)) == 5
        means = []
        for choice in found.choices.values():
            gains = [token.logq for token in choice.tokens]
            assert max(gains) <= 1e-12
            assert choice.details["score"] == pytest.approx(sum(gains))
            means.append(sum(gains) / len(gains))
            assert choice.details["perplexity"] == pytest.approx(math.exp(-means[-1]))
        assert means == sorted(means, reverse=True)


@pytest.mark.parametrize("n", [1, 3, 10])
def test_passes_and_memory_do_not_depend_on_the_number_of_drafts(n: int) -> None:
    found = run(MixedLaw(10), n, 6)
    assert (found.passes, found.computed, found.longest) == (6, 5, 5)  # the last token is never fed
    assert len(found.choices) == min(n, VOCABULARY**6)
    assert found.live == [1] * 6


def test_the_order_of_the_drafts_does_not_matter() -> None:
    rng = np.random.default_rng(11)
    tokens = [Token(token, -1.0, -1.0) for token in range(VOCABULARY)]
    drafts = [Draft((Token(token, -1.0, -1.0),), float(rng.normal())) for token in range(4)]
    gains = rng.normal(size=(4, VOCABULARY))
    expected = [(draft.ids, draft.score) for draft in extended(drafts, tokens, gains, 9)]
    for _ in range(5):
        order = rng.permutation(4)
        found = extended([drafts[i] for i in order], tokens, gains[order], 9)
        assert [(draft.ids, draft.score) for draft in found] == expected


def test_of_equal_candidates_the_better_draft_and_the_lower_id_come_first() -> None:
    tokens = [Token(token, -1.0, -1.0) for token in (2, 0, 1)]
    drafts = [Draft((Token(token, -1.0, -1.0),), -1.0) for token in (5, 4)]
    found = extended(drafts, tokens, np.zeros((2, 3)), 6)
    assert [draft.ids for draft in found] == [[5, 0], [5, 1], [5, 2], [4, 0], [4, 1], [4, 2]]


def test_a_reset_replaces_the_mixtures_by_the_best_draft() -> None:
    law = MixedLaw(12)
    found = run(law, 3, 6, values={"superposed_temperature": 1.0, "reset_every": 2})
    kinds = ["".join("m" if isinstance(entry, Mixture) else "t" for entry in asked) for asked in law.asked]
    assert kinds == ["", "m", "tm", "tmm", "tttm", "tttmm"]
    assert (found.passes, found.computed) == (6, 1 + 2 + 1 + 4 + 1)


def test_stop_strings_end_drafts() -> None:
    facts = ModelFacts(pieces=[bytes([97 + token]) for token in range(VOCABULARY)])
    law = MixedLaw(13)
    plain = decode(PROGRAM, law, n=1, max_tokens=8, prompt=PROMPT, model=facts)
    text = bytes(97 + token for token in plain.texts[0])
    stopped = decode(PROGRAM, law, n=1, max_tokens=8, prompt=PROMPT, model=facts, stops=[text[2:4]])
    length = text.index(text[2:4]) + 2
    assert stopped.texts == [plain.texts[0][:length]] and stopped.choices[0].end.reason == "stop"  # type: ignore[union-attr]


def test_stages_shape_the_row_and_say_when_nothing_is_left() -> None:
    def only(allowed: set[int]) -> Any:
        return lambda ids, row: [value if token in allowed else -math.inf for token, value in enumerate(row)]

    found = run(MixedLaw(14), 3, 4, stages=only({0, 5}))
    assert {token for ids in found.texts for token in ids} == {0, 5} and len(found.texts) == 3
    assert run(MixedLaw(14), 3, 1, stages=only({2})).texts == [(2,)]
    with pytest.raises(ProgramError, match="leave no token"):
        run(MixedLaw(14), 3, 4, stages=only(set()))
    with pytest.raises(ProgramError, match="leave no token"):
        run(MixedLaw(14), 3, 4, stages=lambda ids, row: only(set() if ids else {1})(ids, row))


def test_without_tables_alpha_is_zero_and_says_so() -> None:
    assert run(MixedLaw(15), 2, 3).report == {
        "forward_passes": 3,
        "alpha": 0.0,
        "ngram_weights": {},
        "logprobs": "approximate",
    }
    report = run(MixedLaw(15), 2, 3, texts_of(15)).report
    assert report["alpha"] == DEFAULT_ALPHA
    assert report["ngram_weights"] == dict(zip("23456", DEFAULT_WEIGHTS, strict=True))
    shorter = decode(PROGRAM, MixedLaw(15), n=2, max_tokens=3, model=facts_of(texts_of(15), highest=3))
    assert shorter.report["ngram_weights"] == {"2": 0.01, "3": 0.04}


@pytest.mark.parametrize(("field", "value"), [("alpha", 0.5), ("weights", [0.1])])
def test_ngrams_that_are_not_there_are_refused(field: str, value: Any) -> None:
    with pytest.raises(SamplerError, match=r"drafthouse index.*--ngrams FILE") as caught:
        PROGRAM.parse(field, value, f"sampler.{field}", NO_FACTS)
    assert caught.value.param == f"sampler.{field}"
    PROGRAM.parse(field, value, field, facts_of([[1, 2, 3]]))
    assert PROGRAM.parse("alpha", 0, "alpha", NO_FACTS) == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alpha", -0.1),
        ("alpha", 1.1),
        ("alpha", "0.5"),
        ("m", 0),
        ("m", 2.5),
        ("weights", []),
        ("weights", [0.1] * 6),
        ("weights", [-0.1, 0.2]),
        ("weights", [0, 0]),
        ("weights", [0.6, 0.6]),
        ("weights", 0.5),
        ("weights", ["a"]),
        ("weights", [0.1, 0.1, 0.1]),  # the tables of this test have orders 2 and 3
    ],
)
def test_wrong_values_are_refused(field: str, value: Any) -> None:
    with pytest.raises(SamplerError) as caught:
        PROGRAM.parse(field, value, field, facts_of([[1, 2, 3]], highest=3))
    assert str(caught.value.param).startswith(field)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"n": 11}, "n"),
        ({"max_tokens": 65}, "max_tokens"),
        ({"temperature": 0.7}, "temperature"),
        ({"temperature": 0.0}, "temperature"),
        ({"draw": "gumbel"}, "draw"),
        *(({"stages": frozenset({stage})}, "sampler") for stage in ("bad_words_ids", "dry", "xtc", "mirostat", "else")),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], param: str) -> None:
    values = with_defaults(PROGRAM, {})
    fine = {"n": 10, "max_tokens": 64, "stages": frozenset({"allowed_token_ids", "logit_bias", "min_tokens", "top_k"})}
    PROGRAM.check(values, Setting(**fine))  # type: ignore[arg-type]
    with pytest.raises(SamplerError) as caught:
        PROGRAM.check(values, Setting(**(fine | changes)))
    assert caught.value.param == param


def test_a_token_without_ngrams_has_a_finite_perplexity() -> None:
    found = run(MixedLaw(16), 3, 4, [[0, 0]])
    assert all(math.isfinite(choice.details["perplexity"]) for choice in found.choices.values())
    assert min(scores_of(found)) < -400
