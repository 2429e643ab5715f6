"""Asks a model which of several responses is most consistent with the others: the prompt, and what its reply means.

Makes no call itself. The prompt is our own; the method is universal self-consistency (Chen et al., arXiv 2311.17311).
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from voting.contract import Question, Sample

MAX_TOKENS = 64  # of the reply, which is decoded greedily
_AFTER_WORD = re.compile(r"\bresponse\b[^\d.\n]{0,24}?(\d+)(?!\.?\d)", re.IGNORECASE)
_INTEGER = re.compile(r"(?<![\d.])\d+(?!\.?\d)")


def question(problem: str, shown: Sequence[Sample], seed: int | None) -> Question:
    """shown: at least one sample. They are numbered in this order, or with a seed in an order drawn from it."""
    if not shown:
        raise ValueError("there is nothing to choose from")
    ordered = list(shown)
    if seed is not None:
        random.Random(f"judge {seed}").shuffle(ordered)  # of a string, which is hashed the same everywhere
    responses = "\n\n".join(f"Response {i}:\n{sample.text}" for i, sample in enumerate(ordered, 1))
    prompt = (
        f"Several responses to one problem follow.\n\nProblem:\n{problem}\n\n{responses}\n\n"
        f"Compare the {len(ordered)} responses and choose the one that agrees best with the majority of them. "
        "Begin with the words: The most consistent response is Response"
    )
    return Question(prompt, tuple(sample.index for sample in ordered))


def chosen(reply: str, order: Sequence[int]) -> int | None:
    """The sample that the reply names: by the last number of a response behind the word "response", else by the last
    such number anywhere. None: there is none."""
    for pattern in (_AFTER_WORD, _INTEGER):
        numbers = [int(text) for text in pattern.findall(reply) if len(text) <= 4]
        valid = [number for number in numbers if 1 <= number <= len(order)]
        if valid:
            return order[valid[-1] - 1]
    return None
