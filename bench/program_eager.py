"""EAGER beside full parallel sampling on word problems: `drafthouse bench programs --part eager`.

Tokens that it saves at an equal share of solved problems. Its threshold is chosen on problems of their own.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

import numpy as np

from bench import estimates, pass_at
from bench.claims import Claim
from bench.estimates import Array, Figure
from bench.held_out import EVALUATION_SEED, TUNING_SEED, problem_prompt, word_problems
from bench.program_costs import cost
from bench.progress import Begin, Done
from bench.sampler_runs import Answer, Job, Sampling
from models.problems import answer_of
from samplers.chain import Chain, resolve

N = 16  # most sequences of EAGER, and parallel samples
TEMPERATURE = 0.6  # EAGER's own
MODES = ("top2", "split")
TUNING, EVALUATION = "tuning", "evaluation"


@dataclass(frozen=True)
class Size:
    """How much is asked."""

    problems: int = 120
    tuning_problems: int = 32
    thetas: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4, 0.7)
    solution_tokens: int = 80


FULL = Size()
QUICK = Size(problems=16, tuning_problems=8, thetas=(0.05, 0.2, 0.7))


@dataclass(frozen=True)
class Setting:
    mode: str
    theta: float


@dataclass(frozen=True)
class Row:
    """One setting; figures are means over problems."""

    solved: Figure  # share of problems with a right one among all sequences
    tokens: Figure  # computed
    sequences: Figure
    saved: Figure  # share of the tokens that parallel samples need for as many solved problems
    saved_of_all: Figure  # share of the tokens of all parallel samples
    behind_all: Figure  # solved by these and not by EAGER, share of problems


@dataclass
class Eager:
    """Everything that was measured."""

    size: Size
    curve: tuple[Figure, ...] = ()  # of 1..N parallel samples: share of solved problems
    curve_tokens: tuple[float, ...] = ()
    rows: dict[Setting, Row] = field(default_factory=dict)
    tuned: dict[str, float] = field(default_factory=dict)  # mode -> theta
    claims: list[Claim] = field(default_factory=list)


@dataclass(frozen=True)
class _Outcomes:
    """What one way has brought: right [P, n] bool; tokens, sequences [P]."""

    right: pass_at.Right
    tokens: Array
    sequences: Array

    @property
    def solved(self) -> Array:
        """[P]"""
        return self.right.any(1).astype(float)


class Measuring:
    """One model, the same problems and seeds for all settings."""

    def __init__(self, sampling: Sampling, size: Size) -> None:
        self._sampling = sampling
        self._size = size
        counts = {TUNING: (size.tuning_problems, TUNING_SEED), EVALUATION: (size.problems, EVALUATION_SEED)}
        self._problems = {name: word_problems(count, seed) for name, (count, seed) in counts.items()}
        vocab, facts = sampling.runner.vocab_size, sampling.runner.facts
        self._settings = [Setting(mode, theta) for mode, theta in itertools.product(MODES, size.thetas)]
        self._chains: dict[Setting | None, Chain] = {None: resolve({"temperature": TEMPERATURE}, vocab, facts)}
        for one in self._settings:
            item = {"name": "eager", "fork_mode": one.mode, "theta": one.theta}
            self._chains[one] = resolve({"sampler": item, "temperature": TEMPERATURE}, vocab, facts)

    def measure(self, begin: Begin, done: Done) -> Eager:
        """Raises Failed."""
        jobs = list(self._jobs())
        begin(len(jobs))
        answers = self._sampling.answers(jobs, done)
        tuned = self._tuned({one: self._outcomes(TUNING, one, answers) for one in self._chains})
        outcomes = {one: self._outcomes(EVALUATION, one, answers) for one in self._chains}
        parallel = outcomes[None]
        curve, prices = _parallel(parallel)
        eager = Eager(self._size, tuned=tuned)
        eager.curve = tuple(estimates.mean(curve[:, k], seed=8) for k in range(N))
        eager.curve_tokens = tuple(prices.mean(0).tolist())
        eager.rows = {one: _row(outcomes[one], parallel) for one in self._settings}
        eager.claims = [
            Claim.of_figure(
                f"EAGER {mode}, theta {theta:g}, saves tokens at equal pass@k",
                eager.rows[Setting(mode, theta)].saved,
                "% of the tokens",
            )
            for mode, theta in tuned.items()
        ]
        return eager

    def _jobs(self) -> Iterator[Job]:
        for part, asked in self._problems.items():
            prompts = [problem_prompt(self._sampling.codec.fast, problem) for problem in asked]
            for setting, chain in self._chains.items():
                for item, prompt in enumerate(prompts):
                    yield Job((part, setting, item), chain, prompt, item, N, self._size.solution_tokens)

    def _outcomes(self, part: str, setting: Setting | None, answers: dict[Hashable, Answer]) -> _Outcomes:
        asked = self._problems[part]
        right = np.zeros((len(asked), N), bool)
        tokens, sequences = np.zeros((2, len(asked)))
        for item, problem in enumerate(asked):
            answer = answers[part, setting, item]
            texts = [self._sampling.codec.decode(sample.tokens) for sample in answer.samples]
            right[item, : len(texts)] = [answer_of(text) == problem.answer for text in texts]
            tokens[item], sequences[item] = cost(answer).tokens, len(texts)
        return _Outcomes(right, tokens, sequences)

    def _tuned(self, outcomes: dict[Setting | None, _Outcomes]) -> dict[str, float]:
        """Of each mode the threshold of the fewest tokens that solves as many as all parallel samples do; where none
        does, that which solves the most."""
        wanted = outcomes[None].solved.mean()

        def rank(one: Setting) -> tuple[float, float]:
            return min(wanted, outcomes[one].solved.mean()), -outcomes[one].tokens.mean()

        best = {mode: max((one for one in self._settings if one.mode == mode), key=rank) for mode in MODES}
        return {mode: one.theta for mode, one in best.items()}


def _parallel(outcomes: _Outcomes) -> tuple[Array, Array]:
    """(share solved by 1..N samples, tokens of so many), each [P, N]."""
    return pass_at.of_independent(outcomes.right), outcomes.tokens[:, None] * np.arange(1, N + 1) / N


def _row(one: _Outcomes, parallel: _Outcomes) -> Row:
    curve, prices = _parallel(parallel)
    return Row(
        solved=estimates.mean(one.solved, seed=8),
        tokens=estimates.mean(one.tokens, seed=8),
        sequences=estimates.mean(one.sequences, seed=8),
        saved=pass_at.saved_at_equal_height(one.solved, one.tokens, curve, prices, seed=8),
        saved_of_all=estimates.bootstrap(
            lambda chosen: 1.0 - float(one.tokens[chosen].mean() / parallel.tokens[chosen].mean()),
            len(one.tokens),
            seed=8,
        ),
        behind_all=estimates.mean(parallel.solved - one.solved, seed=8),
    )
