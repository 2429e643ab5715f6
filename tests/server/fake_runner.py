"""A runner without a model: a hash of the last tokens gives each next-token distribution.

Honours what the torch runner honours - seeds, masks, bias, temperature, stop ids, min_tokens, logprobs, aborts - so
that laws of the interface can be tested against it, and misbehaves on demand. Where it may speculate, each output of a
choice counts as a step whose tokens but the last were drafts.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np

from engine.request import DecodeRequest, Delta, Finish, FinishReason, Output, TokenScore
from engine.runners.base import Capability, EngineFailed, Health, Overloaded, Stats, TooLarge
from samplers.model_facts import NO_FACTS, ModelFacts
from spec_decode.acceptance import Verified
from spec_decode.drafters import PromptLookup, Suffix
from spec_decode.facts import SpecOffer
from spec_decode.statistics import SpecStatistics

OFFER = SpecOffer((Suffix(), PromptLookup()))
CONTEXT = 2  # tokens a distribution depends on


@dataclass
class Behaviour:
    """How the runner misbehaves; `reset` makes it good again."""

    script: Callable[[DecodeRequest, int], list[int]] | None = None  # tokens of a choice; EOS follows
    step_s: float = 0.0  # pause between steps
    burst: int = 1  # tokens per output and choice
    fail_after: int | None = None  # steps after which the engine dies
    raise_after: tuple[int, Exception] | None = None
    errors: Mapping[int, tuple[int, str]] = field(default_factory=dict)  # choice -> (token, error code)
    overloaded: bool = False
    too_large: bool = False
    dead: bool = False


class FakeRunner:
    """See the module's docstring. `name` and sizes are those of the embedded model."""

    name = "torch"
    capabilities = frozenset(Capability) - {
        Capability.TREES,
        Capability.INPUT_EMBEDDINGS,
        Capability.HIDDEN_STATES,
        Capability.SAMPLER_TRACE,
    }

    def __init__(
        self, vocab_size: int, max_model_len: int, ending: frozenset[int], facts: ModelFacts = NO_FACTS
    ) -> None:
        self.vocab_size = vocab_size
        self.facts = facts
        self.max_model_len = max_model_len
        self.offer = OFFER
        self.speculation: dict[tuple[str, str], SpecStatistics] = {}
        self._ending = ending
        self.behaviour = Behaviour()
        self.live: dict[str, set[int | None]] = {}  # request -> aborted choices; None: all of them
        self.aborted: list[tuple[str, int | None]] = []
        self.requests: list[DecodeRequest] = []
        self.generated = 0

    def reset(self) -> None:
        self.behaviour = Behaviour()
        self.aborted.clear()
        self.requests.clear()
        self.speculation.clear()
        self.offer = OFFER

    def follows_seed(self, request: DecodeRequest) -> bool:
        return True

    def abort(self, request_id: str, choice: int | None = None) -> None:
        self.aborted.append((request_id, choice))
        if request_id in self.live:
            self.live[request_id].add(choice)

    def health(self) -> Health:
        return Health(not self.behaviour.dead, "engine stopped" if self.behaviour.dead else "")

    def stats(self) -> Stats:
        return Stats(
            requests_running=len(self.live),
            kv_pages_total=100,
            kv_pages_in_use=len(self.live),
            generated_tokens=self.generated,
            step_seconds={"forward": 0.5, "sample": 0.25},
            speculation=self.speculation,
        )

    async def close(self, grace_s: float = 30.0) -> None:
        self.behaviour.dead = True

    async def submit(self, request: DecodeRequest) -> AsyncIterator[Output]:
        how = self.behaviour
        if how.overloaded or how.dead:
            raise Overloaded("too many requests are waiting")
        if how.too_large:
            raise TooLarge("the request needs more pages than there are")
        assert len(request.prompt_ids) + request.max_tokens <= self.max_model_len
        assert request.id not in self.live and len(request.prompt_ids) >= 1
        self.requests.append(request)
        aborted: set[int | None] = set()
        self.live[request.id] = aborted
        try:
            scores = self._prompt_scores(request)
            if request.max_tokens == 0:
                await asyncio.sleep(how.step_s)
                if how.fail_after == 0:
                    raise EngineFailed("the engine stopped")
                yield Output(prompt_scores=scores, scored=True)
                return
            writers = {j: _Writer(self, request, j) for j in range(request.n)}
            step = 0
            while writers:
                await asyncio.sleep(how.step_s)
                if how.fail_after == step:
                    raise EngineFailed("the engine stopped")
                if how.raise_after is not None and how.raise_after[0] == step:
                    raise how.raise_after[1]
                output = Output(prompt_scores=scores if step == 0 else None)
                for j in list(writers):
                    if not aborted.isdisjoint((j, None)):
                        output.deltas[j] = Delta(
                            j, finish=Finish(FinishReason.ABORT, speculation=writers[j].statistics)
                        )
                    else:
                        output.deltas[j] = writers[j].write(how.burst)
                    if output.deltas[j].finish is not None:
                        del writers[j]
                step += 1
                yield output
        finally:
            del self.live[request.id]

    # --- the model --------------------------------------------------------------------------------------------

    def raw(self, history: tuple[int, ...]) -> np.ndarray:
        """Log-probabilities after a history, fp32 values."""
        key = 0
        for token in history[-CONTEXT:]:
            key = (key * 1_000_003 + token + 1) % 2**32
        return self._row(key)

    @lru_cache(maxsize=2048)  # 32 MB  # noqa: B019 - few runners, which live as long as their tests
    def _row(self, key: int) -> np.ndarray:
        logits = np.random.Generator(np.random.Philox(key)).standard_normal(self.vocab_size, dtype=np.float32) * 2
        logits[list(self._ending)] += 5
        logits[5] = -np.inf  # one token the model never draws
        row = (logits - np.log(np.exp(logits).sum())).astype(np.float32)
        row.flags.writeable = False
        return row

    def score(self, row: np.ndarray, token: int, k: int, extra: tuple[int, ...] = ()) -> TokenScore:
        most = np.argpartition(-row, min(k, len(row)) - 1)[:k] if k > 0 else np.empty(0, int)
        order = most[np.lexsort((most, -row[most]))]
        top = tuple((int(i), float(row[i])) for i in order)
        rank = int((row > row[token]).sum()) + 1
        return TokenScore(float(row[token]), rank, top, tuple((i, float(row[i])) for i in extra))

    def _prompt_scores(self, request: DecodeRequest) -> list[TokenScore | None] | None:
        if request.prompt_logprobs is None:
            return None
        ids, first = request.prompt_ids, request.scored_from
        scores = [self.score(self.raw(ids[:at]), ids[at], request.prompt_logprobs) for at in range(first, len(ids))]
        return [None] * first + scores


class _Writer:
    """One choice."""

    def __init__(self, runner: FakeRunner, request: DecodeRequest, choice: int) -> None:
        self._runner, self._request, self._choice = runner, request, choice
        self._tokens = list(request.begun)
        script = runner.behaviour.script
        self._script = None if script is None else script(request, choice)
        self._values: dict[str, Any] = {}
        for item in request.chain.stages:
            self._values |= item.values
        self._watch = None if request.watch is None else request.watch()
        self.statistics = None if request.speculation is None else SpecStatistics()

    def write(self, count: int) -> Delta:
        """Up to `count` more tokens."""
        request, delta = self._request, Delta(self._choice)
        error = self._runner.behaviour.errors.get(self._choice)
        for _ in range(count):
            if error is not None and error[0] == len(self._tokens):
                delta.finish = Finish(FinishReason.ERROR, error_code=error[1], message="the masks leave no token")
                break
            row = self._runner.raw((*request.prompt_ids, *self._tokens))
            token, final = self._draw(row)
            self._tokens.append(token)
            self._runner.generated += 1
            delta.token_ids.append(token)
            delta.logprobs.append(float(row[token]))
            if request.logprobs is not None:
                shown = final if request.processed_logprobs else row
                delta.scores.append(self._runner.score(shown, token, request.logprobs, request.logprob_token_ids))
            if token in request.eos_token_ids or token in request.stop_token_ids:
                delta.finish = Finish(FinishReason.STOP, token)
            elif len(self._tokens) == request.max_tokens:
                delta.finish = Finish(FinishReason.LENGTH)
            elif self._watch is not None and self._watch.feed(delta.scores[-1]):
                delta.finish = Finish(FinishReason.LENGTH, details={"ended_early": self._watch.reason})
            if delta.finish is not None:
                break
        if self.statistics is not None:
            self._book(self.statistics, count, len(delta.token_ids))
            if delta.finish is not None:
                delta.finish = replace(delta.finish, speculation=self.statistics)
        return delta

    def _book(self, done: SpecStatistics, most: int, emitted: int) -> None:
        request = self._request
        assert request.speculation is not None
        form, path = tuple(range(-1, most - 2)), tuple(range(emitted - 1))
        step = SpecStatistics()
        step.add(Verified(form, path), emitted, request.speculation.draft)
        total = self._runner.speculation.setdefault(
            (request.speculation.draft, request.speculation.verifier), SpecStatistics()
        )
        for one in (done, total):
            one.absorb(step)

    def _draw(self, row: np.ndarray) -> tuple[int, np.ndarray]:
        """The next token and the distribution it came from."""
        if self._script is not None:
            at = len(self._tokens)
            ending = min(self._request.eos_token_ids, default=min(self._runner._ending))
            return (self._script[at] if at < len(self._script) else ending), row
        values, logits = self._values, row.astype(np.float64)
        if len(self._tokens) < self._request.min_tokens:
            logits[list(self._request.eos_token_ids | self._request.stop_token_ids)] = -math.inf
        if "allowed_token_ids" in values:
            allowed = np.full_like(logits, -math.inf)
            allowed[list(values["allowed_token_ids"])] = 0
            logits = logits + allowed
        for word in values.get("bad_words_ids", ()):
            if len(word) == 1 or tuple(self._tokens[-(len(word) - 1) :]) == tuple(word[:-1]):
                logits[word[-1]] = -math.inf
        for token, bias in values.get("logit_bias", {}).items():
            logits[int(token)] += bias
        if not self._request.chain.greedy:
            logits = logits / values.get("temperature", 1.0)
        if "top_k" in values:
            logits[logits < np.sort(logits)[-values["top_k"]]] = -math.inf
        if "min_p" in values:
            logits[logits < logits.max() + math.log(values["min_p"])] = -math.inf
        final = (logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()).astype(np.float32)
        if self._request.chain.greedy:
            return int(np.argmax(logits)), final
        choice = self._request.first_choice + self._choice
        key = np.array([self._request.seed % 2**64, (choice << 32) + len(self._tokens)], dtype=np.uint64)
        noise = np.random.Generator(np.random.Philox(key=key)).gumbel(size=len(logits))
        return int(np.argmax(logits + noise)), final
