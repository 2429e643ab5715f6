"""The contract of voting: samples of one prompt, clusters of equivalent answers, and rules that weigh them.

Knows nothing about how samples are drawn. Log-probabilities are natural logs under the raw model; weights are float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from samplers.contract import Param
from samplers.registry import Registry

TIE = 1e-12  # relative difference of weights below which clusters are tied


@dataclass(frozen=True)
class Sample:
    """One finished completion."""

    index: int  # choice i of the request with n = K
    text: str
    answer: str | None = None  # as extracted; None: it abstains
    option: bool = False  # the answer is the letter of an option
    token_ids: tuple[int, ...] | None = None  # generated, an ending EOS included; None: not known
    n_tokens: int = 0
    mean_logprob: float | None = None  # per generated token; None: not known
    finish_reason: str = "stop"
    abstain_reason: str | None = None  # 'no_answer', 'truncated', 'repetition', 'bad_logprob', 'low_confidence', ...
    weight: float = 1.0  # of samplers that weigh their samples (EAGER's tree_weight)
    entropies: tuple[float, ...] | None = None  # nats, of each token's renormalised top k
    confidences: tuple[float, ...] | None = None  # of each token: minus the mean ln p of its top k
    scores: Mapping[str, float] = field(default_factory=dict)  # by scorer

    @property
    def abstains(self) -> bool:
        return self.answer is None or self.abstain_reason is not None

    @property
    def q(self) -> float:
        """exp of the mean log-probability: 1 / perplexity. Raises ValueError where it is not known."""
        if self.mean_logprob is None:
            raise ValueError(f"sample {self.index} has no log-probabilities")
        return math.exp(self.mean_logprob)

    @property
    def sum_logprob(self) -> float:
        """ln of the joint probability. Raises ValueError where it is not known."""
        if self.mean_logprob is None or not self.n_tokens:
            raise ValueError(f"sample {self.index} has no log-probabilities or no length")
        return self.mean_logprob * self.n_tokens

    @property
    def identity(self) -> tuple[int, ...] | str:
        """What equal completions have in common: their tokens, or where these are not known their text."""
        return self.text if self.token_ids is None else self.token_ids


class Question(NamedTuple):
    """What a judge is asked."""

    prompt: str
    order: tuple[int, ...]  # sample index of response 1, 2, ...


@dataclass(frozen=True)
class Cluster:
    """Samples that do not abstain and whose answers are equivalent. `members` ascend."""

    answer: str  # of its first member
    key: str  # canonical form of the answer
    rung: int  # of the equivalence ladder, the highest one that merged two of its answers; 0: all spelled alike
    members: tuple[int, ...]  # sample indices


@dataclass(frozen=True)
class Tally:
    """What a rule makes of the clusters."""

    weights: tuple[float, ...]  # one per cluster, in the clusters' order; not negative where `shares`
    choice: int | None = None  # the sample that the rule itself picks; None: the heaviest cluster's most probable one
    confidence: float | None = None  # in the winner, where it is not its share of the weights
    shares: bool = True  # whether weights add up, so that shares mean something
    sample_weights: Mapping[int, float] = field(default_factory=dict)  # sample index -> what it is worth
    pruned: Mapping[int, str] = field(default_factory=dict)  # sample index -> why it counts for nothing
    pruning: Mapping[str, Any] | None = None  # finite JSON: the fit behind `pruned`
    fallback: str | None = None  # another rule that had to decide, and why
    notes: Mapping[str, Any] = field(default_factory=dict)  # finite JSON: thresholds and the like


class Drawing(StrEnum):
    """How the samples of a vote come about."""

    INDEPENDENT = "independent"  # all from the prompt
    SCREENED = "screened"  # likewise, but the later ones may be ended for what the first ones were like (`Screening`)
    CHAINED = "chained"  # one after the other, each after the prompt and what was tried before (`chain.py`)


class VotingRule(Protocol):
    """Weighs clusters of answers. Stateless and pure: equal samples give equal tallies."""

    name: ClassVar[str]
    params: ClassVar[tuple[Param, ...]]  # of the request's `voting.params`
    structured: ClassVar[tuple[str, ...]]  # those that are no scalars, checked by `parse`
    structured_defaults: ClassVar[Mapping[str, Any]]
    default_samples: ClassVar[int]  # of a request that does not say
    instruction: ClassVar[str]  # appended to the prompt, without it the samples lack what the rule reads

    def parse(self, field: str, value: Any, path: str) -> Any:
        """The checked value of a structured field. Raises SamplerError."""
        ...

    def check(self, values: Mapping[str, Any], samples: int) -> None:
        """Raises SamplerError for values that exclude each other or a vote over this many samples."""
        ...

    def needs(self, values: Mapping[str, Any]) -> frozenset[str]:
        """Of samples: 'logprobs', 'lengths', 'entropies', 'confidences', 'scores'."""
        ...

    def drawing(self, values: Mapping[str, Any]) -> Drawing: ...

    def answer_text(self, text: str) -> str:
        """The part of a completion in which its answer is looked for."""
        ...

    def abstentions(self, samples: Sequence[Sample], values: Mapping[str, Any]) -> Mapping[int, str]:
        """Sample index -> why, of those that have an answer but nothing this rule could weigh it by. Raises
        SamplerError where what the rule needs was never recorded."""
        ...

    def tally(self, samples: Sequence[Sample], clusters: Sequence[Cluster], values: Mapping[str, Any]) -> Tally:
        """samples: all of them, in index order; clusters: of those that do not abstain, by first member, at least
        one. `abstentions` have been applied to both."""
        ...


@runtime_checkable
class Judging(Protocol):
    """A rule that asks a model about the samples before it weighs them."""

    def ask(self, problem: str, samples: Sequence[Sample], values: Mapping[str, Any], seed: int) -> Question | None:
        """None: there is no choice to make."""
        ...

    def answer(self, samples: Sequence[Sample], question: Question, reply: str) -> list[Sample]:
        """The samples, with what the reply says about them in their scores, under the rule's name."""
        ...


@runtime_checkable
class Screening(Protocol):
    """A rule that ends traces which look worse than the first ones, by the confidence of their tokens."""

    def threshold(self, samples: Sequence[Sample], values: Mapping[str, Any]) -> float | None:
        """What the mean confidence of a window of `values["window"]` tokens may not fall below, from the first
        `values["warmup"]` samples, whether or not they have an answer. None: there are fewer, or none of them has
        confidences."""
        ...

    def has_consensus(self, tally: Tally, values: Mapping[str, Any]) -> bool:
        """Whether to stop drawing after this tally of the samples so far, which are more than the warm-up."""
        ...


VOTING_RULES: Registry[VotingRule] = Registry("voting rule", "drafthouse.voting_rules")
