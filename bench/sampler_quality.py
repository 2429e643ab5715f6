"""What each decoding method does to the embedded model's texts: variety, likelihood, repetition, right answers.

`drafthouse bench samplers --part quality`. Two kinds of prompts that training never saw: starts of functions of
held-out source files, continued for a fixed number of tokens, and held-out word problems, several samples each,
several times over. All methods get the same prompts and seeds.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from bench import estimates, text_measures
from bench.estimates import Array, Figure, Gap
from bench.held_out import problem_prompt, source_prompts, word_problems
from bench.sampler_methods import PAIRS, TOP_P_GRID, TYPICAL_GRID, Method, available
from bench.sampler_runs import Answer, Failed, Job, Sample, Sampling
from models.problems import answer_of

_SOURCE_SEEDS = 5_000_000  # requests' seeds, apart from those of the problems
SOURCE_MEASURES = ("nll", "distinct_1", "distinct_2", "distinct_3", "self_bleu", "repeated_4")
PROBLEM_MEASURES = ("accuracy", "majority", "any_right", "deviation")


@dataclass(frozen=True)
class Size:
    """How much is sampled."""

    problems: int = 28
    prompts: int = 21  # of Python source
    n: int = 8  # samples of a prompt
    draws: int = 4  # times that the n samples of a problem are drawn anew
    pair_draws: int = 10  # the same for the methods of `PAIRS`, whose deviation is compared
    prompt_tokens: int = 40
    source_tokens: int = 128
    solution_tokens: int = 80


FULL = Size()
QUICK = Size(problems=6, prompts=6, draws=2, pair_draws=4, source_tokens=48)


@dataclass(frozen=True)
class Pair:
    """An arithmetic method's deviation beside that of independent draws of the same law."""

    independent: str
    arithmetic: str
    deviations: tuple[Figure, Figure]
    ratio: Figure


@dataclass(frozen=True)
class BranchGap:
    """Repeated 4-grams at equal NLL, typical minus top-p, on one side of typical sampling's lowest NLL.

    Its NLL falls and rises again with the parameter: a small one keeps only tokens of middling probability. Joining
    all settings by their NLL would mix the two sides, so each is a curve of its own.
    """

    settings: tuple[str, ...]
    gap: Gap | None  # None: the two families have no NLL in common


@dataclass
class Quality:
    """Everything that was measured."""

    size: Size
    rows: dict[str, dict[str, Figure]] = field(default_factory=dict)  # method -> measure -> figure
    skipped: dict[str, str] = field(default_factory=dict)  # method -> reason
    pairs: list[Pair] = field(default_factory=list)
    top_p: dict[str, dict[str, Figure]] = field(default_factory=dict)  # the grids, source measures only
    typical: dict[str, dict[str, Figure]] = field(default_factory=dict)
    gaps: list[BranchGap] = field(default_factory=list)


class Measuring:
    """One model, one set of prompts; samples are kept only until their measures are taken."""

    def __init__(self, sampling: Sampling, size: Size, methods: Sequence[Method]) -> None:
        self._sampling, self._size = sampling, size
        self._tokenizer = sampling.codec.fast
        self._asked = word_problems(size.problems)
        self._questions = [problem_prompt(self._tokenizer, problem) for problem in self._asked]
        self._sources = source_prompts(self._tokenizer, size.prompts, size.prompt_tokens)
        grid = {method.name: method for method in (*TOP_P_GRID, *TYPICAL_GRID)}
        everything = {**{method.name: method for method in methods}, **grid}
        facts = sampling.runner.facts
        found = available(tuple(everything.values()), sampling.runner.vocab_size, facts)
        self._chains = found.chains
        self.skipped = dict(found.skipped)
        self._table = [method.name for method in methods if method.name in found.chains]
        self._paired = {name for pair in PAIRS if set(pair) <= set(self._table) for name in pair}

    def jobs(self) -> Iterator[Job]:
        size = self._size
        for name, chain in self._chains.items():
            for item, prompt in enumerate(self._sources):
                yield Job(("source", name, item), chain, prompt, _SOURCE_SEEDS + item, size.n, size.source_tokens, True)
            if name not in self._table:
                continue
            for draw, item in itertools.product(range(self._draws(name)), range(size.problems)):
                key = ("problem", name, item, draw)
                seed = draw * size.problems + item
                yield Job(key, chain, self._questions[item], seed, size.n, size.solution_tokens)

    def _draws(self, name: str) -> int:
        return max(self._size.pair_draws, self._size.draws) if name in self._paired else self._size.draws

    def measure(self, begin: Callable[[int], None], done: Callable[[], None]) -> Quality:
        """`begin` is told the number of jobs, `done` that one has ended."""
        jobs = list(self.jobs())
        begin(len(jobs))
        results = self._sampling.run(jobs, done)
        for key, result in results.items():
            if isinstance(result, Failed):
                self.skipped.setdefault(key[1], f"failed: {result}")  # type: ignore[index]
        good = {key: answer.samples for key, answer in results.items() if isinstance(answer, Answer)}
        names = [name for name in self._chains if name not in self.skipped]
        source = {
            name: self._source_values([good["source", name, i] for i in range(len(self._sources))]) for name in names
        }
        right = {name: self._answers(name, good) for name in names if name in self._table}
        quality = Quality(self._size, skipped=self.skipped)
        figures = {
            name: {measure: estimates.mean(values[measure], seed=1) for measure in SOURCE_MEASURES}
            for name, values in source.items()
        }
        for name, answers in right.items():
            quality.rows[name] = {**figures[name], **self._problem_figures(answers)}
        for independent, arithmetic in PAIRS:
            if independent in right and arithmetic in right:
                quality.pairs.append(self._pair(independent, arithmetic, right))
        quality.top_p = {method.name: figures[method.name] for method in TOP_P_GRID if method.name in figures}
        quality.typical = {method.name: figures[method.name] for method in TYPICAL_GRID if method.name in figures}
        if len(quality.typical) > 1:
            quality.gaps = self._gaps(source, quality)
        return quality

    @staticmethod
    def _source_values(outputs: list[list[Sample]]) -> dict[str, Array]:
        """Each measure, [prompts]."""
        rows = [_of_texts(samples) for samples in outputs]
        return {measure: np.array([row[measure] for row in rows]) for measure in SOURCE_MEASURES}

    def _answers(self, name: str, good: dict) -> Array:  # type: ignore[type-arg]
        """[problems, draws, n] int64: the answer of each sample minus the right one; _NONE where there is none."""
        decode = self._tokenizer.decode
        rows = []
        for item, problem in enumerate(self._asked):
            given = [
                [answer_of(decode(sample.tokens)) for sample in good["problem", name, item, draw]]
                for draw in range(self._draws(name))
            ]
            rows.append([[_NONE if a is None else _bounded(a - problem.answer) for a in draw] for draw in given])
        return np.array(rows)

    def _problem_figures(self, answers: Array) -> dict[str, Figure]:
        answers = answers[:, : self._size.draws]  # as many for every method, paired ones too
        right = answers == 0
        votes = [
            [text_measures.majority([None if a == _NONE else a for a in draw]) for draw in item]
            for item in answers.tolist()
        ]
        majority = np.array([[vote == 0 for vote in item] for item in votes])
        return {
            "accuracy": estimates.mean(right.mean((1, 2)), seed=2),
            "majority": estimates.mean(majority.mean(1), seed=2),
            "any_right": estimates.mean(right.any(2).mean(1), seed=2),
            "deviation": estimates.deviation_figure(right.mean(2), seed=2),
        }

    @staticmethod
    def _pair(independent: str, arithmetic: str, answers: dict[str, Array]) -> Pair:
        one, other = ((answers[name] == 0).mean(2) for name in (independent, arithmetic))
        figures = estimates.deviation_figure(one, seed=3), estimates.deviation_figure(other, seed=3)
        return Pair(independent, arithmetic, figures, estimates.deviation_ratio(other, one, seed=3))

    @staticmethod
    def _gaps(source: dict[str, dict[str, Array]], quality: Quality) -> list[BranchGap]:
        def points(names: Sequence[str]) -> tuple[Array, Array]:
            return np.stack([source[n]["nll"] for n in names]), np.stack([source[n]["repeated_4"] for n in names])

        names = list(quality.typical)
        turn = min(range(len(names)), key=lambda i: quality.typical[names[i]]["nll"].value)
        base = points(list(quality.top_p))
        sides = [side for side in (tuple(names[turn:]), tuple(names[: turn + 1])) if len(side) > 1]
        return [BranchGap(side, estimates.gap_at_equal_x(points(side), base, seed=4)) for side in sides]


_NONE = 10**6  # stands for "no answer"


def _bounded(difference: int) -> int:
    """Answers of absurd length all count as one wrong answer."""
    return max(min(difference, _NONE - 1), -_NONE)


def _of_texts(samples: list[Sample]) -> dict[str, float]:
    """All source measures of one prompt's samples; NaN where one is not defined."""
    texts = [sample.tokens for sample in samples]
    logprobs = [value for sample in samples for value in sample.logprobs]
    repeats = [share for text in texts if (share := text_measures.repeated(text)) is not None]
    values = {
        "nll": -sum(logprobs) / len(logprobs) if logprobs else None,
        **{f"distinct_{n}": text_measures.distinct(texts, n) for n in (1, 2, 3)},
        "self_bleu": text_measures.self_bleu(texts),
        "repeated_4": sum(repeats) / len(repeats) if repeats else None,
    }
    return {name: float("nan") if value is None else value for name, value in values.items()}
