"""The field `prompt_boundary`: continue a prompt as a string, whatever tokens it was sent as.

`server.text.covers` lists the covers of a prompt's end; the runner's probabilities, asked for in one-token requests,
weigh them; every choice draws one and goes on behind it. Any runner can serve that. Lives in the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np

from engine.request import DecodeRequest, Delta, Finish, FinishReason, TokenScore
from engine.runners.base import Runner
from samplers.chain import Chain, resolve
from samplers.quantise import pick, quantise
from samplers.registry import DRAWS
from samplers.rng import Noise, Purpose
from server.errors import internal, refuse, too_long, unavailable
from server.offload import offload
from server.prompts import PromptInput
from server.schema.common import GenerationBody
from server.state import ServedModel
from server.text.covers import Context, Cover, Covering
from server.together import all_of
from server.whole_output import whole_output

OFF, HEAL, EXACT = "off", "heal", "exact"
MASKS = ("allowed_token_ids", "bad_words_ids")  # stages that promise something about every token


@dataclass(frozen=True)
class Part:
    """Choices of one prompt that go on behind the same cover, or all of a prompt whose tokens stay."""

    request: DecodeRequest
    first: int = 0  # the prompt's choice that is the request's first
    beyond: Cover | None = None  # its last token is the choices' first: it adds to the prompt
    opening: Delta | None = None  # that token


@dataclass(frozen=True)
class Start:
    """A prompt's choices, each with its cover."""

    parts: tuple[Part, ...]
    cached_tokens: int  # of the prompt, before its covers were weighed


async def cover_prompts(
    model: ServedModel, mode: str | None, prompts: Sequence[PromptInput], open_end: bool = True
) -> list[Covering] | None:
    """The covers of every prompt, or None where they are not wanted. Without an `open_end` what the template wrote last
    is no text to go on with."""
    if mode in (None, OFF):
        return None
    if not open_end:
        return [Covering(tuple(prompt.ids), b"", ()) for prompt in prompts]
    if not model.tokenizer.has_bytes:
        raise unavailable("prompt_boundary", "the tokens of this model have no bytes of their own; a boundary is")
    return await asyncio.to_thread(_cover_all, model, mode, prompts)


def _cover_all(model: ServedModel, mode: str, prompts: Sequence[PromptInput]) -> list[Covering]:
    if mode == EXACT and not model.covers.is_exact:
        raise unavailable("prompt_boundary", "this model has tokens that merges do not make; 'exact' is")
    find = model.covers.heal if mode == HEAL else model.covers.exact
    coverings = [find(prompt.ids) for prompt in prompts]
    limit = model.runner.max_model_len
    for prompt, covering in zip(prompts, coverings, strict=True):
        longest = len(covering.kept) + max((len(cover.ids) for cover in covering.covers), default=0)
        if covering.end and longest >= limit:
            message = f"written anew, the prompt can have {longest} tokens; the context of {limit} leaves no room"
            raise too_long(message, prompt.param)
    return coverings


def check_boundary(body: GenerationBody, chain: Chain, logprobs: int | None, prompt_logprobs: int | None) -> None:
    """Refuse what a cover cannot honour: it is not drawn by the chain, and the prompt's tokens are not those sent."""
    name = "prompt_boundary"
    if prompt_logprobs is not None:
        refuse(f"'{name}' excludes log-probabilities of the prompt: its tokens are not the ones that were sent", name)
    if logprobs is not None and body.logprobs_mode == "processed":
        refuse(f"'{name}' excludes 'logprobs_mode' 'processed': the chain does not draw the first token", name)
    for stage in chain.stages:
        if stage.name in MASKS:
            refuse(f"'{name}' excludes '{stage.name}': the end of the prompt is written with any tokens", name)
    if not chain.greedy and DRAWS.get(chain.draw.name).shared_noise:
        refuse(f"'{name}' excludes the draw '{chain.draw.name}': its choices share one prompt", name)


def report(mode: str, coverings: Sequence[Covering]) -> dict[str, Any]:
    """What the response says, over all prompts."""
    ends, covers = sum(len(one.end) for one in coverings), sum(len(one.covers) for one in coverings)
    return {"mode": mode, "bytes": ends, "covers": covers}


async def begin(runner: Runner, request: DecodeRequest, covering: Covering, gate: asyncio.Semaphore) -> Start:
    """Weigh the covers and let every choice of `request` draw one."""
    contexts = await offload(len(covering.covers), covering.questions)
    asked = [_question(request, covering, at, context, contexts[context]) for at, context in enumerate(contexts)]

    async def ask(question: DecodeRequest) -> tuple[TokenScore, int]:
        async with gate:
            return await _answer(runner, question)

    # the shortest context first: the others find it in the prefix cache
    answers = [await ask(asked[0]), *await all_of(ask(question) for question in asked[1:])]
    scores = {context: score for context, (score, _) in zip(contexts, answers, strict=True)}

    def weigh() -> list[int]:
        return draw(covering.log_weights({context: dict(score.extra) for context, score in scores.items()}), request)

    drawn = await offload(len(covering.covers), weigh)
    parts = [
        _part(request, covering, covering.covers[cover], list(choices), scores, runner.max_model_len)
        for cover, choices in groupby(range(request.n), key=drawn.__getitem__)
    ]
    return Start(tuple(parts), answers[0][1])


def draw(log_weights: Sequence[float], request: DecodeRequest) -> list[int]:
    """The cover of each choice, drawn at temperature 1; the first of the likeliest if the request is greedy."""
    weights = np.array([log_weights])
    if np.isnan(weights).any() or not np.isfinite(weights.max()):
        raise internal()  # a model that gives a prompt no probability at all cannot continue it
    if request.chain.greedy:
        return [int(weights.argmax())] * request.n
    choices = request.first_choice + np.arange(request.n)
    noise = Noise(np.full(request.n, request.seed), choices, np.zeros(request.n, np.int64))
    row = quantise(weights)
    return [int(pick(row, bits)[0]) for bits in noise.bits(Purpose.BOUNDARY)[:, None]]


def _question(
    request: DecodeRequest, covering: Covering, number: int, context: Context, tokens: list[int]
) -> DecodeRequest:
    """A request for the probabilities of some tokens after a context."""
    return replace(
        request,
        id=f"{request.id}-boundary{number}",
        prompt_ids=covering.kept + context,
        chain=resolve({}, 1 + max(tokens)),
        n=1,
        max_tokens=1,
        min_tokens=0,
        eos_token_ids=frozenset(),
        stop_token_ids=frozenset(),
        logprobs=request.logprobs or 0,
        logprob_token_ids=tuple(sorted({*tokens, *request.logprob_token_ids})),
        trace=None,
        delivery_interval_s=0.0,
        speculation=None,
    )


async def _answer(runner: Runner, question: DecodeRequest) -> tuple[TokenScore, int]:
    """(what was asked, cached prompt tokens)."""
    output = await whole_output(runner, question)
    return output.deltas[0].scores[0], output.cached_tokens


def _part(
    request: DecodeRequest,
    covering: Covering,
    cover: Cover,
    choices: list[int],
    scores: dict[Context, TokenScore],
    max_model_len: int,
) -> Part:
    """The choices that drew a cover. A last token that adds to the prompt is their first output, else it is prompt."""
    prompt = covering.kept + (cover.left if cover.beyond else cover.ids)
    budget = min(request.max_tokens, max_model_len - len(prompt))
    own = replace(
        request,
        id=f"{request.id}-{choices[0]}",
        prompt_ids=prompt,
        begun=(cover.last,) if cover.beyond else (),
        n=len(choices),
        first_choice=request.first_choice + choices[0],
        max_tokens=budget,
    )
    if not cover.beyond:
        return Part(own, choices[0])
    score = _score(scores[cover.left], cover.last, request)
    opening = Delta(0, [cover.last], [score.logprob])
    if request.logprobs is not None:
        opening.scores.append(score)
    if cover.last in request.stop_token_ids and request.min_tokens < 1:
        opening.finish = Finish(FinishReason.STOP, cover.last)
    elif budget == 1:
        opening.finish = Finish(FinishReason.LENGTH)
    return Part(own, choices[0], cover, opening)


def _score(row: TokenScore, token: int, request: DecodeRequest) -> TokenScore:
    """What the row a token was weighed in says about it, in the form a drawn token has."""
    known = dict(row.extra)
    # the rank of a generated token is never shown; of one below the top list it is not known
    rank = next((at for at, (other, _) in enumerate(row.top, 1) if other == token), len(row.top) + 1)
    extra = tuple((other, known[other]) for other in request.logprob_token_ids)
    return TokenScore(known[token], rank, row.top, extra)
