"""Events: what an output has to be for a search to accept it. All given parts must hold.

A part also says what it can of texts that are not finished: where more text would make it impossible for good, or the
end would. All of that is sound: no output that the part holds for is lost by it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import re2
import torch
from torch import Tensor

from samplers.contract import SamplerError
from samplers.programs.branch import End
from samplers.programs.classifiers import CLASSIFIERS
from samplers.programs.contract import Task
from samplers.programs.text import Text

_LARGEST_REGEX = 1000  # instructions of the compiled expression, each of which a byte of text can cost a step of
_REGEX_MEMORY_BYTES = 1 << 20
# A byte of a word and one of none: what may end before the second may end before the end of a line or text, too.
_NEXT_BYTES = b"a", b"-"

Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class Part:
    """A condition on outputs; this one always holds."""

    def allow(self, ids: Ids, allowed: Mask) -> None:
        """Clear in `allowed` [V] the tokens that cannot follow these as more text."""

    def may_end(self, ids: Ids) -> bool:
        """Whether these can be all."""
        return True

    def possible(self, text: Text) -> bool:
        """Whether it can still come to hold for a text that goes on, all of whose tokens were allowed."""
        return True

    def holds(self, text: Text) -> bool:
        """Of a text that has ended."""
        return True


@dataclass(frozen=True)
class Length(Part):
    """`min_len`, `max_len`: tokens, the ending id not counted."""

    least: int
    most: float

    def allow(self, ids: Ids, allowed: Mask) -> None:
        if len(ids) >= self.most:
            allowed[:] = False

    def may_end(self, ids: Ids) -> bool:
        return len(ids) >= self.least

    def holds(self, text: Text) -> bool:
        return self.least <= len(text.ids) <= self.most


@dataclass(frozen=True)
class Finished(Part):
    """`finished`: ended by an ending id or a stop string, not by the length limit."""

    longest: float  # tokens before an ending id, where nothing else can finish a text

    def allow(self, ids: Ids, allowed: Mask) -> None:
        if len(ids) >= self.longest:
            allowed[:] = False

    def holds(self, text: Text) -> bool:
        return text.end is not None and text.end.reason == "stop"


@dataclass(frozen=True)
class NoRepeat(Part):
    """`no_repeat`: no n-gram more than `max_count` times, counted where they overlap as well."""

    n: int
    max_count: int

    def allow(self, ids: Ids, allowed: Mask) -> None:
        if len(ids) >= self.n - 1:
            tokens, counts = np.unique(_followers(ids, ids[len(ids) - self.n + 1 :]), return_counts=True)
            allowed[tokens[counts >= self.max_count]] = False

    def holds(self, text: Text) -> bool:
        return max(Counter(_ngrams(text.ids, self.n)).values(), default=0) <= self.max_count


@dataclass(frozen=True)
class NoPromptCopy(Part):
    """`no_prompt_copy`: no n-gram of the output is one of the prompt."""

    n: int
    prompt: Ids

    def allow(self, ids: Ids, allowed: Mask) -> None:
        if len(ids) >= self.n - 1:
            allowed[_followers(self.prompt, ids[len(ids) - self.n + 1 :])] = False

    def holds(self, text: Text) -> bool:
        return set(_ngrams(text.ids, self.n)).isdisjoint(_ngrams(self.prompt.tolist(), self.n))


class RegexNot(Part):
    """`regex_not`: no match anywhere in the text.

    RE2: time linear in the text for every expression, and anchors and word boundaries, which token automata lack.
    """

    def __init__(self, regex: str, path: str = "regex_not") -> None:
        """Raises SamplerError, naming `path`, for what is no such expression or too large."""
        options = re2.Options()
        options.log_errors, options.never_capture, options.max_mem = False, True, _REGEX_MEMORY_BYTES
        try:
            self._matches = re2.compile(regex, options)
        except re2.error as error:
            reason = error.args[0].decode(errors="replace")
            raise SamplerError(f"'{path}' is no regular expression of RE2: {reason}", path) from error
        if self._matches.programsize > _LARGEST_REGEX:
            raise SamplerError(f"'{path}' is too large", path)
        try:
            self._before_last = re2.compile(rf"(?:{regex})\C", options)
        except re2.error:  # `regex` ends within \Q
            self._before_last = re2.compile(rf"(?:{regex}\E)\C", options)

    def possible(self, text: Text) -> bool:
        """Whether there are ways to go on without a match: one that ends here can depend on what comes next."""
        return self.holds(text) or not all(self._before_last.search(text.data + byte) for byte in _NEXT_BYTES)

    def holds(self, text: Text) -> bool:
        return self._matches.search(text.data) is None


@dataclass(frozen=True)
class Classification:
    """`classifier`: the probability that a registered classifier gives the finished output is at least `threshold`."""

    id: str
    threshold: float

    def probabilities(self, prompt_ids: Sequence[int], texts: Sequence[Text]) -> list[float]:
        """Raises ValueError for what is no probability."""
        found = [float(p) for p in CLASSIFIERS.get(self.id).probabilities(prompt_ids, texts)] if texts else []
        if len(found) != len(texts) or not all(0 <= p <= 1 for p in found):
            raise ValueError(f"classifier '{self.id}' gave {found} for {len(texts)} texts")
        return found


class Event:
    """All parts of an event, asked of one request."""

    def __init__(self, parts: Mapping[str, Any], task: Task) -> None:
        """`parts`: what `event_fields.parse` has returned."""
        self._limits, self._prompt_ids = task.limits, task.prompt_ids
        make: dict[str, Callable[[Any], Part]] = {
            "finished": lambda _: Finished(math.inf if task.limits.stops else task.limits.max_tokens - 1),
            "no_repeat": lambda part: NoRepeat(**part),
            "no_prompt_copy": lambda part: NoPromptCopy(part["n"], np.array(task.prompt_ids, np.int64)),
            "regex_not": RegexNot,
        }
        self._parts: list[Part] = [Length(parts.get("min_len", 0), parts.get("max_len", math.inf))]
        self._parts += [make[name](part) for name, part in parts.items() if name in make]
        self._classification = Classification(**parts["classifier"]) if "classifier" in parts else None

    def text(self, ids: Sequence[int], end: End | None) -> Text:
        return Text.of(ids, end, self._limits)

    def allowed(self, texts: Sequence[Sequence[int]], vocab: int) -> Tensor:
        """[R, V] bool, CPU: tokens that may follow these output ids."""
        allowed = np.ones((len(texts), vocab), bool)
        ending = [token for token in self._limits.ending_ids if token < vocab]
        for ids, row in zip(texts, allowed, strict=True):
            known = np.array(ids, np.int64)
            for part in self._parts:
                part.allow(known, row)
            row[ending] = all(part.may_end(known) for part in self._parts)
        return torch.from_numpy(allowed)

    def admits(self, text: Text) -> bool:
        """Whether all parts but the classifier hold; of a text that goes on, whether they still can."""
        if text.end is None:
            return all(part.possible(text) for part in self._parts)
        return all(part.holds(text) for part in self._parts)

    def holds(self, texts: Sequence[Text]) -> list[bool]:
        """Of texts that have ended. Raises ValueError for what is no probability."""
        said = self.probabilities(texts)
        return [self.admits(text) and p >= self.threshold for text, p in zip(texts, said, strict=True)]

    def probabilities(self, texts: Sequence[Text]) -> list[float]:
        """The classifier's word on each; 1 without a classifier. Raises ValueError for what is no probability."""
        if self._classification is None:
            return [1.0] * len(texts)
        return self._classification.probabilities(self._prompt_ids, texts)

    @property
    def threshold(self) -> float:
        """What the classifier has to say at least of a text that the event holds for."""
        return 0.0 if self._classification is None else self._classification.threshold


def _followers(history: Ids, ngram: Ids) -> Ids:
    """What comes after each occurrence of an n-gram; of the empty one, everything."""
    places = np.arange(len(history) - len(ngram))
    for offset, token in enumerate(ngram):
        places = places[history[places + offset] == token]
    return history[places + len(ngram)]


def _ngrams(ids: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
