"""Priority sampling beside nucleus samples at equal n: `drafthouse bench programs --part priority`.

Two tasks that training never saw: the next line of a Python file, which has to be matched as it is, and word problems.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field

import numpy as np

from bench import estimates, pass_at
from bench.claims import Claim
from bench.estimates import Array, Figure
from bench.held_out import next_lines, problem_prompt, word_problems
from bench.pass_at import Right
from bench.program_costs import cost, new_tokens
from bench.progress import Begin, Done
from bench.sampler_methods import Method, available
from bench.sampler_runs import Answer, Job, Sampling
from models.problems import answer_of

N = 16
LINES, PROBLEMS = "next line", "word problem"
PRIORITY = (
    Method("priority, local", {"sampler": {"name": "priority", "key": "local"}}),
    Method("priority, joint", {"sampler": {"name": "priority", "key": "joint"}}),
)
DISTINCT = (
    Method("priority, local, distinct texts", {"sampler": {"name": "priority", "key": "local", "dedupe": "text"}}),
    Method("priority, joint, distinct texts", {"sampler": {"name": "priority", "key": "joint", "dedupe": "text"}}),
)
SAMPLED = (
    Method("top-p 0.95", {"top_p": 0.95}),
    Method("top-p 0.95, T = 0.8", {"top_p": 0.95, "temperature": 0.8}),
)
_AT_ONCE = 24  # searches: a row each in a step, but many branches in memory


@dataclass(frozen=True)
class Size:
    """How much is asked."""

    lines: int = 240
    problems: int = 120
    prompt_tokens: int = 128  # before a line
    line_tokens: int = 32
    solution_tokens: int = 80


FULL = Size()
QUICK = Size(lines=24, problems=12)


@dataclass(frozen=True)
class Task:
    name: str
    prompts: list[tuple[int, ...]]
    max_tokens: int
    is_right: Callable[[int, str], bool]  # of the prompt's number and a completion's text
    line: bool = False  # a completion ends with its line; many token sequences spell the same one

    @property
    def methods(self) -> tuple[Method, ...]:
        return (*PRIORITY, *(DISTINCT if self.line else ()), *SAMPLED)


@dataclass(frozen=True)
class Row:
    """One method on one task; figures are means over prompts."""

    choices: Figure
    unique: Figure  # share of choices that are different token sequences
    texts: Figure  # share that are different texts
    curve: tuple[Figure, ...]  # share of prompts with a right choice among the first 1..n, or among so many samples
    passes: Figure
    tokens: Figure


@dataclass
class Priority:
    """Everything that was measured."""

    size: Size
    rows: dict[str, dict[str, Row]] = field(default_factory=dict)  # task -> method -> row
    ahead: dict[str, dict[str, dict[str, Figure]]] = field(default_factory=dict)  # task -> search -> samples -> gap
    claims: list[Claim] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def tasks(sampling: Sampling, size: Size) -> list[Task]:
    tokenizer = sampling.codec.fast
    lines = next_lines(tokenizer, size.lines, size.prompt_tokens)
    asked = word_problems(size.problems)
    return [
        Task(
            LINES,
            [one.prompt for one in lines],
            size.line_tokens,
            lambda item, text: text.partition("\n")[0].rstrip() == lines[item].line.rstrip(),
            line=True,
        ),
        Task(
            PROBLEMS,
            [problem_prompt(tokenizer, problem) for problem in asked],
            size.solution_tokens,
            lambda item, text: answer_of(text) == asked[item].answer,
        ),
    ]


class Measuring:
    """One model, the same prompts and seeds for all methods."""

    def __init__(self, sampling: Sampling, size: Size) -> None:
        self._sampling = sampling
        self._tasks = tasks(sampling, size)
        found = available((*PRIORITY, *DISTINCT, *SAMPLED), sampling.runner.vocab_size, sampling.runner.facts)
        self._chains = found.chains
        self._priority = Priority(size, skipped=found.skipped)

    def measure(self, begin: Begin, done: Done) -> Priority:
        """Raises Failed."""
        jobs = list(self._jobs())
        begin(len(jobs))
        searches = [job for job in jobs if job.chain.program is not None]
        samples = [job for job in jobs if job.chain.program is None]
        answers = self._sampling.answers(searches, done, _AT_ONCE) | self._sampling.answers(samples, done)
        for task in self._tasks:
            by_method = {
                name: [answers[task.name, name, item] for item in range(len(task.prompts))]
                for name in self._names(task)
            }
            self._compare(task, by_method)
        self._priority.claims = self._claims(answers)
        return self._priority

    def _jobs(self) -> Iterator[Job]:
        for task in self._tasks:
            for name in self._names(task):
                for item, prompt in enumerate(task.prompts):
                    key = (task.name, name, item)
                    yield Job(key, self._chains[name], prompt, item, N, task.max_tokens, line=task.line)

    def _names(self, task: Task) -> list[str]:
        return [method.name for method in task.methods if method.name in self._chains]

    def _compare(self, task: Task, by_method: dict[str, list[Answer]]) -> None:
        texts = {name: [self._texts(task, answer) for answer in answers] for name, answers in by_method.items()}
        curves = {}
        for name, of_method in texts.items():
            right = np.zeros((len(of_method), N), bool)  # a choice that is not there is not right
            for item, completions in enumerate(of_method):
                right[item, : len(completions)] = [task.is_right(item, text) for text in completions]
            curves[name] = self._curve(name, right)
        self._priority.rows[task.name] = {
            name: _row(answers, texts[name], curves[name]) for name, answers in by_method.items()
        }
        self._priority.ahead[task.name] = {
            name: {
                other.name: estimates.mean(curve[:, -1] - curves[other.name][:, -1], seed=5)
                for other in SAMPLED
                if other.name in curves
            }
            for name, curve in curves.items()
            if self._chains[name].program is not None
        }

    def _curve(self, name: str, right: Right) -> Array:
        return pass_at.of_independent(right) if self._chains[name].program is None else pass_at.of_ordered(right)

    def _texts(self, task: Task, answer: Answer) -> list[str]:
        """What a reader sees of each choice."""
        texts = [self._sampling.codec.decode(sample.tokens) for sample in answer.samples]
        return [text.partition("\n")[0] for text in texts] if task.line else texts

    def _claims(self, answers: dict[Hashable, Answer]) -> list[Claim]:
        searches = {key: answer for key, answer in answers.items() if answer.report}
        whole = {key: answer for key, answer in searches.items() if not answer.report["duplicates"]}
        repeated = [str(key) for key, answer in searches.items() if len(_distinct(answer)) < len(answer.samples)]
        beyond = [
            f"{key}: {cost(answer).tokens} > {new_tokens(answer)}"
            for key, answer in whole.items()
            if cost(answer).tokens > new_tokens(answer)
        ]
        claims = [
            Claim.of_all("priority: all completions of a request are different", len(searches), repeated),
            Claim.of_all("priority: tokens computed <= sum of (length - branch depth)", len(whole), beyond),
        ]
        for task, by_search in self._priority.ahead.items():
            for search, gaps in by_search.items():
                other, gap = min(gaps.items(), key=lambda one: one[1].value)  # the samples that do best
                text = f"{task}: {search} is right more often than {other}, both n = {N}"
                claims.append(Claim.of_figure(text, gap, "points"))
        return claims


def _row(answers: list[Answer], texts: list[list[str]], curve: Array) -> Row:
    costs = [cost(answer) for answer in answers]
    counts = np.array([len(answer.samples) for answer in answers], float)

    def mean(values: list[int] | Array) -> Figure:
        return estimates.mean(np.array(values, float), seed=6)

    return Row(
        choices=mean(counts),
        unique=mean(np.array([len(_distinct(answer)) for answer in answers]) / counts),
        texts=mean(np.array([len(set(of_one)) for of_one in texts]) / counts),
        curve=tuple(mean(curve[:, k]) for k in range(N)),
        passes=mean([one.passes for one in costs]),
        tokens=mean([one.tokens for one in costs]),
    )


def _distinct(answer: Answer) -> set[tuple[int, ...]]:
    return {tuple(sample.tokens) for sample in answer.samples}
