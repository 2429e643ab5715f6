"""Step importance of a finished chain of reasoning: from its texts to the probabilities of its answer.

What the numbers mean is said in `voting.step_importance`. Lives in the event loop.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass

from server.answers.logprobs import finite
from server.errors import internal, refuse, too_long
from server.prompt_scores import known
from server.prompts import PromptInput
from server.state import ServedModel
from server.together import all_of
from voting.step_importance import Derivation, Importances, importances

TOKENS_IN_FLIGHT = 16_384  # of one analysis: some steps of work, and half of what an engine on a CPU lets wait


@dataclass(frozen=True)
class Analysis:
    """What an answer owes to the steps before it, and what finding out has cost."""

    importances: Importances
    prompt_tokens: int  # of all prompts that were scored
    cached_tokens: int  # of those, that the prefix cache had


def check_length(model: ServedModel, text: str, param: str) -> None:
    """Refuse at once what is much too long for the model. `param`: the field it came from."""
    limit = model.runner.max_model_len
    if model.tokenizer.surely_longer_than(text, limit):
        raise too_long(f"'{param}' has {len(text)} characters; the context has {limit} tokens", param)


async def derivation(
    model: ServedModel, prompt: PromptInput, steps: Sequence[str], answer: str, param: str
) -> Derivation:
    """The parts as tokens. `param`: the field that the steps came from."""
    codec, limit = model.tokenizer, model.runner.max_model_len
    # a space in front of a part is the one that tokenizers like SentencePiece put there
    encoded = await codec.encode_all([text[codec.leading_spaces(text) :] for text in (*steps, answer)], False)
    *parts, last = [tuple(one.ids) for one in encoded]
    if not last:
        refuse("'answer' has no tokens", "answer")
    whole = Derivation(tuple(prompt.ids), tuple(parts), last)
    if (length := len(whole.ids())) > limit:
        longest = param if len(whole.prompt) + len(last) <= limit else prompt.param
        raise too_long(f"prompt, steps and answer have {length} tokens; the context has {limit}", longest)
    return whole


async def analyse(
    model: ServedModel,
    whole: Derivation,
    normalise: str,
    *,
    identity: str,
    prompts_in_flight: int,
    cache_salt: str,
    priority: int,
) -> Analysis:
    """Ask for the answer behind all steps, and behind all but each. `identity`: of the work, for the engine.

    Raises ApiError or what the runner raises.
    """
    gate = asyncio.Semaphore(max(1, min(prompts_in_flight, TOKENS_IN_FLIGHT // len(whole.ids()))))
    prompt_tokens = cached_tokens = 0

    async def ask(without: int | None) -> list[float]:
        nonlocal prompt_tokens, cached_tokens
        async with gate:
            ids, name = whole.ids(without), f"{identity}-{'all' if without is None else without}"
            first = len(ids) - len(whole.answer)
            found = await known(model.runner, name, ids, first, cache_salt=cache_salt, priority=priority)
        if any(map(math.isnan, found.logprobs)):
            raise internal()
        prompt_tokens += len(ids)
        cached_tokens += found.cached_tokens
        return [finite(logprob) for logprob in found.logprobs]

    base = await ask(None)  # the others find what they begin with in the prefix cache
    without = dict(zip(whole.scored, await all_of(ask(number) for number in whole.scored), strict=True))
    return Analysis(importances(len(whole.steps), base, without, normalise), prompt_tokens, cached_tokens)
