"""Superposed decoding: several short drafts from one sequence of forward passes (Shen et al., arXiv 2405.18400;
samplers.md section 10).

The drafts share one KV sequence. From its second token on it is fed the drafts' newest tokens at once, as a mixture of
their embeddings by weight gamma = softmax(scores); the one row that comes back scores the next token of every draft,
and counts of n-grams (NgramTables) tell which candidate follows which draft. What is returned is known only at the end,
as a draft can be overtaken by any other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from samplers.contract import Param, SamplerError
from samplers.failures import CONSTRAINT_UNSATISFIABLE
from samplers.model_facts import ModelFacts
from samplers.programs.branch import Branch, End, Mixture, Token
from samplers.programs.contract import PROGRAMS, BaseProgram, ProgramError, Run, Setting, Task
from samplers.programs.ngrams import HIGHEST, LOWEST, NOWHERE, Floats, Ints, NgramTables
from samplers.programs.rows import Rows

MOST_DRAFTS = 10
MOST_TOKENS = 64
DEFAULT_ALPHA = 0.54
DEFAULT_WEIGHTS = (0.01, 0.04, 0.15, 0.18, 0.12)  # of n-grams of order 2 to 6
_NEVER_SEEN = 200.0  # what a token loses that no n-gram leads to
_LARGEST_EXPONENT = 700.0  # exp of more is no finite number
# stages that look at nothing but the row and its place: all drafts share the row, so a history would be nobody's own
_ROW_STAGES = frozenset(
    {"allowed_token_ids", "logit_bias", "min_tokens", "top_n_sigma", "top_k", "top_p", "min_p", "tail_free", "top_h"}
    | {"typical", "epsilon", "eta", "top_a", "smoothing"}
)
# the defaults of these depend on the model and on n: None stands for them
_ALPHA = Param("alpha", float, 0.0, low=0.0, high=1.0)
_CANDIDATES = Param("m", int, 1, low=1, high=1024)


@dataclass(frozen=True)
class Draft:
    """One text so far."""

    tokens: tuple[Token, ...] = ()  # logprob: of the row shared by all drafts; logq: what the token added to the score
    score: float = 0.0  # nats, never rising
    end: End | None = None

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]

    @property
    def mean(self) -> float:
        """Score per token; drafts that have ended are compared by it."""
        return self.score / len(self.tokens)


@dataclass(frozen=True)
class Scoring:
    """Scores of candidates, and n-grams to tell the drafts apart."""

    temperature: float
    candidates: int  # m
    alpha: float = 0.0
    weights: tuple[float, ...] = ()
    tables: NgramTables | None = None

    def first(self, rows: Rows, count: int) -> tuple[list[Token], Floats]:
        """The best `count` tokens of the prompt's row and ln p of each, [1, count]; no n-grams yet."""
        tokens, scaled = self._best(rows, count)
        total = (rows.shaped[0].double() / self.temperature).logsumexp(0).item()
        return tokens, (scaled - total)[None]

    def next(self, rows: Rows, contexts: Ints) -> tuple[list[Token], Floats]:
        """The best m tokens of the shared row and f of each behind every draft, [K, m] nats.

        contexts: [K, 5] the last tokens of prompt and draft. f = (1 - alpha) ln p + alpha ln p_ngram, where p is
        renormalised over the m; a token without any n-gram gets (1 - alpha) ln p - 200.
        """
        tokens, scaled = self._best(rows, self.candidates)
        log_p = np.broadcast_to(scaled - np.logaddexp.reduce(scaled), (len(contexts), len(tokens)))
        if not self.alpha or self.tables is None:
            return tokens, log_p
        p_ngram = self.tables.probability(contexts, _ids(tokens), self.weights)
        seen = p_ngram > 0
        log_ngram = np.log(p_ngram, where=seen, out=np.zeros_like(p_ngram))
        return tokens, (1 - self.alpha) * log_p + np.where(seen, self.alpha * log_ngram, -_NEVER_SEEN)

    def _best(self, rows: Rows, count: int) -> tuple[list[Token], Floats]:
        """The best tokens of the only row and their logits over the temperature."""
        (tokens,) = rows.best(count)
        logits = rows.shaped[0, [token.id for token in tokens]].double().cpu().numpy()
        return tokens, logits / self.temperature


@PROGRAMS.register
class Superposed(BaseProgram):
    """n short drafts, best first. Choices come at the end."""

    name = "superposed"
    params = (
        Param("superposed_temperature", float, 0.06, low=1e-3, high=100.0),
        Param("reset_every", int, 0, low=1, high=MOST_TOKENS, also=(0,)),
    )
    structured = ("alpha", "weights", "m")
    structured_defaults = {"alpha": None, "weights": None, "m": None}
    needs = BaseProgram.needs | {"input_embeddings"}
    default_n = 3
    default_max_tokens = 10
    default_temperature = 1.0

    def parse(self, field: str, value: Any, path: str, model: ModelFacts) -> Any:
        if field == "m":
            return _CANDIDATES.check(value, path)
        checked = _weights(value, path) if field == "weights" else _ALPHA.check(value, path)
        if not checked:
            return checked
        if model.ngrams is None:
            raise SamplerError(
                f"'{path}' needs n-gram tables, and none are loaded: make them with 'drafthouse index' and start with "
                "'drafthouse serve --ngrams FILE'",
                path,
            )
        if isinstance(checked, tuple) and len(checked) > len(model.ngrams.orders):
            raise SamplerError(f"'{path}': the loaded n-grams have orders {LOWEST} to {model.ngrams.orders[-1]}", path)
        return checked

    def check(self, values: Mapping[str, Any], setting: Setting) -> None:
        super().check(values, setting)
        if not 1 <= setting.n <= MOST_DRAFTS:
            raise SamplerError(f"'{self.name}' makes 1 to {MOST_DRAFTS} drafts, got n {setting.n}", "n")
        if setting.max_tokens > MOST_TOKENS:
            raise SamplerError(
                f"'{self.name}' makes at most {MOST_TOKENS} tokens, got {setting.max_tokens}", "max_tokens"
            )
        for stage in sorted(setting.stages - _ROW_STAGES):
            raise SamplerError(
                f"'{self.name}' cannot be combined with '{stage}': its drafts share one row, so a stage can only see "
                "the row",
                "sampler",
            )

    def run(self, task: Task) -> Run:
        scoring = _scoring(task.values, task.n, task.model.ngrams)
        branch, passes = task.root, 0
        live, finished = [Draft()], list[Draft]()
        while live and live[0].end is None and len(finished) < task.n:
            if passes:
                _feed(branch, live, task.values["reset_every"])
            rows = yield [branch]
            passes += 1
            if passes == 1:
                tokens, gains = scoring.first(rows, 2 * task.n)
            else:
                tokens, gains = scoring.next(rows, _contexts(task.prompt_ids, live))
            best = extended(live, tokens, gains, 2 * task.n)
            best = [replace(draft, end=task.limits.end(draft.ids)) for draft in best]
            # an ending below the best n is dropped, as every other draft there is: with n = 1 this is greedy decoding
            finished = _by_mean([*finished, *filter(_stopped, best[: task.n])])[: task.n]
            live = [draft for draft in best if not _stopped(draft)][: task.n]
        task.report.update(
            forward_passes=passes,
            alpha=scoring.alpha,
            ngram_weights={str(order): weight for order, weight in enumerate(scoring.weights, LOWEST)},
            logprobs="approximate",
        )
        ended = _by_mean([*finished, *(draft for draft in live if draft.end)])[: task.n]
        if not ended:
            raise ProgramError(CONSTRAINT_UNSATISFIABLE, "the request's masks leave no token to continue with")
        for choice, draft in enumerate(ended):
            assert draft.end is not None
            perplexity = math.exp(min(-draft.mean, _LARGEST_EXPONENT))
            task.finish(choice, draft.tokens, draft.end, score=draft.score, perplexity=perplexity)


def _scoring(values: Mapping[str, Any], n: int, tables: NgramTables | None) -> Scoring:
    """The request's, defaults filled in; without tables alpha is 0."""
    alpha = (DEFAULT_ALPHA if tables else 0.0) if values["alpha"] is None else values["alpha"]
    if not alpha:
        return Scoring(values["superposed_temperature"], values["m"] or 3 * n)
    assert tables is not None  # `parse` refuses an alpha without them
    weights = (values["weights"] or DEFAULT_WEIGHTS)[: len(tables.orders)]
    return Scoring(values["superposed_temperature"], values["m"] or 3 * n, alpha, weights, tables)


def _feed(branch: Branch, live: Sequence[Draft], reset_every: int) -> None:
    """Append the mixture of the drafts' newest tokens.

    It comes behind the mixtures so far; every `reset_every` tokens behind the best draft's own tokens instead, because
    the mixtures hold what dropped drafts have left in them.
    """
    scores = np.array([draft.score for draft in live])
    gamma = np.exp(scores - np.logaddexp.reduce(scores))
    if reset_every and len(live[0].tokens) % reset_every == 0:
        branch.truncate(0)
        for token in live[0].tokens[:-1]:
            branch.push(token)
    branch.mix(Mixture(tuple(draft.tokens[-1].id for draft in live), tuple(gamma.tolist())))


def _contexts(prompt_ids: Sequence[int], drafts: Sequence[Draft]) -> Ints:
    """[K, 5] the last tokens of prompt and draft."""
    width = HIGHEST - 1
    padded = [NOWHERE] * width + list(prompt_ids[-width:])
    return np.array([(padded + draft.ids)[-width:] for draft in drafts])


def extended(drafts: Sequence[Draft], tokens: Sequence[Token], gains: Floats, count: int) -> list[Draft]:
    """The best `count` of every draft followed by every token, descending; of equal ones the better draft's first, then
    the lower id. gains: [K, M]."""
    scores = np.array([draft.score for draft in drafts])[:, None] + gains
    parents, columns = np.divmod(np.arange(scores.size), max(len(tokens), 1))
    best = np.lexsort((_ids(tokens)[columns], parents, -scores.ravel()))[:count]
    return [
        Draft(
            (*drafts[parent].tokens, replace(tokens[column], logq=float(gains[parent, column]))),
            float(scores[parent, column]),
        )
        for parent, column in zip(parents[best], columns[best], strict=True)
    ]


def _ids(tokens: Sequence[Token]) -> Ints:
    return np.array([token.id for token in tokens], np.int64)


def _stopped(draft: Draft) -> bool:
    return draft.end is not None and draft.end.reason == "stop"


def _by_mean(drafts: Sequence[Draft]) -> list[Draft]:
    """The best mean score first."""
    return sorted(drafts, key=lambda draft: -draft.mean)


def _weights(value: Any, path: str) -> tuple[float, ...]:
    """lambda of order 2, 3, ...; Raises SamplerError."""
    most = HIGHEST - LOWEST + 1
    if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= most:
        raise SamplerError(
            f"'{path}' must be a list of 1 to {most} numbers, for n-grams of order {LOWEST} and up", path
        )
    one = Param("weight", float, 0.0, low=0.0, high=1.0)
    weights = tuple(float(one.check(weight, f"{path}[{i}]")) for i, weight in enumerate(value))
    if not 0 < math.fsum(weights) <= 1 + 1e-9:
        raise SamplerError(f"'{path}' must have a sum in (0, 1]", path)
    return weights
