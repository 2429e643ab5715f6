"""What `bench spec` drafts for: held-out source and word problems, and places in what the target writes behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.held_out import problem_prompt, source_prompts, word_problems
from bench.progress import Done
from bench.sampler_runs import Job, Sampling
from samplers.chain import Chain, resolve

CODE, PROBLEMS = "code", "word problems"
TASKS = (CODE, PROBLEMS)
PROMPT_TOKENS = 64  # of source
TEMPERATURES = (0.0, 1.0)
ABOUT = (
    f"Code: held-out Python, prompts of {PROMPT_TOKENS} tokens that begin with a function or class. Word problems: "
    "held-out ones, which the model answers and ends."
)
_SEED = 5
Prompt = tuple[int, ...]
Case = tuple[str, float]  # task, temperature


@dataclass(frozen=True)
class Place:
    """Somewhere in a text that the target has written."""

    prompt: int  # number of the prompt it belongs to: what is resampled for intervals
    tokens: Prompt  # prompt and output up to there
    prompt_length: int


def prompts(sampling: Sampling, task: str, count: int) -> list[Prompt]:
    if task == CODE:
        return source_prompts(sampling.codec.fast, count, PROMPT_TOKENS)
    return [problem_prompt(sampling.codec.fast, problem) for problem in word_problems(count)]


def chain_at(sampling: Sampling, temperature: float) -> Chain:
    return resolve({"temperature": temperature}, sampling.runner.vocab_size, sampling.runner.facts)


def places(
    sampling: Sampling, asked: Sequence[Prompt], temperature: float, each: int, length: int, done: Done
) -> list[Place]:
    """`each` places, evenly spread, in one sample of every prompt, which has up to `length` tokens. Raises Failed."""
    chain = chain_at(sampling, temperature)
    jobs = [Job(number, chain, prompt, _SEED + number, 1, length) for number, prompt in enumerate(asked)]
    answers = sampling.answers(jobs, done)
    found = []
    for number, prompt in enumerate(asked):
        output = answers[number].samples[0].tokens
        starts = sorted({len(output) * i // each for i in range(each)})
        found += [Place(number, (*prompt, *output[:start]), len(prompt)) for start in starts]
    return found


def case_name(case: Case) -> str:
    return f"{case[0]}, T = {case[1]:g}"


def case_json(case: Case) -> dict[str, Any]:
    return {"task": case[0], "temperature": case[1]}
