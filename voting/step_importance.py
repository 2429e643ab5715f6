"""How much each step of a reasoning adds to the probability of its answer: perplexity-based importance (PIR).

LIMOPro, arXiv 2505.19187; voting.md section 16. Knows tokens and their probabilities, not where these come from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from types import MappingProxyType

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Derivation:
    """An answer and what led to it, as token ids. Each part was tokenised on its own, so leaving a step out changes no
    token of the others."""

    prompt: Ids  # at least one
    steps: tuple[Ids, ...]
    answer: Ids  # at least one

    def ids(self, without: int | None = None) -> Ids:
        """All of it, but for the step of this number. The last `len(answer)` are the answer."""
        kept = (step for number, step in enumerate(self.steps) if number != without)
        return tuple(chain(self.prompt, *kept, self.answer))

    @property
    def scored(self) -> list[int]:
        """Numbers of the steps that have tokens: without another one nothing is different."""
        return [number for number, step in enumerate(self.steps) if step]


def _per_token(logprobs: Sequence[float]) -> float:
    return _sum(logprobs) / len(logprobs)


def _sum(logprobs: Sequence[float]) -> float:
    return 0.0 - math.fsum(logprobs)  # never -0.0


# how an answer's log-probabilities, ln p of each of its tokens, become its negative log-likelihood
NORMALISATIONS: Mapping[str, Callable[[Sequence[float]], float]] = MappingProxyType({"token": _per_token, "sum": _sum})


@dataclass(frozen=True)
class Importances:
    """Negative log-likelihoods of an answer, in nats: per token, where they are ln of its perplexity, or of all."""

    base_nll: float  # with all steps
    nll_without: tuple[float, ...]  # each step

    @property
    def importance(self) -> tuple[float, ...]:
        """Per step; positive: the answer is more probable with it."""
        return tuple(nll - self.base_nll for nll in self.nll_without)


def importances(
    steps: int, base: Sequence[float], without: Mapping[int, Sequence[float]], normalise: str = "token"
) -> Importances:
    """base: ln p of each token of the answer, at least one, under the raw model behind all steps; finite.

    without: the same behind all steps but one, by its number; steps that are not in it have no tokens.
    normalise: one of NORMALISATIONS.
    """
    nll = NORMALISATIONS[normalise]
    return Importances(nll(base), tuple(nll(without.get(number, base)) for number in range(steps)))
