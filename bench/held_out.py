"""What benchmarks ask about: Python source and word problems that training never saw, as token ids.

Always the same for the same counts, whatever is measured with it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Encoding, Tokenizer

from models.corpus import source_text
from models.problems import Problem, problems

EVALUATION_SEED = 10_000  # of word problems, as in models/evaluate.py
TUNING_SEED = 20_000
SHORTEST_LINE = 4  # characters, without indentation: shorter ones are brackets and the like
SHORTEST_PROMPT = 40  # tokens before a line to be continued
_FUNCTION = re.compile(r"^ *(?:def|class) ", re.MULTILINE)
_LINE = re.compile(r"^[ \t]*(\S.*)$", re.MULTILINE)


@dataclass(frozen=True)
class NextLine:
    """The place before a line of a file.

    The tokenizer writes a line break and the indentation behind it as one token, and the last space with the word that
    follows. The prompt is therefore the text up to that word: cut at the line break it would end in a token that never
    comes before an indented line.
    """

    prompt: tuple[int, ...]  # the tokens before, of this and the lines above
    text: str  # the file from there
    ids: tuple[int, ...]  # the line's own tokens, up to the first that holds a line break

    @property
    def line(self) -> str:
        return self.text.partition("\n")[0]


def word_problems(count: int, seed: int = EVALUATION_SEED) -> list[Problem]:
    return list(itertools.islice(problems(seed, held_out=True), count))


def problem_prompt(tokenizer: Tokenizer, problem: Problem) -> tuple[int, ...]:
    return dialogue(tokenizer, [problem.question])


def dialogue(tokenizer: Tokenizer, turns: Sequence[str]) -> tuple[int, ...]:
    """The prompt of the model's answer to turns of the user and of the model, in turn; the last one is the user's."""
    said = "".join(f"<|{('user', 'assistant')[i % 2]}|>{turn}<|end|>" for i, turn in enumerate(turns))
    return tuple(tokenizer.encode(f"<|begin|>{said}<|assistant|>", add_special_tokens=False).ids)


def source_prompts(tokenizer: Tokenizer, count: int, length: int) -> list[tuple[int, ...]]:
    """`count` starts of functions or classes of held-out source, evenly spread over all of them."""
    starts = [text[at.start() :] for text in source_text(held_out=True) for at in _FUNCTION.finditer(text)]
    chosen = [starts[i * len(starts) // count] for i in range(count)]
    ids = [tokenizer.encode(text[: 16 * length], add_special_tokens=False).ids[:length] for text in chosen]
    return [tuple(one) for one in ids]


def next_lines(tokenizer: Tokenizer, count: int, length: int) -> list[NextLine]:
    """`count` lines of held-out source that are neither empty nor very short, evenly spread over all of them, behind
    prompts of at most `length` tokens."""
    places = [place for text in source_text(held_out=True) for place in _places(tokenizer, text)]
    return [places[i * len(places) // count].cut(length) for i in range(count)]


@dataclass(frozen=True)
class _Place:
    """A line's tokens, from `first` to `last`, among those of its file."""

    text: str
    encoding: Encoding
    first: int
    last: int

    def cut(self, length: int) -> NextLine:
        ids, first = self.encoding.ids, self.first
        text = self.text[self.encoding.offsets[first][0] :]
        return NextLine(tuple(ids[max(0, first - length) : first]), text, tuple(ids[first : self.last + 1]))


def _places(tokenizer: Tokenizer, text: str) -> Iterator[_Place]:
    encoding = tokenizer.encode(text, add_special_tokens=False)
    ends = np.array([end for _, end in encoding.offsets])
    for found in _LINE.finditer(text):
        # the tokens that hold the line's first character which is no space, and its line break
        first, last = np.searchsorted(ends, (found.start(1), found.end()), side="right").tolist()
        if len(found[1].rstrip()) >= SHORTEST_LINE and first >= SHORTEST_PROMPT and last < len(ends):
            yield _Place(text, encoding, first, last)
